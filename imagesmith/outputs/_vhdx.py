"""VHDX files.

Source: [MS-VHDX], Virtual Hard Disk v2 (VHDX) File Format: 2.2.2 (headers), 2.2.3 (region tables), 2.3 (log) and 2.6
(metadata). qemu-img leaves out the Required flag of both regions, without which VirtualBox refuses the file ("BAT
region not marked as required"), and takes GUIDs and sequence numbers at random.
"""

from __future__ import annotations

import struct
import uuid
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log
from imagesmith.outputs._common import convert, identifier

_HEADERS, _HEADER_SIZE = (64 << 10, 128 << 10), 4 << 10
_TABLES, _TABLE_SIZE = (192 << 10, 256 << 10), 64 << 10
_CHECKSUM = slice(4, 8)
_SEQUENCE = struct.Struct("<Q")
_FILE_WRITE, _DATA_WRITE, _LOG = slice(16, 32), slice(32, 48), slice(48, 64)
_LOG_PLACE = struct.Struct("<IQ")
"""At 68 in a header: the log's length and place, in bytes."""
_ENTRY = struct.Struct("<16sQII")
"""A region: its GUID, place, length, and whether it is required. The first is at 16, their number at 8."""
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PAGE_83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746").bytes_le
_ITEM = struct.Struct("<16sIIII")
"""A metadata item: its GUID, place in the region, length, flags. The first is at 32, their number (16 bits) at 10."""


def write_vhdx(disk: Disk, target: Path, seed: str, host: Host, log: Log) -> None:
    """Write the disk as a dynamic VHDX that names itself the same way every time. Raises ToolFailed, BuildError."""
    convert(disk, target, "vhdx", host, log)
    settle(target, seed)


def settle(image: Path, seed: str) -> None:
    """Mark both regions as required, set what qemu-img makes up, empty the log, and redo the checksums.

    Raises BuildError where it is no VHDX, or one whose log was not written back.
    """
    with image.open("r+b") as stream:
        if stream.read(8) != b"vhdxfile":
            raise BuildError(f"qemu-img wrote no VHDX to {image.name}")
        headers = {place: _read(stream, place, _HEADER_SIZE) for place in _HEADERS}
        in_order = sorted(headers.items(), key=lambda item: _SEQUENCE.unpack_from(item[1], 8))
        for number, (place, header) in enumerate(in_order, 1):  # the one with the higher number counts
            _settle_header(stream, place, header, seed, number)
        for place in _TABLES:
            metadata = _require(stream, place)
        _settle_page_83(stream, metadata, identifier(seed, "vhdx disk"))


def _settle_header(stream: BinaryIO, place: int, header: bytearray, seed: str, number: int) -> None:
    """Set a header's sequence number and GUIDs, and clear what is left of the log that it names."""
    if any(header[_LOG]):
        raise BuildError("qemu-img left a VHDX with a log that must be replayed")
    _SEQUENCE.pack_into(header, 8, number)
    header[_FILE_WRITE] = identifier(seed, f"vhdx file {number}").bytes_le
    header[_DATA_WRITE] = identifier(seed, f"vhdx data {number}").bytes_le
    _write_summed(stream, place, header)
    length, log = _LOG_PLACE.unpack_from(header, 68)
    stream.seek(log)
    stream.write(bytes(length))


def _require(stream: BinaryIO, place: int) -> int:
    """Set the Required flag of all regions in a table; return where the metadata is."""
    table = _read(stream, place, _TABLE_SIZE)
    metadata = 0
    for number in range(struct.unpack_from("<I", table, 8)[0]):
        at = 16 + number * _ENTRY.size
        guid, begin, length, _ = _ENTRY.unpack_from(table, at)
        _ENTRY.pack_into(table, at, guid, begin, length, 1)
        metadata = begin if guid == _METADATA else metadata
    _write_summed(stream, place, table)
    return metadata


def _settle_page_83(stream: BinaryIO, region: int, name: uuid.UUID) -> None:
    """Set the identifier that the guest sees in SCSI's vital product data (2.6.2.3)."""
    table = _read(stream, region, _TABLE_SIZE)
    for number in range(struct.unpack_from("<H", table, 10)[0]):
        guid, begin, _, _, _ = _ITEM.unpack_from(table, 32 + number * _ITEM.size)
        if guid == _PAGE_83:
            stream.seek(region + begin)
            stream.write(name.bytes_le)
            return
    raise BuildError("qemu-img wrote a VHDX without an identifier of the disk")


def _read(stream: BinaryIO, place: int, size: int) -> bytearray:
    stream.seek(place)
    return bytearray(stream.read(size))


def _write_summed(stream: BinaryIO, place: int, content: bytearray) -> None:
    content[_CHECKSUM] = bytes(4)
    content[_CHECKSUM] = crc32c(content).to_bytes(4, "little")
    stream.seek(place)
    stream.write(content)


@lru_cache(maxsize=1)
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return tuple(table)


def crc32c(data: bytes | bytearray) -> int:
    """Return a CRC-32C (Castagnoli: RFC 3720, B.4)."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
