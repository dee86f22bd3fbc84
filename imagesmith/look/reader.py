"""Reading single files of a root file system that nobody has mounted."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from imagesmith.host import Host
from imagesmith.machine.inject import debugfs

LARGEST = 256 << 20
"""Bytes: what a file of a foreign image that is read whole may have."""
_LONGEST = 4096
"""Bytes of a link's target (Linux: PATH_MAX)."""
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


class Ext4Reader:
    """An ext2, 3 or 4 file system in a raw file, read by debugfs(8)."""

    _LINE = re.compile(r"/(\d+)/(\d{6})/(\d+)/(\d+)/(.*)/(\d*)/")
    """``ls -p``: inode, mode, owner, group, name, size."""

    def __init__(self, raw: Path, offset: int, host: Host) -> None:
        self._device, self._host = f"{raw}?offset={offset}", host
        self._folders: dict[str, dict[str, tuple[int, int, int]]] = {}

    def names(self, path: str) -> Sequence[str]:
        """See Reader."""
        return sorted(self._listed(self._folder(path)))

    def read(self, path: str) -> bytes:
        """See Reader. A file that is larger than LARGEST, which may take no room in the image, is none."""
        for _ in range(16):
            parent, name = posixpath.split(path)
            mode, inode, size = self._listed(self._folder(parent)).get(name, (0, 0, 0))
            if mode >> 12 != 0o12:
                break
            path = posixpath.normpath(posixpath.join(parent, self._target(inode, size)))
        if mode >> 12 != 0o10 or size > LARGEST:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        with tempfile.NamedTemporaryFile(prefix="imagesmith-") as file:
            debugfs(self._device, [f"dump <{inode}> {file.name}"], self._host)
            return Path(file.name).read_bytes()

    def _folder(self, path: str) -> str:
        def link(parent: str, name: str) -> str | None:
            mode, inode, size = self._listed(parent).get(name, (0, 0, 0))
            return self._target(inode, size) if mode >> 12 == 0o12 else None

        return followed(path, link)

    def _target(self, inode: int, size: int) -> str:
        if size > _LONGEST:
            return "/\0"
        said = debugfs(self._device, [f"stat <{inode}>"], self._host)
        fast = re.search(r'^Fast link dest: "(.*)"$', said, re.M)
        if fast:
            return fast[1]
        with tempfile.NamedTemporaryFile(prefix="imagesmith-") as file:  # a target of 60 bytes or more has a block
            debugfs(self._device, [f"dump <{inode}> {file.name}"], self._host)
            return Path(file.name).read_bytes().decode("utf-8", "surrogateescape")

    def _listed(self, folder: str) -> dict[str, tuple[int, int, int]]:
        """Of a folder without links in its path: name -> mode, inode and size."""
        if "\0" in folder or '"' in folder or "\n" in folder:
            return {}
        if folder not in self._folders:
            said = debugfs(self._device, [f'ls -p "{folder}"'], self._host)
            lines = (self._LINE.match(line) for line in said.splitlines())
            self._folders[folder] = {
                m[5]: (int(m[2], 8), int(m[1]), int(m[6] or 0))
                for m in lines
                if m and m[1] != "0" and m[5] not in (".", "..")
            }
        return self._folders[folder]


class TarReader:
    """Root file systems in tars, the later on top of the earlier, with the whiteouts of container layers.

    Source: OCI image specification 1.0, layer.md ("Whiteouts").
    """

    def __init__(self, archives: Sequence[BinaryIO]) -> None:
        self._tars = [tarfile.open(fileobj=archive, mode="r:*") for archive in archives]
        self._members: dict[str, tuple[int, tarfile.TarInfo]] = {}
        for number, tar in enumerate(self._tars):
            for member in tar:
                name = posixpath.normpath("/" + member.name)
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
            number, member = self._members.get(posixpath.normpath("/" + member.linkname), (0, None))
        stream = self._tars[number].extractfile(member) if member is not None and member.isreg() else None
        if stream is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stream.read(LARGEST)
