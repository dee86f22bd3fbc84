"""Tar archives that come out the same every time: the one way files reach a guest, and the shell of many formats.

Members are written in the order they are added, as POSIX pax (or ustar) headers with numeric owners and a fixed
time (POSIX.1-2017, pax, "ustar Interchange Format").
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class Archive:
    """Builds a tar. ``epoch`` is every member's time, in seconds."""

    def __init__(self, out: BinaryIO, *, epoch: int, ustar: bool = False) -> None:
        self._epoch = epoch
        self._tar = tarfile.open(
            fileobj=out, mode="w", format=tarfile.USTAR_FORMAT if ustar else tarfile.PAX_FORMAT, bufsize=1 << 20
        )

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tar.close()

    def _member(self, name: str, mode: int, uid: int, gid: int) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name.strip("/"))
        member.mode, member.uid, member.gid, member.mtime = mode, uid, gid, self._epoch
        member.uname = member.gname = ""
        return member

    def data(self, name: str, content: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Add a file from its bytes."""
        member = self._member(name, mode, uid, gid)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def file(self, name: str, source: Path, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Add a file from a file."""
        with source.open("rb") as stream:
            member = self._member(name, mode, uid, gid)
            member.size = os.fstat(stream.fileno()).st_size
            self._tar.addfile(member, stream)

    def directory(self, name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Add a directory."""
        member = self._member(name, mode, uid, gid)
        member.type = tarfile.DIRTYPE
        self._tar.addfile(member)

    def link(self, name: str, target: str, *, uid: int = 0, gid: int = 0) -> None:
        """Add a symbolic link."""
        member = self._member(name, 0o777, uid, gid)
        member.type, member.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(member)

    def tree(
        self, name: str, source: Path, *, mode: int | None = None, uid: int = 0, gid: int = 0,
        content: Callable[[Path], bytes] | None = None,
    ) -> None:  # fmt: skip
        """Add a file or a directory with all below it, sorted by name.

        ``mode`` is the files' (a directory gets the search bits that go with its read bits); by default a file is
        0644, or 0755 where the source may be executed.
        """
        if source.is_symlink():
            self.link(name, str(source.readlink()), uid=uid, gid=gid)
        elif source.is_dir():
            self.directory(name, mode=0o755 if mode is None else mode | (mode & 0o444) >> 2, uid=uid, gid=gid)
            for child in sorted(source.iterdir(), key=lambda path: path.name):
                self.tree(f"{name}/{child.name}", child, mode=mode, uid=uid, gid=gid, content=content)
        else:
            bits = mode if mode is not None else 0o755 if os.access(source, os.X_OK) else 0o644
            if content is None:
                self.file(name, source, mode=bits, uid=uid, gid=gid)
            else:
                self.data(name, content(source), mode=bits, uid=uid, gid=gid)


def archive_of(build: Callable[[Archive], None], *, epoch: int) -> BinaryIO:
    """Return a tar, ready to be read, that ``build`` filled."""
    out = io.BytesIO()
    with Archive(out, epoch=epoch) as archive:
        build(archive)
    out.seek(0)
    return out


def contents(archive: BinaryIO) -> tuple[dict[str, tuple[bytes, int]], dict[str, str]]:
    """The files (absolute path: bytes and mode) and symbolic links (path: target) of a small tar of our own."""
    files: dict[str, tuple[bytes, int]] = {}
    links: dict[str, str] = {}
    with tarfile.open(fileobj=archive, mode="r:") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                files["/" + member.name] = stream.read(), member.mode
            elif member.issym():
                links["/" + member.name] = member.linkname
    return files, links


def owner_ids(owner: str, passwd: bytes, group: bytes) -> tuple[int, int]:
    """Turn ``user``, ``user:group``, or numbers, into the ids that a guest's own passwd and group files give them.

    Raises KeyError with the unknown name.
    """
    user, _, group_name = owner.partition(":")
    users = [line.split(":") for line in passwd.decode("utf-8", "replace").splitlines() if line.count(":") >= 6]
    groups = [line.split(":") for line in group.decode("utf-8", "replace").splitlines() if line.count(":") >= 3]
    if user.isdigit():
        uid, gid = int(user), next((int(u[3]) for u in users if u[2] == user), int(user))
    else:
        found = next((u for u in users if u[0] == user), None)
        if found is None:
            raise KeyError(user)
        uid, gid = int(found[2]), int(found[3])
    if group_name:
        if group_name.isdigit():
            return uid, int(group_name)
        gid_text = next((g[2] for g in groups if g[0] == group_name), None)
        if gid_text is None:
            raise KeyError(group_name)
        return uid, int(gid_text)
    return uid, gid


def guest_file(name: str) -> bytes:
    """One of our own files for guests, from ``templates/guest/`` (in the package, or beside it in a clone)."""
    package = Path(__file__).parent
    inside = package / "templates" / "guest" / name
    return (inside if inside.exists() else package.parent / "templates" / "guest" / name).read_bytes()
