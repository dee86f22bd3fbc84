"""A service of the guest runs, and starts with it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import ask, eventually, quote, shown
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Duration

# `is-enabled` of a unit that another one pulls in, or that a socket starts (systemctl(1), table 1).
_ENABLED = {"enabled", "enabled-runtime", "static", "alias", "indirect", "generated", "linked", "linked-runtime"}


class Service(Check, name="service", version=1, shorthand="name"):
    """A systemd unit runs (or not) and is enabled (or not)."""

    called: Annotated[
        str,
        Field(alias="name", pattern=r"^[A-Za-z0-9:_.@\\-]+$", description="The unit's name; .service may be left out."),
    ]
    running: Annotated[bool | None, Field(description="Whether it must be active.")] = True
    enabled: Annotated[bool | None, Field(description="Whether it starts with the guest; either by default.")] = None
    within: Annotated[Duration, Field(ge=0, description="How long to wait for it to be so.")] = 60.0

    def describe(self) -> str:
        """See Kind."""
        return self.called

    def check(self, guest: Guest) -> str:
        """See Check."""
        return eventually(lambda: self._once(guest), self.within)

    def _once(self, guest: Guest) -> str:
        unit = quote(self.called)
        said = ask(guest, f"systemctl is-active -- {unit}; systemctl is-enabled -- {unit} 2>/dev/null").output.split()
        active, enabled = (*said, "unknown", "unknown")[:2]
        seen = f"{active}, {enabled if len(said) > 1 else 'not installed'}"
        if self.running is not None and (active == "active") != self.running:
            log = ask(guest, f"journalctl --no-pager --quiet --output=cat --lines=8 --unit={unit} 2>&1").output
            expected = "active" if self.running else "not active"
            raise CheckFailed(f"expected {self.called} to be {expected}, but it is {seen}; its log:\n{shown(log)}")
        if self.enabled is not None and (enabled in _ENABLED) != self.enabled:
            expected = "enabled" if self.enabled else "not enabled"
            raise CheckFailed(f"expected {self.called} to be {expected}, but it is {seen}")
        return seen
