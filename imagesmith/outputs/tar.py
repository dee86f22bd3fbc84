"""The tar output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._rootfs import WHOLE, system, write_tar
from imagesmith.outputs._squeeze import SUFFIX, Compression


class Tar(FilesOutput, name="tar", version=1, shorthand="compression"):
    """The root file system as a plain tar: for ``docker import``, chroots, `systemd-nspawn` and what else takes one.

    Without what only a machine needs (contents of /boot, kernel modules and firmware; fstab is empty), unless it is
    to be whole. POSIX pax, sorted, numeric owners; capabilities and other extended attributes as GNU tar and bsdtar
    read them.
    """

    compression: Compression = Field("zstd", description="How it is compressed")
    whole: bool = Field(False, description="Leave in what only a machine needs: kernel, boot loader, fstab")

    @property
    def label(self) -> str:
        """Tell tars apart."""
        return f"{'machine' if self.whole else 'rootfs'}.tar{SUFFIX[self.compression]}"

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write it as a stream."""
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            content = WHOLE if self.whole else system(files)
            size = write_tar(files, content, work / name, host, epoch=maker.epoch, compression=self.compression)
            log(f"{name}: {size // MIB} MiB in its files")
            return finish(work, directory, [name])
