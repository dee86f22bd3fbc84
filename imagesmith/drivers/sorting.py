"""A disk's root file system as a sorted tar, from the unsorted one that the libguestfs appliance packs."""

from __future__ import annotations

import errno
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Sequence
from typing import BinaryIO

from imagesmith.drivers.appliance import Appliance, name_of


class SortedFiles:
    """Read-only files of a mounted guest (interfaces.Files)."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError."""
        if not self._appliance.call("is_file", path, followsymlinks=True):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._appliance.download(path)

    def names(self, path: str) -> Sequence[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        if not self._appliance.call("is_dir", path, followsymlinks=True):
            return []
        return sorted(self._appliance.call("ls", path))

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        """Write it as a tar (interfaces.Files), with extended attributes."""
        with tempfile.TemporaryFile() as file:
            self._appliance.call("tar_out", "/", name_of(file), numericowner=True, xattrs=True,
                                 excludes=[f".{path.rstrip('/')}/*" for path in exclude])  # fmt: skip
            file.seek(0)
            sort_tar(file, out)


def sort_tar(unsorted: BinaryIO, out: BinaryIO) -> None:
    """Copy a tar sorted by name, without leading ``./``, owners' names, or the folder ``.`` itself.

    Of files with several names, the first name in order carries the contents.
    """
    with (
        tarfile.open(fileobj=unsorted, mode="r:") as source,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as target,
    ):
        members = {name: member for member in source if (name := posixpath.normpath(member.name).lstrip("/")) != "."}
        first: dict[str, str] = {}
        for name in sorted(members):
            member = members[name]
            origin = posixpath.normpath(member.linkname).lstrip("/") if member.islnk() else name
            content = members[origin]
            leader = first.setdefault(origin, name)
            copy = tarfile.TarInfo(name)
            for attribute in ("mode", "uid", "gid", "mtime", "type", "linkname", "devmajor", "devminor", "size"):
                setattr(copy, attribute, getattr(content, attribute))
            copy.pax_headers = {key: value for key, value in content.pax_headers.items() if key.startswith("SCHILY.")}
            if not content.isreg():
                target.addfile(copy)
            elif leader == name:
                target.addfile(copy, source.extractfile(content))
            else:
                copy.type, copy.linkname, copy.size = tarfile.LNKTYPE, leader, 0
                target.addfile(copy)
