"""The qcow2 format: reading where clusters are, and writing compressed images that are the same every time.

QEMU, docs/interop/qcow2.txt ("Header", "Cluster mapping", "Host cluster management"); numbers are big-endian.

An image that is written here has clusters of 64 KiB in this order: the header; all compressed clusters in the guest's
order, packed byte by byte without a gap; those that do not become smaller, as they are; the L2 tables; the L1 table;
the refcount blocks and their table. So each byte's place follows from the compressed sizes alone, and the exact size of
a compressed cluster, which the format rounds to sectors, is the distance to the next one.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import local
from typing import NamedTuple, Protocol

import zstandard

from imagesmith.errors import Refused

BITS = 16
CLUSTER = 1 << BITS
"""Bytes of a cluster, as qemu-img makes them."""
ZEROS = bytes(CLUSTER)
MAGIC = b"QFI\xfb"
_ENTRIES = CLUSTER // 8
_SECTOR = 512
_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55
_EXTERNAL, _COMPRESSION_TYPE, _EXTENDED = 1 << 2, 1 << 3, 1 << 4  # incompatible features
_BACKING_FORMAT, _FEATURE_NAMES = 0xE2792ACA, 0x6803F857
_HEADER = ">4sIQIIQIIQQIIQQQQIIB7x"
_COPY, _PIECE = 1 << 30, 1 << 20
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # copy_file_range(2): pread and pwrite do
_LARGEST_L1 = 32 << 20  # bytes: QEMU opens none that is larger
_NOWHERE = 1 << 62  # no file is so long, and pread(2) takes no offset beyond the next bit


class Codec(Protocol):
    """How clusters are compressed: a function of a cluster's bytes alone, for any number of threads."""

    name: str
    number: int
    """``compression_type`` in the header."""
    version: str
    """Of what compresses: the same bytes come out as long as it stays the same."""

    def compress(self, cluster: bytes) -> bytes:
        """Compress a cluster."""
        ...

    def expand(self, data: bytes, size: int) -> bytes:
        """Return the first ``size`` bytes of what was compressed; what follows the data counts for nothing."""
        ...


class Zlib:
    """Raw deflate with a window of 4 KiB, as QEMU has it (block/qcow2-threads.c, ``qcow2_zlib_compress``)."""

    name, number = "zlib", 0
    version = f"zlib {zlib.ZLIB_RUNTIME_VERSION}"

    def compress(self, cluster: bytes) -> bytes:
        """See Codec."""
        squeezer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9, zlib.Z_DEFAULT_STRATEGY)
        return squeezer.compress(cluster) + squeezer.flush()

    def expand(self, data: bytes, size: int) -> bytes:
        """See Codec."""
        return zlib.decompressobj(-12).decompress(data, size)


class Zstd:
    """One zstd frame of QEMU's level a cluster (block/qcow2-threads.c, ``qcow2_zstd_compress``; RFC 8878)."""

    name, number = "zstd", 1
    version = "zstd " + ".".join(map(str, zstandard.ZSTD_VERSION))

    def __init__(self) -> None:
        self._own = local()  # a compressor serves one thread at a time

    def compress(self, cluster: bytes) -> bytes:
        """See Codec."""
        if not hasattr(self._own, "squeezer"):
            self._own.squeezer = zstandard.ZstdCompressor(level=3)
        done: bytes = self._own.squeezer.compress(cluster)
        return done

    def expand(self, data: bytes, size: int) -> bytes:
        """See Codec."""
        if not hasattr(self._own, "expander"):
            self._own.expander = zstandard.ZstdDecompressor()
        with self._own.expander.stream_reader(data) as stream:
            done: bytes = stream.read(size)
        return done


LAYOUT = 1
"""Raise it when other bytes come out of the same clusters: nothing of an image with another one is used."""
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in (Zlib(), Zstd())}


# -- reading -----------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A cluster's data in an image: where, how many bytes, and whether they are the cluster's own, not compressed."""

    offset: int
    size: int
    whole: bool = False


class Image:
    """A qcow2 file's tables, read when they are asked for. ``at`` is where in ``fd`` it begins.

    Raises Refused for what is no whole qcow2 image, or one whose data is encrypted or in another file.
    """

    def __init__(self, fd: int, name: str, at: int = 0) -> None:
        self.fd, self._name, self._at = fd, name, at
        head = os.pread(fd, struct.calcsize(_HEADER), at).ljust(struct.calcsize(_HEADER), b"\0")
        (magic, version, name_at, name_size, self.bits, self.size, crypt, l1_size, l1_at, _, _, _, _,
         features, _, _, _, length, kind) = struct.unpack(_HEADER, head)  # fmt: skip
        features, kind = (features, kind) if version >= 3 else (0, 0)
        if magic != MAGIC or version not in {2, 3} or not 9 <= self.bits <= 21 or name_size > 1023:
            raise Refused(f"{name} is no qcow2 image")
        if crypt or features & _EXTERNAL:
            raise Refused(f"{name} is encrypted, or keeps its data in another file")
        self.backing = os.fsdecode(self._read(name_at, name_size)) if name_at else ""
        self._entry = 16 if features & _EXTENDED else 8
        self._per_table = (1 << self.bits) // self._entry
        kind = kind if features & _COMPRESSION_TYPE and length > 104 else 0
        codec = next((codec for codec in CODECS.values() if codec.number == kind), None)
        if codec is None or l1_size * 8 > _LARGEST_L1:
            raise Refused(f"{name} is compressed in an unknown way, or its tables make no sense")
        self.codec = codec
        self._l1 = _table(self._read(l1_at, l1_size * 8))

    def _read(self, offset: int, size: int) -> bytes:
        if offset >= _NOWHERE or len(data := os.pread(self.fd, size, self._at + offset)) != size:
            raise Refused(f"{self._name} is only the beginning of a qcow2 image")
        return data

    def _tables(self) -> Iterator[tuple[int, array[int]]]:
        for number, entry in enumerate(self._l1):
            if offset := entry & _OFFSET:
                yield number * self._per_table, _table(self._read(offset, 1 << self.bits))

    @cached_property
    def _compressed(self) -> dict[int, int]:
        step = self._entry // 8
        return {
            first + index: entry
            for first, table in self._tables()
            for index, entry in enumerate(table[::step])
            if entry & _COMPRESSED
        }

    def expand(self, cluster: int) -> bytes:
        """The bytes of a compressed cluster (of ``bits`` bits). Raises Refused where they are damaged."""
        entry = self._compressed.get(cluster)
        if entry is not None:
            offset, sectors = self._place(entry)
            data = os.pread(self.fd, (sectors + 1) * _SECTOR - offset % _SECTOR, self._at + offset)
            try:
                done = self.codec.expand(data, 1 << self.bits)
            except (zlib.error, zstandard.ZstdError):
                done = b""
            if len(done) == 1 << self.bits:
                return done
        raise Refused(f"{self._name} is damaged: its cluster {cluster} cannot be read")

    def _place(self, entry: int) -> tuple[int, int]:
        split = 62 - (self.bits - 8)
        return entry & ((1 << split) - 1), (entry & (_COMPRESSED - 1)) >> split

    def stored(self) -> dict[int, Stored]:
        """Where an image that was written by Writer has its clusters' data, by their numbers.

        The size is 0 where it is not known exactly: of the last compressed cluster it is not.
        """
        found, packed = dict[int, Stored](), list[tuple[int, int, int]]()
        for first, table in self._tables():
            for index, entry in enumerate(table):
                if entry & _COMPRESSED:
                    packed.append((*self._place(entry), first + index))
                elif offset := entry & _OFFSET:
                    found[first + index] = Stored(offset, CLUSTER, True)
        packed.sort()
        for (offset, sectors, cluster), (end, _, _) in zip(packed, [*packed[1:], (0, 0, 0)], strict=False):
            exact = (end - 1) // _SECTOR - offset // _SECTOR == sectors
            found[cluster] = Stored(offset, end - offset if exact else 0)
        return found

    def zeroed(self) -> set[int]:
        """The clusters that the image says are zeros, whatever it stands on has there."""
        return {first + index for first, table in self._tables() for index, entry in enumerate(table)
                if entry & (_COMPRESSED | _ZERO) == _ZERO}  # fmt: skip

    def bytes_of(self, cluster: int, stored: Stored) -> bytes:
        """The bytes of a cluster that ``stored`` tells of. Raises Refused where they are damaged."""
        return self._read(stored.offset, CLUSTER) if stored.whole else self.expand(cluster)

    def copy(self, offset: int, size: int, into: int, at: int) -> None:
        """Copy a part of the file into another one, by the kernel where it can. Raises OSError, Refused."""
        if not copied(self.fd, self._at + offset, size, into, at):
            raise Refused(f"{self._name} is only the beginning of a qcow2 image")


def _table(data: bytes) -> array[int]:
    table = array("Q", data)
    if sys.byteorder == "little":
        table.byteswap()
    return table


# -- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """What an image stands on: the file here, and the name and format that the image's header has for it."""

    path: Path
    name: str
    format: str


@dataclass(frozen=True)
class Qcow2:
    """The format, to be written by _clusters: ``codec`` None does not compress."""

    codec: Codec | None
    base: Base | None = None
    magic = MAGIC

    def writer(self, fd: int, size: int) -> Writer:
        """Begin an image."""
        return Writer(fd, size, self.codec, self.base)

    def opened(self, fd: int, name: str, at: int, size: int) -> Image:
        """Open an image that was written before. Raises Refused."""
        return Image(fd, name, at)

    def squeeze(self, cluster: int, data: bytes) -> bytes | None:
        """Compress a cluster; None where that makes it no smaller."""
        squeezed = None if self.codec is None else self.codec.compress(data)
        return squeezed if squeezed is not None and len(squeezed) < CLUSTER else None


class Writer:
    """Writes an image into the file ``fd``: ``data`` and ``zero`` for the clusters in order, then ``finish``."""

    def __init__(self, fd: int, size: int, codec: Codec | None, base: Base | None) -> None:
        self._fd, self._size, self._codec, self._base = fd, size, codec, base
        self._end = CLUSTER
        self._tables: dict[int, array[int]] = {}
        self._counts = array("H", [1])
        self._whole: list[int] = []

    def _set(self, cluster: int, entry: int) -> None:
        table, index = divmod(cluster, _ENTRIES)
        if table not in self._tables:
            self._tables[table] = array("Q", bytes(CLUSTER))
        self._tables[table][index] = entry

    def zero(self, cluster: int) -> None:
        """The cluster is zeros, and what the image stands on is not."""
        self._set(cluster, _ZERO)

    def whole(self, cluster: int) -> None:
        """The cluster does not become smaller: ``finish`` asks for it."""
        self._whole.append(cluster)

    def data(self, cluster: int, size: int) -> int:
        """The compressed cluster takes so many bytes, which the caller writes at the offset that is returned."""
        offset, self._end = self._end, self._end + size
        sectors = (self._end - 1) // _SECTOR - offset // _SECTOR
        self._set(cluster, _COMPRESSED | sectors << (62 - (BITS - 8)) | offset)
        for host in range(offset >> BITS, (self._end - 1 >> BITS) + 1):
            if host == len(self._counts):
                self._counts.append(0)
            self._counts[host] += 1
        return offset

    def finish(self, read: Callable[[int], bytes]) -> None:
        """Write the clusters that stay as they are, which ``read`` returns by their numbers, and the tables."""
        for cluster in self._whole:
            self._set(cluster, self._append(read(cluster)) | _COPIED)
        l1 = array("Q", bytes(8 * max(1, -(-self._size // (CLUSTER * _ENTRIES)))))
        for number, table in sorted(self._tables.items()):
            l1[number] = self._append(_bytes(table)) | _COPIED
        l1_at = self._append(_bytes(l1))
        blocks, table_size = _refcount_clusters(len(self._counts))
        first = len(self._counts)
        self._counts.extend([1] * (blocks + table_size))
        counts = _bytes(self._counts).ljust(blocks * CLUSTER, b"\0")
        write_all(self._fd, counts, first * CLUSTER)
        places = array("Q", [(first + n) * CLUSTER for n in range(blocks)])
        table_at = (first + blocks) * CLUSTER
        write_all(self._fd, _bytes(places).ljust(table_size * CLUSTER, b"\0"), table_at)
        write_all(self._fd, self._header(len(l1), l1_at, table_at, table_size), 0)

    def _append(self, data: bytes) -> int:
        """Write whole clusters that are used once behind all others; return their offset."""
        offset = len(self._counts) * CLUSTER
        clusters = -(-len(data) // CLUSTER)
        write_all(self._fd, data.ljust(clusters * CLUSTER, b"\0"), offset)
        self._counts.extend([1] * clusters)
        return offset

    def _header(self, l1_size: int, l1_at: int, table_at: int, table_size: int) -> bytes:
        kind = 0 if self._codec is None else self._codec.number
        extensions = b""
        if self._base is not None:
            extensions += _extension(_BACKING_FORMAT, self._base.format.encode())
        if kind:
            extensions += _extension(_FEATURE_NAMES, struct.pack(">BB46s", 0, 3, b"compression type"))
        extensions += _extension(0, b"")
        length = struct.calcsize(_HEADER)
        name = os.fsencode(self._base.name) if self._base is not None else b""
        name_at = length + len(extensions) if name else 0
        head = struct.pack(
            _HEADER, MAGIC, 3, name_at, len(name), BITS, self._size, 0, l1_size, l1_at, table_at, table_size, 0, 0,
            _COMPRESSION_TYPE if kind else 0, 0, 0, 4, length, kind,
        )  # fmt: skip
        return head + extensions + name


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of it; pwrite(2) may write a part. Raises OSError."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def copied(fd: int, offset: int, size: int, into: int, at: int) -> bool:
    """Copy a part of a file into another one, by the kernel where it can; false: it ended before. Raises OSError."""
    while size:
        try:
            done = os.copy_file_range(fd, into, min(size, _COPY), offset, at)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            data = os.pread(fd, min(size, _PIECE), offset)
            write_all(into, data, at)
            done = len(data)
        if not done:
            return False
        offset, at, size = offset + done, at + done, size - done
    return True


def _refcount_clusters(used: int) -> tuple[int, int]:
    """How many clusters count the references (16 bits each) to the ``used`` ones and to themselves; and their table."""
    blocks = table = 0
    while True:
        more = -(-(used + blocks + table) // (CLUSTER // 2))
        larger = -(-more * 8 // CLUSTER)
        if (more, larger) == (blocks, table):
            return blocks, table
        blocks, table = more, larger


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def _bytes(table: array[int]) -> bytes:
    if sys.byteorder == "little":
        table = table[:]
        table.byteswap()
    return table.tobytes()
