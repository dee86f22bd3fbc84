"""The raw output."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, copy_variables, finish, workspace
from imagesmith.outputs._raw import Reading, write_raw
from imagesmith.outputs._squeeze import SUFFIX, Compression, squeezed


class Raw(DiskOutput, name="raw", version=1, shorthand="compression"):
    """A raw image: the disk's bytes, a multiple of 1 MiB, sparse where the disk is empty: for ``dd`` and clouds.

    Where the disk has UEFI variables, they are written beside it, as NAME.variables.fd.
    """

    compression: Compression = Field("none", description="What to compress it with, on all cores")

    @property
    def label(self) -> str:
        """Tell a compressed image from one that is not."""
        return f"raw{SUFFIX[self.compression]}"

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, round the size up, compress."""
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            image = work / f"{maker.name}.raw"
            write_raw(disk, image, host, log)
            if self.compression != "none":
                log(f"{name}: compressing")
                with image.open("rb") as stream, squeezed(work / name, self.compression, host) as sink:
                    shutil.copyfileobj(Reading(stream, host), sink, MIB)
            return finish(work, directory, [name, *copy_variables(disk, maker, work)])
