"""A program of the image with all that it needs to run on its own: the program loader and the shared libraries.

Source: System V ABI, "Program Header" (PT_LOAD, PT_DYNAMIC, PT_INTERP) and "Dynamic Section" (DT_NEEDED, DT_STRTAB).
"""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Iterator, Mapping, Sequence

from imagesmith.errors import BuildError, Refused
from imagesmith.interfaces import Files
from imagesmith.outputs._rootfs import read

_LOAD, _DYNAMIC, _INTERP = 1, 2, 3
_NEEDED, _STRTAB = 1, 5
_FOLDERS = (
    "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
    "/lib64", "/usr/lib64", "/lib", "/usr/lib",
)  # fmt: skip
_MOST = 64


def closure(files: Files, program: str, content: bytes) -> tuple[str, Mapping[str, bytes]]:
    """Return the loader's name (empty: the program is static), and it and all libraries: name without folder -> bytes.

    Raises BuildError for a library that the image lacks, Refused for what is no ELF file.
    """
    loader, wanted = look(content, program)
    found: dict[str, bytes] = {}
    if loader:
        found[posixpath.basename(loader)] = _find(files, program, loader)
    queue = list(wanted)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        if "/" in name:
            raise Refused(f"{program} of the image needs a library with the name {name!r}")
        if len(found) >= _MOST:
            raise Refused(f"{program} needs more than {_MOST} libraries")
        found[name] = _find(files, program, *(f"{folder}/{name}" for folder in _FOLDERS))
        queue += look(found[name], name)[1]
    return posixpath.basename(loader), found


def _find(files: Files, program: str, *paths: str) -> bytes:
    for path in paths:
        content = read(files, path)
        if content is not None:
            return content
    raise BuildError(f"{program} of the image needs {posixpath.basename(paths[0])}, which the image does not have")


def look(data: bytes, name: str) -> tuple[str, Sequence[str]]:
    """Return the loader of an ELF file, and the names of the libraries that it needs. Raises Refused."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise Refused(f"{name} of the image is no 64-bit little-endian ELF file")
    try:
        segments = list(_segments(data))
        loader = "".join(_text(data, offset) for kind, offset, _, _ in segments if kind == _INTERP)
        dynamic = next(((offset, size) for kind, offset, _, size in segments if kind == _DYNAMIC), (0, 0))
        tags = [struct.unpack_from("<qQ", data, dynamic[0] + place) for place in range(0, dynamic[1], 16)]
        strings = next((value for tag, value in tags if tag == _STRTAB), 0)
        start = next((o + strings - a for k, o, a, s in segments if k == _LOAD and a <= strings < a + s), 0)
        return loader, [_text(data, start + value) for tag, value in tags if tag == _NEEDED]
    except (struct.error, ValueError) as error:
        raise Refused(f"{name} of the image is a damaged ELF file: {error}") from error


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Kind, offset in the file, address and size in the file of each segment."""
    table = struct.unpack_from("<Q", data, 0x20)[0]
    entry, count = struct.unpack_from("<HH", data, 0x36)
    for place in range(table, table + entry * count, entry or 56):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, place)
        yield kind, offset, address, size


def _text(data: bytes, place: int) -> str:
    return data[place : data.index(b"\0", place)].decode("ascii")
