"""Services."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from imagesmith.errors import BuildError
from imagesmith.interfaces import Root
from imagesmith.kinds import Step
from imagesmith.steps._files import first_found

Unit = Annotated[str, Field(pattern=r"^[A-Za-z0-9_:\\][A-Za-z0-9_:.@\\-]*$")]


class Service(Step, name="service", version=1, shorthand="enable"):
    """Say which services start at boot.

    With systemd the names are units (`nginx`, `fstrim.timer`); with OpenRC they are services of the default runlevel
    (and nothing can be masked). `started` starts services now, for the steps that follow, and needs a running guest.
    """

    enable: list[Unit] = Field([], description="Services that start at boot.")
    disable: list[Unit] = Field([], description="Services that do not start at boot.")
    mask: list[Unit] = Field([], description="Services that nothing may start.")
    started: list[Unit] = Field([], description="Services to start now, in the running guest.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.enable or self.disable or self.mask or self.started):
            raise ValueError("name services to enable, disable, mask or start")
        return self

    @property
    def needs_running(self) -> str:
        """Starting needs a running guest."""
        return f"it starts {', '.join(self.started)}" if self.started else ""

    def describe(self) -> str:
        """Name the services."""
        return ", ".join([*self.enable, *self.disable, *self.mask, *self.started])

    def apply(self, root: Root) -> None:
        """Do it."""
        systemctl = first_found(root, "/usr/bin/systemctl", "/bin/systemctl")
        if systemctl:
            verbs = (("enable", self.enable), ("disable", self.disable), ("mask", self.mask), ("start", self.started))
            for verb, units in verbs:
                if units:
                    root.run([systemctl, verb, "--", *units], env={} if root.online else {"SYSTEMD_OFFLINE": "1"})
        elif first_found(root, "/sbin/rc-update", "/usr/sbin/rc-update"):
            if self.mask:
                raise BuildError("OpenRC cannot mask services", hint="use disable")
            for verb, units in (("add", self.enable), ("del", self.disable)):
                for unit in units:
                    root.run(["rc-update", verb, unit, "default"])
            for unit in self.started:
                root.run(["rc-service", unit, "start"])
        else:
            raise BuildError("the guest has neither systemd nor OpenRC: no services can be enabled in it",
                             hint="install an init first, such as systemd-sysv")  # fmt: skip
