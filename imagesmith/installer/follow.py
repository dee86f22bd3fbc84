"""Follows a running installation: gathers what it says and whether anything moves, until it ends or has failed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imagesmith.errors import BuildError, GuestFailed, ImagesmithError, Interrupted, TimedOut
from imagesmith.host import Host
from imagesmith.installer.server import Server
from imagesmith.installer.syslog import Journal
from imagesmith.installer.typist import type_keys
from imagesmith.installer.watch import Failure, Watch
from imagesmith.interfaces import Log
from imagesmith.keys import Action
from imagesmith.machine.console import Lines
from imagesmith.machine.qemu import Machine

_POLL = 0.25
_LOOK = 3.0
"""Seconds between two looks at disk and network."""
_PROMPT = 2.0
"""Seconds after which what stands at the console's end without a line's end is taken for a line."""
_PICTURE = 60.0
"""Seconds of silence on the console, and between two pictures, from when on pictures are taken."""
_PICTURES_KEPT = 5
_FRESH_STARTS = 3
_TAIL = 15
_STOPPED = ("io-error", "internal-error", "guest-panicked")
"""States that a machine does not leave by itself (QEMU: qapi/run-state.json, RunState)."""
# How long a UDP association is kept, which goes down by itself (libslirp: src/misc.c, slirp_connection_info()).
_COUNTDOWN = re.compile(r"\[\d+ sec\]")


@dataclass
class Evidence:
    """What is kept of an installation where it fails."""

    folder: Path
    journal: Journal

    @property
    def console_log(self) -> Path:
        """The console's log."""
        return self.folder / "install-console.log"

    def files(self) -> list[Path]:
        """All of it that is there."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def remove(self) -> None:
        """The installation was a good one."""
        for path in self.files():
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


class Typing:
    """Types a boot command, in a thread of its own: meanwhile the installation is watched."""

    def __init__(self, machine: Machine, actions: Sequence[Action], log: Log) -> None:
        self._error: BuildError | None = None
        self._work = (machine, actions, log)
        if actions:
            threading.Thread(target=self._type, name="typing", daemon=True).start()

    def _type(self) -> None:
        try:
            type_keys(*self._work)
        except TimedOut as error:
            self._error = error
        except ImagesmithError:
            pass  # the machine has ended, or its kernel has panicked: whoever watches it says so, and knows more

    def check(self) -> None:
        """Raise TimedOut where a text that was waited for did not come."""
        if self._error is not None:
            raise self._error


class Follower:
    """Watches one machine from its start to its end."""

    def __init__(
        self, machine: Machine, watch: Watch, evidence: Evidence, host: Host, log: Log, *,
        server: Server | None = None, keys: Typing | None = None,
    ) -> None:  # fmt: skip
        self._machine, self._watch, self._evidence, self._host, self._log = machine, watch, evidence, host, log
        self._server, self._keys = server, keys
        self._pictures: list[Path] = []
        self._left = _FRESH_STARTS
        self._begin()

    def _begin(self) -> None:
        self._start = time.monotonic()
        self._lines = Lines()
        self._pending, self._pending_at = "", 0.0
        self._counters: dict[str, object] = {}
        self._look_at, self._said_at, self._pictured_at = 0.0, 0.0, 0.0

    @property
    def now(self) -> float:
        """Seconds since the machine was switched on."""
        return time.monotonic() - self._start

    def follow(self) -> str:
        """Watch to the end; return how it ended: ``shutdown`` or ``reset``.

        Raises GuestFailed, TimedOut (the deadlines), Interrupted.
        """
        while True:
            if self._host.cancelled:
                raise Interrupted()
            how = self._machine.ended
            if how:
                return self._ended(how)
            self._gather()
            if self._keys is not None:
                self._keys.check()
            failure = self._watch.failure(self.now)
            if failure is not None:
                self._again_or_fail(failure)
            elif self._watch.done(self.now):
                self._log("the installer is done, and waits; switching the machine off")
                self._machine.power_off(within=30)
                return self._ended("shutdown")
            time.sleep(_POLL)

    # -- gathering ---------------------------------------------------------------------------------------------

    def _gather(self) -> None:
        now = self.now
        for line in [*self._console(now), *self._evidence.journal.take()]:
            self._watch.line(line, now)
        if self._server is not None:
            self._look_at_server(self._server, now)
        if now >= self._look_at:
            self._look_at = now + _LOOK
            self._look(now)
            self._picture(now)
        for line in self._watch.news():
            self._log(line)

    def _console(self, now: float) -> list[str]:
        news = self._machine.console.news()
        if news:
            self._said_at = now
        found = self._lines.feed(news)
        pending = self._lines.pending
        if pending != self._pending:
            self._pending, self._pending_at = pending, now
        elif pending and now - self._pending_at >= _PROMPT:
            self._pending_at = float("inf")  # once is enough
            found += pending.split("\n")
        return found

    def _look_at_server(self, server: Server, now: float) -> None:
        self._count("server", server.asked, now)
        at = server.fetched.get(self._watch.wants)
        if at is not None:
            self._watch.read(max(at - self._start, 0.0))

    def _look(self, now: float) -> None:
        """Look at the counters of disks and of QEMU's user network (QMP: query-blockstats; HMP: info usernet)."""
        with suppress(ImagesmithError, KeyError, TypeError):  # QEMU may have just ended
            devices = self._machine.qmp.execute("query-blockstats", within=30)
            for field in ("rd_bytes", "wr_bytes"):
                self._count(field, sum(device["stats"][field] for device in devices), now)
            disks = [one for one in devices if str(one.get("node-name", "")).startswith("disk")]
            self._count("written", sum(one["stats"]["wr_bytes"] for one in disks), now, wrote=True)
            if self._machine.spec.network:
                words = {"command-line": "info usernet"}
                said = str(self._machine.qmp.execute("human-monitor-command", words, within=30))
                self._count("network", _COUNTDOWN.sub("", said), now)
            self._watch.restarted(self._machine.restarts)
            status = str(self._machine.qmp.execute("query-status", within=30)["status"])
            if status in _STOPPED:
                self._watch.stopped(status)

    def _count(self, name: str, value: object, now: float, *, wrote: bool = False) -> None:
        before, self._counters[name] = self._counters.get(name, 0), value
        if value != before:
            self._watch.moved(now, wrote=wrote)

    def _picture(self, now: float) -> None:
        """Keep the last pictures of a screen that the console tells nothing of."""
        if not self._machine.spec.screen or now - max(self._said_at, self._pictured_at) < _PICTURE:
            return
        self._pictured_at = now
        path = self._evidence.folder / f"screen-{now:07.1f}s.png"
        if self._shoot(path):
            self._pictures.append(path)
        if len(self._pictures) > _PICTURES_KEPT:
            self._pictures.pop(0).unlink(missing_ok=True)

    def _shoot(self, path: Path) -> bool:
        with suppress(OSError, ValueError, ImagesmithError):
            self._machine.screenshot(path)
            return True
        return False

    # -- the end -----------------------------------------------------------------------------------------------

    def _ended(self, how: str) -> str:
        if self._host.cancelled:  # which ends QEMU
            raise Interrupted()
        self._machine.console.finish()
        time.sleep(_POLL)  # the last datagrams
        self._gather()
        for line in self._lines.pending.split("\n"):
            self._watch.line(line, self.now)
        failure = self._watch.ending(how, self.now)
        if failure is not None:
            raise self.error(failure)
        return how

    def _again_or_fail(self, failure: Failure) -> None:
        if not failure.fluke or self._machine.spec.accelerator != "tcg" or not self._left:
            raise self.error(failure)
        self._left -= 1
        self._log(f"{failure.what}: the emulator's fault, on a busy host; starting the guest again")
        self._machine.start_again()
        self._watch.start()
        self._begin()

    def error(self, failure: Failure) -> BuildError:
        """The exception for a failure, with a last picture; what was seen last goes to the log."""
        if not self._machine.ended and self._machine.spec.screen:
            self._shoot(self._evidence.folder / "screen.png")
        tail = self._machine.console.tail()
        self._show("the console's last lines:", tail.split("\n")[-_TAIL:])
        message = failure.what + "".join(f"\n  {line}" for line in failure.lines)
        if failure.late:
            return TimedOut(message, tail=tail, hint=failure.hint)
        return GuestFailed(message, tail=tail, artifacts=self._evidence.files(), hint=failure.hint)

    def _show(self, title: str, lines: Sequence[str]) -> None:
        if any(lines):
            self._log(title)
            for line in lines:
                self._log(f"| {line}")
