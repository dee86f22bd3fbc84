"""A disk as its plain bytes: a file of its own, or inside what a cloud or hypervisor takes."""

from __future__ import annotations

import os
from pathlib import Path

from imagesmith.errors import Interrupted
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log
from imagesmith.outputs._common import MIB, convert
from imagesmith.outputs._gzip import GzipWriter


def write_raw(disk: Disk, target: Path, host: Host, log: Log, *, unit: int = MIB) -> int:
    """Write the disk's bytes, sparse, filled up with zeros to a multiple of ``unit`` bytes; return the file's size.

    Raises ToolFailed.
    """
    convert(disk, target, "raw", host, log)
    size = -(-disk.virtual_size // unit) * unit
    os.truncate(target, size)
    return size


def feed(source: Path, sink: GzipWriter, host: Host) -> None:
    """Put a file through gzip. Raises Interrupted where the build was cancelled."""
    with source.open("rb") as stream:
        while block := stream.read(MIB):
            if host.cancelled:
                raise Interrupted()
            sink.write(block)
