"""The streamOptimized VMDK: compressed grains that follow each other, for reading from the beginning to the end.

VMware, Virtual Disk Format 5.0, "Hosted Sparse Extent Header" and "Stream-Optimized Compressed Sparse Extents"; numbers
are little-endian, and places are in sectors of 512 bytes.

What is written here: the header, which leaves the place of the grain directory open; the descriptor; from the 128th
sector on, for each 32 MiB of the disk that hold anything, their grains of 64 KiB in the guest's order, each with its
place before it and zeros up to a sector's end, and the table of these; the grain directory; the footer, which is the
header with the directory's place; and the end of the stream. A grain that is nowhere is zeros.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from imagesmith.errors import BuildError, Refused
from imagesmith.outputs._qcow2 import CLUSTER, Stored, copied, write_all

LAYOUT = 1
"""Raise it when other bytes come out of the same grains: nothing of an image with another one is used."""
LEVEL = 5
"""Of zlib: 1 % larger than the usual level 6, and a third quicker."""
MAGIC = b"KDMV"
_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
"""magicNumber, version, flags, capacity, grainSize, descriptorOffset, descriptorSize, numGTEsPerGT, rgdOffset,
gdOffset, overHead, uncleanShutdown, the line ends that show a transfer as text, compressAlgorithm."""
_VERSION, _DEFLATE = 3, 1
_FLAGS = 1 | 1 << 16 | 1 << 17  # line ends can be tested; grains are compressed; there are markers
_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_GRAIN = CLUSTER // _SECTOR
_PER_TABLE = 512
_DESCRIPTOR, _OVERHEAD = 20, 128  # sectors
_TABLE = struct.Struct(f"<{_PER_TABLE}I")
_BEFORE = struct.Struct("<QI")  # of a grain: where it is in the disk, and how many bytes follow
_MARKER = struct.Struct("<QII496x")  # sectors that follow, 0, and what they are
_END, _TABLES, _DIRECTORY, _FOOTER = range(4)
_LONGEST = _SECTOR << 32
"""Bytes: tables tell sectors with 32 bits."""


def sameness() -> str:
    """What a grain depends on (see kinds.Output.sameness)."""
    return f"streamOptimized {LAYOUT} zlib {zlib.ZLIB_RUNTIME_VERSION} {LEVEL}"


def text(name: str, capacity: int, adapter: str, content_id: int, uuid: str) -> str:
    """Return the descriptor of a file ``name`` with a disk of ``capacity`` sectors.

    ``adapter`` is ``ide`` or ``lsilogic``. The geometry is what VMware's own disks have for it. VirtualBox refuses a
    disk without a UUID.
    """
    heads = 16 if adapter == "ide" else 255
    cylinders = capacity // (heads * 63)
    return f"""\
# Disk DescriptorFile
version=1
CID={content_id:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY {capacity} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{min(cylinders, 16383) if adapter == "ide" else cylinders}"
ddb.geometry.heads = "{heads}"
ddb.geometry.sectors = "63"
ddb.adapterType = "{adapter}"
ddb.uuid.image = "{uuid}"
"""


@dataclass(frozen=True)
class Grains:
    """The format, to be written by _clusters. ``describe`` makes the descriptor of a disk of so many sectors."""

    describe: Callable[[int], str]
    magic = MAGIC

    def writer(self, fd: int, size: int) -> Writer:
        """Begin an image."""
        capacity = -(-size // _SECTOR)
        return Writer(fd, capacity, self.describe(capacity).encode("ascii", "replace"))

    def opened(self, fd: int, name: str, at: int, size: int) -> Image:
        """Open an image that was written before. Raises Refused."""
        return Image(fd, name, at, size)

    def squeeze(self, cluster: int, data: bytes) -> bytes:
        """Return a grain: its place, its data (RFC 1950), and zeros."""
        squeezed = zlib.compress(data, LEVEL)
        grain = _BEFORE.pack(cluster * _GRAIN, len(squeezed)) + squeezed
        return grain.ljust(-(-len(grain) // _SECTOR) * _SECTOR, b"\0")


def _sector(offset: int) -> int:
    """The sector at an offset of the file. Raises BuildError where no table can tell it."""
    if offset >= _LONGEST:
        raise BuildError(f"a streamOptimized VMDK has room for {_LONGEST >> 40} TiB of compressed data, and the disk "
                         "holds more", hint="take another format: raw, qcow2 or vhdx")  # fmt: skip
    return offset // _SECTOR


class Writer:
    """Writes an image into the file ``fd``: see _clusters.Writer. Raises BuildError where it would become too long."""

    def __init__(self, fd: int, capacity: int, descriptor: bytes) -> None:
        self._fd, self._capacity, self._descriptor = fd, capacity, descriptor
        self._end = _OVERHEAD * _SECTOR
        self._directory = [0] * -(-capacity // (_GRAIN * _PER_TABLE))
        self._number, self._table = 0, [0] * _PER_TABLE

    def zero(self, cluster: int) -> None:
        """Nothing says that a grain is zeros but that it is nowhere."""

    def whole(self, cluster: int) -> None:
        """See _clusters.Writer: all grains are compressed."""
        raise AssertionError("grains are compressed")

    def data(self, cluster: int, size: int) -> int:
        """See _clusters.Writer."""
        number, index = divmod(cluster, _PER_TABLE)
        if number != self._number:
            self._close()
            self._number = number
        offset, self._end = self._end, self._end + size
        self._table[index] = _sector(offset)
        return offset

    def finish(self, read: Callable[[int], bytes]) -> None:
        """See _clusters.Writer."""
        self._close()
        directory = struct.pack(f"<{len(self._directory)}I", *self._directory)
        place = self._marked(_DIRECTORY, directory.ljust(-(-len(directory) // _SECTOR) * _SECTOR, b"\0"))
        self._marked(_FOOTER, self._header(place))
        self._marked(_END, b"")
        described = self._descriptor.ljust(_DESCRIPTOR * _SECTOR, b"\0")
        assert len(described) == _DESCRIPTOR * _SECTOR
        write_all(self._fd, self._header(_AT_END) + described, 0)

    def _close(self) -> None:
        if any(self._table):
            self._directory[self._number] = self._marked(_TABLES, _TABLE.pack(*self._table))
            self._table = [0] * _PER_TABLE

    def _marked(self, kind: int, data: bytes) -> int:
        """Write whole sectors behind a marker; return the sector in which they begin."""
        place = _sector(self._end + _SECTOR)
        write_all(self._fd, _MARKER.pack(len(data) // _SECTOR, 0, kind) + data, self._end)
        self._end += _SECTOR + len(data)
        return place

    def _header(self, directory: int) -> bytes:
        return _HEADER.pack(MAGIC, _VERSION, _FLAGS, self._capacity, _GRAIN, 1, _DESCRIPTOR, _PER_TABLE, 0, directory,
                            _OVERHEAD, 0, b"\n \r\n", _DEFLATE)  # fmt: skip


class Image:
    """An image that was written by Writer: see _clusters.Image. Raises Refused for anything else."""

    def __init__(self, fd: int, name: str, at: int, size: int) -> None:
        self._fd, self._name, self._at, self._size = fd, name, at, size
        if size < 3 * _SECTOR:
            raise self._damaged()
        head, foot = self._read(0, _HEADER.size), self._read(size - 2 * _SECTOR, _HEADER.size)
        magic, version, flags, capacity, grain, _, _, per_table, _, place, *_ = _HEADER.unpack(foot)
        if (magic, version, flags, grain, per_table) != (MAGIC, _VERSION, _FLAGS, _GRAIN, _PER_TABLE) or (
            head[:4] != MAGIC
        ):
            raise self._damaged()
        count = -(-capacity // (_GRAIN * _PER_TABLE))
        self._directory = struct.unpack(f"<{count}I", self._read(place * _SECTOR, 4 * count))

    def _damaged(self) -> Refused:
        return Refused(f"{self._name} is no whole streamOptimized VMDK of imagesmith's")

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._size or len(data := os.pread(self._fd, size, self._at + offset)) != size:
            raise self._damaged()
        return data

    def stored(self) -> dict[int, Stored]:
        """See _clusters.Image."""
        found: dict[int, Stored] = {}
        for number, table in enumerate(self._directory):
            if not table:
                continue
            for index, place in enumerate(_TABLE.unpack(self._read(table * _SECTOR, _TABLE.size))):
                if place:
                    cluster = number * _PER_TABLE + index
                    sector, size = _BEFORE.unpack(self._read(place * _SECTOR, _BEFORE.size))
                    whole = -(-(_BEFORE.size + size) // _SECTOR) * _SECTOR
                    if sector != cluster * _GRAIN or place * _SECTOR + whole > self._size:
                        raise self._damaged()
                    found[cluster] = Stored(place * _SECTOR, whole)
        return found

    def zeroed(self) -> set[int]:
        """See _clusters.Image."""
        return set()

    def bytes_of(self, cluster: int, stored: Stored) -> bytes:
        """See _clusters.Image."""
        grain = self._read(stored.offset, stored.size)
        _, size = _BEFORE.unpack_from(grain)
        try:
            return zlib.decompress(grain[_BEFORE.size : _BEFORE.size + size])
        except zlib.error:
            raise self._damaged() from None

    def copy(self, offset: int, size: int, into: int, at: int) -> None:
        """See _clusters.Image."""
        if not copied(self._fd, self._at + offset, size, into, at):
            raise self._damaged()
