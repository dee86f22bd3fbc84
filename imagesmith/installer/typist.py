"""Types keys into a guest through QEMU's control channel, and waits for what the guest shows."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from imagesmith.errors import TimedOut
from imagesmith.installer.screen import Screen
from imagesmith.interfaces import Log
from imagesmith.keys import Action, Hold, Press, Wait, WaitFor
from imagesmith.machine.console import plain
from imagesmith.machine.qemu import Machine

_HELD, _BETWEEN = 0.03, 0.03
"""Seconds: firmware and boot loaders look for keys some thirty times a second."""
_TAKEN_WITHIN, _LOOK_AGAIN = 2.0, 0.005
"""Seconds until a guest has taken a key from the keyboard; one that does not listen gets the next one all the same."""
_LOOK_AT_SCREEN = 1.0
_READ_AT_ONCE = 256 * 1024


def type_keys(machine: Machine, actions: Sequence[Action], log: Log) -> None:
    """Do what ``keys.parse`` gave. What is typed is not logged: it may have passwords in it.

    Raises TimedOut where a text does not come, with what the screen and the console show instead, and what
    Machine.check raises.
    """
    typist = _Typist(machine, log)
    for action in actions:
        typist.do(action)
    typist.report()


class _Typist:
    def __init__(self, machine: Machine, log: Log) -> None:
        self._machine, self._log = machine, log
        self._screen = Screen(machine)
        self._typed = 0
        self._read = 0
        """Where in the console's log the text that was waited for last ends."""

    def do(self, action: Action) -> None:
        """Do one action."""
        if isinstance(action, Press):
            self._send(action.keys, True)
            self._pause(_HELD)
            self._send(action.keys[::-1], False)
            self._pause(_BETWEEN)
            self._typed += 1
        elif isinstance(action, Hold):
            self._send(action.keys if action.down else action.keys[::-1], action.down)
            self._pause(_BETWEEN)
        elif isinstance(action, Wait):
            self.report()
            self._wait(action.seconds)
        else:
            self.report()
            self._wait_for(action)

    def report(self) -> None:
        """Say how much was typed since the last time."""
        if self._typed:
            self._log(f"typed {self._typed} keys")
        self._typed = 0

    def _send(self, keys: Sequence[str], down: bool) -> None:
        events = [{"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}} for key in keys]
        self._machine.qmp.execute("input-send-event", events=events)

    def _pause(self, seconds: float) -> None:
        """Let the guest take what was sent: the keyboard's queue has room for 16 bytes (QEMU, hw/input/ps2.c), which is
        two keys with shift, and what does not fit is lost. A guest on a busy host may stand still for that long.
        """
        end = time.monotonic() + _TAKEN_WITHIN
        while self._waiting() and time.monotonic() < end:
            time.sleep(_LOOK_AGAIN)
        time.sleep(seconds)

    def _waiting(self) -> bool:
        """Whether the keyboard's controller has a byte for the guest: bit 0 of its status register, at port 0x64."""
        if self._machine.spec.arch != "x86_64":
            return False
        said = self._machine.qmp.execute("human-monitor-command", {"command-line": "i /bx 0x64"})
        found = re.search(r"= 0x([0-9a-f]+)", str(said))
        return found is not None and bool(int(found[1], 16) & 1)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._machine.check()
            time.sleep(min(0.1, left))

    def _wait_for(self, action: WaitFor) -> None:
        began = time.monotonic()
        looked = -_LOOK_AT_SCREEN
        seen = ""

        def shown() -> str | None:
            nonlocal looked, seen
            if self._on_console(action.text):
                return "the console"
            if self._machine.spec.screen and time.monotonic() - looked >= _LOOK_AT_SCREEN:
                seen = self._screen.text()
                looked = time.monotonic()
                if _flat(action.text) in _flat(seen):
                    return "the screen"
            return None

        try:
            where = self._machine.watch(shown, within=action.within, doing=f"show '{action.text}'")
        except TimedOut as error:
            there = f"; its screen shows:\n{seen}" if seen else ""
            raise TimedOut(error.message + there, tail=error.tail,
                           hint="correct the text that 'boot_command' waits for, or wait longer") from None  # fmt: skip
        self._log(f"'{action.text}' is on {where} after {time.monotonic() - began:.1f} s")

    def _on_console(self, text: str) -> bool:
        """Whether it has come since what was waited for before; it then counts as read."""
        log = self._machine.console.log
        size = log.stat().st_size
        start = max(self._read, size - _READ_AT_ONCE)
        with log.open("rb") as file:
            file.seek(start)
            raw = file.read(_READ_AT_ONCE)
        wanted = _flat(text)
        if wanted not in _flat(plain(raw)):
            return False
        low, high = 0, len(raw)  # the fewest bytes that show it
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if wanted in _flat(plain(raw[:middle])) else (middle + 1, high)
        self._read = start + high
        return True


def _flat(text: str) -> str:
    """Lines are broken where the screen ends, and blanks are where the cursor jumps."""
    return "".join(text.split())
