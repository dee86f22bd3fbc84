"""Archives for the kernel's initial RAM disk: "newc" cpio, always the same bytes for the same files.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst: an initrd is any number of archives, each compressed
or not; each begins at a multiple of four bytes, with zeros before it where need be; a later file replaces an earlier
one of the same name; and a folder must come before what is in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_FOLDER, _FILE = 0o040755, 0o100600
_ALIGNED = 4


def archive(files: Mapping[str, bytes]) -> bytes:
    """An archive of files (relative name -> content), owned by root, for root alone, and of the folders around them.

    A folder takes the place of a symbolic link of the same name: name files by where they really are.
    """
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents if parent.name}
    made = bytearray()
    for number, name in enumerate(sorted(folders), 1):
        made += _entry(name, _FOLDER, b"", number)
    for number, (name, content) in enumerate(sorted(files.items()), len(folders) + 1):
        made += _entry(name, _FILE, content, number)
    return bytes(made + _entry("TRAILER!!!", 0, b"", 0))


def _entry(name: str, mode: int, content: bytes, number: int) -> bytes:
    raw = name.encode() + b"\0"
    links = 2 if mode == _FOLDER else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), device it stands for (2), size of the name, checksum
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return _pad(head) + _pad(content)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNED)


def join(initrds: Sequence[Path], more: bytes, out: BinaryIO) -> None:
    """Write initrds and one more archive behind each other."""
    for initrd in initrds:
        with initrd.open("rb") as stream:
            shutil.copyfileobj(stream, out, 1 << 20)
        out.write(bytes(-out.tell() % _ALIGNED))
    out.write(more)
