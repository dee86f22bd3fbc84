"""What an ISO has for firmware to boot: El Torito's catalog, and what is in front of the ISO's own structures.

El Torito is "Bootable CD-ROM Format Specification" 1.0; platform 0xEF is the UEFI specification's (13.3.2.1).
"""

from __future__ import annotations

import struct
from pathlib import Path

from imagesmith.installer.iso import SECTOR

_BOOT_RECORD = 17 * SECTOR
_UEFI = 0xEF
_ENTRIES = 64


def hybrid(path: Path) -> bool:
    """Whether the ISO is a disk as well: there is a partition table in its first 32 KiB (ECMA-119, "System Area")."""
    with path.open("rb") as file:
        area = file.read(16 * SECTOR)
    mbr = area[510:512] == b"\x55\xaa" and any(area[446 + 16 * number + 4] for number in range(4))
    return mbr or area[512:520] == b"EFI PART"


def gpt_end(path: Path) -> int:
    """Where a GPT says that its disk ends, behind the backup of its header: bytes; 0 where there is no GPT.

    UEFI specification, 5.3.2, AlternateLBA.
    """
    with path.open("rb") as file:
        file.seek(512)
        header = file.read(92)
    return (struct.unpack_from("<Q", header, 32)[0] + 1) * 512 if header[:8] == b"EFI PART" else 0


def uefi_images(path: Path) -> list[int]:
    """Where the images of FAT file systems begin that UEFI boots the ISO from: bytes from its beginning."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(_BOOT_RECORD)
        record = file.read(SECTOR)
        if record[:6] != b"\0CD001" or not record[7:].startswith(b"EL TORITO SPECIFICATION"):
            return []
        file.seek(struct.unpack_from("<I", record, 0x47)[0] * SECTOR)
        found = []
        for at in _uefi_entries(file.read(SECTOR)):
            file.seek(at)
            if at < size and file.read(512)[510:] == b"\x55\xaa":
                found.append(at)
    return found


def _uefi_entries(catalog: bytes) -> list[int]:
    found = []
    platform = catalog[1] if catalog[:1] == b"\1" else -1
    for at in range(32, min(len(catalog) - 31, 32 * _ENTRIES), 32):
        kind, place = catalog[at], struct.unpack_from("<I", catalog, at + 8)[0]
        if kind in (0x90, 0x91):  # a section's header
            platform = catalog[at + 1]
        elif kind == 0x88 and platform == _UEFI:
            found.append(place * SECTOR)
    return found
