"""A guest that was booted for steps: how it is entered, restarted, and entered again."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from imagesmith.errors import BuildError, GuestFailed, TimedOut
from imagesmith.interfaces import Log
from imagesmith.machine.authorize import ADMIT, DISMISS, RESTORE
from imagesmith.machine.guest import FRESH_STARTS, LATE_TIMER
from imagesmith.machine.qemu import Machine
from imagesmith.machine.ssh import Ssh

BOOT_SECONDS = 600.0
"""Until sshd answers, and again until start-up is complete; 15 to 200 s were seen under TCG."""
_ASK_SECONDS = 60.0
_AWAKE_SECONDS = 120.0
"""Until a guest that goes on from its checkpoint can be entered; 1 to 6 s were seen under TCG."""
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
        self.machine, self.ssh = machine, ssh
        self._public_key = public_key
        self._admitted = False
        self.entered = 0
        """How often the guest was entered."""

    def enter(self, log: Log) -> None:
        """Wait until the guest can be entered, take the session's key out of it, and wait until it has started.

        Raises TimedOut, GuestFailed, Interrupted.
        """
        self._connect(BOOT_SECONDS, log)
        if self._public_key:
            status, said = self.ssh.ask(RESTORE, within=BOOT_SECONDS)
            if status != 0:
                raise GuestFailed(f"cannot take the session's key out of the guest again: {said}")
        state = self._state(BOOT_SECONDS)
        if state != "running":
            log(f"the guest's start-up did not go well; systemd calls it '{state}'")

    def reenter(self, log: Log, *, admitted: bool) -> None:
        """Enter a guest that goes on from where it was; ``admitted``: the session's key was let in for that.

        Raises TimedOut, GuestFailed, Interrupted.
        """
        self._admitted = admitted
        self._connect(_AWAKE_SECONDS, log)
        self.dismiss()

    def hold(self) -> bool:
        """Hold its file systems still; False where they are only synchronised. Raises TimedOut, GuestFailed."""
        return self.ssh.hold()

    def release(self) -> None:
        """Let its file systems go again. Raises TimedOut, GuestFailed."""
        self.ssh.release()

    def admit(self) -> None:
        """See to it that the guest can be entered once more, should the connection end."""
        if self._public_key and not self._admitted:
            self._key(ADMIT, "put the session's key into")
            self._admitted = True

    def dismiss(self) -> None:
        """Take back what ``admit`` did; a step's layer must not hold it."""
        if self._admitted:
            self._key(DISMISS, "take the session's key out of")
            self._admitted = False

    def _key(self, script: str, doing: str) -> None:
        status, said = self.ssh.ask(script, within=_ASK_SECONDS, input=self._public_key.encode() + b"\n")
        if status != 0:
            raise BuildError(f"cannot {doing} the running guest: {said}", hint="is its disk full?")

    def come_back(self, within: float, log: Log) -> None:
        """Enter the guest again after the connection ended, or wait for its end where the guest is stopping.

        Whether it restarts meanwhile is its own business. Raises TimedOut, GuestFailed, Interrupted.
        """
        deadline = time.monotonic() + within
        while True:
            if not self.ssh.connected:
                self.ssh.disconnect()
                self.machine.count_anew()
                log("the connection ended; entering the guest again")
                self._connect(deadline - time.monotonic(), log)
            try:
                if self._state(max(1.0, deadline - time.monotonic())) != "stopping":
                    return
                self._wait_for_end(deadline - time.monotonic(), lambda: "it is shutting down, and does not end")
            except GuestFailed:
                self.machine.check()  # where the guest is well, only the connection ended
            self.ssh.disconnect()

    def restart(self, within: float, log: Log) -> None:
        """Restart the guest (interfaces.Running)."""
        deadline = time.monotonic() + within
        before = self._boot_id()
        self.admit()
        resets = self.machine.restarts
        log("restarting the guest")
        try:
            status, said = self.ssh.ask(_RESTART, within=within)
            if status != 0 and self.ssh.connected:
                raise BuildError(f"the guest does not restart (exit status {status}): {said}")
        except GuestFailed:
            self.machine.check()
        while True:
            self._wait_for_end(deadline - time.monotonic(), self._why_not, resets)
            self.ssh.disconnect()
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
            return not self.ssh.connected or (resets is not None and self.machine.restarts > resets) or None

        try:
            self.machine.watch(until, within=within, doing="restart")
        except TimedOut as late:
            raise TimedOut(f"the guest did not restart in time: {why()}", tail=late.tail,
                           hint=_HINT) from None  # fmt: skip

    def _why_not(self) -> str:
        """What a guest does that was told to restart and has not."""
        lines: list[bytes] = []
        try:
            self.ssh.ask(_DOING, within=_ASK_SECONDS, take=lines.append)
        except (GuestFailed, TimedOut):
            return "it does not answer any more, but it was not reset either"
        jobs = re.sub(r"[ \t]+", " ", b"".join(lines).decode("utf-8", "replace").strip().replace("\n", "; "))
        return "it still answers" + (f", and its jobs are: {jobs}" if jobs else ", and does nothing to stop")

    def _state(self, within: float) -> str:
        """The guest's state, once its start-up is complete."""
        said: list[bytes] = []
        self.ssh.ask(_STARTED, within=within, take=said.append)
        return b"".join(said).decode("utf-8", "replace").strip()

    def _boot_id(self) -> str:
        said: list[bytes] = []
        self.ssh.ask(_BOOT, within=_ASK_SECONDS, take=said.append)
        return b"".join(said).decode("ascii", "replace").strip()

    def _connect(self, within: float, log: Log) -> None:
        log("waiting for the guest's sshd")
        begun = time.monotonic()
        for left in range(FRESH_STARTS, -1, -1):
            try:
                self.ssh.connect(max(1.0, begun + within - time.monotonic()))
                break
            except (GuestFailed, TimedOut) as error:
                if LATE_TIMER not in error.message or self.machine.spec.accelerator != "tcg" or not left:
                    raise
                log("the emulated timer was late, because this host is busy; starting the guest again")
                self.machine.start_again()
        self.entered += 1
        log(f"connected after {time.monotonic() - begun:.0f} s")
