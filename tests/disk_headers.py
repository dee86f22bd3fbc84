"""What no tool checks in VDI, VHD and VHDX files: read from their specifications, not from the code that writes them.

VDI: VirtualBox, src/VBox/Storage/VDICore.h. VHD: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006).
VHDX: [MS-VHDX] 2.2 to 2.6. Each function asserts what must hold and returns what identifies the image.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

MIB = 1 << 20
BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
ITEMS = {  # GUID: name, and the flags that it must have (1 is user, 2 virtual disk, 4 required)
    uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b"): ("file parameters", 4),
    uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8"): ("size", 6),
    uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746"): ("page 83", 6),
    uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f"): ("logical sector", 6),
    uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556"): ("physical sector", 6),
}


def vdi_ids(image: Path) -> dict[str, uuid.UUID]:
    """The four identifiers of a dynamic VDI."""
    head = image.read_bytes()[:512]
    assert head[64:68] == bytes.fromhex("7f10dabe")
    major_minor, size, kind = struct.unpack_from("<III", head, 68)
    assert (major_minor, kind) == (0x00010001, 1), "version 1.1, dynamic"
    assert size >= 0x180
    blocks, data = struct.unpack_from("<II", head, 340)
    assert blocks % 512 == data % 512 == 0
    names = ("image", "modification", "linkage", "parent modification")
    return {name: uuid.UUID(bytes_le=head[at : at + 16]) for name, at in zip(names, range(392, 456, 16), strict=True)}


def vhd_footer(image: Path) -> dict[str, object]:
    """The footer of a VHD; its checksum holds, and so does the dynamic header's; its copy is the same."""
    content = image.read_bytes()
    footer = content[-512:]
    fields = struct.unpack(">8sIIQI4sI4sQQHBBII16sB427x", footer)
    cookie, features, version, offset, made, _, _, system, _, size, _, _, _, kind, _, name, saved = fields
    assert (cookie, features & 2, version, system, saved) == (b"conectix", 2, 0x00010000, b"Wi2k", 0)
    _ones_complement(footer, 64)
    if kind == 2:
        assert offset == 0xFFFFFFFFFFFFFFFF
        assert len(content) == size + 512
    else:
        assert kind == 3
        assert content[:512] == footer
        header = content[offset : offset + 1024]
        assert header[:8] == b"cxsparse"
        _ones_complement(header, 36)
        entries, block = struct.unpack_from(">II", header, 28)
        assert entries == -(-size // block), "as many entries as blocks: Azure counts them"
        assert not any(header[40:56]), "no parent"
    return {"kind": kind, "size": size, "made": made, "id": name}


def _ones_complement(sector: bytes, at: int) -> None:
    rest = sector[:at] + bytes(4) + sector[at + 4 :]
    assert struct.unpack_from(">I", sector, at)[0] == ~sum(rest) & 0xFFFFFFFF


def vhdx_ids(image: Path) -> dict[str, uuid.UUID]:
    """The identifiers of a VHDX: both headers and both region tables hold, nothing is left in the log."""
    content = image.read_bytes()
    assert content[:8] == b"vhdxfile"
    assert len(content) % MIB == 0
    found, places, sequence = {}, [], []
    for number, place in enumerate((64 << 10, 128 << 10)):
        header = content[place : place + 4096]
        assert header[:4] == b"head"
        assert _summed(header)
        log_guid, log_version, version, length, log = struct.unpack_from("<16sHHIQ", header, 48)
        assert (log_guid, log_version, version) == (bytes(16), 0, 1)
        assert length % MIB == log % MIB == 0
        assert length
        assert not any(content[log : log + length])
        places.append((log, length))
        sequence += struct.unpack_from("<Q", header, 8)
        for name, at in (("file write", 16), ("data write", 32)):
            found[f"{name} {number}"] = uuid.UUID(bytes_le=header[at : at + 16])
    assert sorted(sequence) == [1, 2], "the higher one counts, and neither is made up"
    first, second = (content[at : at + (64 << 10)] for at in (192 << 10, 256 << 10))
    assert first == second, "the two region tables are copies"
    assert first[:4] == b"regi"
    assert _summed(first)
    regions = dict(_regions(first))
    assert set(regions) == {BAT, METADATA}
    found["page 83"] = _page_83(content, regions[METADATA][0])
    places = sorted({*places, *regions.values()})
    assert all(begin % MIB == 0 and begin >= MIB for begin, _ in places)
    assert all(a + size <= b for (a, size), (b, _) in pairwise(places)), "they do not overlap"
    return found


def _regions(table: bytes) -> Iterator[tuple[uuid.UUID, tuple[int, int]]]:
    for number in range(struct.unpack_from("<I", table, 8)[0]):
        guid, place, length, required = struct.unpack_from("<16sQII", table, 16 + 32 * number)
        assert required == 1, "VirtualBox: region not marked as required"
        yield uuid.UUID(bytes_le=guid), (place, length)


def _page_83(content: bytes, region: int) -> uuid.UUID:
    assert content[region : region + 8] == b"metadata"
    items = {}
    for number in range(struct.unpack_from("<H", content, region + 10)[0]):
        guid, place, length, flags = struct.unpack_from("<16sIII", content, region + 32 + 32 * number)
        name, wanted = ITEMS[uuid.UUID(bytes_le=guid)]
        assert flags & 7 == wanted, name
        items[name] = content[region + place : region + place + length]
    assert len(items) == len(ITEMS)
    assert struct.unpack("<I", items["logical sector"]) == (512,)
    return uuid.UUID(bytes_le=items["page 83"])


def _summed(block: bytes) -> bool:
    """Whether the CRC-32C at 4 is that of the block with zeros in its place."""
    crc = 0xFFFFFFFF
    for byte in block[:4] + bytes(4) + block[8:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF == struct.unpack_from("<I", block, 4)[0]
