"""How a build's events are shown: live on a terminal, as plain lines, or as JSON; always on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imagesmith.events import Event, Listener

if TYPE_CHECKING:  # it takes its time to be imported, and only a terminal needs it
    from rich.console import Group
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

_MARKS = {"node-done": ("✔", "green"), "node-cached": ("·", "dim"), "node-failed": ("✘", "bold red"),
          "note": ("!", "yellow")}  # fmt: skip
_WORDS = {"node-start": "start ", "node-done": "done  ", "node-cached": "cached", "node-failed": "FAILED",
          "note": "note  "}  # fmt: skip
_PROGRESS = ("phase: ", "answer file read ")
"""How lines begin that tell how far an installation is, which may take hours."""


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02} s"


class Shown:
    """A listener that shows events, from any thread."""

    def __init__(self, show: Listener, live: Live | None = None) -> None:
        self._show, self._live = show, live
        self._lock, self._aside = threading.RLock(), False

    def __call__(self, event: Event) -> None:
        """Show an event."""
        with self._lock:
            if not self._aside:
                self._show(event)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to somebody else: this thread's events are not shown meanwhile, and other threads wait."""
        with self._lock:
            self._aside = True
            if self._live is not None:
                self._live.stop()
            try:
                yield
            finally:
                self._aside = False
                if self._live is not None:
                    self._live.start(refresh=True)


@contextmanager
def shown(style: str, *, verbose: bool = False) -> Iterator[Shown]:
    """Show events while the block runs. ``style``: ``json``, or ``text``, which is live where stderr is a terminal."""
    if style == "json":

        def as_json(event: Event) -> None:
            sys.stderr.write(json.dumps(event.plain(), ensure_ascii=False, default=str) + "\n")
            sys.stderr.flush()

        yield Shown(as_json)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield Shown(lambda event: _plain(event, verbose))
        return
    picture = _Picture()
    with Live(picture, console=console, refresh_per_second=8, transient=True, redirect_stderr=False) as live:

        def show(event: Event) -> None:
            for line in picture.take(event):
                live.console.print(line)

        yield Shown(show, live)


def _plain(event: Event, verbose: bool) -> None:
    lines = []
    if event.event in _WORDS:
        took = f" ({duration(event.seconds)})" if event.seconds is not None and event.event != "node-cached" else ""
        more = f": {event.data['text']}" if event.event == "note" else ""
        lines.append(f"{_WORDS[event.event]} {event.node or event.recipe}{took}{more}")
    if event.event == "node-failed":
        lines += [f"       | {line}" for line in _strings(event.data.get("tail"))]
    elif event.event == "check":
        lines.append(_check(event))
    elif event.event == "node-log" and (verbose or str(event.data["line"]).startswith(_PROGRESS)):
        lines.append(f"       | {event.data['line']}")
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _strings(value: object) -> list[str]:
    return [str(line) for line in value] if isinstance(value, (list, tuple)) else []


def _check(event: Event) -> str:
    word = "pass  " if event.data["passed"] else "FAIL  "
    return f"{word} {event.data['firmware']}: {event.data['check']}: {event.data['seen']}"


class _Picture:
    """What the live view shows below the finished lines: each node at work, its time, its last line."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[float, str, Spinner]] = {}

    def take(self, event: Event) -> list[Text]:
        """Take an event; return the lines that are finished by it."""
        from rich.spinner import Spinner
        from rich.text import Text

        key = event.recipe + "\n" + event.node
        if event.event == "node-start":
            self._running[key] = (time.monotonic(), "", Spinner("dots"))
            return []
        if event.event == "node-log":
            if key in self._running:
                began, _, spinner = self._running[key]
                self._running[key] = (began, str(event.data["line"]), spinner)
            return []
        if event.event == "check":
            style = "green" if event.data["passed"] else "bold red"
            return [Text("  " + _check(event), style=style)]
        if event.event not in _MARKS:
            return []
        if event.event != "note":
            self._running.pop(key, None)
        mark, style = _MARKS[event.event]
        line = Text.assemble((mark + " ", style), event.node or event.recipe)
        if event.event == "node-cached":
            line.append(" (there already)", "dim")
        elif event.seconds is not None:
            line.append(f" {duration(event.seconds)}", "dim")
        if event.event == "note":
            line.append(f": {event.data['text']}")
        return [line, *(Text(f"    {text}", style="dim") for text in _strings(event.data.get("tail")))]

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        rows = []
        for key, (began, last, spinner) in sorted(self._running.items()):
            took = duration(time.monotonic() - began)
            spinner.text = Text.assemble(key.split("\n")[1], (f"  {took}  ", "dim"), (last[:100], "dim"), no_wrap=True,
                                         overflow="ellipsis")  # fmt: skip
            rows.append(spinner)
        return Group(*rows)
