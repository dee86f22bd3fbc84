"""The check `stamped`."""

from __future__ import annotations

from pydantic import Field

from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check


class Stamped(Check, name="stamped", version=1, shorthand="text"):
    """The line that `stamp` leaves is there."""

    text: str = Field(description="The line.")

    def check(self, guest: Guest) -> str:
        """Return what was seen; raise CheckFailed where it is something else."""
        seen = guest.run("cat /etc/stamp", timeout=60).output.strip()
        if seen != self.text:
            raise CheckFailed(f"/etc/stamp says '{seen}', and should say '{self.text}'")
        return seen
