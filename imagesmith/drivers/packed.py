"""The files of disks that the host's kernel is not to mount, for several outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log

if TYPE_CHECKING:
    from imagesmith.drivers.sorting import PackedFiles


class PackedDisks:
    """The files of disks, each of which an appliance reads once, for all who ask. They are kept as long as this is."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._turn = Lock()
        self._packed: dict[Path, PackedFiles] = {}

    def files(self, disk: Disk, *, accelerator: Callable[[], str], log: Log) -> PackedFiles:
        """The files of a disk, which does not change. The others wait meanwhile. Raises as ``open_files``."""
        with self._turn:
            if disk.path not in self._packed:
                from imagesmith.drivers.guestfs import open_files

                log("starting the libguestfs appliance, which packs all files of the disk once")
                with open_files(disk, self._host, accelerator=accelerator()) as files:
                    self._packed[disk.path] = files.packed()
            return self._packed[disk.path]
