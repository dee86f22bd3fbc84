"""Assertions about a finished, booted image: one kind per file."""
