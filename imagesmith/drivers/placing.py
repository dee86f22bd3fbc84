"""Rewrites a tar so that unpacking it follows no link: each name becomes what the guest's own links lead to."""

from __future__ import annotations

import errno
import os
import posixpath
import tarfile
from typing import BinaryIO, Protocol


class Folders(Protocol):
    """What must be known of the guest's folders. All paths are absolute; links are followed inside the guest."""

    def entries(self, folder: str) -> dict[str, str]:
        """The names in a folder, each with ``d`` (folder), ``l`` (link) or anything else."""
        ...

    def folder_behind(self, link: str) -> str | None:
        """The path without links of the folder that a link leads to; None where it leads to none."""
        ...


class _Placing:
    def __init__(self, folders: Folders, out: tarfile.TarFile, epoch: int) -> None:
        self._folders, self._out, self._epoch = folders, out, epoch
        self._known: dict[str, dict[str, str]] = {}
        self._behind: dict[str, str | None] = {}

    def find(self, path: str) -> str | None:
        """The real path of a folder; None where it is not there."""
        if path == "/":
            return path
        parent = self.find(posixpath.dirname(path))
        if parent is None:
            return None
        here = posixpath.join(parent, posixpath.basename(path))
        kind = self.entries(parent).get(posixpath.basename(path))
        if kind == "l":
            if here not in self._behind:
                self._behind[here] = self._folders.folder_behind(here)
            return self._behind[here]
        return here if kind == "d" else None

    def entries(self, folder: str) -> dict[str, str]:
        if folder not in self._known:
            self._known[folder] = self._folders.entries(folder)
        return self._known[folder]

    def make(self, path: str, like: tarfile.TarInfo | None = None) -> str:
        """The real path of a folder, which is added to the tar where it is not there."""
        found = self.find(path)
        if found is not None:
            return found
        parent = self.make(posixpath.dirname(path))
        name = posixpath.basename(path)
        here = posixpath.join(parent, name)
        if name in self.entries(parent):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), here)
        member = like or tarfile.TarInfo()
        member.type = tarfile.DIRTYPE
        _rename(member, here.lstrip("/"))
        if like is None:
            member.mode, member.mtime = 0o755, self._epoch
        self._out.addfile(member)
        self.entries(parent)[name] = "d"
        self._known[here] = {}
        return here

    def put(self, source: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = posixpath.normpath("/" + member.name.lstrip("/"))
        if path == "/":
            return
        if member.isdir():
            self.make(path, member)
            return
        if not (member.isreg() or member.issym() or member.islnk()):
            raise OSError(errno.EINVAL, "neither a file, a directory nor a link", member.name)
        parent = self.make(posixpath.dirname(path))
        name = posixpath.basename(path)
        _rename(member, posixpath.join(parent, name).lstrip("/"))
        if self.entries(parent).get(name) == "d":
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if member.islnk():
            target = posixpath.normpath("/" + member.linkname.lstrip("/"))
            folder = self.find(posixpath.dirname(target))
            if folder is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), target)
            member.linkname = posixpath.join(folder, posixpath.basename(target)).lstrip("/")
        self._out.addfile(member, source.extractfile(member) if member.isreg() else None)
        self.entries(parent)[name] = "l" if member.issym() else "f"
        self._behind.clear()  # a link may now lead elsewhere


def _rename(member: tarfile.TarInfo, name: str) -> None:
    """Call a member something else: tarfile lets the names in its pax headers count for more than its own."""
    member.name = name
    member.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath")}


def place(archive: BinaryIO, out: BinaryIO, folders: Folders, *, epoch: int) -> None:
    """Write to ``out`` the tar that puts the members of ``archive`` where Root.unpack says.

    Folders that are there are left out, missing ones are added (0755, root, time ``epoch``). Raises OSError for a file
    in the place of a folder, and for members that are neither files, folders nor links.
    """
    with (
        tarfile.open(fileobj=archive, mode="r|") as source,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        placing = _Placing(folders, target, epoch)
        for member in source:
            placing.put(source, member)
