"""Taking an inventory: of a disk's ext4 root, of tars on top of each other, of what a squashfs holds.

Sources: passwd(5), group(5), shadow(5); systemctl(1), "enable" and "mask"; Gentoo's OpenRC, "runlevels"; Linux
Standard Base, "Init Scripts" (/etc/rcN.d).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from imagesmith.disk.attach import exported
from imagesmith.disk.partitions import find_partitions, root_of
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.inventory import File, Inventory
from imagesmith.look.ext4 import Ext4Reader
from imagesmith.look.reader import Reader, TarReader
from imagesmith.look.system import look

EXT = ("ext2", "ext3", "ext4")
_SYSTEMD = re.compile(r"/etc/systemd/system/(?:[^/]+\.(?:wants|requires|upholds)/)?([^/]+\.[a-z]+)")
_OTHERS = {
    "OpenRC": re.compile(r"/etc/runlevels/[^/]+/([^/]+)"), "sysvinit": re.compile(r"/etc/rc[2-5S]\.d/S\d\d([^/]+)"),
}  # fmt: skip


class Listing(Reader, Protocol):
    """A root file system of which everything can be listed."""

    def files(self) -> dict[str, File]:
        """Everything below /, by absolute path, with the digests of files."""
        ...


def take(reader: Listing) -> Inventory:
    """Take the inventory of a root file system."""
    system, files = look(reader), reader.files()
    return Inventory(
        system=system.name, init=system.init, hostname=system.hostname, packages=system.packages,
        kernels=[kernel.release for kernel in system.kernels], package_format=system.package_format,
        services=dict(sorted(_services(files, system.init).items())), users=_users(reader), groups=_groups(reader),
        files=dict(sorted(files.items())),
    )  # fmt: skip


def of_disk(image: Path, host: Host) -> Inventory:
    """Take the inventory of a qcow2 of ours.

    Where its root is no ext4, or this host cannot open it (without FUSE), the notes say so and nothing else is there:
    no build fails because of that.
    """
    try:
        with exported(image, host, writable=False) as raw:
            root = root_of(find_partitions(raw, host))
            if root.fstype not in EXT:
                what = root.fstype or "none that is known"
                raise BuildError(f"its root file system is {what}, and builds look into ext4 alone")
            with Ext4Reader(raw, root.offset) as reader:
                return take(reader)
    except BuildError as error:
        return Inventory(notes=[f"what is in the image was not looked at: {error.message}"])


def of_tar(archive: BinaryIO) -> Inventory:
    """Take the inventory of a root file system's tar."""
    return take(TarReader([archive]))


def _services(files: Mapping[str, File], init: str) -> dict[str, str]:
    """What an administrator or an installation has enabled or masked, not what a package starts by itself."""
    found: dict[str, str] = {}
    for path, file in files.items():
        if init == "systemd" and (match := _SYSTEMD.fullmatch(path)) and stat.S_ISLNK(file.mode):
            state = "masked" if file.what == "/dev/null" else "enabled"
            if found.get(match[1]) != "masked":
                found[match[1]] = state
        elif init in _OTHERS and (match := _OTHERS[init].fullmatch(path)):
            found[match[1]] = "enabled"
    return found


def _users(reader: Reader) -> dict[str, str]:
    passwords = {fields[0]: _password(fields[1]) for fields in _table(reader, "/etc/shadow", 2)}
    return {
        name: f"uid {uid}, gid {gid}, {home}, {shell or '/bin/sh'}, {passwords.get(name) or _password(secret)}"
        for name, secret, uid, gid, _, home, shell in (row[:7] for row in _table(reader, "/etc/passwd", 7))
    }


def _groups(reader: Reader) -> dict[str, str]:
    return {
        name: f"gid {gid}" + (f": {', '.join(sorted(members.split(',')))}" if members else "")
        for name, _, gid, members in (row[:4] for row in _table(reader, "/etc/group", 4))
    }


def _password(field: str) -> str:
    if not field:
        return "no password is asked for"
    return "password set" if field.startswith("$") or len(field) == 13 else "no password"


def _table(reader: Reader, path: str, least: int) -> Iterator[list[str]]:
    try:
        text = reader.read(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= least and not line.startswith("#"):
            yield fields
