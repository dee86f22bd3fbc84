"""A failure in lines: the cause, where that stands in the recipe, what to try, what was kept, and the way in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from imagesmith.errors import ImagesmithError, RecipeError
from imagesmith.view_words import clean

_MOST = 24
"""Lines of a cause that are shown: the last ones."""


def told(error: ImagesmithError) -> list[str]:
    """The whole message. Several that happened side by side come one after the other."""
    if error.several:
        return [line for one in error.several for line in told(one)]
    if isinstance(error, RecipeError):
        first, *rest = [clean(line) for line in error.message.splitlines()] or [""]
        return [f"imagesmith: {first}", *rest, *(f"  hint: {line}" for line in error.hint.splitlines())]
    return [f"imagesmith: {headline(error)}", *(f"  | {line}" for line in cause(error)), *_more(error)]


def headline(error: ImagesmithError) -> str:
    """What failed, in one line."""
    first = clean((error.message.splitlines() or [""])[0]).rstrip(":")
    return f"{clean(error.node)}: {first}" if error.node else first


def cause(error: ImagesmithError) -> list[str]:
    """What showed it: the last words of the program, the installer, the guest's console."""
    said = error.message.splitlines()[1:] or list(error.last)
    found = dedent("\n".join(clean(line).rstrip() for line in said)).splitlines()
    while found and not found[-1]:
        found.pop()
    return found[-_MOST:]


def _more(error: ImagesmithError) -> Iterator[str]:
    if error.place:
        yield f"  at: {error.where}" + (f" ({error.part})" if error.part else "")
    for line in error.hint.splitlines():
        yield f"  hint: {clean(line)}"
    for path in error.evidence:
        yield f"  kept: {path} ({_what(path)})"
    for way in error.ways:
        yield f"  shell: {way}"


def _what(path: Path) -> str:
    """What a file of evidence is, known by its name."""
    if path.suffix == ".png":
        return "a picture of the screen"
    if path.suffix == ".html":
        return "all of it, as a page"
    if "console" in path.name:
        return "what the guest's console showed"
    return "the log" if path.suffix == ".log" else "evidence"
