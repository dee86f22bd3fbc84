"""The guest starts, and starts everything that it should."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import shown
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Duration


class Boot(Check, name="boot", version=1, shorthand="within"):
    """The guest starts up completely, without a unit that failed.

    Systemd must say that the system is ``running``. ``degraded``, a kernel panic, a boot loader's prompt or emergency
    mode make the check fail.
    """

    within: Annotated[Duration, Field(gt=0, description="How long start-up may take, such as 5m.")] = 300.0

    def describe(self) -> str:
        """See Kind."""
        return f"within {self.within:g} s"

    def check(self, guest: Guest) -> str:
        """See Check."""
        begun = time.monotonic()
        result = guest.wait_booted(self.within)
        state, _, failed = result.output.partition("\n")
        if result.status != 0:
            units = [line.split(":")[0] for line in failed.splitlines() if line and not line.startswith(" ")]
            what = f"; failed: {', '.join(units)}\n{shown(failed)}" if units else ""
            raise CheckFailed(f"expected a system that is running, but it is {state or 'in no known state'}{what}")
        return f"{state} after {time.monotonic() - begun:.0f} s"
