"""What a kind is handed when it does its work: capabilities, never a bag of state.

A step gets a :class:`Root`, a check a :class:`Guest`, an output a :class:`Disk` or a :class:`Files`, a base a
:class:`Workshop`. The drivers, ``machine``, ``disk`` and ``tree`` implement these; kinds know nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

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


@dataclass(frozen=True)
class Connection:
    """How a program of this host uses the connection to a running guest: no key, password or port is needed for it."""

    host: Host
    """Starts the program."""
    log: Log
    folder: Path
    """Private, and gone with the session."""
    user: str
    """Who is logged in: root, or somebody who becomes root by sudo."""
    name: str
    """The guest's name for OpenSSH's programs, of use only together with ``options``."""
    options: Sequence[str]
    """What ssh, sftp and scp must be given to use the connection."""
    sudo_password: str
    """What sudo asks ``user`` for; empty where it does not ask."""
    left: Callable[[], float | None]
    """Seconds until the step's deadline."""
    check: Callable[[], None]
    """Raises GuestFailed where the guest has ended, panicked or restarted, or the connection has."""


class Running(Root, Protocol):
    """The root of a running guest (``online`` is true): what steps get that say that they need one."""

    def restart(self, within: float) -> None:
        """Restart the guest; return when it is back, with its start-up complete, at most ``within`` seconds later.

        Raises GuestFailed, TimedOut (what it did instead), BuildError.
        """
        ...

    def expect_disconnect(self) -> None:
        """From now on the connection may end while a program runs: that is the program's end, and no failure."""
        ...

    def connection(self) -> Connection:
        """The connection to the guest. Raises BuildError where it is none of SSH."""
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
class Earlier:
    """An artifact that was written in the same way before (kinds.Output.sameness), from another disk or this one."""

    files: Sequence[Path]
    """Its files, the main one first."""
    disk: Path | None = None
    """The qcow2 file that it was made of, where the store still has it."""


class Terminal(Protocol):
    """The user's terminal, for a shell in a guest."""

    kind: str
    """What $TERM says it is."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def say(self, line: str) -> None:
        """Tell the user something that is no output of the guest's."""
        ...

    def show(self, text: str) -> None:
        """Show output, as it is."""
        ...

    def relay(
        self, ready: int, receive: Callable[[], bytes | None], send: Callable[[bytes], object],
        resize: Callable[[int, int], object], ended: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """Pass on what is typed and what is to be seen, every byte, until ``receive`` gives None or ``ended`` is true.

        ``receive`` is called when the descriptor ``ready`` has something; ``resize`` with rows and columns when the
        window gets another size.
        """
        ...

    def lines(self, prompt: Callable[[], str], run: Callable[[str], object]) -> None:
        """Hand each line that is typed to ``run``, until the user is done (``exit``, or the end of the input)."""
        ...


class Enterable(Protocol):
    """A guest that the user can be let into: what the engine opens where a build fails, and ``imagesmith shell``."""

    def shell(self, terminal: Terminal) -> None:
        """Let the user in, as root; return when the user is done. No deadline counts meanwhile.

        Raises BuildError where there is no way in.
        """
        ...


@dataclass(frozen=True)
class Disk:
    """A qcow2 file, read-only, perhaps with a backing chain beside it in the store."""

    path: Path
    virtual_size: int
    """Bytes."""
    firmware: tuple[str, ...] = ("bios", "uefi")
    """What it is known to boot with."""
    variables: Mapping[str, Path] = field(default_factory=dict)
    """Firmware (uefi, uefi-secure) -> the UEFI variable store that its system has written to, where one was kept: the
    raw contents of the flash memory."""
    earlier: Earlier | None = None
    """Something of which an output may use parts again, if that makes no difference to a byte of its files."""
    drivers: Callable[[], frozenset[str] | None] = field(default=lambda: None, compare=False)
    """Looks for the kernel modules (names with underscores, those built in, too) of its system's newest kernel; None
    where they cannot be seen without an appliance."""


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


class Layered(Files, Protocol):
    """A finished root file system that can also be seen as it was before the recipe's steps."""

    def base(self) -> AbstractContextManager[Files]:
        """Open what the recipe's base alone gave, read-only. Where there were no steps, that is the same."""
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


@dataclass(frozen=True)
class Artifact:
    """A file of an output that is in the output folder."""

    path: Path
    sha256: str


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

    def install(self, installation: Installation, into: Path) -> None:
        """Run an unattended installation onto the disk ``into`` (a qcow2), and see it to its end.

        ``into`` is made, empty, where the installation begins with an ISO; else it is there and is booted as it is.
        What the firmware remembers (UEFI variables) is left beside it. Raises BuildError, GuestFailed, TimedOut.
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


# -- unattended installers: what a base and its answer file tell the machine that runs them -------------------------

Way = Literal["initrd", "volume", "floppy", "http", "fw_cfg", "medium"]
"""How answer files reach an installer: appended to its initial RAM disk as a cpio archive; on a second CD, or a floppy,
whose label it knows; from a web server that the guest alone is told of; through QEMU's firmware configuration device;
or put into a copy of the ISO itself."""


@dataclass(frozen=True)
class Medium:
    """What was found by looking into an installer's ISO. Paths are inside the ISO, absolute, as Rock Ridge has them."""

    path: Path
    label: str = ""
    """The volume's name (ECMA-119, 8.4.8), by which installers find their own medium."""
    family: str = ""
    """Which installer: debian-installer, anaconda, subiquity, yast, agama, alpine, arch, coreos, freebsd, windows; or
    nothing where that is not known."""
    name: str = ""
    """What the medium calls itself, for people: ``Debian GNU/Linux 13.1.0 "Trixie"``."""
    arch: str = ""
    kernel: str = ""
    """Empty where it cannot be booted directly."""
    initrds: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """What its own boot menu gives the kernel to find its medium; nothing that is only for a person at a screen."""


@dataclass(frozen=True)
class Delivery:
    """One way for answer files to reach an installer, and what the installer must be told for it."""

    way: Way
    files: Mapping[str, bytes]
    """Relative names, as that way wants them, and contents. For ``fw_cfg`` the names are the items' names."""
    arguments: tuple[str, ...] = ()
    """For the kernel's command line. ``{url}`` stands for where the files are served (it ends in ``/``)."""
    label: str = ""
    """The name of the volume or floppy."""
    fetched: str = ""
    """Over ``http``: the file that the installer must have asked for before long."""


@dataclass(frozen=True)
class Signs:
    """How an installer's progress and its failures look, on its console and in its log (regular expressions)."""

    phases: tuple[tuple[str, str], ...] = ()
    """A line's pattern, and what is being done from there on; groups may be used: ``\\1``."""
    fatal: tuple[tuple[str, str], ...] = ()
    """A line's pattern, and what it means: the installation cannot succeed any more."""
    read: str = ""
    """A line that shows that the answer file was read."""
    done: str = ""
    """A line without which the end is no good end."""


@dataclass(frozen=True)
class Installation:
    """All that is needed to run an unattended installer, or to let a cloud image set itself up."""

    iso: Path | None
    """None: the disk itself is booted."""
    deliver: Callable[[Medium], Sequence[Delivery]]
    """The ways that the answer files can go, the best first; of no medium (``Medium(Path())``) for a disk."""
    way: Way | None = None
    """The recipe's choice among them."""
    signs: Signs = Signs()
    arguments: tuple[str, ...] = ()
    """For the kernel's command line, after the medium's own; ``-name`` takes an argument of the medium's away."""
    log_arguments: tuple[str, ...] = ()
    """Tell the installer to send its log: ``{log_host}`` and ``{log_port}`` stand for a syslog server (UDP)."""
    log_ports: tuple[str, ...] = ()
    """Names of virtio-serial ports that the installer writes its log to where they are there."""
    boot_command: tuple[str, ...] = ()
    """Keys to type, in Packer's notation, where the ISO is booted as a CD."""
    remaster: bool = False
    """Put the answer files and arguments into a copy of the ISO, and boot that, though it could be booted directly."""
    media: tuple[Path, ...] = ()
    """More ISOs for the guest: drivers."""
    within: float = 7200.0
    """Seconds for all of it."""
    read_within: float = 600.0
    """Seconds until the answer file must have been read, where that can be seen."""
    stall: float = 900.0
    """Seconds without console, log, disk or network activity that mean that it hangs."""
    ends: Literal["poweroff", "reboot"] = "poweroff"
    """How it ends; where the guest does the other thing, that is taken as well."""


# -- how steps reach the guest: what a driver gives the engine ------------------------------------------------------


class Session(Protocol):
    """A run of consecutive steps on one chain of layers."""

    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None, resumable: bool = False
    ) -> AbstractContextManager[Root]:
        """Open the next layer for one step. ``into`` is a new, empty folder beside the folders of the layers below.

        ``below`` is the folder of the layer just below, where the ``into`` of the call before has been renamed since.
        ``resumable``: keep the running guest's state beside the layer, where there is one (drivers/ssh_resume.py).

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
