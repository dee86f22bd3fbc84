"""The squashfs output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._rootfs import WHOLE, system
from imagesmith.outputs._squashfs import SquashfsCompression, write_squashfs


class Squashfs(FilesOutput, name="squashfs", version=1, shorthand="compression"):
    """The root file system as a compressed, read-only file system: for live systems, overlays and `systemd-nspawn`.

    Without what only a machine needs (contents of /boot, kernel modules and firmware; fstab is empty), unless it is
    to be whole.
    """

    compression: SquashfsCompression = Field("zstd", description="How it is compressed; xz is smaller and slower")
    whole: bool = Field(False, description="Leave in what only a machine needs: kernel, boot loader, fstab")

    @property
    def label(self) -> str:
        """Tell file systems apart."""
        return "machine.squashfs" if self.whole else "squashfs"

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write it as a stream."""
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            content = WHOLE if self.whole else system(files)
            size = write_squashfs(files, content, work / name, host, epoch=maker.epoch, compression=self.compression)
            log(f"{name}: {size // MIB} MiB in its files")
            return finish(work, directory, [name])
