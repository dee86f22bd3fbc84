"""A disk's root file system as a sorted tar, from the unsorted one that the libguestfs appliance packs."""

from __future__ import annotations

import errno
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Sequence
from typing import IO, BinaryIO, cast

from imagesmith.drivers.appliance import Appliance, name_of

_LINKS = 40
"""How many links one path may lead over (path_resolution(7))."""


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
        self.packed(exclude=exclude).pack(out)

    def packed(self, *, exclude: Sequence[str] = ()) -> PackedFiles:
        """Return a copy of all files, for which the appliance is needed no more. It is a file without a name."""
        file = tempfile.TemporaryFile()
        self._appliance.call("tar_out", "/", name_of(file), numericowner=True, xattrs=True,
                             excludes=[f".{path.rstrip('/')}/*" for path in exclude])  # fmt: skip
        return PackedFiles(file)


class PackedFiles:
    """The files of an unsorted tar (interfaces.Files), for any number of threads."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        with self._open() as source:
            self._members = {_name(member.name): member for member in source}

    def _open(self) -> tarfile.TarFile:
        # Opened by name it has a position of its own.
        return tarfile.open(name_of(self._file), mode="r:")

    def read(self, path: str) -> bytes:
        """Return a file's bytes; links are followed in the tar. Raises FileNotFoundError."""
        member = self._members.get(self._find(path))
        if member is not None and member.islnk():
            member = self._members.get(_name(member.linkname))
        if member is None or not member.isreg():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with self._open() as source:
            return cast(IO[bytes], source.extractfile(member)).read()

    def _find(self, path: str) -> str:
        """The name of the member that a path leads to; of none, where it leads nowhere."""
        here, rest, links = "", path.split("/")[::-1], 0
        while rest:
            part = rest.pop()
            if part == "..":
                here = posixpath.dirname(here)
            elif part not in ("", "."):
                there = posixpath.join(here, part)
                member = self._members.get(there)
                if member is None or not member.issym():
                    here = there
                    continue
                links += 1
                if links > _LINKS:
                    return ""
                here = "" if member.linkname.startswith("/") else here
                rest += member.linkname.split("/")[::-1]
        return here

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        """Write it as a tar (interfaces.Files): without leading ``./``, owners' names, or the folder ``.`` itself.

        Of files with several names, the first name in order carries the contents.
        """
        apart = tuple(_name(path) + "/" for path in exclude)
        first: dict[str, str] = {}
        with self._open() as source, tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as target:
            for name in sorted(self._members):
                if name == "." or name.startswith(apart):
                    continue
                member = self._members[name]
                origin = _name(member.linkname) if member.islnk() else name
                content = self._members[origin]
                leader = first.setdefault(origin, name)
                copy = tarfile.TarInfo(name)
                for attribute in ("mode", "uid", "gid", "mtime", "type", "linkname", "devmajor", "devminor", "size"):
                    setattr(copy, attribute, getattr(content, attribute))
                copy.pax_headers = {k: value for k, value in content.pax_headers.items() if k.startswith("SCHILY.")}
                target.members.clear()  # type: ignore[attr-defined]  # else all are kept
                if not content.isreg():
                    target.addfile(copy)
                elif leader == name:
                    target.addfile(copy, source.extractfile(content))
                else:
                    copy.type, copy.linkname, copy.size = tarfile.LNKTYPE, leader, 0
                    target.addfile(copy)


def _name(path: str) -> str:
    """A member's name without what may stand before and after it."""
    return posixpath.normpath(path).lstrip("/")
