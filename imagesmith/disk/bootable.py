"""What firmware a disk can be started by, as its first sectors tell.

Sources: UEFI specification 2.10, 5.2 (MBR: partition type 0xEF) and 5.3 (GPT: header in LBA 1, entries, the EFI system
partition's type); IBM PC: the boot code in the first 440 bytes of sector 0, its signature in the last two.
"""

from __future__ import annotations

import struct
import tempfile
import uuid
from pathlib import Path

from imagesmith.host import Host

BOTH = ("bios", "uefi")
_SECTOR = 512
_SECTORS = 34
"""The protective MBR, the GPT's header and 128 entries of 128 bytes."""
_GPT = struct.Struct("<72xQII")
"""Of the GPT's header: where the entries begin, how many there are, and the size of one in bytes."""
_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
_FAT = frozenset({0xEF, 0x0B, 0x0C, 0x0E})
"""MBR partition types that firmware looks for boot loaders on: the EFI system partition, and plain FAT."""


def boots_with(path: Path, host: Host) -> tuple[str, ...]:
    """Return ``bios``, ``uefi`` or both, for a qcow2 with its backing chain.

    Where there is no partition table, or neither boot code nor a partition for UEFI's boot loaders, nothing is known,
    and it is both. Raises ToolFailed.
    """
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        head = Path(folder) / "head"
        host.run(
            ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", f"bs={_SECTOR}", f"count={_SECTORS}", f"if={path}",
             f"of={head}"],
            purpose="look at the disk's partition table",
        )  # fmt: skip
        return judge(head.read_bytes())


def judge(head: bytes) -> tuple[str, ...]:
    """Return the same for the first 34 sectors of a disk."""
    if head[510:512] != b"\x55\xaa":
        return BOTH
    found = (("bios",) if any(head[:440]) else ()) + (("uefi",) if _has_esp(head) else ())
    return found or BOTH


def _has_esp(head: bytes) -> bool:
    if head[_SECTOR : _SECTOR + 8] != b"EFI PART":
        return any(head[446 + 16 * number + 4] in _FAT for number in range(4))
    first, count, size = _GPT.unpack_from(head, _SECTOR)
    places = range(first * _SECTOR, min(len(head), first * _SECTOR + min(count, 1024) * size), size or _SECTOR)
    return any(head[place : place + 16] == _ESP for place in places)
