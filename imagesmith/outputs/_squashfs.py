"""A root file system as a squashfs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from imagesmith.host import Host
from imagesmith.interfaces import Files
from imagesmith.outputs._rootfs import Content, copy, members, packed
from imagesmith.outputs._squeeze import piped, tar_into

SquashfsCompression = Literal["zstd", "xz", "gzip"]


def write_squashfs(
    files: Files, content: Content, path: Path, host: Host, *, epoch: int, compression: SquashfsCompression
) -> int:
    """Write a squashfs 4.0 (Linux: Documentation/filesystems/squashfs.rst); return how many bytes its files hold.

    mksquashfs reads the tar as it is packed, so that owners and devices need no privilege. SOURCE_DATE_EPOCH is the
    one setting that also fixes the root's time (its -root-time does nothing for a tar in 4.5). Raises MissingTool,
    ToolFailed.
    """
    argv = [
        "mksquashfs", "-", str(path), "-tar", "-comp", compression, "-root-mode", "0755", "-root-uid", "0",
        "-root-gid", "0", "-exit-on-error", "-no-progress", "-quiet",
        *(["-Xcompression-level", "9"] if compression == "zstd" else []),
    ]  # fmt: skip
    with (
        piped(argv, None, host, purpose=f"write {path.name}", env={"SOURCE_DATE_EPOCH": str(epoch)}) as sink,
        packed(files, content) as source,
        tar_into(sink) as tar,
    ):
        return copy(members(source, content, epoch), tar)
