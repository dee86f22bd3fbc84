"""A step of the benchmarks' own: a command over the bare connection to the running guest, several times, timed."""

from __future__ import annotations

import time
from typing import Any, cast

from imagesmith.interfaces import Root, Running
from imagesmith.kinds import Step


class Bare(Step, name="bare", version=1, shorthand="command"):
    """Run a command over the connection as `ssh guest COMMAND` would, and log the seconds that it took."""

    command: str
    times: int = 5

    @property
    def needs_running(self) -> str:
        return "it measures the connection"

    def apply(self, root: Root) -> Any:
        connection = cast(Running, root).connection()
        for _ in range(self.times):
            guest, begun = f"{connection.user}@{connection.name}", time.monotonic()
            connection.host.run(["ssh", *connection.options, "-T", guest, self.command], purpose="measure")
            connection.log(f"bare {time.monotonic() - begun:.3f}")
