"""What a request over SSH is made of: pipes pumped and fed, a pulse that is felt, a guest that is held still."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import IO, BinaryIO, Self

from imagesmith.errors import GuestFailed
from imagesmith.host import Process
from imagesmith.machine.qemu import Machine

_CHUNK = 65536
_POLL = 0.1
HOLD_SECONDS = 300.0
_AT_ONCE = threading.Event()
_AT_ONCE.set()
_ALIVE_SECONDS = 30.0
"""When nothing has come from the guest for so long, it is asked whether it is still there …"""
_LOST_SECONDS = 180.0
"""… and after so long without an answer the connection counts as lost."""
_LAST_CHANCE = 10.0
"""Seconds that a guest has to show that it is still there when a deadline has passed."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH\n"

# Freezing writes everything that is pending and empties the journal (fsfreeze(8)): the disk is then as if unmounted.
# / comes last, because it was mounted first. It forks as little as can be: that takes its time in an emulated guest.
FREEZE = f"""{_PATH}points= others=
while read -r device point type rest; do
    case $type:$device in
    ext[234]:*|xfs:*|btrfs:*) points="$point $points" ;;
    zfs:*|*:/dev/*) others=yes ;;
    esac
done </proc/mounts
held=
if ! command -v fsfreeze >/dev/null; then sync; else
    [ -z "$others" ] || sync
    for point in $points; do fsfreeze -f "$point" && held="$point $held"; done
fi
echo "held $held"
"""
"""For the guest's shell: hold its file systems still; tells which."""
THAW = f"""{_PATH}while read -r device point type rest; do
    case $type in ext[234]|xfs|btrfs) fsfreeze -u "$point" 2>/dev/null ;; esac
done </proc/mounts
"""
"""For the guest's shell: let all of them go."""
# The shell that froze them also thaws them, even when the connection is gone (read meets the end of stdin).
HOLD = f"""{_PATH}while read -r word; do
    {FREEZE}    read -r word
    for point in $held; do fsfreeze -u "$point"; done
    echo thawed
done
"""


class Holder:
    """Holds a guest's file systems still, and lets them go again; it waits in the guest between two times."""

    def __init__(self, machine: Machine, client: Process, request: bytes) -> None:
        """``request`` begins the client's conversation; it makes a shell of the guest run ``HOLD``."""
        self._machine, self._client = machine, client
        self._said = b""
        self._send(request)

    @property
    def alive(self) -> bool:
        """Whether its connection stands."""
        return self._client.poll() is None

    def hold(self) -> bool:
        """Hold still what was written; False where the guest has no fsfreeze: its journals are then in use.

        Raises TimedOut, GuestFailed, Interrupted.
        """
        self._send(b"hold\n")
        return len(self._wait(b"held", "bring its file systems to rest").split()) > 1

    def release(self) -> None:
        """Let the guest write again. Raises TimedOut, GuestFailed, Interrupted."""
        self._send(b"release\n")
        self._wait(b"thawed", "let go of its file systems")

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
                while b"\n" in self._said:
                    line, _, self._said = self._said.partition(b"\n")
                    if line.startswith(word):
                        return line.decode("utf-8", "replace")
                if not select.select([wire], [], [], _POLL)[0]:
                    return None
                news = os.read(wire, _CHUNK)
                if not news:
                    self._machine.check()
                    raise GuestFailed("the SSH connection to the guest was lost at the end of a step",
                                      tail=self._machine.console.tail())  # fmt: skip
                self._said += news

        return self._machine.watch(until, within=HOLD_SECONDS, doing=doing, wake=_AT_ONCE)


class Pulse:
    """Finds out whether a guest that says nothing is still there, by asking it for nothing."""

    def __init__(self, start: Callable[[], AbstractContextManager[Process]]) -> None:
        self._start = start
        self._stack = ExitStack()
        self._asked: Process | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def felt(self) -> None:
        """Something came from the guest."""
        self._last = time.monotonic()

    def feel(self) -> None:
        """Look again. Raises GuestFailed when there has been no sign for too long."""
        silent = time.monotonic() - self._last
        if silent > _ALIVE_SECONDS and not self._answered() and silent > _LOST_SECONDS:
            raise GuestFailed(f"the guest has not answered over the network for {silent:.0f} s",
                              hint="did the step switch its network off?")  # fmt: skip

    def last_chance(self) -> bool:
        """Whether the guest is still there, at a deadline."""
        end = time.monotonic() + _LAST_CHANCE
        while not self._answered():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def _answered(self) -> bool:
        if self._asked is None:
            self._asked = self._stack.enter_context(self._start())
        if self._asked.poll() is None:
            return False
        self._stack.close()
        self._asked = None
        self.felt()
        return True


def pump(stream: IO[bytes], take: Callable[[bytes], object], wake: threading.Event) -> threading.Event:
    """Hand on what comes through a pipe, until it is closed: the event that is returned; each time ``wake`` is set."""
    wire, closed = stream.fileno(), threading.Event()

    def run() -> None:
        with suppress(OSError):
            while news := os.read(wire, _CHUNK):
                take(news)
                wake.set()
        closed.set()
        wake.set()

    threading.Thread(target=run, name="ssh", daemon=True).start()
    return closed


def feed(stream: IO[bytes], data: bytes, rest: BinaryIO | None) -> None:
    """Write to a pipe and close it; what the other end does not want is let go."""

    def run() -> None:
        with suppress(OSError, ValueError):  # the program has ended, and the pipe with it
            stream.write(data)
            while rest is not None and (more := rest.read(_CHUNK)):
                stream.write(more)
            stream.close()

    threading.Thread(target=run, name="ssh", daemon=True).start()
