"""What a VMDK would make QEMU open: its extents and its parent.

Source: VMware, Virtual Disk Format 1.1: "The Descriptor File", "Hosted Sparse Extent Header" (magic KDMV; capacity at
12, descriptor's offset at 28 and size at 36, all in sectors of 512 bytes). QEMU (block/vmdk.c) follows the extents of
a descriptor that stands alone, and of an embedded one where the header's capacity is 0.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from imagesmith.errors import Refused

_LARGEST_DESCRIPTOR = 1 << 20
_EXTENT = re.compile(rb'^\s*(?:RW|RDONLY|NOACCESS)\b[^"]*"([^"\r\n]*)', re.M | re.I)
_PARENT = re.compile(rb"^\s*parentCID\s*=\s*([0-9a-f]+)", re.M | re.I)


def extents(descriptor: bytes) -> list[str]:
    """The files that a descriptor names."""
    return [name.decode("utf-8", "surrogateescape") for name in _EXTENT.findall(descriptor)]


def check_vmdk(path: Path, head: bytes) -> None:
    """Refuse a VMDK with a parent, or with extents outside its own folder. ``head`` is its first 64 KiB.

    Raises struct.error where it is too short to be one.
    """
    alone = not head.startswith(b"KDMV")
    if alone:
        if path.stat().st_size > _LARGEST_DESCRIPTOR:
            raise Refused(f"{path} is no VMDK: its descriptor is too long")
        descriptor, follow = path.read_bytes(), True
    else:
        capacity, _, offset, size = struct.unpack_from("<QQQQ", head, 12)
        if size * 512 > _LARGEST_DESCRIPTOR:
            raise Refused(f"{path} is no VMDK: its descriptor is too long")
        with path.open("rb") as stream:
            stream.seek(min(offset * 512, path.stat().st_size))
            descriptor = stream.read(size * 512) if offset else b""
        follow = capacity == 0
    parent = _PARENT.search(descriptor)
    if (parent is not None and parent.group(1).lower() != b"f" * 8) or b"parentFileNameHint" in descriptor:
        raise Refused(f"{path} is a snapshot: it is a part of an image, and names another file",
                      hint="ask its maker for a whole image")  # fmt: skip
    if follow:
        for name in extents(descriptor):
            _check_extent(path, name)


def _check_extent(path: Path, name: str) -> None:
    folder = path.parent.resolve()
    if not name or "/" in name or "\\" in name or ":" in name or "\0" in name:
        raise Refused(f"{path} keeps data in {name!r}, outside its own folder",
                      hint="a VMDK may name files beside itself alone")  # fmt: skip
    extent = folder / name
    if extent.is_symlink() and not extent.resolve().is_relative_to(folder):
        raise Refused(f"{path} keeps data in {name!r}, a link that leads outside its own folder")
    if not extent.is_file():
        raise Refused(f"{path} keeps data in '{name}', which is not beside it", hint="fetch all files of the image")
