"""The guestfs driver: offline steps on any disk, however foreign; nothing of it touches the host's kernel.

The disk's layers are opened by QEMU's storage daemon and reach the libguestfs appliance over NBD. One appliance serves
a run of consecutive steps: a layer is closed with the guest's file systems read-only and flushed, by a live snapshot,
and on the next one they can be written to again. What a step writes keeps the time at which it was written: a mounted
disk is never the same twice anyway, and going through all its files would cost more than most steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imagesmith.archive import Archive, archive_of
from imagesmith.disk.attach import LAYER_FILE, Attached, attached, chain_of
from imagesmith.disk.flatten import make_layer
from imagesmith.drivers import appliance as appliances
from imagesmith.drivers.appliance import Appliance, ApplianceError
from imagesmith.drivers.appliance_root import ApplianceRoot
from imagesmith.drivers.appliance_tools import Tools
from imagesmith.drivers.finding import find_root
from imagesmith.drivers.sorting import SortedFiles
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Root


def serve() -> None:
    """Be the worker: call libguestfs as asked on stdin, and answer on stdout, one JSON value a line.

    This function's source is given to the Python that has the binding, so it stands alone.
    """
    import json
    import os

    import guestfs  # type: ignore[import-not-found,import-untyped,unused-ignore]

    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # whatever libguestfs starts must not write between our lines
    handle = guestfs.GuestFS(python_return_dict=True)
    # libguestfs' own guard ends an orphaned QEMU only if it was ready in time. This one has no gap: QEMU asks the
    # kernel to be killed with us, and then looks whether we are still there. (libguestfs knows a QEMU by its time.)
    qemu = handle.get_hv()
    guarded = os.path.join(os.environ["LIBGUESTFS_TMPDIR"], "qemu")  # noqa: PTH118
    with open(guarded, "w") as script:  # noqa: PTH123
        alive = '[ -e /proc/$GUARDED_BY/exe ] && exec "$0" "$@"'
        script.write(f"#!/bin/sh\nexec setpriv --pdeathsig KILL -- sh -c '{alive}' {qemu} \"$@\"\n")
    os.chmod(guarded, 0o700)  # noqa: PTH101
    os.utime(guarded, (os.stat(qemu).st_mtime,) * 2)  # noqa: PTH116
    if os.access(guarded, os.X_OK):
        os.environ["GUARDED_BY"] = str(os.getpid())
        handle.set_hv(guarded)
    for line in requests:
        method, arguments, named = json.loads(line)
        try:
            answer = {"value": getattr(handle, method)(*arguments, **named)}
        except (RuntimeError, UnicodeError) as error:
            answer = {"error": str(error).encode("utf-8", "replace").decode()}
        answers.write(json.dumps(answer, default=repr).encode() + b"\n")


class Guestfs:
    """The driver (interfaces.Driver). ``accelerator`` is the host's verdict: ``kvm`` or ``tcg``."""

    name = "guestfs"

    def __init__(self, host: Host, *, accelerator: str) -> None:
        self._host, self._accelerator = host, accelerator

    @contextmanager
    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> Iterator[GuestfsSession]:
        """Open a session; the appliance is launched with its first layer. Raises MissingTool."""
        appliances.python_with_guestfs(self._host)
        session = GuestfsSession(self._host, self._accelerator, below, epoch=epoch)
        try:
            yield session
        finally:
            session.close()


class GuestfsSession:
    """A run of steps in one appliance (interfaces.Session)."""

    def __init__(self, host: Host, accelerator: str, below: Sequence[Path], *, epoch: int) -> None:
        self._host, self._accelerator, self._epoch = host, accelerator, epoch
        self._below = list(below)
        self._stack = ExitStack()
        self._disk: Attached | None = None
        self._appliance: Appliance | None = None
        self._tools: Tools | None = None
        self._mounts: dict[str, str] = {}
        self._mounted: list[str] = []

    @contextmanager
    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None, resumable: bool = False
    ) -> Iterator[Root]:
        """Open the next layer for one step (interfaces.Session). Launching counts in no step's ``timeout``."""
        self._below[-1] = below or self._below[-1]
        try:
            appliance, tools, disk = self._open(into, log)
            appliance.deadline = None if timeout is None else time.monotonic() + timeout
            self._mounted = self._mounted or _mount(appliance, self._mounts, writable=True)
            root = ApplianceRoot(appliance, tools, epoch=self._epoch, log=log)
            root.furnish()
            yield root
            appliance.deadline = None
            if not tools.end(self._mounted):
                self._mounted = []
                appliance.call("umount_all")
                appliance.call("sync")
            disk.flush()
        except BaseException:
            # The appliance may hang, and its layer is worth nothing: both go. The next layer starts with new ones.
            self._drop()
            raise
        self._below.append(into)

    def _open(self, into: Path, log: Log) -> tuple[Appliance, Tools, Attached]:
        files = make_layer(self._below, into, self._host)
        if self._appliance is not None and self._tools is not None and self._disk is not None:
            self._disk.advance(files[-1], below=self._below[-1] / LAYER_FILE)
            return self._appliance, self._tools, self._disk
        self._disk = self._stack.enter_context(attached(files, self._host, writable=True, nbd=True))
        log(f"starting the libguestfs appliance ({self._accelerator})")
        self._appliance = self._stack.enter_context(
            appliances.started(self._host, serve, socket=self._disk.socket, writable=True, network=True,
                               accelerator=self._accelerator)
        )  # fmt: skip
        self._mounts = self._mounts or find_root(self._appliance)
        self._tools = Tools(self._appliance)
        return self._appliance, self._tools, self._disk

    def _drop(self) -> None:
        stack, self._stack = self._stack, ExitStack()
        self._appliance = self._tools = self._disk = None
        self._mounted = []
        error = BuildError("the layer at work is given up")
        stack.__exit__(type(error), error, None)

    def close(self) -> None:
        """End the appliance."""
        self._appliance = self._tools = self._disk = None
        self._stack.close()


def _mount(appliance: Appliance, mounts: Mapping[str, str], *, writable: bool) -> list[str]:
    """Mount the guest's file systems; return where, ``/`` first. What cannot be mounted below it is left out."""
    mounted = []
    for point in sorted(mounts, key=lambda name: (len(name), name)):
        options = "discard" if writable else "ro"
        try:
            appliance.call("mount_options", options, mounts[point], point)
        except ApplianceError:
            try:  # vfat knows no discard in some kernels; a journal that needs replaying knows no ro
                appliance.call("mount_options", "" if writable else "ro,noload", mounts[point], point)
            except ApplianceError as error:
                if point == "/":
                    raise BuildError(f"the disk's root file system cannot be mounted: {error.message}") from error
                continue
        mounted.append(point)
    return mounted


@contextmanager
def open_files(disk: Disk, host: Host, *, accelerator: str) -> Iterator[SortedFiles]:
    """Read-only access to the root file system of any disk (interfaces.Files). Raises BuildError, MissingTool."""
    with (
        attached(chain_of(disk.path), host, writable=False, nbd=True) as open_disk,
        appliances.started(host, serve, socket=open_disk.socket, writable=False, network=False,
                           accelerator=accelerator) as appliance,
    ):  # fmt: skip
        _mount(appliance, find_root(appliance), writable=False)
        yield SortedFiles(appliance)
        appliance.call("umount_all")


def inject(
    overlay: Path, files: Mapping[str, tuple[bytes, int]], links: Mapping[str, str], host: Host, *, accelerator: str
) -> None:
    """Put files (path: contents and mode) and symbolic links (path: target) into a disk that will be thrown away.

    Missing folders on the way are made (0755, root). Raises BuildError, MissingTool.
    """

    def build(archive: Archive) -> None:
        for path, (content, mode) in sorted(files.items()):
            archive.data(path, content, mode=mode)
        for path, target in sorted(links.items()):
            archive.link(path, target)

    with (
        attached(chain_of(overlay), host, writable=True, nbd=True) as disk,
        appliances.started(host, serve, socket=disk.socket, writable=True, network=False,
                           accelerator=accelerator) as appliance,
    ):  # fmt: skip
        _mount(appliance, find_root(appliance), writable=True)
        ApplianceRoot(appliance, None, epoch=0, log=lambda line: None).unpack(archive_of(build, epoch=0))
        appliance.call("umount_all")
        appliance.call("sync")
        disk.flush()
