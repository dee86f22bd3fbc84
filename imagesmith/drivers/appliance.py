"""The libguestfs appliance as a program of ours: started, asked, given a deadline, and ended.

libguestfs blocks in C while its appliance works, and deaf to everything. So the handle lives in a worker process that
speaks over two pipes (one JSON line each way): Ctrl-C, deadlines and ``kill -9`` reach it as they reach any program.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import inspect
import json
import os
import select
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from imagesmith.errors import BuildError, GuestFailed, Interrupted, MissingTool, TimedOut
from imagesmith.host import PIPE, Host, Process

LAUNCH_SECONDS = 300.0
"""A launch takes 10 to 50 s under TCG; the first one on a machine also builds the appliance."""
CALL_SECONDS = 1800.0
"""The most that any one request may take where the step has no deadline of its own."""
_PREFIX = "imagesmith-appliance-"


class ApplianceError(BuildError):
    """The appliance refused a request."""


class Appliance:
    """A running worker."""

    def __init__(self, host: Host, process: Process, said: IO[bytes]) -> None:
        self._host, self._process, self._said = host, process, said
        self._rest = b""
        self._owed = 0
        """How many answers have not come yet: more than one, where somebody did not wait for the one before."""
        self.deadline: float | None = None
        """When the step at work must be done (of the monotonic clock)."""
        known = host.environment()
        proxies: tuple[str, ...] = ("http_proxy", "https_proxy", "no_proxy")
        self.proxies = {name: known[name] for name in proxies if name in known}

    def call(self, method: str, *arguments: object, within: float = CALL_SECONDS, **named: object) -> Any:
        """Call a method of libguestfs' handle. Raises ApplianceError, GuestFailed (it is gone), TimedOut."""
        until = min(time.monotonic() + within, self.deadline or float("inf"))
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([method, arguments, named]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone(method) from None
        self._owed += 1
        while self._owed:
            line = self._line(method, until)
            self._owed -= 1
        answer = json.loads(line)
        if "error" in answer:
            raise ApplianceError(answer["error"])
        return answer.get("value")

    def shell(self, script: str) -> str:
        """Run a script in the appliance itself (the guest is below /sysroot), and return what it prints."""
        return str(self.call("debug", "sh", [script]))

    def download(self, path: str) -> bytes:
        """Return the bytes of a file in the guest; links are followed inside it."""
        with tempfile.TemporaryFile() as file:
            self.call("download", path, name_of(file))
            file.seek(0)
            return file.read()

    def upload(self, content: bytes, path: str) -> None:
        """Write a file in the guest; links are followed inside it."""
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            self.call("upload", name_of(file), path)

    def said(self) -> str:
        """What the worker, the appliance's QEMU and its tools wrote to stderr."""
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace").strip()

    def _line(self, method: str, until: float) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0:
                raise TimedOut(
                    f"the libguestfs appliance did not finish '{method}' in time",
                    tail=self.said()[-2000:],
                    hint="see 'libguestfs-test-tool'; if it is only slow, raise the step's timeout",
                )
            if select.select([stream], [], [], min(left, 1.0))[0]:
                data = os.read(stream.fileno(), 1 << 20)
                if not data:
                    raise self._gone(method)
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _gone(self, method: str) -> BaseException:
        if self._host.cancelled:
            return Interrupted()
        tail = self.said()[-2000:]
        return GuestFailed(f"the libguestfs appliance ended at '{method}'" + (f":\n{tail}" if tail else ""), tail=tail,
                           hint="see 'libguestfs-test-tool'")  # fmt: skip


def name_of(file: IO[bytes] | BinaryIO) -> str:
    """A name under which the worker can open a file that has none, wherever it runs."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def python_with_guestfs(host: Host) -> str:
    """The Python that has libguestfs' binding: ours, or the distribution's. Raises MissingTool."""
    for python in dict.fromkeys([sys.executable, host.find("python3") or "", "/usr/bin/python3"]):
        code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('guestfs') is None)"
        if python and host.run([python, "-c", code], purpose="look for libguestfs", ok=(0, 1)).status == 0:
            return python
    raise MissingTool(
        "the Python binding of libguestfs is not installed; it is needed to reach into a disk of foreign origin",
        hint="install it: Debian/Ubuntu python3-guestfs (and linux-image-amd64, where there is no kernel in /boot), "
        "Fedora python3-libguestfs, Arch libguestfs",
    )


@contextmanager
def started(
    host: Host, serve: Callable[[], None], *, socket: Path, writable: bool, network: bool, accelerator: str
) -> Iterator[Appliance]:
    """Launch an appliance on the disk behind an NBD socket (export ``disk``); it is gone when the block ends.

    ``serve`` is the worker's program: a function that needs nothing but the standard library, as another Python than
    ours may run it. Raises MissingTool, BuildError, TimedOut.
    """
    python = python_with_guestfs(host)
    with ExitStack() as stack:
        before, env = _temporary(stack)
        said = stack.enter_context(tempfile.TemporaryFile())
        program = inspect.getsource(serve) + f"\n{serve.__name__}()\n"
        process = stack.enter_context(
            host.start([*before, python, "-I", "-c", program], purpose="reach into a disk with libguestfs", env=env,
                       stdin=PIPE, stdout=PIPE, stderr=said)
        )  # fmt: skip
        appliance = Appliance(host, process, said)
        appliance.call("set_backend", "direct")
        if accelerator == "tcg":
            appliance.call("set_backend_setting", "force_tcg", "1")
        appliance.call("set_network", network)
        appliance.call("add_drive_opts", "disk", format="raw", protocol="nbd", server=[f"unix:{socket}"],
                       readonly=not writable, discard="besteffort" if writable else "disable")  # fmt: skip
        try:
            appliance.call("launch", within=LAUNCH_SECONDS)
        except ApplianceError as error:
            raise BuildError(
                f"the libguestfs appliance does not start: {error.message}\n{appliance.said()[-2000:]}".rstrip(),
                hint="see 'libguestfs-test-tool'. It boots a Linux kernel of this host from /boot, which must be there "
                "and readable: install linux-image-amd64 (Debian), or 'sudo chmod 0644 /boot/vmlinuz-*' (Ubuntu)",
            ) from error
        yield appliance
        # Where the block ended well; otherwise the worker and its QEMU are ended as they are.
        appliance.call("shutdown")
        appliance.call("close")


def _temporary(stack: ExitStack) -> tuple[list[str], dict[str, str]]:
    """Where libguestfs may leave sockets and overlays: words to put before the worker's command, and its environment.

    Root gets a /tmp of its own in a private mount namespace, which ends with it. Others get a folder that is removed in
    the end, or, where this process was killed, by the next one: its lock tells.
    """
    if os.geteuid() == 0:
        command = 'mount -t tmpfs -o mode=0700 tmpfs /tmp; exec "$@"'
        before = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", command, "sh"]
        return before, {"TMPDIR": "/tmp", "LIBGUESTFS_TMPDIR": "/tmp", "LIBGUESTFS_CACHEDIR": "/var/tmp"}
    for old in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError), old.joinpath("lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old, ignore_errors=True)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True))
    held = stack.enter_context(Path(folder, "new").open("wb"))
    fcntl.flock(held, fcntl.LOCK_EX)
    Path(folder, "new").rename(Path(folder, "lock"))  # only a lock that is held is ever seen
    return [], {"LIBGUESTFS_TMPDIR": folder, "XDG_RUNTIME_DIR": folder}


def decode(text: str) -> bytes:
    """Bytes that came through the appliance's shell as base64."""
    return base64.b64decode("".join(text.split()))
