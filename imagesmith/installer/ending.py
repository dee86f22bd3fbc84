"""Looks whether an installation has left something on the disk that can boot. Nothing of it is mounted.

MBR: its first 440 bytes are the boot loader's (UEFI specification 2.10, 5.2.1). A UEFI firmware boots from FAT file
systems only (13.3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from imagesmith.disk.attach import exported
from imagesmith.disk.partitions import find_partitions
from imagesmith.host import Host

_LOADER = 440


def nothing_to_boot(disk: Path, firmware: Literal["bios", "uefi", "uefi-secure"], host: Host) -> str:
    """Return why the qcow2 ``disk`` cannot boot; nothing where it looks as if it could."""
    with exported(disk, host, writable=False) as raw:
        parts = find_partitions(raw, host)
        with raw.open("rb") as stream:
            loader = stream.read(_LOADER)
    systems = [part for part in parts if part.fstype]
    if all(part.number == 0 for part in parts) and not systems:
        return "the disk has no partition table"
    if not systems:
        return f"the disk has {len(parts)} partitions, but no file system in them"
    if firmware == "bios" and not any(loader):
        return "the disk has no boot loader for a BIOS in its first sector"
    if firmware != "bios" and not any(part.fstype == "vfat" for part in parts):
        return "the disk has no EFI system partition"
    return ""
