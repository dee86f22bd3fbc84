"""The qcow2 output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import copy_variables, finish, workspace, write_qcow2


class Qcow2(DiskOutput, name="qcow2", version=1, shorthand="compression"):
    """A qcow2 image, version 3, compressed, without a backing file: for QEMU, libvirt, OpenStack and Proxmox.

    zstd needs QEMU 5.1 (2020) or newer to read; zlib is read everywhere and takes four times as long to write.
    Where the disk has UEFI variables, they are written beside it, as NAME.variables.fd.
    """

    compression: Literal["zstd", "zlib", "none"] = Field("zstd", description="How clusters are compressed")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then let qemu-img look the result over."""
        name = f"{maker.name}.qcow2"
        with workspace(directory, name) as work:
            write_qcow2(disk, work / name, host, log, compression=self.compression)
            return finish(work, directory, [name, *copy_variables(disk, maker, work)])
