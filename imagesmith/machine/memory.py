"""A guest's memory as a file without a name, and such a file packed: in parts, so that all processors work at once.

A packed memory is a sequence of zstd frames (RFC 8878), each with a checksum of its contents; an index tells which
parts of the memory each one holds. Parts that the guest never touched, or gave back, are holes of the file (lseek(2),
SEEK_DATA) and are in none; nor are pages of zeros, nor pages that the guest's disk has as well, of which the index
tells where they are.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import zstandard

from imagesmith.errors import GuestFailed, Interrupted
from imagesmith.machine.blocks import PAGE, Blocks, marks

_T = TypeVar("_T")
_LEVEL = 1
"""A Debian guest's 217 MiB: 67 MiB in 0.4 s of one processor, unpacked in 0.15 s. Level 3 takes off another 4 MiB in
0.6 s, level -5 adds 26 and takes 0.3 s."""
_FRAME = 2 << 20
_MOST = 1 << 30
_FRAMES, _INDEX = "memory.zst", "index.zst"
_ZEROS = bytes(PAGE)
_MANY = 1 << 16
"""Pages: what is known of each takes 300 bytes while they are looked for."""
_ALIKE = 8
"""So many pages of one mark are looked for: one that is there more often is packed well anyway."""

Extents = list[tuple[int, int]]
"""Where parts of a memory begin, and their lengths, in bytes."""


class Run(NamedTuple):
    """Pages that are in a file as well: its number, the place in it, the place in the memory, their length."""

    file: int
    at: int
    start: int
    length: int


def make(size: int) -> int:
    """Make an empty memory of ``size`` bytes; return its descriptor."""
    memory = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(memory, size)
    return memory


def pack(memory: int, folder: Path, cancelled: Callable[[], bool], *, blocks: Blocks | None = None,
         disk: Sequence[Path] = ()) -> None:  # fmt: skip
    """Write a memory that nobody changes meanwhile into two new files of ``folder``, with mode 0600.

    Pages that are in the files of ``disk`` as well are not written; ``unpack`` must be given the same files, and
    ``blocks`` knows of them what was found out before. Raises OSError, Interrupted.
    """
    index: list[tuple[int, int, Extents]] = []
    end, turn = 0, threading.Lock()

    def one(extents: Extents) -> None:
        nonlocal end
        if cancelled():
            raise Interrupted()
        data = b"".join(os.pread(memory, length, start) for start, length in extents)
        frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
        with turn:
            place, end = end, end + len(frame)
            index.append((place, len(frame), extents))
        os.pwrite(packed, frame, place)

    known = blocks or Blocks()
    same: list[tuple[int, list[Run]]] = []

    def frames() -> Iterator[Extents]:
        for pages, wanted in _look(memory, cancelled):
            there = known.find(disk, wanted, lambda page: os.pread(memory, PAGE, page))
            same.extend((_sum(memory, runs), runs) for runs in _runs(there))
            yield from _frames(page for page in pages if page not in there)

    packed = os.open(folder / _FRAMES, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        _each(one, frames())
    finally:
        os.close(packed)
    found = {"size": os.fstat(memory).st_size, "frames": sorted(index), "disk": same}
    write(folder / _INDEX, json.dumps(found, separators=(",", ":")).encode())


def unpack(folder: Path, memory: int, cancelled: Callable[[], bool], *, disk: Sequence[Path] = ()) -> None:
    """Fill an empty memory with what ``pack`` wrote into ``folder``, and what it left in the files of ``disk``.

    Raises GuestFailed where either is damaged or of another size, OSError, Interrupted.
    """
    try:
        index = json.loads(read(folder / _INDEX))
        frames = [(int(place), int(length), [(int(a), int(b)) for a, b in extents])
                  for place, length, extents in index["frames"]]  # fmt: skip
        there = [(int(total), [Run(*map(int, run)) for run in runs]) for total, runs in index["disk"]]
        size = int(index["size"])
    except (ValueError, KeyError, TypeError):
        raise GuestFailed("the state is damaged") from None
    if size != os.fstat(memory).st_size:
        raise GuestFailed("the state is of a guest with another memory")

    def check(good: bool) -> None:
        if cancelled():
            raise Interrupted()
        if not good:
            raise GuestFailed("the state is damaged")

    def one(frame: tuple[int, int, Extents]) -> None:
        place, length, extents = frame
        check(all(start >= 0 and part >= 0 and start + part <= size for start, part in extents))
        whole = sum(part for _, part in extents)
        data = _expanded(os.pread(packed, length, place), most=whole)
        check(len(data) == whole)
        view = memoryview(data)
        for start, part in extents:
            os.pwrite(memory, view[:part], start)
            view = view[part:]

    def copy(group: tuple[int, list[Run]]) -> None:
        total, runs = group
        check(all(0 <= run.file < len(files) and run.start >= 0 and run.start + run.length <= size for run in runs))
        for run in runs:
            os.pwrite(memory, os.pread(files[run.file], run.length, run.at), run.start)
        check(_sum(memory, runs) == total)

    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)).fileno() for path in (folder / _FRAMES, *disk)]
        packed = files.pop(0)
        _each(one, frames)
        _each(copy, there)


def write(file: Path, data: bytes) -> None:
    """Write bytes, packed, to a new file with mode 0600. Raises OSError."""
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as stream:
        stream.write(packed)


def read(file: Path) -> bytes:
    """Read what ``write`` wrote. Raises GuestFailed where it is damaged, OSError."""
    return _expanded(file.read_bytes(), most=_MOST)


def _expanded(frame: bytes, *, most: int) -> bytes:
    """What a frame holds, which says how many bytes it is. Raises GuestFailed where it is damaged."""
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= most:  # all of that would be allocated
            raise GuestFailed("the state is damaged")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError:
        raise GuestFailed("the state is damaged") from None


def _each(work: Callable[[_T], None], items: Iterable[_T]) -> None:
    """Do the same to all, side by side: zstd and system calls let other threads run. Raises what the first raised."""
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), thread_name_prefix="memory") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _look(memory: int, cancelled: Callable[[], bool]) -> Iterator[tuple[list[int], dict[int, list[int]]]]:
    """The places of a memory's pages that are not all zeros, so many at a time, and the same by their marks."""
    pages: list[int] = []
    wanted: dict[int, list[int]] = {}
    for start, end in _data(memory):
        for at in range(start, end, _FRAME):
            if cancelled():
                raise Interrupted()
            data = os.pread(memory, min(_FRAME, end - at), at)
            for page, mark in zip(range(at, at + len(data), PAGE), marks(data), strict=True):
                if mark or data[page - at : page - at + PAGE] != _ZEROS:
                    pages.append(page)
                    alike = wanted.setdefault(mark, [])
                    if len(alike) < _ALIKE:
                        alike.append(page)
            if len(pages) >= _MANY:
                yield pages, wanted
                pages, wanted = [], {}
    yield pages, wanted


def _frames(pages: Iterable[int]) -> Iterator[Extents]:
    """Pages, the first one first, in pieces of one frame."""
    found: Extents = []
    filled = 0
    for page in pages:
        if found and sum(found[-1]) == page:
            found[-1] = found[-1][0], found[-1][1] + PAGE
        else:
            found.append((page, PAGE))
        filled += PAGE
        if filled == _FRAME:
            yield found
            found, filled = [], 0
    if found:
        yield found


def _runs(there: Mapping[int, tuple[int, int]]) -> Iterator[list[Run]]:
    """Pages that are on the disk, in pieces of about one frame."""
    found: list[Run] = []
    filled = 0
    for page, (file, at) in sorted(there.items()):
        last = found[-1] if found else Run(-1, 0, 0, 0)
        if (last.file, last.at + last.length, last.start + last.length) == (file, at, page):
            found[-1] = last._replace(length=last.length + PAGE)
        else:
            found.append(Run(file, at, page, PAGE))
        filled += PAGE
        if filled == _FRAME:
            yield found
            found, filled = [], 0
    if found:
        yield found


def _sum(memory: int, runs: Iterable[Run]) -> int:
    total = 0
    for run in runs:
        total = zlib.crc32(os.pread(memory, run.length, run.start), total)
    return total


def _data(memory: int) -> Iterator[tuple[int, int]]:
    at, size = 0, os.fstat(memory).st_size
    while at < size:
        try:
            start = os.lseek(memory, at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole
            return
        at = os.lseek(memory, start, os.SEEK_HOLE)
        yield start, at
