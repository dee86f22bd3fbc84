"""An ext2, 3 or 4 file system in a raw file, read without a mount, a program or a belief in what it says.

On-disk layout: Linux, Documentation/filesystems/ext4: "Super Block", "Block Group Descriptors", "Inode Table", "The
Contents of inode.i_block" (extents and block maps), "Directory Entries". The nodes of a hashed folder look like
entries without an inode to those who read it line by line.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from imagesmith.errors import BuildError, Refused
from imagesmith.inventory import File
from imagesmith.look.reader import LARGEST, followed

_ROOT = 2
_WINDOW = 1 << 16
_AHEAD = 1 << 20
_MOST_FILES = 1 << 21
_MOST_LETTERS = 1 << 28
_MOST_HOLES = 1 << 32
"""Bytes of holes that are hashed of one file system, of which a small image can promise any number; more have no
digest."""
_MOST_ENTRIES = 1 << 28
"""Entries of tables of blocks that are followed, in a disk of any size."""
_EXTENTS, _EXTENT_MAGIC = 0x80000, 0xF30A
# Features without which nothing is understood: names' types, journal to be replayed, extents, 64 bits, multiple mount
# protection, flexible groups, attributes in inodes, the checksums' seed, large folders, folding of names.
_KNOWN = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x20000
_REPLAY = 0x4


class Inode(NamedTuple):
    """What an inode says. ``size`` in bytes; ``block``: 60 bytes of extents, block numbers, or a link's target."""

    number: int
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    block: bytes


class Ext4Reader:
    """Implements reader.Reader; ``files`` lists everything. Raises BuildError for what it cannot read."""

    def __init__(self, raw: Path, offset: int) -> None:
        self._offset = offset
        self._file = os.open(raw, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._super(self._pread(1024, 1024))
        except BaseException:
            os.close(self._file)
            raise
        self._window = lru_cache(1024)(lambda number: self._pread(number * _WINDOW, _WINDOW, short=True))
        self._folders: dict[int, dict[str, int]] = {}
        self._ahead, self._ahead_at = b"", 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- reader.Reader -------------------------------------------------------------------------------------------

    def names(self, path: str) -> Sequence[str]:
        """See Reader."""
        found = self._at(self._followed(path))
        return sorted(self._listed(found)) if found is not None and stat.S_ISDIR(found.mode) else []

    def read(self, path: str) -> bytes:
        """See Reader. A file that is larger than LARGEST, which may take no room in the image, is none."""
        found = self._at(self._followed(path))
        if found is None or not stat.S_ISREG(found.mode) or found.size > LARGEST:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._content(found)

    def files(self) -> dict[str, File]:
        """Everything below /, by absolute path, with the digests of files."""
        paths: dict[str, Inode] = {}
        first: dict[int, str] = {}
        folders, seen, letters = [("", self._inode(_ROOT))], {_ROOT}, 0
        while folders:
            parent, folder = folders.pop()
            for name, number in self._listed(folder).items():
                inode, path = self._inode(number), f"{parent}/{name}"
                paths[path], letters = inode, letters + len(path)
                if stat.S_ISDIR(inode.mode):
                    if number in seen:
                        raise Refused("a folder of its root file system is in two places")
                    seen.add(number)
                    folders.append((path, inode))
                elif inode.links > 1:
                    first[number] = min(path, first.get(number, path))
                if len(paths) > _MOST_FILES or letters > _MOST_LETTERS:
                    raise Refused("its root file system says that it has millions of files, which is not believed")
        regular = {inode.number: inode for inode in paths.values() if stat.S_ISREG(inode.mode)}
        digests = self._digests(regular.values())
        found = {}
        for path in sorted(paths):
            inode = paths[path]
            leader = first.get(inode.number, path)
            what = f"= {leader}" if leader != path else digests.get(inode.number) or self._what(inode)
            size = inode.size if stat.S_ISREG(inode.mode) and leader == path else 0
            found[path] = File(inode.mode, inode.uid, inode.gid, size, what)
        return found

    # -- inside --------------------------------------------------------------------------------------------------

    def _what(self, inode: Inode) -> str:
        if stat.S_ISLNK(inode.mode):
            return self._target(inode)
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            old, new = struct.unpack_from("<II", inode.block)
            device = old if old else (new & 0xFFF00) >> 8 << 8 | new & 0xFF | (new >> 12 & 0xFFF00)
            return f"{device >> 8 & 0xFFF}:{device & 0xFF}"
        return ""

    def _digests(self, inodes: Iterable[Inode]) -> dict[int, str]:
        """The SHA-256 of files by inode, read in the order in which they lie on the disk."""
        wanted, data, holes = [], self._blocks * self._block, _MOST_HOLES
        for inode in inodes:
            runs = self._runs(inode)
            there = sum(count for _, physical, count in runs if physical) * self._block
            hole = max(0, inode.size - there)
            if there <= data and hole <= holes:
                data, holes = data - there, holes - hole
                wanted.append((runs[0][1] if runs else 0, inode, runs))
        found = {}
        for _, inode, runs in sorted(wanted, key=lambda one: one[0]):
            sha = hashlib.sha256()
            for piece in self._pieces(inode.size, runs, self._near):
                sha.update(piece)
            found[inode.number] = sha.hexdigest()
        return found

    def _content(self, inode: Inode) -> bytes:
        return b"".join(self._pieces(inode.size, self._runs(inode), self._pread))

    def _pieces(
        self, size: int, runs: Sequence[tuple[int, int, int]], read: Callable[[int, int], bytes]
    ) -> Iterator[bytes]:
        """A file's bytes, in pieces of at most 1 MiB."""
        at = 0
        for logical, physical, count in runs:
            yield from _zeros(min(logical * self._block, size) - at)
            at = min(max(at, logical * self._block), size)
            end = min((logical + count) * self._block, size)
            if not physical:  # promised, and never written
                yield from _zeros(end - at)
                at = max(at, end)
            while at < end:
                piece = min(end - at, _AHEAD)
                yield read(physical * self._block + at - logical * self._block, piece)
                at += piece
        yield from _zeros(size - at)

    def _near(self, at: int, size: int) -> bytes:
        """Read with what lies behind it, which is wanted next."""
        skip = at - self._ahead_at
        if skip < 0 or skip + size > len(self._ahead):
            self._ahead, self._ahead_at, skip = self._pread(at, max(size, _AHEAD), short=True), at, 0
        found = self._ahead[skip : skip + size]
        if len(found) < size:
            raise Refused("its root file system is cut off")
        return found

    def _runs(self, inode: Inode) -> list[tuple[int, int, int]]:
        """Where a file's blocks lie: first block in the file, first block on the disk (0: none), how many; in order."""
        if inode.flags & _EXTENTS:
            found = list(self._extents(inode.block, 6))
        else:
            numbers, each = struct.unpack("<15I", inode.block), self._block // 4
            starts = (*((at, 0) for at in range(12)), (12, 1), (12 + each, 2), (12 + each + each**2, 3))
            found = []
            for number, (start, depth) in zip(numbers, starts, strict=True):
                for at, block in self._mapped(number, depth, start) if number else ():
                    if found and found[-1][1] + found[-1][2] == block and found[-1][0] + found[-1][2] == at:
                        found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
                    else:
                        found.append((at, block, 1))
        return sorted(found)

    def _extents(self, node: bytes, deepest: int) -> Iterator[tuple[int, int, int]]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth >= deepest or 12 + entries * 12 > len(node):
            raise Refused("its root file system is damaged: a tree of extents is none")
        for number in range(entries):
            first, middle, high, low = struct.unpack_from("<IHHI" if depth == 0 else "<IIHH", node, 12 + number * 12)
            if depth == 0:
                written = middle <= 32768
                place, count = high << 32 | low, middle if written else middle - 32768
                self._spend(place, count)
                yield first, place if written else 0, count
            else:  # ei_block, ei_leaf_lo, ei_leaf_hi, unused
                self._spend(high << 32 | middle)
                yield from self._extents(self._at_block(high << 32 | middle), depth)

    def _mapped(self, number: int, depth: int, at: int) -> Iterator[tuple[int, int]]:
        """The blocks below an entry of an old map: which one of the file, and which one of the disk; no holes."""
        self._spend(number)
        if depth == 0:
            yield at, number
            return
        self._left -= self._block >> 8  # a table without entries takes its time, too
        each = (self._block // 4) ** (depth - 1)
        for position, below in enumerate(struct.unpack(f"<{self._block // 4}I", self._at_block(number))):
            if below:
                yield from self._mapped(below, depth - 1, at + position * each)

    def _spend(self, physical: int, count: int = 1) -> None:
        """Count what is read of the tables of blocks, which has an end in a file system that is sound."""
        self._left -= 1
        if self._left < 0 or physical + count > self._blocks:
            raise Refused("its root file system is damaged: it names blocks that it does not have, or too many")

    def _at_block(self, number: int) -> bytes:
        return self._pread(number * self._block, self._block)

    def _followed(self, path: str) -> str:
        def link(parent: str, name: str) -> str | None:
            found = self._at(posixpath.join(parent, name))
            return self._target(found) if found is not None and stat.S_ISLNK(found.mode) else None

        return followed(path, link)

    def _target(self, inode: Inode) -> str:
        if inode.size > 4096:
            return "/\0"
        raw = inode.block[: inode.size] if inode.size < 60 else self._content(inode)
        return raw.decode("utf-8", "surrogateescape")

    def _at(self, path: str) -> Inode | None:
        """What is at a path without links in it."""
        found = self._inode(_ROOT)
        for name in (part for part in path.split("/") if part):
            number = self._listed(found).get(name) if stat.S_ISDIR(found.mode) else None
            if number is None:
                return None
            found = self._inode(number)
        return found

    def _listed(self, folder: Inode) -> dict[str, int]:
        """Name -> inode."""
        if folder.number not in self._folders:
            if folder.size > LARGEST:
                raise Refused("a folder of its root file system is larger than is believed")
            found: dict[str, int] = {}
            data = self._content(folder)
            for start in range(0, len(data), self._block):
                at, end = start, min(start + self._block, len(data))
                while at + 8 <= end:
                    number, length, size = struct.unpack_from("<IHB", data, at)
                    if length < 8 or at + length > end or size + 8 > length:
                        raise Refused("its root file system is damaged: a folder holds what is no name")
                    name = data[at + 8 : at + 8 + size]
                    if number and name not in (b".", b".."):
                        if b"/" in name or b"\0" in name:
                            raise Refused("its root file system is damaged: a name has a slash in it")
                        found[name.decode("utf-8", "surrogateescape")] = number
                    at += length
            self._folders[folder.number] = found
        return self._folders[folder.number]

    def _inode(self, number: int) -> Inode:
        if not 1 <= number <= self._inodes:
            raise Refused("its root file system names an inode that it does not have")
        group, index = divmod(number - 1, self._per_group)
        descriptor = self._bytes((1024 // self._block + 1) * self._block + group * self._wide, self._wide)
        table = struct.unpack_from("<I", descriptor, 8)[0]
        if self._wide >= 64:
            table |= struct.unpack_from("<I", descriptor, 0x28)[0] << 32
        raw = self._bytes(table * self._block + index * self._inode_size, 128)
        mode, uid, low, gid, links, flags = struct.unpack_from("<HHI16xHH4xI", raw)
        block = raw[0x28:0x64]
        high, uid_high, gid_high = struct.unpack_from("<I8xHH", raw, 0x6C)
        size = low | high << 32 if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else low
        return Inode(number, mode, uid | uid_high << 16, gid | gid_high << 16, size, links, flags, block)

    def _super(self, data: bytes) -> None:
        self._inodes, low = struct.unpack_from("<II", data)
        self._block = 1024 << min(struct.unpack_from("<I", data, 0x18)[0], 7)
        self._per_group = struct.unpack_from("<I", data, 0x28)[0]
        magic, revision = struct.unpack_from("<H", data, 0x38)[0], struct.unpack_from("<I", data, 0x4C)[0]
        self._inode_size = struct.unpack_from("<H", data, 0x58)[0] if revision else 128
        features = struct.unpack_from("<I", data, 0x60)[0]
        wide = struct.unpack_from("<H", data, 0xFE)[0]
        self._wide = wide if features & 0x80 else 32
        said = low | (struct.unpack_from("<I", data, 0x150)[0] << 32 if features & 0x80 else 0)
        self._blocks = min(said, (os.fstat(self._file).st_size - self._offset) // self._block)
        self._left = min(16 * self._blocks, _MOST_ENTRIES) + _MOST_FILES
        if magic != 0xEF53 or not self._per_group or self._inode_size not in (128, 256, 512, 1024, 2048, 4096):
            raise BuildError("its root is no ext4 file system")
        if features & ~_KNOWN or self._block > 1 << 16 or self._wide not in (32, 64):
            raise BuildError(f"its root file system has features that are not read here ({features:#x})")
        self.unclean = bool(features & _REPLAY)
        """Whether it was not unmounted: what its journal holds is not read."""

    def _bytes(self, at: int, size: int) -> bytes:
        """A piece of a table, which does not cross a window's end."""
        window, skip = divmod(at, _WINDOW)
        found: bytes = self._window(window)[skip : skip + size]
        if len(found) < size:
            raise Refused("its root file system is cut off")
        return found

    def _pread(self, at: int, size: int, *, short: bool = False) -> bytes:
        try:
            found = os.pread(self._file, size, self._offset + at)
            while found and len(found) < size and (more := os.pread(self._file, size - len(found),
                                                                   self._offset + at + len(found))):  # fmt: skip
                found += more
        except (OSError, OverflowError) as error:  # a place that no disk has, or a disk that cannot be read there
            raise Refused(f"its root file system cannot be read: {error}") from None
        if len(found) < size and not short:
            raise Refused("its root file system is cut off")
        return found


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _NOTHING[: min(count, _AHEAD)]
        count -= _AHEAD


_NOTHING = bytes(_AHEAD)
