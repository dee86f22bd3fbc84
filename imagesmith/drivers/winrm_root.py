"""A running Windows guest: entered, restarted and held still over WinRM, and what a step sees of it."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NoReturn

from imagesmith.drivers import line_shell
from imagesmith.drivers.winrm import WinRm
from imagesmith.errors import BuildError, GuestFailed, StepFailed, TimedOut
from imagesmith.interfaces import Connection, Log, Result, Terminal
from imagesmith.machine.guest_agent import PORT, GuestAgent
from imagesmith.machine.qemu import Machine

BOOT_SECONDS = 1800.0
"""Until WinRM answers: a Windows that prepares itself restarts more than once before."""
_ASK_SECONDS = 120.0
_FOREVER = 30 * 24 * 3600.0
_TAIL = 40
_FLUSH = "Get-Volume | Where-Object DriveLetter | ForEach-Object { Write-VolumeCache -DriveLetter $_.DriveLetter }"


def powershell(script: str) -> list[str]:
    """The command line that runs a PowerShell script, for short ones of ours."""
    return ["powershell", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-EncodedCommand",
            base64.b64encode(script.encode("utf-16-le")).decode()]  # fmt: skip


class WinRmGuest:
    """A booted Windows guest and the way into it."""

    def __init__(self, machine: Machine, wire: WinRm) -> None:
        """``machine`` has the port of the guest agent."""
        self.machine, self.wire = machine, wire
        self._agent = GuestAgent(machine.ports[machine.spec.ports.index(PORT)])
        self._frozen = False

    def enter(self, log: Log) -> None:
        """Wait until the guest can be entered. Raises TimedOut, GuestFailed, Interrupted."""
        log("waiting for the guest's WinRM")
        begun = time.monotonic()
        self.wire.connect(BOOT_SECONDS)
        log(f"connected after {time.monotonic() - begun:.0f} s")

    def hold(self) -> bool:
        """Bring what was written to the disk, and hold it still where QEMU's guest agent can; False where it cannot.

        Raises TimedOut, GuestFailed.
        """
        status = self.wire.ask(powershell(_FLUSH), within=_ASK_SECONDS)
        if status != 0:
            raise GuestFailed(f"the guest did not write its volumes' caches back (exit code {status})")
        self._frozen = self._agent.freeze()
        return self._frozen

    def release(self) -> None:
        """Let what was held go again. Raises TimedOut, ToolFailed."""
        if self._frozen:
            self._agent.thaw()
            self._frozen = False

    def restart(self, within: float, log: Log) -> None:
        """Restart the guest (interfaces.Running)."""
        deadline = time.monotonic() + within
        before = self.machine.restarts
        log("restarting the guest")
        status = self.wire.ask(["shutdown", "/r", "/t", "2", "/f"], within=_ASK_SECONDS)
        if status != 0:
            raise BuildError(f"the guest does not restart: shutdown ended with exit code {status}")
        try:
            self.machine.watch(lambda: self.machine.restarts > before or None, within=within, doing="restart")
        except TimedOut as late:
            raise TimedOut(f"the guest did not restart within {within:g} s: it was told to, and was not reset",
                           tail=late.tail) from None  # fmt: skip
        self.machine.count_anew()
        self.wire.connect(max(1.0, deadline - time.monotonic()))
        log("the guest has restarted")


class WinRmRoot:
    """One step's view of the guest (interfaces.Running): programs alone."""

    online = True

    def __init__(self, guest: WinRmGuest, *, epoch: int, log: Log, deadline: float | None) -> None:
        """``deadline`` is on the clock of ``time.monotonic``."""
        self._guest, self.epoch, self._log, self._deadline = guest, epoch, log, deadline

    def shell(self, terminal: Terminal) -> None:
        """Let the user in (interfaces.Enterable): WinRM knows no terminals."""
        self._deadline = None
        terminal.say("each line that you type is run by a cmd of its own, over WinRM; programs cannot ask you anything")
        log, self._log = self._log, lambda line: terminal.show(f"{line}\r\n")
        try:
            line_shell.lines(terminal, lambda line: self.run(["cmd", "/c", line], check=False).status, lambda: "C:\\")
        finally:
            self._log = log

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",
        check: bool = True,
    ) -> Result:
        """Run a program, as the one who logged in, from C:\\ (interfaces.Root)."""
        got = bytearray()
        logged = 0

        def take(data: bytes) -> None:
            nonlocal logged
            got.extend(data)
            end = got.rfind(b"\n") + 1
            if end > logged:
                for line in got[logged:end].decode("utf-8", "replace").splitlines():
                    self._log(line)
                logged = end

        try:
            status = self._guest.wire.ask(argv, within=self._left(), input=input, env=env, take=take)
        except TimedOut as late:
            raise TimedOut("the step did not end in time", tail=late.tail, hint="raise its 'timeout:'") from late
        if len(got) > logged:
            self._log(got[logged:].decode("utf-8", "replace"))
        output = got.decode("utf-8", "replace").replace("\r\n", "\n")
        if check and status != 0:
            tail = "\n".join(output.splitlines()[-_TAIL:])
            raise StepFailed(f"'{argv[0]}' failed in the guest (exit code {status})" + (f":\n{tail}" if tail else ""),
                             status=status, tail=tail)  # fmt: skip
        return Result(status, output)

    def restart(self, within: float) -> None:
        """Restart the guest (interfaces.Running)."""
        self._guest.restart(min(within, self._left()), self._log)

    def finish(self) -> None:
        """Nothing is left to do."""

    def read(self, path: str) -> bytes:
        """Not there (interfaces.Root). Raises BuildError."""
        self._not("read files")

    def exists(self, path: str) -> bool:
        """Not there (interfaces.Root). Raises BuildError."""
        self._not("look for files")

    def unpack(self, archive: BinaryIO) -> None:
        """Not there (interfaces.Root). Raises BuildError."""
        self._not("put files into it")

    def remove(self, paths: Sequence[str]) -> None:
        """Not there (interfaces.Root). Raises BuildError."""
        self._not("remove files")

    def expect_disconnect(self) -> None:
        """Not there (interfaces.Running). Raises BuildError."""
        self._not("let the connection end")

    def connection(self) -> Connection:
        """Not there (interfaces.Running). Raises BuildError."""
        raise BuildError("this step needs SSH, and the guest is entered over WinRM")

    def _not(self, what: str) -> NoReturn:
        raise BuildError(f"a guest that is entered over WinRM runs programs; it cannot {what} for this step",
                         hint="use a 'powershell' step")  # fmt: skip

    def _left(self) -> float:
        return _FOREVER if self._deadline is None else max(0.0, self._deadline - time.monotonic())
