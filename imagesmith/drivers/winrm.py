"""Programs run in a running Windows guest over WinRM ([MS-WSMV]: WS-Management, a "shell" of the kind cmd).

pywinrm (MIT) speaks the protocol; it is the one library that imagesmith needs for Windows alone, so it is optional, and
imported when it is needed. Its calls block, so each request is made in a thread, while the machine is watched.
"""

from __future__ import annotations

import http.client
import queue
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imagesmith.errors import GuestFailed, MissingTool, TimedOut
from imagesmith.machine.qemu import Machine

PORT, PLAIN_PORT = 5986, 5985
"""WinRM's over HTTPS and over HTTP (Microsoft: "Installation and configuration for Windows Remote Management")."""
_CONNECT_SECONDS = 10.0
_UTF8 = 65001
_CHUNK = 32768
"""Bytes of stdin in one message, whose whole size Windows bounds (MaxEnvelopeSizekb: 500 by default)."""


def library() -> Any:
    """The pywinrm package. Raises MissingTool."""
    try:
        import winrm
        import winrm.exceptions
        import winrm.protocol
    except ImportError:
        raise MissingTool("the Python library pywinrm is not installed; it is needed to run steps in a Windows guest",
                          hint="install it: pip install 'imagesmith[winrm]'") from None  # fmt: skip
    return winrm


class WinRm:
    """A way into a guest by WinRM."""

    def __init__(self, machine: Machine, *, user: str, password: str, port: int) -> None:
        self._machine, self._user, self._password, self._port = machine, user, password, port
        self._scheme = "http" if port == PLAIN_PORT else "https"
        self._winrm = library()
        self._method = ""
        self._seen = "nothing"

    def connect(self, within: float) -> None:
        """Wait until the guest's WinRM lets us in, at most ``within`` seconds.

        Raises TimedOut (with what was seen last), GuestFailed (also for a password that is refused), Interrupted.
        """
        deadline = time.monotonic() + within

        def until() -> bool | None:
            self._method = self._offered()
            if not self._method:
                return None
            try:
                status = self.ask(["cmd", "/c", "exit 0"], within=max(1.0, deadline - time.monotonic()))
            except _Lost as lost:
                self._seen = f"WinRM there, {lost.message}"
                return None
            self._seen = f"WinRM there, but a first command ended with {status}"
            return True if status == 0 else None

        try:
            self._machine.watch(until, within=within, doing="answer over WinRM")
        except TimedOut as late:
            raise TimedOut(f"the guest did not answer over WinRM within {within:g} s; seen last: {self._seen}",
                           tail=late.tail) from None  # fmt: skip

    def _offered(self) -> str:
        """How one may log in, as pywinrm calls it; empty where nobody answers. NTLM encrypts what it carries."""
        address, port = self._machine.forward(self._port)
        connection = http.client.HTTPConnection(address, port, timeout=_CONNECT_SECONDS)
        if self._scheme == "https":
            # The guest has made its certificate itself, and the way there is this host's loopback.
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(address, port, timeout=_CONNECT_SECONDS, context=trusting)
        try:
            connection.request("POST", "/wsman", headers={"Content-Length": "0"})
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._seen = f"port open, no WinRM ({error})" if str(error) else "port open, no answer"
            return ""
        finally:
            connection.close()
        offers = ", ".join(answer.headers.get_all("WWW-Authenticate") or ())
        if answer.status != 401:
            self._seen = f"an HTTP server that says {answer.status} {answer.reason}"
            return ""
        for word, method in (("Negotiate", "ntlm"), ("NTLM", "ntlm"), ("Basic", "basic")):
            if word in offers:
                return method
        raise GuestFailed(f"the guest's WinRM lets nobody in by NTLM or Basic; it offers: {offers or 'nothing'}",
                          hint="in the guest: Set-Item WSMan:\\localhost\\Service\\Auth\\Negotiate $true")  # fmt: skip

    def ask(
        self, argv: Sequence[str], *, within: float, input: bytes = b"", env: Mapping[str, str] | None = None,
        take: Callable[[bytes], object] = lambda data: None,
    ) -> int:  # fmt: skip
        """Run a program; return its exit code. ``take`` gets stdout and stderr while they come.

        Raises TimedOut after ``within`` seconds, GuestFailed, Interrupted; what still runs in the guest runs on.
        """
        news: queue.SimpleQueue[bytes | int | Exception] = queue.SimpleQueue()
        wake, over = threading.Event(), threading.Event()

        def tell(what: bytes | int | Exception) -> None:
            news.put(what)
            wake.set()

        def run() -> None:
            try:
                tell(self._run(argv, input, env or {}, tell, over))
            except Exception as error:  # told to whoever waits
                tell(error)

        def until() -> int | None:
            wake.clear()
            while not news.empty():
                match news.get():
                    case bytes(data):
                        take(data)
                    case int(status):
                        return status
                    case Exception() as error:
                        raise self._meaning(error)
            return None

        threading.Thread(target=run, name="winrm", daemon=True).start()
        try:
            return self._machine.watch(until, within=within, doing="end a program", wake=wake)
        finally:
            over.set()

    def _run(
        self, argv: Sequence[str], input: bytes, env: Mapping[str, str], tell: Callable[[bytes], None],
        over: threading.Event,
    ) -> int:  # fmt: skip
        address, port = self._machine.forward(self._port)
        wire = self._winrm.protocol.Protocol(
            endpoint=f"{self._scheme}://{address}:{port}/wsman", transport=self._method, username=self._user,
            password=self._password, proxy=None, operation_timeout_sec=10, read_timeout_sec=30,
            server_cert_validation="ignore",
        )  # fmt: skip
        shell = wire.open_shell(env_vars=dict(env) or None, codepage=_UTF8, working_directory="C:\\", noprofile=False)
        try:
            command = wire.run_command(shell, argv[0], argv[1:], console_mode_stdin=False, skip_cmd_shell=False)
            for start in range(0, max(1, len(input)), _CHUNK):
                wire.send_command_input(shell, command, input[start : start + _CHUNK], end=start + _CHUNK >= len(input))
            done = False
            while not done and not over.is_set():
                try:
                    out, err, status, done = wire.get_command_output_raw(shell, command)
                except self._winrm.exceptions.WinRMOperationTimeoutError:
                    continue  # nothing to tell for ten seconds
                for data in (out, err):
                    if data:
                        tell(data)
            wire.cleanup_command(shell, command)
            return int(status)
        finally:
            wire.close_shell(shell)

    def _meaning(self, error: Exception) -> GuestFailed:
        if isinstance(error, self._winrm.exceptions.InvalidCredentialsError):
            return GuestFailed(f"the guest's WinRM does not let {self._user} in: password refused",
                               hint="is 'login.password' right, and may he log in over the network?")  # fmt: skip
        said = str(error).splitlines()
        return _Lost(f"the WinRM connection to the guest was lost: {said[0] if said else type(error).__name__}",
                     tail=self._machine.console.tail())  # fmt: skip


class _Lost(GuestFailed):
    """The connection, and not the guest or the password, is what failed."""
