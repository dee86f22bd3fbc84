"""A program inside the guest ends as it should."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import shown
from imagesmith.errors import CheckFailed, TimedOut
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Duration


class Command(Check, name="command", version=1, shorthand="run"):
    """A shell script, run as the guest's root, ends with the expected status (and output)."""

    run: Annotated[str, Field(min_length=1, description="The script, for the guest's /bin/sh.")]
    exit: Annotated[int, Field(ge=0, le=255, description="The exit status that is expected.")] = 0
    contains: Annotated[str, Field(description="Text that its output (stdout and stderr) must contain.")] = ""
    within: Annotated[Duration, Field(gt=0, description="How long it may take.")] = 120.0

    def describe(self) -> str:
        """See Kind."""
        first = self.run.strip().splitlines()[0]
        return first if len(first) <= 60 else first[:57] + "..."

    def check(self, guest: Guest) -> str:
        """See Check."""
        try:
            result = guest.run(self.run, timeout=self.within)
        except TimedOut as error:
            raise CheckFailed(f"expected it to end within {self.within:g} s, but it still ran; its output:\n"
                              + shown(error.tail)) from error  # fmt: skip
        if result.status != self.exit:
            raise CheckFailed(f"expected exit status {self.exit}, got {result.status}; its output:\n"
                              + shown(result.output))  # fmt: skip
        if self.contains not in result.output:
            raise CheckFailed(f"expected '{self.contains}' in its output, got:\n" + shown(result.output))
        return f"exit status {result.status}"
