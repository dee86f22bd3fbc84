"""The raw output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, convert, copy_variables, finish, workspace


class Raw(DiskOutput, name="raw", version=1):
    """A raw image: the disk's bytes, a multiple of 1 MiB, sparse where the disk is empty: for ``dd`` and clouds.

    Where the disk has UEFI variables, they are written beside it, as NAME.variables.fd.
    """

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then round the size up."""
        name = f"{maker.name}.raw"
        with workspace(directory, name) as work:
            convert(disk, work / name, "raw", host, log)
            os.truncate(work / name, -(-disk.virtual_size // MIB) * MIB)
            return finish(work, directory, [name, *copy_variables(disk, maker, work)])
