"""An ext4 file system made of a tar: no mount, no root, no namespace, and the same bytes every time.

The files are put into a folder as whoever builds, filled into the file system by mke2fs(8), and then given their own
owners, modes, times and attributes by debugfs(8). Which inode is which file is told by the time of the file in the
folder, a number of its own: mke2fs copies it, and it is read back from the table of inodes.
On-disk layout: Linux, Documentation/filesystems/ext4, "Super Block", "Block Group Descriptors", "Inode Table".
"""

from __future__ import annotations

import copy
import mmap
import os
import posixpath
import shutil
import struct
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from imagesmith.disk.ext4 import clock, debugfs, mke2fs_command
from imagesmith.disk.template import template_path
from imagesmith.errors import BuildError, Refused, ToolFailed
from imagesmith.host import Host

MIB = 1 << 20
_PURPOSE = "write an ext4 file system"
_CHUNK = 1 << 20
_BLOCK = 4096
_PER_INODE = 16384
"""Bytes of a file system for each of its inodes, as templates/boot/mke2fs.conf has it."""
_ROOT, _FIRST = 2, 12
"""The inode of /, and the first one after that of lost+found."""
_XATTR = "SCHILY.xattr."
_KINDS = {
    tarfile.REGTYPE: 0o100000, tarfile.AREGTYPE: 0o100000, tarfile.DIRTYPE: 0o40000, tarfile.SYMTYPE: 0o120000,
    tarfile.FIFOTYPE: 0o10000, tarfile.CHRTYPE: 0o20000, tarfile.BLKTYPE: 0o60000,
}  # fmt: skip


@dataclass(frozen=True)
class Staged:
    """What was put into the folder: the members, each at its number less one, and how much room they need."""

    members: tuple[tarfile.TarInfo, ...]
    size: int
    """Bytes that the files need in whole blocks, or more, where there would be too few inodes."""


def stage(members: Iterable[tuple[tarfile.TarInfo, BinaryIO | None]], folder: Path) -> Staged:
    """Put a tar's members (with what their bytes are read from) into a new folder, each with its number as its time.

    Device nodes are left for later. Raises Refused for a name that leads out of the folder.
    """
    folder.mkdir()
    kept: list[tarfile.TarInfo] = []
    folders = {"": 0}
    nodes: dict[str, tarfile.TarInfo] = {}
    size = 0

    def add_folder(name: str, member: tarfile.TarInfo) -> None:
        (folder / name).mkdir(mode=0o700)
        kept.append(member)
        folders[name] = len(kept)

    for member, stream in members:
        name = posixpath.normpath(member.name)
        if name.startswith("/") or name.split("/")[0] == "..":
            raise Refused(f"the root file system's tar holds a file with the name {member.name!r}")
        for above in reversed(PurePosixPath(name).parents[:-1]):
            if str(above) not in folders:
                add_folder(str(above), _plain_folder(str(above), member))
        place = folder / name
        if member.isdir():
            add_folder(name, member)
            continue
        if member.islnk():
            target = posixpath.normpath(member.linkname)
            if target in nodes:
                kept.append(copy.copy(nodes[target]))
                kept[-1].name = name
                continue
            if posixpath.dirname(target) not in folders or not os.path.lexists(folder / target):
                raise Refused(f"the root file system's tar has no {member.linkname!r} for its link {member.name!r}")
            os.link(folder / target, place, follow_symlinks=False)
            continue
        kept.append(member)
        number = len(kept)
        if member.issym():
            place.symlink_to(member.linkname)
        elif member.isfifo():
            os.mkfifo(place, 0o600)
        elif stream is not None:
            _write(stream, place)
        elif member.isblk() or member.ischr():
            nodes[name] = member
        else:
            raise Refused(f"the root file system's tar holds {member.name!r}, which is no kind of file")
        if name not in nodes:
            os.utime(place, (number, number), follow_symlinks=False)
        size += -(-member.size // _BLOCK) * _BLOCK
    for name, number in folders.items():
        os.utime(folder / name, (number, number))
    return Staged(tuple(kept), max(size + len(kept) * _BLOCK, len(kept) * _PER_INODE))


def _plain_folder(name: str, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A folder that a tar does not hold though it holds something in it."""
    found = tarfile.TarInfo(name)
    found.type, found.mode, found.mtime = tarfile.DIRTYPE, 0o755, member.mtime
    return found


def _write(stream: BinaryIO, place: Path) -> None:
    with place.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            if chunk.count(0) == len(chunk):
                out.seek(len(chunk), os.SEEK_CUR)
            else:
                out.write(chunk)
        out.truncate(out.tell())
    place.chmod(0o600)


def make_ext4(
    staged: Staged, folder: Path, image: Path, host: Host, *,
    size: int, label: str, uuid: str, hash_seed: str, epoch: int,
) -> None:  # fmt: skip
    """Make ``image``, a file system of ``size`` bytes with nothing around it, of what was staged in ``folder``.

    Raises BuildError where it does not fit.
    """
    with image.open("wb") as stream:
        stream.truncate(size)
    command = mke2fs_command(folder, image, offset=0, size=size, label=label, uuid=uuid, hash_seed=hash_seed)
    environment = {**clock(epoch), "MKE2FS_CONFIG": str(template_path("boot/mke2fs.conf"))}
    try:
        host.run(command, purpose=_PURPOSE, env=environment)
    except ToolFailed as failed:
        if "Could not allocate" not in failed.tail:
            raise
        raise BuildError(
            f"the root file system does not fit: its files take {staged.size // MIB} MiB, and it was to have "
            f"{size // MIB} MiB with its own tables in it",
            hint="raise the output's size",
        ) from failed
    beside = image.with_name(image.name + ".attributes")
    beside.mkdir()
    try:
        debugfs(image, 0, epoch, [*_commands(staged, image, beside, epoch)], host)
    finally:
        shutil.rmtree(beside)


def _commands(staged: Staged, image: Path, beside: Path, epoch: int) -> Iterator[str]:
    now = max(epoch, 1)
    for inode in (*range(1, _ROOT), *range(_ROOT + 1, _FIRST)):
        yield from (f"set_inode_field <{inode}> {field} @{now}" for field in ("ctime", "atime"))
    root = tarfile.TarInfo("/")
    root.type, root.mode, root.mtime = tarfile.DIRTYPE, 0o755, now
    yield from _dress(f"<{_ROOT}>", root, beside, now)
    for inode, number in _numbers(image):
        member = staged.members[number - 1]
        yield from _dress(f"<{inode}>", member, beside, now)
    for member in staged.members:
        if member.ischr() or member.isblk():
            name = posixpath.normpath(member.name)
            yield f"cd {_quoted('/' + posixpath.dirname(name))}"
            letter = "c" if member.ischr() else "b"
            yield f"mknod {_quoted(posixpath.basename(name))} {letter} {member.devmajor} {member.devminor}"
            yield from _dress(_quoted("/" + name), member, beside, now)


def _dress(file: str, member: tarfile.TarInfo, beside: Path, now: int) -> Iterator[str]:
    """What makes a file look as in the tar."""
    mode = _KINDS[member.type] | (0o777 if member.issym() else member.mode & 0o7777)
    fields = {"mode": f"0{mode:o}", "uid": member.uid, "gid": member.gid, "mtime": f"@{max(int(member.mtime), 0)}",
              "ctime": f"@{now}", "atime": f"@{now}"}  # fmt: skip
    yield from (f"set_inode_field {file} {field} {value}" for field, value in fields.items())
    for key, value in sorted(member.pax_headers.items()):
        if key.startswith(_XATTR):
            content = beside / str(len(list(beside.iterdir())))
            content.write_bytes(value.encode("utf-8", "surrogateescape"))
            yield f"ea_set -f {_quoted(str(content))} {file} {_quoted(key.removeprefix(_XATTR))}"


def _quoted(name: str) -> str:
    """A word for debugfs (libss: a double quote inside of quotes is written twice). Raises Refused."""
    if "\n" in name:
        raise Refused(f"a name has a line's end in it: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def _numbers(image: Path) -> Iterator[tuple[int, int]]:
    """The inodes in use, apart from the file system's own, and the number that each was staged with."""
    with image.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        block = 1024 << _u32(data, 1024 + 0x18)
        per_group, total = _u32(data, 1024 + 0x28), _u32(data, 1024)
        inode_size = struct.unpack_from("<H", data, 1024 + 0x58)[0]
        wide = struct.unpack_from("<H", data, 1024 + 0xFE)[0]
        table = 1024 // block + 1
        for inode in range(_FIRST, total + 1):
            group, index = divmod(inode - 1, per_group)
            descriptor = table * block + group * wide
            start = _u32(data, descriptor + 0x8) | _u32(data, descriptor + 0x28) << 32
            place = start * block + index * inode_size
            if struct.unpack_from("<H", data, place + 0x1A)[0]:  # i_links_count
                yield inode, _u32(data, place + 0x10)  # i_mtime


def _u32(data: mmap.mmap, place: int) -> int:
    return int(struct.unpack_from("<I", data, place)[0])
