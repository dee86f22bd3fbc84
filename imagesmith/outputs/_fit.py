"""What consumers of disks demand of the guest, and what its firmware is to be where they let us choose."""

from __future__ import annotations

from collections.abc import Sequence

from imagesmith.errors import BuildError
from imagesmith.interfaces import Disk, Log, Maker


def demand_arch(arch: str, wanted: str, who: str, hint: str) -> None:
    """Raise BuildError where the guest is made for another processor than ``who`` has."""
    if arch != wanted:
        raise BuildError(f"{who} runs {wanted} guests, and this one is {arch}", hint=hint)


def demand_firmware(firmware: Sequence[str], wanted: str, who: str, hint: str) -> None:
    """Raise BuildError where the disk is known not to boot with ``bios`` or ``uefi``, which ``who`` has."""
    if firmware and wanted not in firmware:
        has, lacks = ("BIOS", "UEFI") if wanted == "bios" else ("UEFI", "BIOS")
        raise BuildError(f"{who} boots by {has}, and this disk boots by {lacks} alone", hint=hint)


def demand_drivers(disk: Disk, ways: Sequence[Sequence[str]], who: str, log: Log) -> None:
    """Raise BuildError where the guest's kernel lacks drivers for the disk and the network that ``who`` gives it.

    ``ways`` are lists of kernel modules, each enough by itself, the usual one first. Where the modules cannot be seen,
    the log says so.
    """
    found = disk.drivers()
    if found is None:
        log(f"whether the guest's kernel has drivers for {who} could not be seen")
        return
    if not any(found.issuperset(way) for way in ways):
        lacking = ", ".join(name for name in ways[0] if name not in found)
        raise BuildError(
            f"{who} needs kernel drivers that the image's kernel does not have: {lacking}",
            hint="install a kernel that has them (Debian: linux-image-cloud-amd64 or linux-image-amd64), or leave this "
                 "output out",
        )  # fmt: skip


def starts_with(disk: Disk, maker: Maker) -> str:
    """Return ``bios``, ``uefi`` or ``uefi-secure``: the recipe's first that the disk can be booted with."""
    return next((name for name in maker.firmware if name.partition("-")[0] in disk.firmware), disk.firmware[0])
