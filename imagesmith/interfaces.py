"""What a kind is handed when it does its work: capabilities, never a bag of state.

A step gets a :class:`Root`, a check a :class:`Guest`, an output a :class:`Disk` or a :class:`Files`, a base a
:class:`Workshop`. The drivers, ``machine``, ``disk`` and ``tree`` implement these; kinds know nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from imagesmith.host import Host

Log = Callable[[str], None]
"""Takes one line of progress or of a program's output, without its newline."""


@dataclass(frozen=True)
class Result:
    """What a program inside the guest left: exit status and stdout + stderr, in the order they were written."""

    status: int
    output: str


class Root(Protocol):
    """A guest's root file system, at rest or running: files, and programs run inside."""

    online: bool
    """Whether the guest is running (services can be started, it can reboot)."""
    epoch: int
    """SOURCE_DATE_EPOCH: the time that files put into the guest get."""

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",
        check: bool = True,
    ) -> Result:
        """Run a program as the guest's root, from ``/``; its output goes to the node's log, line by line.

        ``env`` is added to a small fixed environment (PATH, HOME=/root, LANG=C.UTF-8, DEBIAN_FRONTEND=noninteractive,
        SOURCE_DATE_EPOCH) and never passes through a command line. Raises StepFailed where ``check`` and the status is
        not 0, TimedOut when the step's deadline passes.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes (symbolic links are followed inside the guest). Raises FileNotFoundError."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the absolute ``path`` is there (links followed inside the guest)."""
        ...

    def unpack(self, archive: BinaryIO) -> None:
        """Unpack an uncompressed tar at ``/``: numeric owners, modes, links and times as in the archive.

        Directories on the way that are missing are made (0755, root); those that are there, or are links to
        directories, stay as they are. Existing files are replaced.
        """
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and trees; shell wildcards are expanded inside the guest; what is not there is no error."""
        ...


class Guest(Protocol):
    """A booted throw-away copy of an image."""

    firmware: str

    def run(self, script: str, *, timeout: float) -> Result:
        """Run a shell script as root in the guest. Raises TimedOut, GuestFailed."""
        ...

    def wait_booted(self, timeout: float) -> Result:
        """Wait until the guest's init says that start-up is complete; return its word on it.

        ``status`` 0: everything started. Raises TimedOut (with the console's tail), GuestFailed.
        """
        ...

    def forward(self, port: int) -> tuple[str, int]:
        """Return a host address and port that leads to the guest's TCP ``port``."""
        ...


@dataclass(frozen=True)
class Disk:
    """A qcow2 file, read-only, perhaps with a backing chain beside it in the store."""

    path: Path
    virtual_size: int
    """Bytes."""
    firmware: tuple[str, ...] = ("bios", "uefi")
    """What it is known to boot with."""


class Files(Protocol):
    """A finished root file system, read-only."""

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        """Write it as an uncompressed tar: sorted by name, numeric owners, times as they stand, no atime or ctime.

        Names have no leading ``./`` or ``/``. ``exclude`` are absolute paths whose contents (not themselves) stay out.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises FileNotFoundError."""
        ...


@dataclass(frozen=True)
class Maker:
    """Who makes an artifact, from what, and when: all that an output may know besides the image itself."""

    name: str
    """The recipe's name: every file that an output writes begins with it."""
    version: str
    description: str
    arch: str
    """As in the recipe: x86_64 or aarch64."""
    epoch: int
    """SOURCE_DATE_EPOCH, seconds."""
    seed: str
    """A hex digest, for identifiers that must be unique and yet the same every time."""
    cpus: int
    memory: int
    """Bytes."""
    firmware: tuple[str, ...]


class Workshop(Protocol):
    """What a base works with."""

    host: Host
    log: Log
    arch: str
    epoch: int
    seed: str

    def tree(self, directory: Path) -> AbstractContextManager[Root]:
        """Open a directory as a root file system, in a namespace where the caller is root."""
        ...

    def inside(self, argv: Sequence[str], *, purpose: str, env: Mapping[str, str] | None = None) -> None:
        """Run a host program in the same kind of namespace (uid 0, subordinate ids, private mounts)."""
        ...

    def fetch(self, url: str, *, checksum: str, signature: str = "", keyring: Path | None = None) -> Path:
        """Return the local, verified copy of ``url``, downloading what is missing (resumes, retries).

        ``checksum`` is ``sha256:…``, ``sha512:…``, a URL or path of a SUMS file, or ``none``.
        """
        ...

    def import_disk(self, source: Path, into: Path, *, format: str = "") -> None:
        """Make ``into`` (a qcow2 without a backing file) of a foreign image, after looking at its header.

        Grows it to the recipe's ``machine.disk`` where that is larger. Raises Refused for a hostile image.
        """
        ...


class Mounted(Files, Protocol):
    """A finished root file system that host programs can see, in a namespace of its own."""

    mountpoint: Path
    """Where it is, for programs started with ``inside``."""

    def inside(
        self, argv: Sequence[str | Path], *, purpose: str, env: Mapping[str, str] | None = None, log: Log | None = None
    ) -> None:
        """Run a host program (not the guest's) where ``mountpoint`` can be seen and its owners are as in the guest."""
        ...


# -- how steps reach the guest: what a driver gives the engine ------------------------------------------------------


class Session(Protocol):
    """A run of consecutive steps on one chain of layers."""

    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None
    ) -> AbstractContextManager[Root]:
        """Open the next layer for one step. ``into`` is a new, empty folder beside the folders of the layers below.

        ``below`` is the folder of the layer just below, where the ``into`` of the call before has been renamed since.

        When the block ends well, ``into`` holds the finished layer: ``upper/`` (a tree: an overlayfs upper directory)
        or ``disk.qcow2`` (a disk: its backing file is ``../<name of below>/disk.qcow2``), flushed. When it
        ends with an exception, the session goes on from the last finished layer, and ``into`` may be removed. No
        program of the step is left running. ``timeout`` (seconds) bounds the whole step: TimedOut.
        """
        ...


class Driver(Protocol):
    """Opens sessions."""

    @property
    def name(self) -> str:
        """``native``, ``guestfs`` or ``ssh``."""
        ...

    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> AbstractContextManager[Session]:
        """Open a session on the folders of the layers below, the oldest first (at least one)."""
        ...
