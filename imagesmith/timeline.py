"""When a build's nodes ran: gathered from what is told on the way."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from imagesmith.events import Event


@dataclass(frozen=True)
class Span:
    """What became of a node. ``begin`` and ``seconds`` count from the build's start; 0 for one that was there."""

    name: str
    state: str
    """``ran``, ``cached``, ``failed``; or ``missing``: the build ended before its turn."""
    begin: float = 0.0
    seconds: float = 0.0


class Timeline:
    """A listener (events.Listener) that remembers when nodes ran."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._spans: dict[str, Span] = {}
        self.start = 0.0
        """Seconds since 1970."""
        self.checks: list[dict[str, object]] = []
        """The events ``check``, as they came."""

    def __call__(self, event: Event) -> None:
        """Take an event, from any thread."""
        with self._lock:
            if event.event == "plan":
                self.start, names = event.time, event.data.get("nodes")
                self._names = [str(name) for name in names] if isinstance(names, list) else []
            elif event.event == "node-cached":
                self._spans[event.node] = Span(event.node, "cached")
            elif event.event in ("node-done", "node-failed"):
                seconds = event.seconds or 0.0
                state = "ran" if event.event == "node-done" else "failed"
                begin = max(0.0, event.time - seconds - self.start)
                self._spans[event.node] = Span(event.node, state, begin, seconds)
            elif event.event == "check":
                self.checks.append(dict(event.data))

    def spans(self) -> Sequence[Span]:
        """One for each node of the plan, in its order."""
        with self._lock:
            return [self._spans.get(name, Span(name, "missing")) for name in self._names]
