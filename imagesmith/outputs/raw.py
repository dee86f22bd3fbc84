"""The raw output."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, copy_variables, finish, workspace
from imagesmith.outputs._gzip import GzipWriter
from imagesmith.outputs._raw import Reading, write_raw

Compression = Literal["none", "zstd", "xz", "gzip"]
_ENDINGS: Mapping[Compression, str] = {"none": "", "zstd": ".zst", "xz": ".xz", "gzip": ".gz"}
_XZ_BLOCK = 24 * MIB
"""What xz gives each of its threads at level 6 (xz(1), --block-size)."""


class Raw(DiskOutput, name="raw", version=1, shorthand="compression"):
    """A raw image: the disk's bytes, a multiple of 1 MiB, sparse where the disk is empty: for ``dd`` and clouds.

    Where the disk has UEFI variables, they are written beside it, as NAME.variables.fd.
    """

    compression: Compression = Field(
        "none", description="What to compress it with, on all cores; xz makes the smallest file and takes the longest"
    )

    @property
    def label(self) -> str:
        """Tell a compressed image from one that is not."""
        return f"raw{_ENDINGS[self.compression]}"

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, round the size up, compress."""
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            image = work / f"{maker.name}.raw"
            write_raw(disk, image, host, log)
            if self.compression != "none":
                log(f"{name}: compressing")
                compress(image, work / name, self.compression, host)
            return finish(work, directory, [name, *copy_variables(disk, maker, work)])


def compress(source: Path, target: Path, how: Compression, host: Host) -> None:
    """Compress a file: the same bytes on any number of cores. Raises ToolFailed, Interrupted.

    zstd's threads share one stream whose cuts do not depend on their number (zstd(1), -T). xz has another encoder for
    one thread, so it always gets two or more, and the size of its blocks (xz(1), -T and --block-size).
    """
    purpose = f"compress {target.name}"
    if how == "zstd":
        host.run(["zstd", "-q", "-T0", "-f", source, "-o", target], purpose=purpose)
    elif how == "xz":
        threads = max(2, os.cpu_count() or 1)
        with target.open("wb") as out:
            host.run(["xz", "-6", f"-T{threads}", f"--block-size={_XZ_BLOCK}", "-c", source], purpose=purpose,
                     stdout=out)  # fmt: skip
    else:
        with source.open("rb") as stream, target.open("wb") as out, GzipWriter(out.write) as sink:
            shutil.copyfileobj(Reading(stream, host), sink, MIB)
