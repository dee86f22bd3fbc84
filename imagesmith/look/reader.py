"""Reading single files of a root file system that nobody has mounted."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import tarfile
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

from imagesmith.inventory import File

LARGEST = 256 << 20
"""Bytes: what a file of a foreign image that is read whole may have."""
_HASHED = 1 << 36
"""Bytes of a file in a tar that is hashed: a sparse one may promise any number."""
_MOST = 256
"""Names and links that are looked at for one path."""


class Reader(Protocol):
    """A root file system, read-only. Links of folders are followed inside it."""

    def read(self, path: str) -> bytes:
        """Return the bytes of an absolute path. Raises FileNotFoundError for what is no file."""
        ...

    def names(self, path: str) -> Sequence[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        ...


def followed(path: str, link: Callable[[str, str], str | None]) -> str:
    """Return an absolute path without links in it, or, where they never end, one that does not exist.

    ``link`` tells where the name in a folder leads, or None where it is no link. Nothing leads above the root.
    """
    found = "/"
    parts = [part for part in path.split("/") if part][::-1]
    for _ in range(_MOST):
        if not parts:
            return found
        part = parts.pop()
        if part == "..":
            found = posixpath.dirname(found)
        elif (target := link(found, part)) is not None:
            found = "/" if target.startswith("/") else found
            parts += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
        else:
            found = posixpath.join(found, part)
    return "/\0"


class TarReader:
    """Root file systems in tars, the later on top of the earlier, with the whiteouts of container layers.

    Source: OCI image specification 1.0, layer.md ("Whiteouts").
    """

    def __init__(self, archives: Sequence[BinaryIO]) -> None:
        self._tars = [tarfile.open(fileobj=archive, mode="r:*") for archive in archives]
        self._members: dict[str, tuple[int, tarfile.TarInfo]] = {}
        for number, tar in enumerate(self._tars):
            for member in tar:
                name = _absolute(member.name)
                parent, base = posixpath.split(name)
                if base == ".wh..wh..opq":
                    self._drop(parent, keep=True, below=number)
                elif base.startswith(".wh."):
                    self._drop(posixpath.join(parent, base[4:]), keep=False, below=number)
                else:
                    self._members[name] = (number, member)

    def _drop(self, path: str, *, keep: bool, below: int) -> None:
        for name, (number, _) in list(self._members.items()):
            if number < below and (name.startswith(path + "/") or (name == path and not keep)):
                del self._members[name]

    def _followed(self, path: str) -> str:
        def link(parent: str, name: str) -> str | None:
            _, member = self._members.get(posixpath.join(parent, name), (0, None))
            return member.linkname if member is not None and member.issym() else None

        return followed(path, link)

    def names(self, path: str) -> Sequence[str]:
        """See Reader."""
        folder = self._followed(path).rstrip("/")
        return sorted({name[len(folder) + 1 :].partition("/")[0] for name in self._members
                       if name.startswith(folder + "/")} - {""})  # fmt: skip

    def read(self, path: str) -> bytes:
        """See Reader."""
        path = self._followed(path)
        number, member = self._members.get(path, (0, None))
        if member is not None and member.islnk():
            number, member = self._members.get(_absolute(member.linkname), (0, None))
        stream = self._tars[number].extractfile(member) if member is not None and member.isreg() else None
        if stream is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stream.read(LARGEST)

    def files(self) -> dict[str, File]:
        """Everything below /, by absolute path, with the digests of files."""
        origins = {name: _absolute(member.linkname) if member.islnk() else name
                   for name, (_, member) in self._members.items() if name != "/"}  # fmt: skip
        leaders: dict[str, str] = {}
        for name in sorted(origins):
            leaders.setdefault(origins[name], name)
        found = {}
        for name, origin in sorted(origins.items()):
            number, member = self._members.get(origin, self._members[name])
            mode = _TYPES.get(member.type, stat.S_IFREG) | stat.S_IMODE(member.mode)
            what, size = f"= {leaders[origin]}", 0
            if leaders[origin] == name:
                what, size = self._what(number, member), member.size if member.isreg() else 0
            found[name] = File(mode, member.uid, member.gid, size, what)
        return found

    def _what(self, number: int, member: tarfile.TarInfo) -> str:
        if member.issym():
            return member.linkname
        if member.ischr() or member.isblk():
            return f"{member.devmajor}:{member.devminor}"
        stream = self._tars[number].extractfile(member) if member.isreg() and member.size <= _HASHED else None
        if stream is None:
            return ""
        sha = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            sha.update(chunk)
        return sha.hexdigest()


def _absolute(name: str) -> str:
    """A name in a tar as a path: two slashes at the beginning are not one for POSIX."""
    return posixpath.normpath("/" + name.lstrip("/"))


_TYPES = {
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK, tarfile.FIFOTYPE: stat.S_IFIFO,
}  # fmt: skip
