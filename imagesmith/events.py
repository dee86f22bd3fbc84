"""What a build tells while it goes on: one stream for the live view, plain lines, JSON and log files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

NAMES = ("plan", "node-start", "node-log", "progress", "node-done", "node-cached", "node-failed", "check", "artifact",
         "note", "summary")  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One thing that happened. ``data`` is what belongs to it and nothing else."""

    event: str
    recipe: str = ""
    node: str = ""
    key: str = ""
    seconds: float | None = None
    data: Mapping[str, object] = field(default_factory=dict)
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""

    def plain(self) -> dict[str, object]:
        """The event as a JSON object (docs/reference/command.md, "Events"): what is empty is left out."""
        stamp = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        found: dict[str, object] = {"time": stamp, "event": self.event}
        for name, value in (("recipe", self.recipe), ("node", self.node), ("key", self.key)):
            if value:
                found[name] = value
        if self.seconds is not None:
            found["seconds"] = round(self.seconds, 3)
        return {**found, **self.data}


@dataclass(frozen=True)
class Progress:
    """How far a download has come."""

    what: str
    """The file's name."""
    done: int
    """Bytes that are there."""
    total: int | None
    """Bytes; None where the server does not say."""
    rate: float
    """Bytes a second, of late."""
    finished: bool = False

    def plain(self) -> dict[str, object]:
        """What the event ``progress`` has; ``left`` in seconds."""
        found: dict[str, object] = {"what": self.what, "done": self.done, "rate": round(self.rate)}
        if self.total is not None:
            found["total"] = self.total
            if self.rate:
                found["left"] = round((self.total - self.done) / self.rate, 1)
        return found | ({"finished": True} if self.finished else {})


def now() -> float:
    """The time as events have it."""
    return time.time()


Listener = Callable[[Event], None]
"""Takes events, from any thread."""
