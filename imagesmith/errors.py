"""Every exception that imagesmith raises, in one tree.

::

    ImagesmithError                what, why and what to do, for a person
    ├── RecipeError                the recipe or the command line is wrong: all complaints at once (exit 2)
    ├── BuildError                 something went wrong while building (exit 1)
    │   ├── MissingTool            a program that is not on this host, and the packages that hold it
    │   ├── ToolFailed             a program ended badly: its last lines
    │   │   └── StepFailed         … inside the guest, in a step
    │   ├── TimedOut               a deadline passed
    │   ├── Refused                something that must not be trusted: a checksum, a path, an image's header
    │   ├── GuestFailed            the guest did not boot, panicked, or QEMU died
    │   ├── CheckFailed            an assertion about the finished image does not hold
    │   └── StoreError             the store is damaged, foreign or full
    └── Interrupted                Ctrl-C or SIGTERM (exit 130)

Raise anywhere; only ``cli`` catches the whole tree and turns it into an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word most like ``word``, else nothing."""
    found = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


class ImagesmithError(Exception):
    """What went wrong and why; ``hint`` says what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.node = ""
        """The plan's node that was at work, added on the way up."""
        self.place = ""
        """Where in a recipe that node stands: file, line and column."""
        self.part = ""
        """What that node is of its recipe: ``step 2 of 5``."""
        self.last: tuple[str, ...] = ()
        """What was seen last, where the message does not have it: lines of a console or of the node's log."""
        self.kept: Path | None = None
        """The folder with the node's log and other evidence."""
        self.evidence: tuple[Path, ...] = ()
        """The files in it that are this failure's."""
        self.ways: tuple[str, ...] = ()
        """Command lines that let the user look around."""
        self.several: tuple[ImagesmithError, ...] = ()
        """Those that happened side by side, where this stands for several."""

    @property
    def where(self) -> str:
        """The place without its column: file and line."""
        return self.place.rpartition(":")[0]


@dataclass(frozen=True, order=True)
class Complaint:
    """One thing that is wrong with a recipe. ``line`` and ``column`` count from 1."""

    file: Path
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return where + (f"{self.path}: " if self.path else "") + self.message


class RecipeError(ImagesmithError):
    """The recipe (or the command line) is wrong; carries every complaint, sorted by place."""

    exit_code = 2

    def __init__(self, complaints: Sequence[Complaint], message: str = "", *, hint: str = "") -> None:
        self.complaints = tuple(sorted(set(complaints)))
        super().__init__(message or "\n".join(map(str, self.complaints)), hint=hint)


class BuildError(ImagesmithError):
    """Something went wrong while building."""


class MissingTool(BuildError):
    """A program is not on this host."""


class ToolFailed(BuildError):
    """A program ended with a status that means failure.

    ``status`` is its exit status (negative: the signal that ended it), ``tail`` its last lines.
    """

    def __init__(self, message: str, *, status: int = 1, tail: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.tail = tail


class StepFailed(ToolFailed):
    """A program inside the guest, run by a step, ended badly."""


class TimedOut(BuildError):
    """A deadline passed; what was waited for is in the message, what was seen last in ``tail``."""

    def __init__(self, message: str, *, tail: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.tail = tail


class Refused(BuildError):
    """Something that must not be trusted: a wrong checksum, an escaping path, a hostile header."""


class GuestFailed(BuildError):
    """The guest did not come up, panicked, or QEMU died.

    ``tail`` is the end of the console; ``artifacts`` are files (console log, screenshot) worth keeping.
    """

    def __init__(self, message: str, *, tail: str = "", artifacts: Sequence[Path] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.tail = tail
        self.artifacts = tuple(artifacts)


class CheckFailed(BuildError):
    """A check does not hold; the message says what was seen."""


class StoreError(BuildError):
    """The store is damaged, was made by another version, or has no space left."""


class Interrupted(ImagesmithError):
    """The user or the system asked us to stop."""

    exit_code = 130

    def __init__(self, message: str = "interrupted") -> None:
        super().__init__(message)
