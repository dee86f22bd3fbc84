"""A disk as its plain bytes: a file of its own, or inside what a cloud or hypervisor takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from imagesmith.errors import Interrupted
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log
from imagesmith.outputs._common import MIB, convert


def write_raw(disk: Disk, target: Path, host: Host, log: Log, *, unit: int = MIB) -> int:
    """Write the disk's bytes, sparse, filled up with zeros to a multiple of ``unit`` bytes; return the file's size.

    Raises ToolFailed.
    """
    convert(disk, target, "raw", host, log)
    size = -(-disk.virtual_size // unit) * unit
    os.truncate(target, size)
    return size


class Reading:
    """A file whose reading ends with the build: ``read`` raises Interrupted where it was cancelled."""

    def __init__(self, stream: BinaryIO, host: Host) -> None:
        self._stream, self._host = stream, host

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if self._host.cancelled:
            raise Interrupted()
        return self._stream.read(size)
