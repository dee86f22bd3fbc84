"""The nspawn output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._rootfs import is_there, need_init, system, write_tar
from imagesmith.outputs._squeeze import SUFFIX

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")


class Nspawn(FilesOutput, name="nspawn", version=1, shorthand="compression"):
    """A container for systemd-nspawn: the tar that `machinectl import-tar` or `importctl import-tar` makes it of.

    Where there is no machined, `systemd-import tar X.nspawn.tar.xz NAME --image-root=DIR` unpacks it into DIR/NAME,
    and `systemd-nspawn -D DIR/NAME` runs a command in it, or boots it with `-b`. Without what only a machine needs:
    the contents of /boot, kernel modules and firmware; fstab and machine-id are empty.
    """

    compression: Literal["xz", "gzip"] = Field("xz", description="How it is compressed; gzip is larger and quicker")

    @property
    def label(self) -> str:
        """Name what it is for, and the archive."""
        return f"nspawn.tar{SUFFIX[self.compression]}"

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the tar. Raises BuildError where systemd-nspawn would not boot it (systemd-nspawn(1), --boot)."""
        need_init(files, "systemd-nspawn")
        if not any(is_there(files, path) for path in _OS_RELEASE):
            raise BuildError("systemd-nspawn takes no tree without /etc/os-release or /usr/lib/os-release",
                             hint="write one in a step, or take the output tar")  # fmt: skip
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            size = write_tar(files, system(files), work / name, host, epoch=maker.epoch, compression=self.compression)
            log(f"{name}: {size // MIB} MiB in its files")
            return finish(work, directory, [name])
