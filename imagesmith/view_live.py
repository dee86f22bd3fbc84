"""The plan as a tree at the bottom of a terminal, drawn anew as it goes on; what is to stay is written above it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from imagesmith.events import Event, now
from imagesmith.view_plain import SPINE, TOLD, headline
from imagesmith.view_words import check, clean, clock, duration, how_far, lines

_MARKS = {"waiting": ("·", "dim"), "there": ("·", "green"), "done": ("✔", "green"), "failed": ("✘", "bold red"),
          "stopped": ("-", "yellow")}  # fmt: skip
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TAIL = 5
"""Lines that are shown of a node at work, where there is room."""
_NARROW = 28
"""Columns that are kept for what stands behind a node's name."""


@dataclass
class _Node:
    """One node, as far as it has come."""

    name: str
    leaf: bool = False
    last: float = 0.0
    """Seconds that it took the last time; 0 where that is not known."""
    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))
    phase: str = ""
    phase_began: float = 0.0
    progress: Mapping[str, object] | None = None
    error: str = ""

    def about(self) -> str:
        """What stands behind its name."""
        last = f"{clock(self.last)} last time" if self.last >= 1 else ""
        if self.state == "running":
            return f"{clock(now() - self.began)}" + (f", {last}" if last else "")
        if self.state == "waiting":
            return last
        return "there" if self.state == "there" else duration(self.seconds)

    def details(self, most: int) -> list[str]:
        """What it does just now: its download, its installer's phase, the last lines of its log; or why it failed."""
        if self.state == "failed":
            return [self.error] if self.error else []
        found = [how_far(self.progress)] if self.progress is not None else []
        if self.phase:
            found.append(f"{self.phase}, for {clock(now() - self.phase_began)}")
        rest = most - len(found)
        return found[:most] + (list(self.tail)[-rest:] if rest > 0 else [])


class Picture:
    """Draws events on a terminal while its block runs; the tree as it is in the end stays on the screen."""

    def __init__(self, stream: TextIO, *, verbose: bool) -> None:
        self._console = Console(file=stream, highlight=False, emoji=False, markup=False)
        self._verbose = verbose
        self._lock = threading.Lock()
        self._nodes: dict[str, _Node] = {}
        self._recipe, self._began = "", now()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        with self._lock:
            for node in self._nodes.values():
                if node.state == "running":
                    node.state, node.seconds = "stopped", now() - node.began
            rows = self._rows(None)
        with suppress(OSError):  # the terminal is gone
            for row in rows:
                self._console.print(row, no_wrap=True, overflow="ellipsis", crop=True)

    def start(self) -> None:
        """Draw, from now on."""
        self._live = Live(get_renderable=self._drawn, console=self._console, refresh_per_second=5, transient=True,
                          redirect_stderr=False, vertical_overflow="crop")  # fmt: skip
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Leave the terminal as it was, with what was written above the tree."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        with self._lock:
            written = self._take(event)
        with suppress(OSError):  # the terminal is gone, and the build need not be
            for line in written:
                self._console.print(line, overflow="fold")

    def _take(self, event: Event) -> list[Text]:
        """Bring the tree up to date; return what is to be written above it."""
        if event.event == "plan":
            self._plan(event)
        elif event.event == "note":
            return [Text.assemble(("! ", "yellow"), headline(event).partition("  ")[2].strip())]
        elif event.event == "check":
            passed = bool(event.data["passed"])
            return [Text.assemble((f"{'✔' if passed else '✘'} ", "green" if passed else "bold red"), check(event.data))]
        node = self._nodes.get(event.node)
        if node is None:
            return []
        written: list[Text] = []
        if event.event == "node-start":
            self._nodes[node.name] = _Node(node.name, node.leaf, node.last, "running", event.time)
        elif event.event == "node-log":
            line = clean(str(event.data["line"]))
            self._log(node, line, event.time)
            written = [Text(f"  │ {line}", style="dim")] if self._verbose else []
        elif event.event == "progress":
            node.progress = None if event.data.get("finished") else event.data
        elif event.event in ("node-done", "node-cached", "node-failed"):
            node.state = {"node-done": "done", "node-cached": "there"}.get(event.event, "failed")
            node.seconds = event.seconds or 0.0
            node.error = "; ".join(lines(event.data.get("error"))[:1]).rstrip(":")
            if event.data.get("left"):  # it is tried again: the build will not tell of this
                written = [Text(headline(event), style="bold red")]
                written += [Text(f"  │ {line}", style="dim") for line in lines(event.data.get("tail"))]
        return written

    def _plan(self, event: Event) -> None:
        tree = cast(Sequence[Mapping[str, object]], event.data.get("tree", ()))
        self._recipe, self._began = event.recipe, event.time
        for entry in tree:
            name, last = str(entry["name"]), float(str(entry["seconds"]))
            self._nodes[name] = _Node(name, entry["verb"] not in SPINE, last)

    def _log(self, node: _Node, line: str, time: float) -> None:
        if line.startswith(TOLD[0]):
            node.phase, node.phase_began = line.removeprefix(TOLD[0]).rpartition(" (")[0], time
        elif line.strip():
            node.tail.append(line)

    # -- drawing -------------------------------------------------------------------------------------------------

    def _drawn(self) -> Group:
        with self._lock:
            return Group(*self._rows(self._console.size.height - 1))

    def _rows(self, height: int | None) -> list[Text]:
        """The tree in at most ``height`` rows (None: as many as it takes, and without what goes on)."""
        width = self._console.size.width
        nodes = list(self._nodes.values())
        if not nodes:
            return []
        finished = [node for node in nodes if node.state in ("done", "there")]
        waiting = [node for node in nodes if node.state == "waiting"]
        told = [node for node in nodes if node.state in ("running", "failed")]
        hidden: set[str] = set()
        details = 0
        if height is not None:
            room = height - 1 - len(nodes) + len(finished) + len(waiting)  # beside those at work and failed
            details = next((most for most in (_TAIL, 3, 2, 1) if room - most * len(told) >= 6), 0)
            room -= sum(len(node.details(details)) for node in told)
            hidden = _hidden(finished, waiting, max(room, 0))
        names = [node for node in nodes if node.name not in hidden]
        longest = max(_left(node, False).cell_len for node in nodes)  # of all, so that the column stays where it is
        column = min(longest, max(width - _NARROW, 10))
        rows = [Text(f"{clean(self._recipe)}: {len(finished)} of {len(nodes)} nodes, {clock(now() - self._began)}",
                     style="bold")]  # fmt: skip
        if gone := [node for node in finished if node.name in hidden]:
            rows.append(Text(f"✔ {len(gone)} nodes are done", style="dim"))
        for node in names:
            rows.append(_row(_left(node, node is names[-1]), node.about(), column))
            if node in told and height is not None:
                bar = "│    ┊ " if node.leaf and node is not names[-1] else "     ┊ " if node.leaf else "  ┊ "
                rows += [Text(bar + line, style="dim") for line in node.details(details)]
        if more := [node for node in waiting if node.name in hidden]:
            rows.append(Text(f"… {len(more)} more wait", style="dim"))
        for row in rows:
            row.truncate(width, overflow="ellipsis")
        if height is not None and len(rows) > height:
            rows = [*rows[: max(height - 1, 0)], Text("…", style="dim")][: max(height, 1)]
        return rows


def _hidden(finished: Sequence[_Node], waiting: Sequence[_Node], room: int) -> set[str]:
    """The names of those nodes that find no room: of the finished the first, of the waiting the last.

    A row in the place of all that are hidden of a kind takes room, too.
    """
    if len(finished) + len(waiting) <= room:
        return set()
    wait = min(len(waiting), max(room // 2, room - len(finished)))
    done = room - wait
    kept_waiting = waiting if wait >= len(waiting) else waiting[: max(wait - 1, 0)]
    kept_finished = finished if done >= len(finished) else finished[len(finished) - max(done - 1, 0) :]
    kept = {node.name for node in (*kept_waiting, *kept_finished)}
    return {node.name for node in (*finished, *waiting)} - kept


def _left(node: _Node, last: bool) -> Text:
    """A node's branch, mark and name."""
    branch = ("└─ " if last else "├─ ") if node.leaf else ""
    if node.state == "running":
        mark, style = _SPINNER[int(now() * 8) % len(_SPINNER)], "cyan"
    else:
        mark, style = _MARKS[node.state]
    name = (clean(node.name), "dim" if node.state in ("waiting", "there") else "")
    return Text.assemble((branch, "dim"), (mark + " ", style), name)


def _row(left: Text, about: str, column: int) -> Text:
    left.truncate(column, overflow="ellipsis", pad=True)
    return Text.assemble(left, ("  " + about, "dim"))
