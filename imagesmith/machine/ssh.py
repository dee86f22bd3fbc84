"""Programs run in a running guest over SSH.

The OpenSSH client is run as a program: it is on every host already, speaks whatever a guest's sshd speaks, and adds no
library (asyncssh: EPL or GPL; paramiko: LGPL) to what imagesmith imports. One connection is kept as a master
(ssh_config(5), ControlMaster), so that a request costs a new channel and not a new handshake, which takes seconds in
an emulated guest.

What is asked goes through stdin: the command line, on either side, is the same for every request. The guest's shell
reads one line, a script in Base64, and runs it; what follows on stdin is the script's own. When it has ended, its
status comes as the last line of stderr, so that it is told apart from the end of the connection.
"""

from __future__ import annotations

import base64
import os
import queue
import re
import select
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Self

from imagesmith.errors import GuestFailed, TimedOut
from imagesmith.host import PIPE, Host, Process
from imagesmith.machine.qemu import Machine

_READER = (
    'IFS= read -r s || exit 1; s=$(printf %s "$s" | base64 -d); (eval "$s"); '
    'printf "\\nimagesmith-status %s\\n" "$?" >&2'
)
_STATUS = re.compile(rb"\nimagesmith-status (\d+)\n\Z")
_CHUNK = 65536
_LINGER = 2.0
"""Seconds to wait for the rest of the output when a script has ended: what it left running may hold it open."""
_BANNER_SECONDS = 5.0
_REFUSALS = 3
"""How often a key is refused before that is final; the guest's start-up might still be busy with accounts."""
_HOLD_SECONDS = 300.0
_PURPOSE = "run steps in a guest over SSH"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH\n"

# Freezing writes everything that is pending and empties the journal (fsfreeze(8)): the disk is then as if unmounted.
# The shell that froze it also thaws it, even when the connection is gone (read meets the end of stdin). / comes last.
_HOLD = f"""{_PATH}sync
points=$(while read -r device point type rest; do
    case $type in ext[234]|xfs|btrfs) echo "$point" ;; esac
done </proc/mounts | sort -ru)
held=
if command -v fsfreeze >/dev/null; then
    for point in $points; do fsfreeze -f "$point" && held="$point $held"; done
fi
echo "held $held"
read -r word
for point in $held; do fsfreeze -u "$point"; done
echo thawed
"""


def make_key(folder: Path, host: Host) -> Path:
    """Make a throw-away key in ``folder`` (its public half has the suffix ``.pub``). Raises MissingTool, ToolFailed."""
    key = folder / "key"
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "imagesmith", "-f", key], purpose=_PURPOSE)
    return key


def begin(script: str, into: BinaryIO) -> None:
    """Write the beginning of a request to a file; what the script reads from its stdin is to follow."""
    into.write(base64.b64encode(script.encode("utf-8", "surrogateescape")) + b"\n")


class Ssh:
    """A connection to a guest's sshd; a context manager."""

    def __init__(self, host: Host, machine: Machine, key: Path, folder: Path, *, user: str = "root") -> None:
        """``folder`` is private and short-named (it takes a socket); ``key`` the private key's file, mode 0600."""
        self._host, self._machine, self._user = host, machine, user
        self._control = folder / "ctl"
        self._seen = "nothing"
        self._restarts = 0
        self._stack = ExitStack()
        # Nothing of the user's own configuration, agent or keys; the host's key is pinned by the first connection.
        self._options = ["-F", "/dev/null", "-S", str(self._control)]
        for option in (
            f"IdentityFile={key}", "IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes",
            "PreferredAuthentications=publickey", f"UserKnownHostsFile={folder / 'known_hosts'}",
            "GlobalKnownHostsFile=/dev/null", "StrictHostKeyChecking=accept-new", "HostKeyAlias=guest",
            "UpdateHostKeys=no", "ConnectTimeout=120", "ServerAliveInterval=30", "ServerAliveCountMax=20",
            "ClearAllForwardings=yes",
        ):  # fmt: skip
            self._options += ["-o", option]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # -- connecting --------------------------------------------------------------------------------------------

    def connect(self, within: float) -> None:
        """Wait until the guest's sshd lets us in, at most ``within`` seconds.

        Raises TimedOut (with what was seen last), GuestFailed (also for a key that is refused), Interrupted.
        """
        address = self._machine.forward(22)
        attempt: _Attempt | None = None
        refused = 0

        def until() -> bool | None:
            nonlocal attempt, refused
            if attempt is None:
                banner = self._banner(address)
                if banner:
                    attempt = self._attempt(address, banner)
                return None
            if self._control.exists():  # ssh makes its socket when it has been let in
                return True
            words = attempt.ended()
            if words is None:
                return None
            self._seen = f"banner {attempt.banner}, {words}"
            if "Permission denied" in words:
                refused += 1
                self._seen = f"banner {attempt.banner}, key refused: {words}"
                if refused >= _REFUSALS:
                    raise GuestFailed(
                        f"the guest's sshd does not let {self._user} in: {self._seen}",
                        hint="does its sshd_config, or a file in sshd_config.d, say 'PermitRootLogin no', "
                        "'PubkeyAuthentication no', or name other files of keys?",
                    )
            self._stack.close()
            attempt = None
            time.sleep(1)
            return None

        try:
            self._machine.watch(until, within=within, doing="answer over SSH")
        except TimedOut as late:
            raise TimedOut(f"{late.message}; seen last: {self._seen}", tail=late.tail) from None
        self._restarts = self._machine.restarts

    def _attempt(self, address: tuple[str, int], banner: str) -> _Attempt:
        said = self._stack.enter_context(tempfile.TemporaryFile())
        process = self._stack.enter_context(self._host.start(
            ["ssh", *self._options, "-M", "-N", "-o", "LogLevel=INFO", "-o", f"HostName={address[0]}",
             "-p", str(address[1]), f"{self._user}@guest"], purpose=_PURPOSE, stderr=said,
        ))  # fmt: skip
        return _Attempt(banner, process, said)

    def _banner(self, address: tuple[str, int]) -> str:
        """The server's first line (RFC 4253, section 4.2); empty where there is none."""
        try:
            with socket.create_connection(address, timeout=_BANNER_SECONDS) as wire:
                said = wire.recv(255)
        except TimeoutError:
            self._seen = "port open, no banner"
            return ""
        except OSError as error:
            self._seen = f"port closed ({error.strerror})"
            return ""
        first = said.partition(b"\n")[0].decode("ascii", "replace").strip()
        if not first.startswith("SSH-"):
            # QEMU takes a connection before it knows whether somebody listens in the guest.
            self._seen = f"no SSH server, but: {first!r}" if first else "port open, no banner"
            return ""
        if not self._seen.startswith(f"banner {first}"):  # what became of the attempt before this one says more
            self._seen = f"banner {first}"
        return first

    # -- asking ------------------------------------------------------------------------------------------------

    def ask(self, script: str, *, within: float, input: bytes = b"", stdin: BinaryIO | None = None,
            take: Callable[[bytes], object] = lambda data: None) -> tuple[int, str]:  # fmt: skip
        """Run a shell script in the guest; return its status and stderr. ``take`` gets stdout while it comes.

        The script's stdin is ``input``, or the rest of the file ``stdin`` where ``begin`` has made it. Raises TimedOut
        after ``within`` seconds, GuestFailed, Interrupted; what still runs in the guest is then left to itself.
        """
        with ExitStack() as stack:
            if stdin is None:
                # In memory: it may hold secrets.
                stdin = stack.enter_context(os.fdopen(os.memfd_create("request"), "w+b"))
                begin(script, stdin)
                stdin.write(input)
            stdin.flush()
            stdin.seek(0)
            client = stack.enter_context(self._client(stdin))
            news: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            errors = bytearray()
            assert client.stdout is not None
            assert client.stderr is not None
            pumps = [_pump(client.stdout, news.put), _pump(client.stderr, errors.extend)]
            over: float | None = None

            def until() -> bool | None:
                nonlocal over
                while not news.empty():
                    take(news.get())
                if over is None and (_STATUS.search(errors) or client.poll() is not None):
                    over = time.monotonic() + _LINGER
                alive = any(pump.is_alive() for pump in pumps)
                if news.empty() and (not alive or (over is not None and time.monotonic() > over)):
                    return True
                self._check()
                return None

            self._machine.watch(until, within=within, doing="end a program")
            found = _STATUS.search(errors)
            if found is None:
                raise self._lost(bytes(errors))
        return int(found[1]), errors[: found.start()].decode("utf-8", "replace").strip()

    def hold(self) -> Held:
        """Bring everything that was written in the guest to its disk, and hold its file systems still.

        Raises TimedOut, GuestFailed, Interrupted.
        """
        stack = self._stack.enter_context(ExitStack())  # an unreleased one ends with the connection
        return Held(self._machine, stack.enter_context(self._client(PIPE)), stack)

    def _client(self, stdin: int | BinaryIO) -> AbstractContextManager[Process]:
        # Without the master there is no way into the guest, rather than another connection.
        return self._host.start(
            ["ssh", *self._options, "-o", "ControlMaster=no", "-o", "ProxyCommand=false",
             "-o", "LogLevel=ERROR", "-T", f"{self._user}@guest", f"exec /bin/sh -c {shlex.quote(_READER)}"],
            purpose=_PURPOSE, stdin=stdin, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip

    def _check(self) -> None:
        if self._machine.restarts > self._restarts:
            raise GuestFailed("the guest restarted itself while a step ran in it",
                              tail=self._machine.console.tail())  # fmt: skip

    def _lost(self, said: bytes) -> GuestFailed:
        """Say why there was no answer: the guest's end if it ended (QEMU needs a moment to), else the connection's."""
        time.sleep(1)
        self._machine.check()
        self._check()
        words = said.decode("utf-8", "replace").strip()
        return GuestFailed("the SSH connection to the guest was lost" + (f": {words}" if words else ""),
                           tail=self._machine.console.tail(),
                           hint="did the step stop sshd or the network, or end its own session?")  # fmt: skip


@dataclass(frozen=True)
class _Attempt:
    """A client that tries to log in."""

    banner: str
    process: Process
    said: IO[bytes]

    def ended(self) -> str | None:
        """Its last words, if it has ended."""
        if self.process.poll() is None:
            return None
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").splitlines()
        words = "; ".join(line for line in lines if line and not line.startswith("Warning: Permanently added"))
        return words or f"ssh ended with exit status {self.process.returncode}"


class Held:
    """A guest whose file systems are held still, until ``release``."""

    def __init__(self, machine: Machine, client: Process, stack: ExitStack) -> None:
        self._machine, self._client, self._stack = machine, client, stack
        self._said = b""
        self._send(base64.b64encode(_HOLD.encode()) + b"\n")
        line = self._wait(b"held ", "bring its file systems to rest")
        self.frozen = len(line.split()) > 1
        """Whether it has fsfreeze; without it the file systems are only synchronised, their journals in use."""

    def release(self) -> None:
        """Let the guest write again. Raises TimedOut, GuestFailed, Interrupted."""
        try:
            self._send(b"\n")
            self._wait(b"thawed", "let go of its file systems")
        finally:
            self._stack.close()

    def _send(self, data: bytes) -> None:
        assert self._client.stdin is not None
        with suppress(BrokenPipeError):  # _wait says what has happened
            self._client.stdin.write(data)
            self._client.stdin.flush()

    def _wait(self, word: bytes, doing: str) -> str:
        assert self._client.stdout is not None
        wire = self._client.stdout.fileno()

        def until() -> str | None:
            while True:
                for line in self._said.split(b"\n")[:-1]:
                    if line.startswith(word):
                        return line.decode("utf-8", "replace")
                if not select.select([wire], [], [], 0)[0]:
                    return None
                news = os.read(wire, _CHUNK)
                if not news:
                    self._machine.check()
                    raise GuestFailed("the SSH connection to the guest was lost at the end of a step",
                                      tail=self._machine.console.tail())  # fmt: skip
                self._said += news

        return self._machine.watch(until, within=_HOLD_SECONDS, doing=doing)


def _pump(stream: IO[bytes], take: Callable[[bytes], object]) -> threading.Thread:
    """Hand on what comes through a pipe until it is closed."""
    wire = stream.fileno()

    def run() -> None:
        with suppress(OSError):
            while news := os.read(wire, _CHUNK):
                take(news)

    thread = threading.Thread(target=run, name="ssh", daemon=True)
    thread.start()
    return thread
