"""Archives for the kernel's initial RAM disk: "newc" cpio, always the same bytes for the same files.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst: an initrd is any number of archives, each compressed
or not; each begins at a multiple of four bytes, with zeros before it where need be; a later file replaces an earlier
one of the same name; and a folder must come before what is in it.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from imagesmith.errors import BuildError

_FOLDER, _FILE = 0o040755, 0o100000
_ALIGNED = 4
_LARGEST = (1 << 32) - 1
_HEADER = 110
_MAGIC = (b"070701", b"070702")
_END = "TRAILER!!!"


def archive(files: Mapping[str, bytes | Path], *, mode: int = 0o600) -> bytes:
    """See write: the same, as bytes."""
    out = io.BytesIO()
    write(out, files, mode=mode)
    return out.getvalue()


def write(out: BinaryIO, files: Mapping[str, bytes | Path], *, mode: int = 0o600) -> None:
    """Write an archive of files (relative name -> content, or a file with it) and of the folders around them.

    All belong to root; ``mode`` is the files'. A folder takes the place of a symbolic link of the same name: name files
    by where they really are. Raises BuildError for a file of 4 GiB or more, which the format cannot hold.
    """
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents if parent.name}
    for number, name in enumerate(sorted(folders), 1):
        out.write(_header(name, _FOLDER, 0, number))
    for number, (name, content) in enumerate(sorted(files.items()), len(folders) + 1):
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size > _LARGEST:
            raise BuildError(f"{name} has {size >> 20} MiB; a file in an initial RAM disk cannot have 4 GiB or more")
        out.write(_header(name, _FILE | mode, size, number))
        if isinstance(content, Path):
            with content.open("rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
        else:
            out.write(content)
        out.write(bytes(-size % _ALIGNED))
    out.write(_header(_END, 0, 0, 0))


def _header(name: str, mode: int, size: int, number: int) -> bytes:
    raw = name.encode() + b"\0"
    links = 2 if mode == _FOLDER else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), device it stands for (2), size of the name, checksum
    fields = (number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return head + bytes(-len(head) % _ALIGNED)


def join(initrds: Sequence[Path], more: bytes, out: BinaryIO) -> None:
    """Write initrds and one more archive behind each other."""
    for initrd in initrds:
        with initrd.open("rb") as stream:
            shutil.copyfileobj(stream, out, 1 << 20)
        pad(out)
    out.write(more)


def pad(out: BinaryIO) -> None:
    """Write zeros up to where the next archive may begin."""
    out.write(bytes(-out.tell() % _ALIGNED))


def names(data: bytes) -> tuple[list[str], bytes]:
    """The names in the uncompressed archives that ``data`` begins with, and what follows these (zeros left out)."""
    found: list[str] = []
    place = 0
    while data[place : place + 6] in _MAGIC:
        for name, end in _entries(data, place):
            place = end
            if name != _END:
                found.append(name)
        while data[place : place + 1] == b"\0":
            place += 1
    return found, data[place:]


def _entries(data: bytes, place: int) -> Iterator[tuple[str, int]]:
    """One archive's entries, each with where the next one begins. Raises ValueError."""
    name = ""
    while name != _END:
        if data[place : place + 6] not in _MAGIC or len(data) < place + _HEADER:
            raise ValueError(f"no cpio header at byte {place}")
        size, length = (int(data[place + at : place + at + 8], 16) for at in (54, 94))
        if size < 0 or length < 1:
            raise ValueError(f"a cpio header at byte {place} makes no sense")
        name = data[place + _HEADER : place + _HEADER + length - 1].decode("utf-8", "surrogateescape")
        content = place + _HEADER + length
        content += -content % _ALIGNED
        place = content + size
        place += -place % _ALIGNED
        yield name, place
