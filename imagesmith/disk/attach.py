"""A chain of qcow2 layers as one raw disk: a file for host programs, or an NBD socket for an appliance.

QEMU's storage daemon holds the chain. It runs in a mount namespace of its own (and, for users who are not root, in a
user namespace of its own) with a small tmpfs over /sys, which nothing of ours is ever below; what it offers is there,
and is reached through ``/proc/<pid>/root``. So when the daemon ends, for whatever reason, the kernel takes the FUSE
mount, the socket and the folder away with it: nothing is left in any mount table or file system.

Every layer is opened with its backing layer named explicitly, so no name in an image's header is ever followed
unseen. (qcow2: QEMU's documentation, "docs/interop/qcow2.txt". Commands: QEMU's QMP reference, "Block devices".)
"""

from __future__ import annotations

import os
import signal
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagesmith.errors import BuildError, ImagesmithError, Refused, ToolFailed
from imagesmith.host import Host, Process
from imagesmith.qmp import Qmp, socket_pair

LAYER_FILE = "disk.qcow2"
_EXPORT = "top"
_FLUSH_SECONDS = 600.0
"""A snapshot waits until all that the guest wrote has left the daemon: gigabytes on a slow disk, at worst."""
_DEEPEST = 500
_DATA_FILE, _HEADER_LENGTH = 1 << 2, 72


@dataclass(frozen=True)
class Header:
    """What a qcow2 file says of itself. ``virtual_size`` is in bytes; ``backing`` is empty where there is none."""

    virtual_size: int
    backing: str


def read_header(path: Path) -> Header:
    """Read a qcow2 header. Raises Refused for anything but a qcow2 file that is complete in itself and its backing."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER_LENGTH + 8)
            if len(head) < _HEADER_LENGTH or head[:4] != b"QFI\xfb":
                raise Refused(f"{path} is no qcow2 image, or only the beginning of one")
            version, name_at, name_length, _, size, crypt = struct.unpack(">IQIIQI", head[4:36])
            features = struct.unpack(">Q", head[72:80])[0] if version >= 3 and len(head) >= 80 else 0
            if version not in {2, 3} or crypt or name_length > 1023:
                raise Refused(f"{path} is a qcow2 image of a kind that imagesmith does not open: version {version}"
                              + (", encrypted" if crypt else ""))  # fmt: skip
            if features & _DATA_FILE:
                raise Refused(f"{path} keeps its data in another file, which is refused: the name in its header could "
                              "lead to any file of this machine", hint="convert it with 'qemu-img convert' "
                              "where it is trusted")  # fmt: skip
            stream.seek(name_at if name_length else 0)
            backing = stream.read(name_length)
    except OSError as error:
        raise BuildError(f"cannot open the disk layer {path}: {error.strerror}") from error
    if len(backing) != name_length:
        raise Refused(f"{path} is only the beginning of a qcow2 image")
    return Header(size, backing.decode("utf-8", "surrogateescape"))


def chain_of(path: Path) -> list[Path]:
    """Return a qcow2 file and everything it stands on, the oldest first. Raises Refused where that has no end."""
    found = [path]
    while (backing := read_header(found[-1]).backing) != "":
        found.append(found[-1].parent / backing)
        if len(found) > _DEEPEST:
            raise Refused(f"the layers below {path} never end; one of them stands on itself")
    return found[::-1]


def layer_files(below: Sequence[Path]) -> list[Path]:
    """The files that a disk consists of, the oldest first, given the folders of all its layers.

    Each stands on the one before, but for a layer that took in those below it (``flatten``) and stands on an older
    one. Raises Refused where one stands on anything else.
    """
    files = [folder / LAYER_FILE for folder in below]
    found = [files.pop()]
    while True:
        names = [f"../{file.parent.name}/{LAYER_FILE}" for file in files]
        backing = read_header(found[-1]).backing
        if not backing and not names:
            return found[::-1]
        if backing not in names:
            raise Refused(f"{found[-1]} should stand on {names[-1] if names else 'nothing'}, but its header says "
                          f"{backing or 'nothing'}")  # fmt: skip
        del files[names.index(backing) + 1 :]
        found.append(files.pop())


def newest(below: Sequence[Path], name: str) -> Path | None:
    """The file ``name`` in the newest of the layers' folders (given the oldest first) that holds one."""
    return next((folder / name for folder in reversed(below) if (folder / name).is_file()), None)


def make_overlay(below: Path, into: Path, host: Host) -> None:
    """Make the empty qcow2 ``into`` on top of ``below``, whose name it keeps relative to its own folder."""
    if into.exists():
        raise BuildError(f"{into} is there already; a layer is never written twice")
    name = os.path.relpath(below.resolve(), into.parent.resolve())
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", name, into,
              str(read_header(below).virtual_size)], purpose="open a layer of a disk")  # fmt: skip


def restand(path: Path, below: Path) -> None:
    """Let a layer of a disk name the file ``below``, in the folder beside its own, as what it stands on.

    Only the name in its header changes ("docs/interop/qcow2.txt", bytes 8 to 20). Raises Refused where there is no
    room for it.
    """
    name = os.fsencode(f"../{below.parent.name}/{below.name}")
    old = os.fsencode(read_header(path).backing)
    if len(name) != len(old):
        raise Refused(f"{path} cannot be put on {below}: its header has room for a name of {len(old)} bytes")
    with path.open("r+b") as stream:
        stream.seek(8)
        (at,) = struct.unpack(">Q", stream.read(8))
        stream.seek(at)
        stream.write(name)


def daemon_arguments(monitor: int, *, root: bool) -> list[str]:
    """The command that starts the daemon, its control connection on the descriptor ``monitor``."""
    return [
        "unshare", "--mount", "--propagation", "private", *([] if root else ["--user", "--map-root-user"]), "--",
        "sh", "-ec", 'mount -t tmpfs -o mode=0700 tmpfs /sys; : >/sys/disk; exec "$@"', "sh",
        "qemu-storage-daemon", "--chardev", f"socket,id=control,fd={monitor}", "--monitor", "chardev=control",
    ]  # fmt: skip


def node(number: int, *, backing: int | None, writable: bool) -> dict[str, Any]:
    """The arguments of ``blockdev-add`` for one layer, whose file is behind the link /sys/layer<number>.

    The file is never flushed while the layer is at work (what a crash of the machine leaves of it is thrown away), but
    once when it is closed; nor locked: a finished layer may be read by others while this daemon still holds it open.
    """
    return {
        "driver": "qcow2", "node-name": f"layer{number}", "read-only": not writable, "discard": "unmap",
        "backing": None if backing is None else f"layer{backing}",
        "cache": {"no-flush": True},
        "file": {"driver": "file", "filename": f"/sys/layer{number}", "locking": "off", "cache": {"no-flush": True}},
    }  # fmt: skip


class Attached:
    """A chain that is open. ``path`` is the disk as a raw file, ``socket`` the same over NBD (one of them is there)."""

    def __init__(
        self, qmp: Qmp, daemon: Process, files: Sequence[Path], *, writable: bool, nbd: bool
    ) -> None:  # fmt: skip
        self._qmp, self._daemon = qmp, daemon
        self._writable = writable
        self._sys = Path(f"/proc/{daemon.pid}/root/sys")
        self.path, self.socket = self._sys / "disk", self._sys / "nbd"
        for number, file in enumerate(files):
            self._open(number, file, number - 1 if number else None, writable and number == len(files) - 1)
        self._top = len(files) - 1
        self._file = os.open(files[-1], os.O_RDONLY)
        export: dict[str, Any] = {"id": _EXPORT, "node-name": f"layer{self._top}", "writable": writable}
        if nbd:
            qmp.execute("nbd-server-start", addr={"type": "unix", "data": {"path": "/sys/nbd"}})
            qmp.execute("block-export-add", type="nbd", name="disk", **export)
        else:
            try:
                export["allow-other"] = "off"
                qmp.execute("block-export-add", type="fuse", mountpoint="/sys/disk", **export)
            except ToolFailed as error:
                raise BuildError(
                    f"cannot show a disk as a file through FUSE: {error.message}",
                    hint="is /dev/fuse there (modprobe fuse), and may you open it?",
                ) from error

    def _open(self, number: int, file: Path, backing: int | None, writable: bool) -> None:
        self._link(number, file)
        try:
            self._qmp.execute("blockdev-add", **node(number, backing=backing, writable=writable))
        except ToolFailed as error:
            raise BuildError(
                f"cannot open the disk layer {file}: {error.message}",
                hint="it may be damaged: see 'qemu-img check', and 'imagesmith cache verify'",
            ) from error

    def _link(self, number: int, file: Path) -> None:
        """Tell the daemon what a layer's file is called: it opens files by name again when they become read-only."""
        link = self._sys / f"layer{number}"
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())

    def lost(self) -> str:
        """That the daemon has ended, in words; nothing as long as it runs. A guest would wait for its disk for ever."""
        status = self._daemon.poll()
        if status is None:
            return ""
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        return f"the storage daemon that holds the guest's disk {how}"

    def flush(self) -> None:
        """Bring all that was written so far to the disk: the layer's file is complete after this.

        The caller has flushed (or unmounted) the guest's file systems before.
        """
        # There is no command to flush; opening a node anew with the options that it has begins with a flush.
        options = node(self._top, backing=self._top - 1 if self._top else None, writable=self._writable)
        self._qmp.execute("blockdev-reopen", within=_FLUSH_SECONDS, options=[options])
        os.fsync(self._file)

    def advance(self, into: Path, *, below: Path | None = None) -> None:
        """Close the layer at work, and open ``into``, a qcow2 made on top of it, live.

        ``below`` is the name of the layer at work, where it was renamed since it was opened. What is mounted may stay
        so where its file systems are flushed and nothing writes. Raises BuildError.
        """
        if below is not None:
            self._link(self._top, below)
        self._open(self._top + 1, into, None, True)
        self._qmp.execute("blockdev-snapshot", within=_FLUSH_SECONDS,
                          node=f"layer{self._top}", overlay=f"layer{self._top + 1}")  # fmt: skip
        os.fsync(self._file)
        os.close(self._file)
        self._top, self._file = self._top + 1, os.open(into, os.O_RDONLY)

    def close(self) -> None:
        """Bring the file at work to the disk, whatever it is called by now."""
        if self._writable:
            os.fsync(self._file)
        os.close(self._file)


@contextmanager
def attached(files: Sequence[Path], host: Host, *, writable: bool, nbd: bool = False) -> Iterator[Attached]:
    """Open a chain of qcow2 files, the oldest first, as one disk; only the newest is written to, if any.

    Everything is flushed and gone when the block ends. Works for users who are not root where the kernel lets them have
    user namespaces and, without ``nbd``, FUSE. Raises BuildError, Refused, MissingTool.
    """
    for file in files:
        read_header(file)
    host.require("qemu-storage-daemon", "open a disk")
    ours, theirs = socket_pair()
    with (
        ExitStack() as stack, tempfile.TemporaryFile() as said, ours, theirs,
        host.start(daemon_arguments(theirs.fileno(), root=os.geteuid() == 0), purpose="open a disk",
                   pass_fds=[theirs.fileno()], stderr=said) as daemon,
    ):  # fmt: skip
        theirs.close()
        try:
            qmp = Qmp(ours, name="the storage daemon", alive=lambda: daemon.poll() is None)
        except ToolFailed as error:
            said.seek(0)
            tail = said.read().decode("utf-8", "replace").strip()
            raise BuildError(f"the storage daemon does not start: {tail or error.message}", hint=(
                "it needs namespaces of its own (see unshare(1)): is this a container without that right, or does "
                "the kernel refuse user namespaces to users?")) from error  # fmt: skip
        with qmp:
            disk = Attached(qmp, daemon, files, writable=writable, nbd=nbd)
            stack.callback(disk.close)
            try:
                yield disk
            except ImagesmithError as error:  # to whom it was a file that was gone, or an input/output error
                lost = disk.lost()
                if lost and lost not in error.message:
                    error.hint = "; ".join(part for part in (error.hint, lost) if part)
                raise
            qmp.execute("block-export-del", within=_FLUSH_SECONDS, id=_EXPORT, mode="hard")
            qmp.execute("quit", within=_FLUSH_SECONDS)
        daemon.wait()


@contextmanager
def exported(path: Path, host: Host, *, writable: bool) -> Iterator[Path]:
    """Show one qcow2 file, with all that it stands on, as a raw file for as long as the block lasts.

    Only ``path`` itself is written to, if ``writable``. Root is not needed where the kernel lets users have FUSE and
    user namespaces. Raises as ``attached``.
    """
    with attached(chain_of(path), host, writable=writable) as disk:
        yield disk.path

