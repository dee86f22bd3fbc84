"""Events as plain lines: one for each start and end, for logs and for terminals that are none."""

from __future__ import annotations

from collections.abc import Callable

from imagesmith.events import Event
from imagesmith.view_words import check, clean, duration, how_far, lines

WORDS = {"node-start": "start ", "node-done": "done  ", "node-cached": "cached", "node-failed": "FAILED",
         "note": "note  "}  # fmt: skip
TOLD = ("phase: ", "answer file read ")
"""How lines begin that tell how far an installation is, which may take hours."""
SPINE = ("base", "step", "assemble")
"""The verbs of nodes that come one after the other; all others hang on the end of these, side by side."""
_EVERY = 10.0
"""Seconds between two lines on one download."""


class Plain:
    """Writes events as lines."""

    def __init__(self, write: Callable[[str], object], *, verbose: bool) -> None:
        """``write`` takes a line without its end; ``verbose``: every line that nodes log."""
        self._write, self._verbose = write, verbose
        self._pace = Pace()

    def __call__(self, event: Event) -> None:
        """Write what is to be said of an event."""
        if event.event in WORDS:
            self._write(headline(event))
        if event.event == "node-failed" and event.data.get("left"):  # it is tried again: the build will not tell of it
            for line in lines(event.data.get("tail")):
                self._write(f"       | {line}")
        elif event.event == "check":
            self._write(f"{'pass  ' if event.data['passed'] else 'FAIL  '} {check(event.data)}")
        elif event.event == "node-log" and (self._verbose or str(event.data["line"]).startswith(TOLD)):
            self._write(f"       | {clean(str(event.data['line']))}")
        elif event.event == "progress" and not self._verbose and self._pace.due(event):
            self._write(f"       | {how_far(event.data)}")


class Pace:
    """Says when a line on a download is due: once it has gone on for a while, and then again and again."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def due(self, event: Event) -> bool:
        """Whether to write of this event ``progress``; short downloads get no line."""
        what = f"{event.node}\n{event.data.get('what')}"
        last = self._told.setdefault(what, event.time)
        if event.time - last < _EVERY:
            return False
        self._told[what] = event.time
        return True


def headline(event: Event) -> str:
    """The line for a node's start or end, or for a note."""
    took = f" ({duration(event.seconds)})" if event.seconds is not None and event.event != "node-cached" else ""
    more = event.data.get("text", "")
    if event.event == "node-failed":
        more = (str(event.data.get("error", "")).splitlines() or [""])[0].rstrip(":")
    said = f": {clean(str(more))}" if more else ""
    return f"{WORDS[event.event]} {clean(event.node or event.recipe)}{took}{said}"
