"""An ext4 file system filled from a directory, without a mount, with the same bytes every time.

mke2fs(8) walks the directory sorted by name and takes its times, apart from the files', from E2FSPROGS_FAKE_TIME (up
to 1.47.0) or SOURCE_DATE_EPOCH (later). Two things leak from the directory that it reads: when each inode was last
changed and last read. debugfs(8) sets both back; a fresh file system's inodes are numbered without gaps.
On-disk layout: Linux, Documentation/filesystems/ext4/globals.rst, "Super Block".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.disk.template import template_path
from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Mounted

MIB = 1 << 20
_PURPOSE = "write the root file system into the disk"


def clock(epoch: int) -> dict[str, str]:
    """The environment that makes e2fsprogs, mtools and GRUB's tools believe that it is ``epoch``."""
    return {"E2FSPROGS_FAKE_TIME": str(max(epoch, 1)), "SOURCE_DATE_EPOCH": str(max(epoch, 1))}


def mke2fs_command(
    tree: Path, raw: Path, *, offset: int, size: int, label: str, uuid: str, hash_seed: str
) -> list[str | Path]:
    """The command that makes the file system at ``offset`` of ``raw`` (both and ``size`` in bytes)."""
    extended = f"offset={offset},hash_seed={hash_seed},assume_storage_prezeroed=1,lazy_itable_init=0"
    return ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "1", "-L", label, "-U", uuid, "-E", extended,
            "-d", tree, raw, f"{size // 1024}k"]  # fmt: skip


def make_root(
    mounted: Mounted, raw: Path, host: Host, *,
    offset: int, size: int, label: str, uuid: str, hash_seed: str, epoch: int, extra: Mapping[str, bytes | None],
) -> None:  # fmt: skip
    """Fill the file system with ``mounted``, then with ``extra``: absolute names of files, and of folders (None).

    Raises BuildError where the content does not fit.
    """
    command = mke2fs_command(mounted.mountpoint, raw, offset=offset, size=size, label=label, uuid=uuid,
                             hash_seed=hash_seed)  # fmt: skip
    environment = {**clock(epoch), "MKE2FS_CONFIG": str(template_path("boot/mke2fs.conf"))}
    host.require("mke2fs", _PURPOSE)
    try:
        mounted.inside(command, purpose=_PURPOSE, env=environment)
    except ToolFailed as failed:
        raise _explain(failed, mounted, size) from failed
    _normalise(raw, offset, epoch, host)
    _add(raw, offset, epoch, extra, host)


def _explain(failed: ToolFailed, mounted: Mounted, size: int) -> BuildError:
    if "Could not allocate" not in failed.tail:
        return failed
    lines: list[str] = []
    mounted.inside(["du", "-s", "-x", "--block-size=1M", mounted.mountpoint], purpose="size the tree", log=lines.append)
    content = lines[-1].split()[0] if lines else "?"
    return BuildError(
        f"the root file system does not fit: its files take {content} MiB, and the disk has {size // MIB} MiB for them"
        " (with the file system's own tables in it)",
        hint="raise machine.disk, or remove something in the steps",
    )


def inode_count(superblock: bytes) -> int:
    """How many inodes are in use, of a superblock's first bytes (s_inodes_count, s_free_inodes_count)."""
    total, free = struct.unpack_from("<I", superblock, 0)[0], struct.unpack_from("<I", superblock, 16)[0]
    return int(total - free)


def debugfs(raw: Path, offset: int, epoch: int, commands: Sequence[str], host: Host) -> None:
    """Let debugfs(8) change the file system at ``offset`` of ``raw``. Raises ToolFailed with its first complaint."""
    done = host.run(["debugfs", "-w", "-f", "-", f"{raw}?offset={offset}"], purpose=_PURPOSE,
                    input=("\n".join(commands) + "\n").encode(), env=clock(epoch))  # fmt: skip
    # Its exit status says nothing; whatever goes wrong is on stderr, below a line with its version.
    complaints = done.stderr.decode("utf-8", "replace").splitlines()[1:]
    if complaints:
        raise ToolFailed(f"debugfs failed to {_PURPOSE}: {complaints[0]}", tail="\n".join(complaints[-20:]))


def _normalise(raw: Path, offset: int, epoch: int, host: Host) -> None:
    with raw.open("rb") as stream:
        stream.seek(offset + 1024)
        inodes = inode_count(stream.read(1024))
    now = f"@{max(epoch, 1)}"
    commands = [f"set_inode_field <{n}> {field} {now}" for n in range(1, inodes + 1) for field in ("ctime", "atime")]
    debugfs(raw, offset, epoch, commands, host)


def _add(raw: Path, offset: int, epoch: int, extra: Mapping[str, bytes | None], host: Host) -> None:
    beside = raw.with_name(raw.name + ".add")
    for name, content in sorted(extra.items()):
        folder, leaf = name.rsplit("/", 1)
        commands = [f"cd {folder or '/'}"]
        try:
            if content is None:
                commands.append(f"mkdir {leaf}")
            else:
                beside.write_bytes(content)
                beside.chmod(0o644)
                commands.append(f'write "{beside}" {leaf}')
            fields = (*((f, f"@{max(epoch, 1)}") for f in ("ctime", "atime", "mtime")), ("uid", "0"), ("gid", "0"))
            commands.extend(f"set_inode_field {name} {field} {value}" for field, value in fields)
            debugfs(raw, offset, epoch, commands, host)
        finally:
            beside.unlink(missing_ok=True)
