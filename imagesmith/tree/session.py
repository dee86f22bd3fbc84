"""A root file system that is open: the session's side of the agent."""

from __future__ import annotations

import os
import select
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO

from imagesmith.errors import BuildError, Interrupted, StepFailed, TimedOut, ToolFailed
from imagesmith.host import PIPE, Host, Process
from imagesmith.interfaces import Log, Result, Terminal
from imagesmith.tree import idmap, wire
from imagesmith.tree.mounts import DEEPEST, BlockMount, Mount, OverlayMount

_START = "import sys; sys.path.insert(0, sys.argv[1]); from imagesmith.tree.agent import main; main()"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
    "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
}  # fmt: skip
_SHELLS = (("/bin/bash", "-l"), ("/bin/sh", "-i"))
"""What is run where the user is let in: the first that is there."""
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_TAR = (
    "--create", "--file=-", "--format=pax", "--sort=name", "--numeric-owner",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    "--xattrs", "--xattrs-include=security.capability", "--xattrs-include=user.*", "--xattrs-exclude=user.overlay.*",
    "--null", "--verbatim-files-from", "--anchored", "--wildcards",
)  # fmt: skip


class TreeRoot:
    """An open root file system: ``interfaces.Root`` for steps, and ``interfaces.Mounted`` for what reads it whole."""

    online = False

    def __init__(
        self, host: Host, process: Process, stderr: IO[bytes], *, epoch: int, log: Log
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._host, self._process, self._stderr = host, process, stderr
        self._to, self._from = process.stdin.fileno(), process.stdout.fileno()
        self.epoch, self.log = epoch, log
        self.deadline: float | None = None
        """On the clock of ``time.monotonic``."""
        self.mountpoint = Path("/")
        self._disk = False
        self._tail = ""

    def limit(self, timeout: float | None, log: Log) -> None:
        """Start a step: its seconds from now on, and where its lines go."""
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.log = log

    # -- interfaces.Root -----------------------------------------------------------------------------------------

    def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, input: bytes = b"", check: bool = True
    ) -> Result:
        """See ``interfaces.Root.run``."""
        environment = {**_ENVIRONMENT, "SOURCE_DATE_EPOCH": str(self.epoch), **self._proxies(), **(env or {})}
        lines = _Lines(self.log)
        status = self._ask({"op": "run", "argv": list(argv), "env": environment}, input, lines.feed)["status"]
        lines.end()
        if check and status != 0:
            raise StepFailed(
                f"{_shown(argv)} {_how(status)}" + (f":\n{lines.tail}" if lines.tail else ""),
                status=status, tail=lines.tail,
            )  # fmt: skip
        return Result(status, lines.text)

    def _proxies(self) -> dict[str, str]:
        return {name: value for name, value in self._host.environment().items() if name in _PROXIES}

    def exists(self, path: str) -> bool:
        """See ``interfaces.Root.exists``."""
        return bool(self._ask({"op": "exists", "path": path})["value"])

    def unpack(self, archive: BinaryIO) -> None:
        """See ``interfaces.Root.unpack``."""
        wire.send(self._to, {"op": "unpack"})
        while data := archive.read(wire.CHUNK):
            wire.send(self._to, {}, data)
        wire.send(self._to, {})
        self._answer(None)

    def remove(self, paths: Sequence[str]) -> None:
        """See ``interfaces.Root.remove``."""
        self._ask({"op": "remove", "paths": list(paths)})

    # -- interfaces.Mounted --------------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """See ``interfaces.Root.read``."""
        parts: list[bytes] = []
        self._ask({"op": "read", "path": path}, b"", parts.append)
        return b"".join(parts)

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        """See ``interfaces.Files.pack``."""
        tar = self._host.require("tar", "pack a root file system")
        patterns = [f"--exclude={_literal(path.strip('/'))}/*" for path in exclude]
        stay = [] if self._disk else ["--one-file-system"]  # a disk's other file systems are parts of it
        argv = [tar, f"--directory={self.mountpoint}", *_TAR, *stay, *patterns, "--files-from=-"]
        answer = self._ask({"op": "pack", "argv": argv, "env": self._host.environment()}, b"", lambda d: _all(out, d))
        if answer["status"] != 0:
            raise ToolFailed(f"tar {_how(answer['status'])} to pack a root file system: {self._errors()}")

    def inside(
        self, argv: Sequence[str | Path], *, purpose: str, env: Mapping[str, str] | None = None, log: Log | None = None
    ) -> None:
        """See ``interfaces.Mounted.inside``. Raises MissingTool, ToolFailed, TimedOut."""
        program = self._host.require(str(argv[0]), purpose)
        lines = _Lines(log or self.log)
        request = {"op": "inside", "argv": [program, *map(str, argv[1:])], "env": self._host.environment(env),
                   "cwd": str(Path.cwd())}  # fmt: skip
        status = self._ask(request, b"", lines.feed)["status"]
        lines.end()
        if status != 0:
            raise ToolFailed(
                f"{Path(argv[0]).name} {_how(status)} to {purpose}" + (f":\n{lines.tail}" if lines.tail else ""),
                status=status, tail=lines.tail, hint="the command was: " + shlex.join(map(str, argv)),
            )  # fmt: skip

    # -- interfaces.Enterable ------------------------------------------------------------------------------------

    def shell(self, terminal: Terminal) -> None:
        """See ``interfaces.Enterable``: a shell in the namespaces, beside a program that did not end in its time."""
        self.deadline = None
        rows, columns = terminal.size
        environment = {**_ENVIRONMENT, **self._proxies(), "TERM": terminal.kind, "SOURCE_DATE_EPOCH": str(self.epoch)}
        terminal.say("a shell in the root file system; no service runs, and the network is this host's")
        wire.send(self._to, {"op": "shell", "shells": _SHELLS, "env": environment, "rows": rows, "columns": columns})

        def receive() -> bytes | None:
            try:
                header, data = wire.receive(self._from)
            except EOFError:
                raise self._gone() from None
            if "ended" in header:
                return None
            if "error" in header:
                raise _error(header)
            return data if header.get("shown") else b""  # else it is of the program that was given up

        def resize(rows: int, columns: int) -> None:
            wire.send(self._to, {"op": "resize", "rows": rows, "columns": columns})

        terminal.relay(self._from, receive, lambda data: wire.send(self._to, {"op": "typed"}, data), resize)

    # -- between steps -------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End every program that still runs in the root, and take out all that was lent to them."""
        self._ask({"op": "settle"})

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold a block image's file system still and flushed, so that a snapshot of the disk is whole."""
        self._ask({"op": "freeze", "thaw": False})
        try:
            yield
        finally:
            self._ask({"op": "freeze", "thaw": True})

    def finish(self) -> None:
        """Settle, unmount, normalise times, and flush."""
        self._ask({"op": "finish"})

    # -- the conversation ----------------------------------------------------------------------------------------

    def begin(self, mount: Mount | None, user: bool) -> None:
        """Lead the agent into its namespaces. Raises BuildError where the host forbids it."""
        resolver = Path("/etc/resolv.conf")
        self._disk = isinstance(mount, BlockMount)
        wire.send(self._to, {
            "user": user, "kind": type(mount).__name__, "mount": None if mount is None else asdict(mount),
            "epoch": self.epoch, "since": time.time() - 1,
            "resolver": resolver.read_text(errors="replace") if resolver.is_file() else "",
        })  # fmt: skip
        self._answer(None)
        if user:
            idmap.write_maps(self._host, self._process.pid)
        wire.send(self._to, {})
        place = self._answer(None)["place"]
        self.mountpoint = Path(place or "/")

    def _ask(
        self, request: Mapping[str, Any], payload: bytes = b"", take: Callable[[bytes], object] | None = None
    ) -> dict[str, Any]:
        try:
            wire.send(self._to, request, payload)
        except BrokenPipeError:
            raise self._gone() from None
        return self._answer(take)

    def _answer(self, take: Callable[[bytes], object] | None) -> dict[str, Any]:
        while True:
            wait = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            if not select.select([self._from], [], [], wait)[0]:
                raise TimedOut("the step did not end within its time; its last lines:\n" + (self._tail or "(none)"),
                               tail=self._tail, hint="raise its 'timeout:'")  # fmt: skip
            try:
                header, payload = wire.receive(self._from)
            except EOFError:
                raise self._gone() from None
            if header.get("more"):
                self._tail = (self._tail + payload[-4096:].decode("utf-8", "replace"))[-4096:]
                if take is not None:
                    take(payload)
            elif "error" in header:
                raise _error(header)
            else:
                return header

    def _gone(self) -> BuildError | Interrupted:
        if self._host.cancelled:
            return Interrupted()
        return BuildError("the process that held the root file system ended unexpectedly" + self._errors())

    def _errors(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read().decode("utf-8", "replace").strip()
        return f":\n{text[-2000:]}" if text else ""


@contextmanager
def open_root(
    host: Host, mount: Mount | None, *, epoch: int, log: Log, timeout: float | None = None
) -> Iterator[TreeRoot]:
    """Open a root file system; nothing of it is left running or mounted when the block ends, however it ends.

    Where it ends well, what was made in an overlay or directory is normalised (what is newer than now gets the time
    ``epoch``) and flushed. Without a ``mount`` there are only the namespaces: ``inside`` alone works. ``timeout``
    is in seconds, for all that is done. Raises BuildError where the host does not allow it.
    """
    user = not isinstance(mount, BlockMount)
    if not user and os.geteuid() != 0:
        raise BuildError("only root can mount a disk's file system", hint="use the guestfs driver (via: guestfs)")
    if isinstance(mount, OverlayMount) and len(mount.layers) > DEEPEST:
        raise BuildError(f"the root file system has {len(mount.layers)} layers; the kernel's overlayfs takes at most "
                         f"{DEEPEST}", hint="put several steps into one step, such as a script")  # fmt: skip
    argv = [sys.executable, "-I", "-S", "-B", "-c", _START, str(_PACKAGE_ROOT)]
    with tempfile.TemporaryFile() as stderr, host.start(
        argv, purpose="open a root file system", stdin=PIPE, stdout=PIPE, stderr=stderr
    ) as process:  # fmt: skip
        root = TreeRoot(host, process, stderr, epoch=epoch, log=log)
        root.limit(timeout, log)
        root.begin(mount, user)
        yield root
        root.limit(None, log)
        root.finish()


def _error(header: Mapping[str, Any]) -> Exception:
    number, path, text, where = header["errno"], header["path"], header["error"], header["where"]
    if where == "namespaces" or (where == "mount" and number in {1, 13}):
        return idmap.forbidden(f"{text} ({where}{f' of {path}' if path else ''})")
    if number:
        known = OSError(number, text, path)
        if isinstance(known, FileNotFoundError) and not where:
            return known
    return BuildError(f"{path or 'root file system'}: {text}" + (f" ({where})" if where else ""))


def _shown(argv: Sequence[str]) -> str:
    """A command as it is told: where it is long, without its options."""
    text = shlex.join(argv)
    if len(text) > 80:
        before = ["", *argv]
        text = shlex.join([word for word, last in zip(argv, before, strict=False) if word[:1] != "-" and last != "-o"])
    return text if len(text) <= 120 else text[:117] + "..."


def _how(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"failed (exit status {status})"


def _literal(path: str) -> str:
    return "".join("\\" + c if c in "*?[]\\" else c for c in path)


def _all(out: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[out.write(view) :]


class _Lines:
    """Cuts output into lines for the log, and keeps it."""

    def __init__(self, log: Log) -> None:
        self._log, self._rest, self._parts = log, b"", list[bytes]()

    def feed(self, data: bytes) -> None:
        self._parts.append(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._say(line)

    def end(self) -> None:
        if self._rest:
            self._say(self._rest)
            self._rest = b""

    def _say(self, line: bytes) -> None:
        self._log(line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2])

    @property
    def text(self) -> str:
        return b"".join(self._parts).decode("utf-8", "replace")

    @property
    def tail(self) -> str:
        return "\n".join(self.text.splitlines()[-20:])
