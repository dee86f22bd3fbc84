"""The VHDX output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._vhdx import write_vhdx


class Vhdx(DiskOutput, name="vhdx", version=1):
    """A VHDX, dynamic: for Hyper-V's machines of both generations, Windows, and VirtualBox."""

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then mend what qemu-img writes."""
        name = f"{maker.name}.vhdx"
        with workspace(directory, name) as work:
            write_vhdx(disk, work / name, maker.seed, host, log)
            return finish(work, directory, [name])
