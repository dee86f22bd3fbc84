"""A disk as an image of compressed clusters: on all cores, and of an earlier image what both have.

What a compressed cluster looks like depends on its number and its bytes alone, and where it stands on those before it
(``_qcow2``, ``_grains``). So the result is the same whether a cluster was compressed now, or its compressed bytes were
copied from an image that was written like this before. That is done where both disks have the cluster in the same place
of the same layer, which needs no look at the data, and where the earlier image is found to hold the same bytes.
"""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Protocol

from imagesmith.errors import BuildError, Interrupted, Refused
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Earlier, Log
from imagesmith.outputs._qcow2 import ZEROS, Stored, write_all
from imagesmith.outputs._source import Source

_RUN = 32
"""Clusters that a thread does at a go."""
_BUFFER = 1 << 20


class _Is(Enum):
    """What a cluster is that is neither compressed now nor taken from an earlier image."""

    BELOW = 0
    """The same as what the image stands on, or zeros where it stands on nothing."""
    ZERO = 1
    WHOLE = 2
    """Not compressed."""


_Done = bytes | Stored | _Is


class Image(Protocol):
    """An image that was written before: where it has clusters, and their bytes."""

    def stored(self) -> Mapping[int, Stored]:
        """Where it has clusters' data, by their numbers; the size is 0 where it is not known exactly."""
        ...

    def zeroed(self) -> Set[int]:
        """The clusters that it says are zeros, whatever it stands on has there."""
        ...

    def bytes_of(self, cluster: int, stored: Stored) -> bytes:
        """A cluster's bytes. Raises Refused where they are damaged."""
        ...

    def copy(self, offset: int, size: int, into: int, at: int) -> None:
        """Copy a part of it into another file. Raises OSError, Refused."""
        ...


class Form(Protocol):
    """A format of images that can be written like this."""

    @property
    def magic(self) -> bytes:
        """What they begin with."""
        ...

    def writer(self, fd: int, size: int) -> Writer:
        """Begin an image, in an empty file, of a disk of so many bytes."""
        ...

    def opened(self, fd: int, name: str, at: int, size: int) -> Image:
        """Open an image of so many bytes that begins somewhere in a file. Raises Refused."""
        ...

    def squeeze(self, cluster: int, data: bytes) -> bytes | None:
        """What stands for a cluster; None where it stays as it is."""
        ...


class Writer(Protocol):
    """Takes clusters in order, then ``finish``."""

    def zero(self, cluster: int) -> None:
        """The cluster is zeros, and what the image stands on is not."""
        ...

    def whole(self, cluster: int) -> None:
        """The cluster stays as it is: ``finish`` asks for it."""
        ...

    def data(self, cluster: int, size: int) -> int:
        """So many bytes stand for the cluster, which the caller writes at the offset that is returned."""
        ...

    def finish(self, read: Callable[[int], bytes]) -> None:
        """Write the rest; ``read`` returns clusters that stay as they are."""
        ...


def write_image(
    disk: Disk, target: Path, host: Host, log: Log, form: Form, *, below: tuple[Path, str] | None = None
) -> None:  # fmt: skip
    """Write the disk. ``below``: without what is the same in this image, and its format.

    Tells progress in tenths. Raises Refused, ToolFailed, OSError, Interrupted.
    """
    with ExitStack() as stack:
        beneath = None if below is None else Source(below[0], host, stack, format=below[1], alone=True)
        source = Source(disk.path, host, stack)
        earlier = None if disk.earlier is None else _opened(disk.earlier, form, host, stack, log)
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, fd)
        work = _Conversion(source, beneath, earlier, form, host)
        work.fill(fd, form.writer(fd, source.size), lambda tenth: log(f"{target.name}: {tenth * 10} %"))
        if work.copied:
            log(f"{target.name}: {work.copied} of {work.copied + work.made} clusters are those of an earlier one")
        log(f"{target.name}: 100 %")


class _EarlierImage:
    """An image that was written before, and where its disk had its clusters. Raises OSError, BuildError."""

    def __init__(self, found: Earlier, form: Form, host: Host, stack: ExitStack) -> None:
        path, at, size = _image_in(found.files, form.magic)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        self.image = form.opened(fd, str(path), at, size)
        self.stored, self.zeroed = self.image.stored(), self.image.zeroed()
        self.places = {} if found.disk is None else Source(found.disk, host, stack).places

    def holds(self, cluster: int, data: bytes) -> Stored | None:
        """Where it has these bytes as this cluster, if it does; what is damaged has them nowhere."""
        stored = self.stored.get(cluster)
        if stored is None or not stored.size:
            return None
        try:
            own = self.image.bytes_of(cluster, stored)
        except Refused:
            return None
        return stored if own == data else None


def _image_in(files: Sequence[Path], magic: bytes) -> tuple[Path, int, int]:
    """The only image among an artifact's files, where it begins, and its size; in a tar (box, OVA) it is a member."""
    found: list[tuple[Path, int, int]] = []
    for path in files:
        with path.open("rb") as stream, suppress(tarfile.TarError):
            if stream.read(len(magic)) == magic:
                found.append((path, 0, path.stat().st_size))
                continue
            stream.seek(0)
            for member in tarfile.open(fileobj=stream, mode="r:"):
                stream.seek(member.offset_data)
                if stream.read(len(magic)) == magic:
                    found.append((path, member.offset_data, member.size))
    if len(found) != 1:
        raise BuildError(f"{len(found)} images in {', '.join(map(str, files))}")
    return found[0]


def _opened(found: Earlier, form: Form, host: Host, stack: ExitStack, log: Log) -> _EarlierImage | None:
    try:
        return _EarlierImage(found, form, host, stack)
    except (OSError, BuildError) as error:
        log(f"nothing of an earlier image is used: {error}")
        return None


class _Conversion:
    def __init__(
        self, source: Source, below: Source | None, earlier: _EarlierImage | None, form: Form, host: Host
    ) -> None:  # fmt: skip
        self._source, self._below, self._earlier, self._form, self._host = source, below, earlier, form, host
        self._places = source.places
        self._below_places = {} if below is None else below.places
        self.copied = self.made = 0

    def fill(self, fd: int, writer: Writer, progress: Callable[[int], None]) -> None:
        """Write all clusters and the tables."""
        clusters = sorted({*self._places, *self._below_places})
        out, tenth = _Out(fd, writer, self._earlier), 1
        for number, (cluster, done) in enumerate(self._results(clusters)):
            out.take(cluster, done)
            if isinstance(done, Stored):
                self.copied += 1
            else:
                self.made += done is _Is.WHOLE or isinstance(done, bytes)
            if number * 10 >= tenth * len(clusters):
                progress(tenth)
                tenth += 1
        out.flush()
        writer.finish(self._source.read)

    def _results(self, clusters: Sequence[int]) -> Iterator[tuple[int, _Done]]:
        """What each cluster is, in order; threads are some runs of clusters ahead of what was asked for."""
        workers = min(2 * len(os.sched_getaffinity(0)), 8)  # some wait for what they read
        runs = self._runs(clusters)
        waiting: deque[tuple[Sequence[int], Future[Sequence[_Done]] | Sequence[_Done]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="clusters") as pool:
            try:
                while True:
                    for run, known in islice(runs, 1 + 2 * workers - len(waiting)):
                        waiting.append((run, pool.submit(self._do, run) if known is None else known))
                    if not waiting:
                        return
                    if self._host.cancelled:
                        raise Interrupted()
                    run, done = waiting.popleft()
                    yield from zip(run, done.result() if isinstance(done, Future) else done, strict=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def _runs(self, clusters: Sequence[int]) -> Iterator[tuple[Sequence[int], Sequence[_Done] | None]]:
        """Cut the clusters into runs of what is known without a look, and of what threads must do (None)."""
        run: list[int] = []
        known: list[_Done] = []
        for cluster in clusters:
            done = self._known(cluster)
            if run and (bool(known) is (done is None) or (done is None and len(run) == _RUN)):
                yield run, known or None
                run, known = [], []
            run.append(cluster)
            if done is not None:
                known.append(done)
        if run:
            yield run, known or None

    def _known(self, cluster: int) -> _Done | None:
        """What a cluster is, where the earlier image's disk had it in the same place."""
        earlier = self._earlier
        if earlier is None:
            return None
        place = self._places.get(cluster, False)
        if place is None or place != earlier.places.get(cluster, False):
            return None
        if cluster in earlier.zeroed:
            return _Is.ZERO
        stored = earlier.stored.get(cluster)
        if stored is None:
            return _Is.BELOW
        if stored.whole:
            return _Is.WHOLE
        return stored if stored.size else None

    def _do(self, run: Sequence[int]) -> list[_Done]:
        return [self._one(cluster) for cluster in run]

    def _one(self, cluster: int) -> _Done:
        data = self._source.read(cluster)
        beneath = self._below.read(cluster) if self._below is not None and cluster in self._below_places else ZEROS
        if data == beneath:
            return _Is.BELOW
        if data == ZEROS:
            return _Is.ZERO
        if self._earlier is not None and (stored := self._earlier.holds(cluster, data)) is not None:
            return _Is.WHOLE if stored.whole else stored
        squeezed = self._form.squeeze(cluster, data)
        return _Is.WHOLE if squeezed is None else squeezed


class _Out:
    """Puts clusters behind each other; what is adjacent is written, or copied from the earlier image, at once."""

    def __init__(self, fd: int, writer: Writer, earlier: _EarlierImage | None) -> None:
        self._fd, self._writer, self._earlier = fd, writer, earlier
        self._at = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._copy = Stored(0, 0)

    def take(self, cluster: int, done: _Done) -> None:
        """Add a cluster."""
        if done is _Is.ZERO:
            self._writer.zero(cluster)
        elif done is _Is.WHOLE:
            self._writer.whole(cluster)
        elif isinstance(done, bytes):
            at = self._writer.data(cluster, len(done))
            if self._copy.size or self._size >= _BUFFER or at != self._at + self._size:
                self.flush()
            self._at = self._at if self._size else at
            self._pieces.append(done)
            self._size += len(done)
        elif isinstance(done, Stored):
            at = self._writer.data(cluster, done.size)
            apart = (done.offset - self._copy.offset, at - self._at) != (self._copy.size, self._copy.size)
            if self._pieces or apart:
                self.flush()
            if self._copy.size:
                self._copy = Stored(self._copy.offset, self._copy.size + done.size)
            else:
                self._at, self._copy = at, done

    def flush(self) -> None:
        """Write what is waiting."""
        if self._pieces:
            write_all(self._fd, b"".join(self._pieces), self._at)
        elif self._copy.size and self._earlier is not None:
            self._earlier.image.copy(self._copy.offset, self._copy.size, self._fd, self._at)
        self._pieces, self._size, self._copy = [], 0, Stored(0, 0)
