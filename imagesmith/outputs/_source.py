"""Where the bytes of a disk are: read from the files of its layers, without a program between."""

from __future__ import annotations

import json
import os
from bisect import bisect_left, bisect_right
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from imagesmith.errors import Refused
from imagesmith.host import Host
from imagesmith.outputs._qcow2 import BITS, CLUSTER, ZEROS, Image

_DEEPEST = 500

Place = tuple[str, int] | None
"""Where a whole cluster of 64 KiB stands: a file's name, and the offset in it, or ``~number`` of a compressed cluster.

None: it has several places, or ends with the disk. Two clusters with one place are the same bytes: layers never change.
"""


class _Extent(NamedTuple):
    start: int
    end: int
    name: str
    offset: int | None  # None: compressed


class Source:
    """A qcow2 with all that it stands on, or a raw image: what is in it, and where. To be closed by ``stack``.

    Raises Refused for what is no image, ToolFailed where qemu-img says so, MissingTool.
    """

    def __init__(self, path: Path, host: Host, stack: ExitStack, *, format: str = "qcow2", alone: bool = False) -> None:
        """``alone``: refuse an image that stands on another one."""
        self._images: dict[str, Image] = {}
        self._fds: dict[str, int] = {}
        names = [os.path.realpath(path)]
        self._open(names[0], format, stack)
        while format == "qcow2" and (backing := self._images[names[-1]].backing):
            if alone or len(names) > _DEEPEST:
                raise Refused(f"{path} stands on another image, {backing}" + ("" if alone else ", and that has no end"),
                              hint="make one that is complete in itself: qemu-img convert")  # fmt: skip
            names.append(os.path.realpath(Path(names[-1]).parent / backing))
            self._open(names[-1], format, stack)
        self.size = self._images[names[0]].size if format == "qcow2" else os.fstat(self._fds[names[0]]).st_size
        told = host.run(["qemu-img", "map", "--output=json", "-f", format, path], purpose="see what is in a disk")
        self._extents = [
            _Extent(at["start"], at["start"] + at["length"], names[at["depth"]], at.get("offset"))
            for at in json.loads(told.stdout)
            if at["data"] and not at["zero"]
        ]
        self._starts = [extent.start for extent in self._extents]

    def _open(self, name: str, format: str, stack: ExitStack) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        self._fds[name] = fd
        if format == "qcow2":
            self._images[name] = Image(fd, name)

    @cached_property
    def places(self) -> dict[int, Place]:
        """The clusters of the disk that hold data, by their numbers; all others are zeros."""
        found: dict[int, Place] = {}
        for start, end, name, offset in self._extents:
            first, last = -(-start // CLUSTER), end // CLUSTER
            if offset is not None:
                ahead = offset - start
                found.update((n, (name, ahead + n * CLUSTER)) for n in range(first, last))
            else:
                plain = self._images[name].bits == BITS
                found.update((n, (name, ~n) if plain else None) for n in range(first, last))
            found.update((n, None) for n in (start // CLUSTER, (end - 1) // CLUSTER) if not first <= n < last)
        return found

    def read(self, cluster: int) -> bytes:
        """A cluster's 64 KiB; zeros follow the end of the disk. For any number of threads. Raises Refused."""
        place = self.places.get(cluster, ("", 0))
        if place is None:
            return self._pieces(cluster * CLUSTER)
        name, offset = place
        if not name:
            return ZEROS
        if offset < 0:
            return self._images[name].expand(~offset)
        return os.pread(self._fds[name], CLUSTER, offset).ljust(CLUSTER, b"\0")

    def _pieces(self, start: int) -> bytes:
        whole, end = bytearray(CLUSTER), min(start + CLUSTER, self.size)
        for number in range(max(0, bisect_right(self._starts, start) - 1), bisect_left(self._starts, end)):
            extent = self._extents[number]
            at, until = max(extent.start, start), min(extent.end, end)
            if at < until:
                whole[at - start : until - start] = self._piece(extent, at, until - at)
        return bytes(whole)

    def _piece(self, extent: _Extent, at: int, size: int) -> bytes:
        if extent.offset is not None:
            return os.pread(self._fds[extent.name], size, extent.offset + at - extent.start).ljust(size, b"\0")
        image = self._images[extent.name]
        first, last = at >> image.bits, (at + size - 1) >> image.bits
        found = b"".join(image.expand(number) for number in range(first, last + 1))
        return found[at - (first << image.bits) :][:size]
