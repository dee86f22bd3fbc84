"""A root file system as one OCI layer: a stream from the packed tar to the layer's tar.

Source: OCI image specification 1.0, layer.md.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from imagesmith.errors import Refused
from imagesmith.interfaces import Files

MACHINE_ONLY = ("/boot", "/dev", "/proc", "/run", "/sys", "/tmp", "/lib/modules", "/usr/lib/modules",
                "/lib/firmware", "/usr/lib/firmware")  # fmt: skip
"""Folders whose contents only a machine needs, or that a container's runtime fills."""
_DROPPED = frozenset({"vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"})
_EMPTIED = frozenset({"etc/fstab", "etc/resolv.conf"})


@contextmanager
def packed(files: Files) -> Iterator[BinaryIO]:
    """Give the packed tar as a stream, while another thread packs; what fails there is raised here."""
    read_end, write_end = os.pipe()
    failed: list[BaseException] = []

    def pack() -> None:
        try:
            with os.fdopen(write_end, "wb") as out:
                files.pack(out, exclude=MACHINE_ONLY)
        except BaseException as error:
            failed.append(error)

    packer = threading.Thread(target=pack, name="pack", daemon=True)
    packer.start()
    try:
        with os.fdopen(read_end, "rb") as stream:
            yield stream
            while stream.read(1 << 20):
                pass
    except tarfile.TarError:
        packer.join()
        if failed:
            raise failed[0] from None
        raise
    finally:
        packer.join()
    if failed:
        raise failed[0]


def copy_layer(source: BinaryIO, out: tarfile.TarFile, epoch: int) -> int:
    """Copy a root file system's tar into a layer's; return how many bytes its files hold.

    Left out or emptied: what only a machine needs. Owners' names go (numbers count), times after ``epoch`` become
    ``epoch``, sparse files become plain ones. Raises Refused for a file whose name would delete another one when the
    layer is applied.
    """
    total = 0
    with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 18) as tar:
        while (member := tar.next()) is not None:
            for side in (tar, out):  # else every member ever seen is kept
                side.members.clear()  # type: ignore[attr-defined]
            name = member.name.strip("/")
            if name in ("", ".") or name in _DROPPED:
                continue
            if name.rpartition("/")[2].startswith(".wh."):
                raise Refused(f"/{name} cannot be in an OCI layer: names that begin with '.wh.' mark deleted files",
                              hint="remove the file in a step, or exclude the output oci")  # fmt: skip
            content = tar.extractfile(member) if member.isreg() else None
            if name in _EMPTIED and not member.isdir():
                member.type, member.linkname, member.size, member.mode = tarfile.REGTYPE, "", 0, 0o644
                content = io.BytesIO()
            member.uname = member.gname = ""
            member.mtime = min(int(member.mtime), epoch)
            member.pax_headers = {
                key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")
            }
            if member.issparse():
                member.type, member.sparse = tarfile.REGTYPE, None
            out.addfile(member, content)
            total += member.size
    return total
