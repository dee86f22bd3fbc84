"""Two layers of one root file system: what the base gave, and what the steps made of it.

Source: OCI image specification 1.0, layer.md, "Change Types" and "Whiteouts". The second layer holds what is new or
changed, with the folders on the way to it (a layer that does not name them makes them root's, 0755), all names of a
file that has several, and for each file or folder that is gone an empty file ``.wh.NAME``. No folder is opaque: what is
gone from it is named. Overlayfs' own marks (devices 0:0, user.overlay.*) play no part: both are seen through a mount.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from imagesmith.outputs._rootfs import Member

_NOT_SHARED = (
    "etc/ssh/ssh_host_*", "etc/machine-id", "var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/log/*",
    "var/cache/*", "var/lib/apt/lists/*", "var/lib/cloud/*", "var/lib/dhcp/*", "root/.*_history",
)  # fmt: skip
"""What is in no base layer, though the base may have it: the clean-up would take it out of the image alone, and it
could be read in the layer still."""


@dataclass(frozen=True)
class Entry:
    """What a member of a root file system is."""

    folder: bool
    leader: str
    """Of a hard link: the name that its contents stand under; else its own."""
    fingerprint: bytes


class _Hashing:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.hash = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.hash.update(data)
        return data


def noted(found: Iterator[Member], ledger: dict[str, Entry]) -> Iterator[Member]:
    """Pass members on, each to be read before the next, and note them in ``ledger``."""
    for member, stream in found:
        hashing = None if stream is None else _Hashing(stream)
        yield member, hashing  # type: ignore[misc]  # of which tarfile uses read alone
        about = (member.type, member.mode, member.uid, member.gid, member.size, member.mtime, member.linkname,
                 member.devmajor, member.devminor, sorted(member.pax_headers.items()))  # fmt: skip
        content = b"" if hashing is None else hashing.hash.digest()
        ledger[member.name] = Entry(
            member.isdir(), member.linkname if member.islnk() else member.name,
            hashlib.sha256(repr(about).encode("utf-8", "surrogateescape") + content).digest(),
        )  # fmt: skip


def read_through(found: Iterator[Member]) -> None:
    """Read all members to their ends."""
    for _, stream in found:
        while stream is not None and stream.read(1 << 20):
            pass


def shared(found: Iterator[Member]) -> Iterator[Member]:
    """Pass on what may be in a base layer."""
    for member, stream in found:
        if member.isdir() or not any(fnmatch.fnmatchcase(member.name, pattern) for pattern in _NOT_SHARED):
            yield member, stream


def changes(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> tuple[set[str], list[str]]:
    """Return the names that the second layer holds, and those that it takes away (the topmost alone), sorted."""
    differ = {name for name, entry in after.items() if before.get(name) != entry}
    leaders = {after[name].leader for name in differ}
    names = differ | {name for name, entry in after.items() if entry.leader in leaders}
    gone = [name for name in sorted(before) if name not in after and _is_folder(posixpath.dirname(name), after)]
    for name in [*names, *gone]:
        while name := posixpath.dirname(name):
            names.add(name)
    return names & set(after), gone


def _is_folder(name: str, after: Mapping[str, Entry]) -> bool:
    return not name or (name in after and after[name].folder)


def delta(found: Iterator[Member], names: set[str], gone: list[str], *, epoch: int) -> Iterator[Member]:
    """Pass on the members of the second layer, and after each folder the whiteouts in it."""
    inside: dict[str, list[str]] = {}
    for name in gone:
        inside.setdefault(posixpath.dirname(name), []).append(posixpath.basename(name))

    def whiteouts(folder: str) -> Iterator[Member]:
        for name in inside.pop(folder, ()):
            member = tarfile.TarInfo(posixpath.join(folder, f".wh.{name}"))
            member.mtime = epoch
            yield member, None

    yield from whiteouts("")
    for member, stream in found:
        if member.name in names:
            yield member, stream
            if member.isdir():
                yield from whiteouts(member.name)
