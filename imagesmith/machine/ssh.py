"""Programs run in a running guest over SSH.

The OpenSSH client is run as a program: it is on every host already, speaks whatever a guest's sshd speaks, and adds no
library (asyncssh: EPL or GPL; paramiko: LGPL) to what imagesmith imports. One connection is kept as a master
(ssh_config(5), ControlMaster), so that a request costs a new channel and not a new handshake, which takes seconds in
an emulated guest.

What is asked goes through stdin: the command line, on either side, is the same for every request. The guest's shell
(as root, by sudo where somebody else logged in) reads a script and runs it; what follows on stdin is the script's own.
Its environment is empty: what sshd and PAM would put there differs from guest to guest. When it has ended, its status
comes as the last line of stderr, so that it is told apart from the end of the connection.
"""

from __future__ import annotations

import queue
import re
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Self

from imagesmith.errors import GuestFailed, TimedOut
from imagesmith.host import PIPE, Host, Process
from imagesmith.machine.qemu import Machine
from imagesmith.machine.ssh_login import Credentials, Entrance
from imagesmith.machine.ssh_wire import HOLD, Holder, Pulse, feed, pump

# A password that sudo did not ask for this time comes before the script, and is let go. The script's lines are counted,
# and read by the shell itself: starting a program, even base64, takes its time in an emulated guest. (The newline is in
# IFS; one in the command line would not get through a csh.)
_READER = (
    'while IFS= read -r n || exit 1; do case $n in "script "*) break ;; esac; done; n=${n#script }; s=; '
    'while [ "$n" -gt 0 ]; do IFS= read -r l; s=$s$l${IFS#??}; n=$((n - 1)); done; unset l n; (eval "$s"); '
    'printf "\\nimagesmith-status %s\\n" "$?" >&2'
)
_STATUS = re.compile(rb"\nimagesmith-status (\d+)\n\Z")
_LINGER = 2.0
"""Seconds to wait for the rest of the output when a script has ended: what it left running may hold it open."""
_BANNER_SECONDS = 5.0
_PURPOSE = "run steps in a guest over SSH"


class Ssh:
    """A connection to a guest's sshd; a context manager."""

    def __init__(self, host: Host, machine: Machine, credentials: Credentials, folder: Path) -> None:
        """``folder`` is private and short-named (it takes a socket)."""
        self._host, self._machine, self._credentials = host, machine, credentials
        self.folder = folder
        self._control = folder / "ctl"
        self._entrance = Entrance(credentials, folder)
        self._seen = "nothing"
        self._restarts = 0
        self._stack = ExitStack()
        self._master: Process | None = None
        self._holder: Holder | None = None
        self._sudo, self._asks_password = "", False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.disconnect()

    @property
    def user(self) -> str:
        """Who is logged in."""
        return self._credentials.user

    @property
    def sudo_password(self) -> str:
        """What sudo asks ``user`` for; empty where it does not ask."""
        return self._credentials.password if self._asks_password else ""

    @property
    def arguments(self) -> list[str]:
        """The options with which ssh, sftp and scp use this connection to the host ``guest``, and no other."""
        # Nothing of the user's own configuration; without the master there is no way into the guest.
        return ["-F", "/dev/null", "-o", f"ControlPath={self._control}", "-o", "ControlMaster=no",
                "-o", "ProxyCommand=false", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]  # fmt: skip

    # -- connecting --------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the connection still stands, as far as it is known."""
        return self._master is not None and self._master.poll() is None

    def disconnect(self) -> None:
        """End the connection, and whatever is asked through it."""
        self._stack.close()
        self._master = self._holder = None
        self._control.unlink(missing_ok=True)
        self._entrance.close()

    def connect(self, within: float) -> None:
        """Wait until the guest's sshd lets us in and we are root, at most ``within`` seconds.

        Once there was a connection, ``disconnect`` comes first.

        Raises TimedOut (with what was seen last), GuestFailed (also where we are refused), Interrupted.
        """
        address = self._machine.forward(self._credentials.port)
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
                self._master = attempt.process
                return True
            words = attempt.ended()
            if words is None:
                return None
            seen, hint, times = self._entrance.refusal(words)
            self._seen = f"banner {attempt.banner}, {seen or words}"
            refused += bool(times)
            if times and refused >= times:
                raise GuestFailed(f"the guest's sshd does not let {self.user} in: {self._seen}", hint=hint)
            self.disconnect()
            attempt = None
            time.sleep(1)
            return None

        begun = time.monotonic()
        try:
            self._machine.watch(until, within=within, doing="answer over SSH")
        except TimedOut as late:
            raise TimedOut(f"{late.message}; seen last: {self._seen}", tail=late.tail) from None
        finally:
            self._entrance.close()
        self._restarts = self._machine.restarts
        if self._credentials.sudo:
            self._become(within - (time.monotonic() - begun))

    def _attempt(self, address: tuple[str, int], banner: str) -> _Attempt:
        self._entrance.open()
        said = self._stack.enter_context(tempfile.TemporaryFile())
        options = ["LogLevel=INFO", f"HostName={address[0]}", "ConnectTimeout=120", "ServerAliveInterval=30",
                   "ServerAliveCountMax=20", "ClearAllForwardings=yes", *self._entrance.options]  # fmt: skip
        process = self._stack.enter_context(self._host.start(
            ["ssh", "-F", "/dev/null", "-M", "-N", "-S", self._control, "-p", str(address[1]),
             *(word for option in options for word in ("-o", option)), f"{self.user}@guest"],
            purpose=_PURPOSE, stderr=said, env=self._entrance.environment,
        ))  # fmt: skip
        return _Attempt(banner, process, said)

    def _become(self, within: float) -> None:
        """Find out how sudo lets us be root."""
        self._sudo, self._asks_password = "", False
        status, said = self.ask("sudo -k -n true", within=within)
        if status == 0:
            self._sudo = "sudo -n --"
            return
        if status != 127 and self._credentials.password:
            # One word for one password: what sudo asks for a second time would be taken from the script.
            password = f"{self._credentials.password}\n".encode()
            status, said = self.ask("sudo -k -S -p '' true", within=within, input=password)
            if status == 0:
                # All that we ask has sshd's process for a parent, so sudo asks but once in a while (sudoers(5),
                # timestamp_type): hashing a password takes a second in an emulated guest.
                self._sudo, self._asks_password = "sudo -S -p '' --", True
                return
        words = "; ".join(line.strip() for line in said.splitlines()[-3:] if line.strip())
        if status == 127:
            hint = "install sudo in the guest, or log in as root"
        elif self._credentials.password:
            hint = f"may {self.user} use sudo, and is 'login.password' right?"
        else:
            hint = f"give {self.user}'s password as 'login.password', or a rule with NOPASSWD in the guest"
        raise GuestFailed(f"{self.user} is let into the guest, but cannot become root there with sudo: {words}",
                          hint=hint)  # fmt: skip

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

        The script's stdin is ``input``, and then the file ``stdin``, from where it stands. Raises TimedOut after
        ``within`` seconds, ConnectionLost, GuestFailed, Interrupted; what still runs in the guest is left to itself.
        """
        with ExitStack() as stack:
            client = stack.enter_context(self._client())
            news: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            errors = bytearray()
            assert client.stdin is not None
            assert client.stdout is not None
            assert client.stderr is not None
            wake = threading.Event()
            pumps = [pump(client.stdout, news.put, wake), pump(client.stderr, errors.extend, wake)]
            feed(client.stdin, self._request(script) + input, stdin)
            pulse = stack.enter_context(Pulse(self._ping))
            over: float | None = None

            def until() -> bool | None:
                nonlocal over
                wake.clear()
                while not news.empty():
                    take(news.get())
                    pulse.felt()
                if over is None and (_STATUS.search(errors) or client.poll() is not None):
                    over = time.monotonic() + _LINGER
                alive = not all(pump.is_set() for pump in pumps)
                if news.empty() and (not alive or (over is not None and time.monotonic() > over)):
                    return True
                self._check_restarts()
                pulse.feel()
                return None

            try:
                self._machine.watch(until, within=within, doing="end a program", wake=wake)
            except TimedOut as late:
                if pulse.last_chance():
                    raise
                raise TimedOut(late.message + "; the guest does not answer over the network any more", tail=late.tail,
                               hint="did the step switch its network off?") from late  # fmt: skip
            found = _STATUS.search(errors)
            if found is None:
                raise self._lost(bytes(errors))
        return int(found[1]), errors[: found.start()].decode("utf-8", "replace").strip()

    def hold(self) -> bool:
        """Bring everything that was written in the guest to its disk, and hold its file systems still.

        False where they are only synchronised, for want of fsfreeze. Raises TimedOut, GuestFailed, Interrupted.
        """
        if self._holder is None or not self._holder.alive:
            client = self._stack.enter_context(self._client())
            self._holder = Holder(self._machine, client, self._request(HOLD))
        return self._holder.hold()

    def release(self) -> None:
        """Let the guest write again. Raises TimedOut, GuestFailed, Interrupted."""
        assert self._holder is not None
        self._holder.release()

    def _client(self) -> AbstractContextManager[Process]:
        command = f"exec {self._sudo} env -i /bin/sh -c {shlex.quote(_READER)}"
        return self._host.start(["ssh", *self.arguments, "-T", f"{self.user}@guest", command],
                                purpose=_PURPOSE, stdin=PIPE, stdout=PIPE, stderr=PIPE)  # fmt: skip

    def _ping(self) -> AbstractContextManager[Process]:
        return self._host.start(["ssh", *self.arguments, "-T", f"{self.user}@guest", "exec true"], purpose=_PURPOSE)

    def _request(self, script: str) -> bytes:
        """How a request begins: the password, where sudo will read it, and the script."""
        password = f"{self.sudo_password}\n".encode() if self._asks_password else b""
        lines = script.removesuffix("\n") + "\n"
        head = f"script {lines.count(chr(10))}\n"
        return password + head.encode() + lines.encode("utf-8", "surrogateescape")

    def check(self) -> None:
        """Raise GuestFailed where the guest has ended, panicked or restarted, or the connection has ended."""
        self._machine.check()
        self._check_restarts()
        if not self.connected:
            raise self._lost(b"")

    def _check_restarts(self) -> None:
        if self._machine.restarts > self._restarts:
            raise GuestFailed("the guest restarted itself while a step ran in it",
                              tail=self._machine.console.tail())  # fmt: skip

    def _lost(self, said: bytes) -> GuestFailed:
        """Say why there was no answer: the guest's end if it ended (QEMU needs a moment to), else the connection's."""
        time.sleep(1)
        self._machine.check()
        self._check_restarts()
        self.disconnect()
        words = said.decode("utf-8", "replace").strip()
        return GuestFailed("the SSH connection to the guest was lost" + (f": {words}" if words else ""),
                           tail=self._machine.console.tail(),
                           hint="did the step stop sshd or the network, or end its own session? Where that is meant, "
                           "say 'expect_disconnect: true' beside it")  # fmt: skip


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
