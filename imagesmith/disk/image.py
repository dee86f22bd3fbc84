"""Disk images: looking at foreign ones, importing them, and layers on top of our own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagesmith.disk.probe import LARGEST, check_header, chosen_format, probe
from imagesmith.errors import BuildError, Refused, StoreError, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Log

__all__ = ["ImageInfo", "import_image", "inspect", "overlay", "probe", "virtual_size"]

_LOOK = "look at a disk image"
_LIMITS = ("prlimit", f"--as={2 << 30}", "--cpu=60", "--core=0")
"""For a program that reads an untrusted header: bytes of address space, seconds of CPU time."""
_CHECKED = frozenset({"qcow2", "vdi", "vhdx", "vmdk"})
"""Formats that ``qemu-img check`` knows. Without it, what is missing at the end of an image would be read as zeros."""


@dataclass(frozen=True)
class ImageInfo:
    """A foreign image that is fit to be opened: ``virtual_size`` and ``actual_size`` (on disk) in bytes."""

    path: Path
    format: str
    virtual_size: int
    actual_size: int
    snapshots: tuple[str, ...]


def _info(path: Path, format: str, host: Host) -> dict[str, Any]:
    done = host.run([*_LIMITS, "qemu-img", "info", "--output=json", "-f", format, path.resolve()],
                    purpose=_LOOK, timeout=120)  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def inspect(path: Path, host: Host, format: str = "") -> ImageInfo:
    """Look at an image that may be hostile. ``format`` is what the user says it is; else its own bytes tell.

    Raises Refused for an image that is damaged, cut off, encrypted, unbelievably large, or leads to other files.
    """
    host.require("qemu-img", _LOOK)
    format = chosen_format(path, format)
    check_header(path, format)
    try:
        found = _info(path, format, host)
        if format in _CHECKED:
            host.run([*_LIMITS, "qemu-img", "check", "-q", "-f", format, path.resolve()], purpose=_LOOK,
                     timeout=120, ok=(0, 3, 63))  # 3: clusters that nothing uses; 63: nothing to check # fmt: skip
    except ToolFailed as failed:
        why = next((line for line in failed.tail.splitlines() if line.strip()), "its tables make no sense")
        raise Refused(f"{path} is damaged or cut off: {why.removeprefix('qemu-img: ').strip()}",
                      hint="fetch it again, and compare its checksum") from failed  # fmt: skip
    except ValueError as error:
        raise Refused(f"{path} is damaged: qemu-img cannot describe it") from error
    # Nothing of the kind is left after the look at the header; a second pair of eyes costs nothing.
    details = (found.get("format-specific") or {}).get("data") or {}
    if "backing-filename" in found or "data-file" in details or found.get("encrypted"):
        raise Refused(f"{path} leads to another file, or is encrypted")
    size = int(found["virtual-size"])
    if size <= 0 or size > LARGEST:
        raise Refused(f"{path} claims to be a disk of {size} bytes; more than {LARGEST >> 40} TiB, or nothing, is not "
                      "believed")  # fmt: skip
    names = tuple(str(snapshot.get("name", "")) for snapshot in found.get("snapshots", ()))
    return ImageInfo(path, format, size, int(found.get("actual-size", 0)), names)


def import_image(
    source: Path, into: Path, host: Host, log: Log, *, format: str = "", size: int | None = None
) -> ImageInfo:
    """Make ``into``, a qcow2 (version 3) without a backing file, of a foreign image; return what the image was.

    ``size`` (bytes) is what the disk grows to; it never shrinks. Raises Refused for a hostile image, BuildError where
    ``size`` is smaller than the image, StoreError where there is no space left.
    """
    info = inspect(source, host, format)
    if size is not None and size < info.virtual_size:
        raise BuildError(
            f"{source} is a disk of {info.virtual_size >> 20} MiB, more than the {size >> 20} MiB wanted; a disk"
            " cannot be made smaller", hint=f"set machine.disk to {-(-info.virtual_size >> 30)}G or more",
        )  # fmt: skip
    log(f"importing {source.name} ({info.format}, {info.virtual_size / (1 << 30):.3g} GiB)")
    try:
        # The same tables that were just looked at; the data is as much as the image says, up to its virtual size.
        host.run(["qemu-img", "convert", "-f", info.format, "-O", "qcow2", "-o", "compat=1.1", source.resolve(),
                  into.resolve()], purpose="import a disk image")  # fmt: skip
        if size is not None and size > info.virtual_size:
            host.run(["qemu-img", "resize", "-q", "-f", "qcow2", into.resolve(), str(size)], purpose="grow a disk")
    except BaseException as error:
        into.unlink(missing_ok=True)
        if isinstance(error, ToolFailed) and "No space left" in error.tail:
            raise StoreError(f"no space left on the store's file system while {source} was imported",
                             hint="make room (imagesmith cache gc), or let IMAGESMITH_CACHE name another "
                                  "folder") from error  # fmt: skip
        raise
    return info


def overlay(base: Path, into: Path, host: Host, size: int | None = None) -> None:
    """Make ``into``, an empty qcow2 on top of ``base`` (a qcow2 of ours), of ``size`` bytes or the base's.

    Where both are in one folder, or in sibling folders, the base is named relative to ``into``: the lot can be moved.
    """
    base, into = base.resolve(), into.resolve()
    near = into.parent == base.parent or into.parent.parent == base.parent.parent
    name = os.path.relpath(base, into.parent) if near else str(base)
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
              name if "/" in name or ":" not in name else f"./{name}", into, *([] if size is None else [str(size)])],
             purpose="make a layer on a disk")  # fmt: skip


def virtual_size(path: Path, host: Host) -> int:
    """The size in bytes of the disk in one of our own qcow2 files."""
    return int(_info(path, "qcow2", host)["virtual-size"])
