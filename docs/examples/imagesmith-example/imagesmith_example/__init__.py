"""Kinds for imagesmith: importing this module declares them."""

from imagesmith_example import answer, base, check, output, step

__all__ = ["answer", "base", "check", "output", "step"]
