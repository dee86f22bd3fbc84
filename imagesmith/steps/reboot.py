"""Restarting the guest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.interfaces import Root
from imagesmith.kinds import UNKEYED, Duration, Step
from imagesmith.steps._running import running


class Reboot(Step, name="reboot", version=1, shorthand="within"):
    """Restart the running guest, and go on when its start-up is complete.

    For what takes effect at a boot: another kernel, a changed boot loader or fstab. That the guest has really restarted
    is seen by its boot id.
    """

    within: Annotated[Duration, UNKEYED] = Field(600.0, gt=0, description="How long it may take until it is back.")

    @property
    def needs_running(self) -> str:
        """Only what runs can be restarted."""
        return "it restarts the guest"

    def apply(self, root: Root) -> None:
        """Do it."""
        running(root).restart(self.within)
