"""Runs an unattended installation: prepares the machine, boots it, watches it, and sees it to its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagesmith.host import Host
from imagesmith.interfaces import Installation, Log
from imagesmith.machine.arguments import Arch


@dataclass(frozen=True)
class Hardware:
    """The machine that the installation runs on. Sizes in bytes."""

    arch: Arch
    accelerator: Literal["kvm", "tcg"]
    cpu: str
    cpus: int
    memory: int
    disk: int
    firmware: Literal["bios", "uefi", "uefi-secure"]


def install(
    installation: Installation, into: Path, hardware: Hardware, host: Host, log: Log, *, keep: Path
) -> None:
    """Install onto the qcow2 ``into``; see interfaces.Workshop.install.

    ``keep`` takes the console's log, the installer's log and pictures of the screen while it runs; they stay there
    when it fails. Raises BuildError, GuestFailed, TimedOut, MissingTool, Interrupted.
    """
    raise NotImplementedError
