"""What consumers of disks demand of the guest, and what its firmware is to be where they let us choose."""

from __future__ import annotations

from collections.abc import Sequence

from imagesmith.errors import BuildError
from imagesmith.interfaces import Disk, Maker


def demand_arch(arch: str, wanted: str, who: str, hint: str) -> None:
    """Raise BuildError where the guest is made for another processor than ``who`` has."""
    if arch != wanted:
        raise BuildError(f"{who} runs {wanted} guests, and this one is {arch}", hint=hint)


def demand_firmware(firmware: Sequence[str], wanted: str, who: str, hint: str) -> None:
    """Raise BuildError where the disk is known not to boot with ``bios`` or ``uefi``, which ``who`` has."""
    if firmware and wanted not in firmware:
        has, lacks = ("BIOS", "UEFI") if wanted == "bios" else ("UEFI", "BIOS")
        raise BuildError(f"{who} boots by {has}, and this disk boots by {lacks} alone", hint=hint)


def starts_with(disk: Disk, maker: Maker) -> str:
    """Return ``bios``, ``uefi`` or ``uefi-secure``: the recipe's first that the disk can be booted with."""
    return next((name for name in maker.firmware if name.partition("-")[0] in disk.firmware), disk.firmware[0])
