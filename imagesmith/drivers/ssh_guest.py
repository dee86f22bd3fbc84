"""A guest that was booted for steps: how it is entered, restarted, and entered again."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import BinaryIO

from imagesmith.errors import BuildError, GuestFailed, TimedOut
from imagesmith.interfaces import Log
from imagesmith.machine.authorize import ADMIT, DISMISS, RESTORE
from imagesmith.machine.guest import FRESH_STARTS, LATE_TIMER
from imagesmith.machine.qemu import Machine
from imagesmith.machine.shell import Shell
from imagesmith.machine.ssh import Ssh
from imagesmith.machine.ssh_wire import FREEZE, HOLD_SECONDS, THAW

BOOT_SECONDS = 600.0
"""Until sshd answers, and again until start-up is complete; 15 to 200 s were seen under TCG."""
_ASK_SECONDS = 60.0
_AWAKE_SECONDS = 120.0
"""Until a guest that goes on from its checkpoint can be entered; 1 to 6 s were seen under TCG."""
_MOST_INPUT = 1 << 20
"""Bytes for a script's stdin that the waiting shell takes: it keeps them in the guest's memory."""
_PATH = "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
# systemctl(1): "stopping" while it shuts down; "initializing" and "starting" are waited for.
_STARTED = f"""{_PATH}command -v systemctl >/dev/null || {{ echo running; exit 0; }}
systemctl is-system-running --wait
"""
_BOOT = "cat /proc/sys/kernel/random/boot_id"
_RESTART = f"""{_PATH}sync
if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then systemctl reboot; else reboot; fi
"""
_HINT = "its console's last lines may say what it waits for; 'within' is how long it may take"
_DOING = f"{_PATH}systemctl list-jobs --no-legend --no-pager --plain | head -n 5"


class SshGuest:
    """A booted guest and the way into it."""

    def __init__(self, machine: Machine, ssh: Ssh, *, public_key: str) -> None:
        """``public_key`` is that of the session's own key, which the disk holds; empty where a login was given."""
        self.machine, self._ssh = machine, ssh
        self._public_key = public_key
        self._admitted = False
        self._shell: Shell | None = None
        self.listener: Shell | None = None
        """The shell that waits in it for the next session, which may hold the file systems still, too."""
        self._held_by: Shell | None = None
        self.entered = 0
        """How often the guest was entered."""

    def enter(self, log: Log) -> None:
        """Wait until the guest can be entered, take the session's key out of it, and wait until it has started.

        Raises TimedOut, GuestFailed, Interrupted.
        """
        self._connect(BOOT_SECONDS, log)
        if self._public_key:
            status, said = self._ssh.ask(RESTORE, within=BOOT_SECONDS)
            if status != 0:
                raise GuestFailed(f"cannot take the session's key out of the guest again: {said}")
        state = self._state(BOOT_SECONDS)
        if state != "running":
            log(f"the guest's start-up did not go well; systemd calls it '{state}'")

    def go_on(self, shell: Shell) -> None:
        """Enter a guest that goes on from where it was by a shell that waits in it. SSH is for what needs it."""
        self._shell = self.listener = shell
        self.entered += 1

    def ssh(self, log: Log) -> Ssh:
        """The connection over SSH, made now where the guest was not asked that way so far.

        Raises BuildError, TimedOut, GuestFailed, Interrupted.
        """
        if self._shell is not None:
            if self._public_key:
                self._key(ADMIT, "put the session's key into")
                self._admitted = True
            self._reach(_AWAKE_SECONDS, log)
            self._shell = None
            self.dismiss()
        return self._ssh

    def ask(self, script: str, log: Log, *, within: float, input: bytes = b"", stdin: BinaryIO | None = None,
            take: Callable[[bytes], object] = lambda data: None) -> tuple[int, str]:  # fmt: skip
        """Run a shell script in the guest as root (Ssh.ask): over SSH, or by the shell that waits in it."""
        if self._shell is not None:
            size = os.fstat(stdin.fileno()).st_size - stdin.tell() if stdin is not None else 0
            if len(input) + size <= _MOST_INPUT:
                input += stdin.read() if stdin is not None else b""
                return self._shell.ask(script, within=within, input=input, take=take)
        return self.ssh(log).ask(script, within=within, input=input, stdin=stdin, take=take)

    def hold(self) -> bool:
        """Hold its file systems still; False where they are only synchronised. Raises TimedOut, GuestFailed."""
        self._held_by = self._shell or self.listener
        if self._held_by is None:
            return self._ssh.hold()
        said: list[bytes] = []
        self._held_by.ask(FREEZE, within=HOLD_SECONDS, take=said.append)
        return len(b"".join(said).split()) > 1

    def release(self) -> None:
        """Let its file systems go again. Raises TimedOut, GuestFailed."""
        if self._held_by is None:
            self._ssh.release()
        else:
            self._held_by.ask(THAW, within=HOLD_SECONDS)

    def admit(self, log: Log) -> None:
        """See to it that the guest can be entered once more over SSH, should the connection end."""
        self.ssh(log)
        if self._public_key and not self._admitted:
            self._key(ADMIT, "put the session's key into")
            self._admitted = True

    def dismiss(self) -> None:
        """Take back what ``admit`` did; a step's layer must not hold it."""
        if self._admitted:
            self._key(DISMISS, "take the session's key out of")
            self._admitted = False

    def _key(self, script: str, doing: str) -> None:
        status, said = (self._shell or self._ssh).ask(script, within=_ASK_SECONDS,
                                                      input=self._public_key.encode() + b"\n")  # fmt: skip
        if status != 0:
            raise BuildError(f"cannot {doing} the running guest: {said}", hint="is its disk full?")

    def come_back(self, within: float, log: Log) -> None:
        """Enter the guest again after the connection ended, or wait for its end where the guest is stopping.

        Whether it restarts meanwhile is its own business. Raises TimedOut, GuestFailed, Interrupted.
        """
        deadline = time.monotonic() + within
        while True:
            if not self._ssh.connected:
                self._ssh.disconnect()
                self.machine.count_anew()
                log("the connection ended; entering the guest again")
                self._connect(deadline - time.monotonic(), log)
            try:
                if self._state(max(1.0, deadline - time.monotonic())) != "stopping":
                    return
                self._wait_for_end(deadline - time.monotonic(), lambda: "it is shutting down, and does not end")
            except GuestFailed:
                self.machine.check()  # where the guest is well, only the connection ended
            self._ssh.disconnect()

    def restart(self, within: float, log: Log) -> None:
        """Restart the guest (interfaces.Running)."""
        deadline = time.monotonic() + within
        before = self._boot_id()
        self.admit(log)
        resets = self.machine.restarts
        log("restarting the guest")
        try:
            status, said = self._ssh.ask(_RESTART, within=within)
            if status != 0 and self._ssh.connected:
                raise BuildError(f"the guest does not restart (exit status {status}): {said}")
        except GuestFailed:
            self.machine.check()
        while True:
            self._wait_for_end(deadline - time.monotonic(), self._why_not, resets)
            self._ssh.disconnect()
            reset = self.machine.restarts > resets
            self.machine.count_anew()
            resets = 0
            try:
                self._connect(deadline - time.monotonic(), log)
                if self._boot_id() != before:
                    break  # else its sshd answered once more before the guest went down
            except TimedOut as late:
                if reset or self.machine.restarts:
                    raise TimedOut(f"the guest restarted, but did not come back in time: {late.message}",
                                   tail=late.tail) from None  # fmt: skip
                raise TimedOut(f"the guest did not restart in time: it ended the connection and was not reset; "
                               f"{late.message}", tail=late.tail, hint=_HINT) from None  # fmt: skip
            except GuestFailed:
                self.machine.check()
        self.come_back(deadline - time.monotonic(), log)
        self.dismiss()
        log("the guest has restarted")

    def _wait_for_end(self, within: float, why: Callable[[], str], resets: int | None = None) -> None:
        """Wait until the connection ends, or the machine is reset."""

        def until() -> bool | None:
            return not self._ssh.connected or (resets is not None and self.machine.restarts > resets) or None

        try:
            self.machine.watch(until, within=within, doing="restart")
        except TimedOut as late:
            raise TimedOut(f"the guest did not restart in time: {why()}", tail=late.tail,
                           hint=_HINT) from None  # fmt: skip

    def _why_not(self) -> str:
        """What a guest does that was told to restart and has not."""
        lines: list[bytes] = []
        try:
            self._ssh.ask(_DOING, within=_ASK_SECONDS, take=lines.append)
        except (GuestFailed, TimedOut):
            return "it does not answer any more, but it was not reset either"
        jobs = re.sub(r"[ \t]+", " ", b"".join(lines).decode("utf-8", "replace").strip().replace("\n", "; "))
        return "it still answers" + (f", and its jobs are: {jobs}" if jobs else ", and does nothing to stop")

    def _state(self, within: float) -> str:
        """The guest's state, once its start-up is complete."""
        said: list[bytes] = []
        self._ssh.ask(_STARTED, within=within, take=said.append)
        return b"".join(said).decode("utf-8", "replace").strip()

    def _boot_id(self) -> str:
        said: list[bytes] = []
        self._ssh.ask(_BOOT, within=_ASK_SECONDS, take=said.append)
        return b"".join(said).decode("ascii", "replace").strip()

    def _connect(self, within: float, log: Log) -> None:
        self._reach(within, log)
        self.entered += 1
        self.listener = None

    def _reach(self, within: float, log: Log) -> None:
        log("waiting for the guest's sshd")
        begun = time.monotonic()
        for left in range(FRESH_STARTS, -1, -1):
            try:
                self._ssh.connect(max(1.0, begun + within - time.monotonic()))
                break
            except (GuestFailed, TimedOut) as error:
                if LATE_TIMER not in error.message or self.machine.spec.accelerator != "tcg" or not left:
                    raise
                log("the emulated timer was late, because this host is busy; starting the guest again")
                self.machine.start_again()
        log(f"connected after {time.monotonic() - begun:.0f} s")
