"""Virtual Hard Disk images, fixed and dynamic.

Source: Microsoft, Virtual Hard Disk Image Format Specification, version 1.0 (2006), "Hard Disk Footer Format" and
"Checksum".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.outputs._common import GIB, MIB, convert, identifier

Subformat = Literal["dynamic", "fixed"]
_FOOTER = 512
_TIME = slice(24, 28)
_CHECKSUM = slice(64, 68)
_UNIQUE_ID = slice(68, 84)
_LARGEST = 2040 * GIB
"""Hyper-V's limit for the format, whose own tables end little later."""
_ORIGIN = 946684800
"""The format counts seconds from 2000-01-01T00:00:00Z; we from 1970."""


def write_vhd(disk: Disk, target: Path, maker: Maker, host: Host, log: Log, *, subformat: Subformat) -> None:
    """Write the disk as a VHD whose size is a multiple of 1 MiB, as Azure wants it, and whatever the geometry.

    Without ``force_size`` qemu-img would round the size to cylinders, heads and sectors. Raises BuildError for a
    disk that is too large, ToolFailed.
    """
    if disk.virtual_size > _LARGEST:
        raise BuildError(f"a VHD holds 2040 GiB, and the disk has {disk.virtual_size / GIB:g}",
                         hint="take vhdx, or a smaller machine.disk")  # fmt: skip
    size = -(-disk.virtual_size // MIB) * MIB
    rounded = target.with_suffix(".rounded")
    host.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk.path.resolve(), rounded, str(size)],
        purpose="round the disk's size up",
    )
    options = {"subformat": subformat, "force_size": "on"}
    convert(Disk(rounded, size), target, "vpc", host, log, options=options)
    settle(target, maker)


def settle(image: Path, maker: Maker) -> None:
    """Set the footer's time and identifier, in both its copies, which qemu-img takes from the clock and at random.

    Raises BuildError where it is no VHD.
    """
    with image.open("r+b") as stream:
        end = os.fstat(stream.fileno()).st_size - _FOOTER
        stream.seek(end)
        footer = stream.read(_FOOTER)
        if not footer.startswith(b"conectix"):
            raise BuildError(f"qemu-img wrote no VHD to {image.name}")
        stream.seek(0)
        copies = [0, end] if stream.read(_FOOTER) == footer else [end]  # a dynamic one begins with a copy
        settled = settled_footer(footer, maker)
        for place in copies:
            stream.seek(place)
            stream.write(settled)


def settled_footer(footer: bytes, maker: Maker) -> bytes:
    """Return a footer with the build's time and the image's identifier, and the checksum of that."""
    text = bytearray(footer)
    text[_TIME] = max(0, maker.epoch - _ORIGIN).to_bytes(4, "big")
    text[_UNIQUE_ID] = identifier(maker.seed, "vhd").bytes
    text[_CHECKSUM] = bytes(4)
    text[_CHECKSUM] = (~sum(text) & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(text)
