"""A root file system on its way into an artifact: what goes in, what stays out, as one stream of tar.

| of the root file system                                      | application | system         | whole |
|--------------------------------------------------------------|-------------|----------------|-------|
| contents of /dev /proc /run /sys /tmp                        | out         | out            | out   |
| contents of /boot, kernel modules, firmware, links to kernels; /lost+found | out | out  | in    |
| /etc/fstab                                                   | empty       | empty          | in    |
| /etc/machine-id                                              | in          | empty          | in    |
| /etc/resolv.conf                                             | empty       | in; empty (1)  | in    |
| an init                                                      | not needed  | needed to boot | in    |

(1) Empty where it is a link to what nothing in the image fills: then a DHCP client may write it.
An *application* container's runtime brings the network, the resolver and a command (oci, docker-archive). A *system*
container boots the image's own init, which finds its own identity and sets up its own network (lxc, incus, nspawn,
wsl, and what may become one: tar, squashfs). *Whole* is all that a machine needs. Owners, modes, links, device nodes
and extended attributes are kept in all of them; sockets are in no tar.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.interfaces import Files
from imagesmith.outputs._squeeze import Compression, squeezed, tar_into

RUNTIME = ("/dev", "/proc", "/run", "/sys", "/tmp")
"""Folders that a kernel or a container's runtime fills."""
MACHINE = ("/boot", "/lib/modules", "/usr/lib/modules", "/lib/firmware", "/usr/lib/firmware")
"""Folders whose contents only a machine needs."""
KERNELS = frozenset({"vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"})
_DROPPED = KERNELS | {"lost+found"}
INITS = ("/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd")
_FILLERS = {  # below /run: who makes what is there
    "systemd/resolve/": ("/lib/systemd/systemd-resolved", "/usr/lib/systemd/systemd-resolved"),
    "resolvconf/": ("/sbin/resolvconf", "/usr/sbin/resolvconf"),
    "NetworkManager/": ("/usr/sbin/NetworkManager",),
}


@dataclass(frozen=True)
class Content:
    """What of a root file system an artifact holds. Names have no leading slash where they are members of a tar."""

    leave_out: tuple[str, ...]
    """Folders whose contents, not themselves, stay out: absolute."""
    drop: frozenset[str] = frozenset()
    blank: frozenset[str] = frozenset()
    """Files that are there and empty."""
    resolvers: tuple[str, ...] | None = None
    """Folders below /run that /etc/resolv.conf may lead to; None: it may lead anywhere."""
    put: Mapping[str, bytes] = field(default_factory=dict)
    """Files that are added, or replace the image's: root's, 0644."""
    masked: tuple[str, ...] = ()
    """Links to /dev/null that are added, or replace what is there."""


APPLICATION = Content((*RUNTIME, *MACHINE), _DROPPED, frozenset({"etc/fstab", "etc/resolv.conf"}))
WHOLE = Content(RUNTIME)


def system(files: Files) -> Content:
    """What a system container gets of this root file system."""
    fillers = tuple(place for place, programs in _FILLERS.items() if any(is_there(files, p) for p in programs))
    return Content((*RUNTIME, *MACHINE), _DROPPED, frozenset({"etc/fstab", "etc/machine-id"}), fillers)


def is_there(files: Files, path: str) -> bool:
    """Whether the file can be read (links followed inside the guest)."""
    return read(files, path) is not None


def read(files: Files, path: str) -> bytes | None:
    """Return a file's bytes, or None where there is none."""
    try:
        return files.read(path)
    except OSError:
        return None


def need_init(files: Files, what: str, paths: Sequence[str] = INITS) -> None:
    """Refuse a root file system that does not boot. Raises BuildError."""
    if not any(is_there(files, path) for path in paths):
        raise BuildError(
            f"{what} boots the image's init, and the image has none: no {' or '.join(paths)}",
            hint="install one: `packages: [systemd-sysv]` in the steps (Debian, Ubuntu), or leave `kernel: none` out; "
            "for a root file system without an init take the output tar, squashfs or oci",
        )


@contextmanager
def packed(files: Files, content: Content) -> Iterator[BinaryIO]:
    """Give the packed tar as a stream, while another thread packs; what fails there is raised here."""
    read_end, write_end = os.pipe()
    failed: list[BaseException] = []

    def pack() -> None:
        try:
            with os.fdopen(write_end, "wb") as out:
                files.pack(out, exclude=content.leave_out)
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


Member = tuple[tarfile.TarInfo, BinaryIO | None]
"""A member of a tar, and what its bytes are read from."""


def members(source: BinaryIO, content: Content, epoch: int) -> Iterator[Member]:
    """Read a root file system's tar; give what belongs into the artifact, as it stands there.

    Owners' names go (numbers count), times after ``epoch`` become ``epoch``, sparse files become plain ones.
    """
    added = {*content.put, *content.masked}
    with tarfile.open(fileobj=source, mode="r|", bufsize=1 << 18) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else every member ever seen is kept
            name = member.name.strip("/")
            if name in ("", ".") or name in content.drop or name in added:
                continue
            stream = tar.extractfile(member) if member.isreg() else None
            if (name in content.blank and not member.isdir()) or _leads_nowhere(member, name, content):
                member.type, member.linkname, member.size = tarfile.REGTYPE, "", 0
                member.mode = 0o444 if name == "etc/machine-id" else 0o644
                stream = io.BytesIO()
            member.uname = member.gname = ""
            member.mtime = min(int(member.mtime), epoch)
            member.pax_headers = {
                key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")
            }
            if member.issparse():
                member.type, member.sparse = tarfile.REGTYPE, None
            yield member, stream  # type: ignore[misc]  # an IO[bytes]
    for name, data in sorted(content.put.items()):
        yield _file(name, data, epoch)
    for name in sorted(content.masked):
        member = _root_owned(name, tarfile.SYMTYPE, epoch)
        member.mode, member.linkname = 0o777, "/dev/null"
        yield member, None


def copy(found: Iterator[Member], out: tarfile.TarFile, *, prefix: str = "") -> int:
    """Write members to a tar, below ``prefix`` (which ends in a slash); return how many bytes their files hold."""
    total = 0
    for member, stream in found:
        out.members.clear()  # type: ignore[attr-defined]
        if prefix:
            member.name = prefix + member.name
            if member.islnk():
                member.linkname = prefix + member.linkname
        out.addfile(member, stream)
        total += member.size
    return total


def write_tar(
    files: Files, content: Content, path: Path, host: Host, *, epoch: int, compression: Compression,
    first: Mapping[str, bytes] | None = None, prefix: str = "",
) -> int:  # fmt: skip
    """Write a root file system as one tar; return how many bytes its files hold.

    ``first`` are files that come before it. ``prefix`` is a folder that it is put into (it ends in a slash).
    """
    with squeezed(path, compression, host) as sink, packed(files, content) as source, tar_into(sink) as tar:
        for name, data in (first or {}).items():
            copy(iter([_file(name, data, epoch)]), tar)
        if prefix:
            folder = _root_owned(prefix.rstrip("/"), tarfile.DIRTYPE, epoch)
            folder.mode = 0o755
            tar.addfile(folder)
        return copy(members(source, content, epoch), tar, prefix=prefix)


def write_small_tar(path: Path, host: Host, found: Mapping[str, bytes], *, epoch: int) -> None:
    """Write a tar.xz of some files: the metadata that goes beside a root file system."""
    with squeezed(path, "xz", host) as sink, tar_into(sink) as tar:
        for name, data in found.items():
            copy(iter([_file(name, data, epoch)]), tar)


def with_files(content: Content, put: Mapping[str, bytes], *, drop: Sequence[str] = ()) -> Content:
    """Return the same with more files put in, or left out."""
    return replace(content, put={**content.put, **put}, drop=content.drop | set(drop))


def no_whiteouts(found: Iterator[Member]) -> Iterator[Member]:
    """Pass members on. Raises Refused for a file whose name would delete another one when the layer is applied."""
    for member, stream in found:
        if posixpath.basename(member.name).startswith(".wh."):
            raise Refused(
                f"/{member.name} cannot be in an OCI layer: names that begin with '.wh.' mark deleted files",
                hint="remove the file in a step, or leave this output out",
            )
        yield member, stream


def _leads_nowhere(member: tarfile.TarInfo, name: str, content: Content) -> bool:
    """Whether it is a resolv.conf that is a link to what nobody makes."""
    if name != "etc/resolv.conf" or not member.issym() or content.resolvers is None:
        return False
    target = posixpath.normpath(posixpath.join("/etc", member.linkname)).replace("/var/run/", "/run/")
    return target.startswith("/run/") and not target.startswith(tuple(f"/run/{place}" for place in content.resolvers))


def _file(name: str, data: bytes, epoch: int) -> Member:
    member = _root_owned(name, tarfile.REGTYPE, epoch)
    member.size = len(data)
    return member, io.BytesIO(data)


def _root_owned(name: str, kind: bytes, epoch: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, 0o644, epoch
    return member
