"""A shell in a guest's memory that waits at the control channel: how a guest that goes on from a checkpoint is asked.

A new SSH connection takes the better part of a second of an emulated guest; this shell was there when the state was
taken, with what the SSH connection that started it had: its user (root), its limits, its place among the control
groups. It gives scripts the same environment, which is none.

Words go both ways through one virtio-serial port. To the guest, lines, each request followed by its script's lines and
its stdin's bytes; from it what the script writes, as it comes, and in it two marks with the request's token, which
nobody in the guest knows beforehand::

    ask TOKEN LINES BYTES       to the guest: run a script
    drop                        to the guest: let go of the output of what a script left running
    said TOKEN                  to the guest: tell what the script wrote to stderr
    NUL TOKEN status N E LF     from it, when the script has ended; E: whether there is something on stderr
    NUL TOKEN end LF            from it, when nobody holds the script's stdout any more
    stderr NUL TOKEN said LF    from it
    ready, dropped              from it: it listens
"""

from __future__ import annotations

import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable

from imagesmith.errors import GuestFailed
from imagesmith.machine.arguments import CONTROL_PORT
from imagesmith.machine.qemu import Machine

_LINGER = 2.0
"""Seconds to wait for the rest of the output when a script has ended: what it left running may hold it open."""
_POLL = 0.1
_MOST_SAID = 3000
_PIECE = 1 << 20
"""Bytes to take at a go: a script that never stops talking would leave no time to look at anything else."""
_ANSWER_SECONDS = 60.0
_NO_PAUSE = threading.Event()
_NO_PAUSE.set()

# The script is read by the shell itself, its output goes through a named pipe: starting a program takes its time in an
# emulated guest. The port cannot be opened twice. The script does not run in the background: it would ignore SIGINT.
AGENT = f"""\
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
mask=$(umask)
umask 077
port=/dev/virtio-ports/{CONTROL_PORT}
if [ ! -c "$port" ]; then
    for name in /sys/class/virtio-ports/*/name; do
        if [ "$(cat "$name")" = {CONTROL_PORT} ]; then port=/dev/$(basename "$(dirname "$name")"); fi
    done
fi
work=$(mktemp -d /run/imagesmith.XXXXXX) || exit 1
mkfifo "$work/out" || exit 1
cd /
exec 3<>"$port" || exit 1
newline='
'
echo ready >&3
while read -r word token lines bytes <&3; do
    if [ "$word" = drop ]; then
        if read -r relay <"$work/relay"; then kill "$relay"; fi
        rm -f "$work/out"; mkfifo "$work/out"
        echo dropped >&3
    fi
    if [ "$word" = said ]; then
        tail -c {_MOST_SAID} "$work/err" >&3
        printf '\\000%s said\\n' "$token" >&3
    fi
    [ "$word" = ask ] || continue
    script= input=/dev/null
    while [ "$lines" -gt 0 ]; do
        IFS= read -r line <&3; script=$script$line$newline; lines=$((lines - 1))
    done
    if [ "$bytes" -gt 0 ]; then input=$work/in; head -c "$bytes" <&3 >"$input" || exit 1; fi
    {{ cat "$work/out" & echo $! >"$work/relay"; wait $! && printf '\\000%s end\\n' "$token"; }} >&3 2>/dev/null &
    (exec 3>&-; umask "$mask"; eval "$script") <"$input" >"$work/out" 2>"$work/err"
    status=$? said=0
    if [ "$bytes" -gt 0 ]; then : >"$input"; fi
    if [ -s "$work/err" ]; then said=1; fi
    printf '\\000%s status %s %s\\n' "$token" "$status" "$said" >&3
done
"""
"""For any POSIX shell with coreutils or busybox, as root; /run must be in memory."""


class Shell:
    """Our side of it. One request after the other."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._restarts = machine.restarts
        self._news = b""

    def listens(self) -> bool | None:
        """Whether the shell has said that it is there; None where it has not yet."""
        self._receive(0)
        return True if b"ready\n" in self._news else None

    def ask(self, script: str, *, within: float, input: bytes = b"",
            take: Callable[[bytes], object] = lambda data: None) -> tuple[int, str]:  # fmt: skip
        """Run a shell script in the guest; return its status and the end of its stderr. ``take`` gets its stdout.

        Raises TimedOut after ``within`` seconds, GuestFailed, Interrupted; what still runs is left to itself then, and
        this shell with it.
        """
        token = secrets.token_hex(8)
        lines = script.removesuffix("\n") + "\n"
        self._news = b""
        head = f"ask {token} {lines.count(chr(10))} {len(input)}\n"
        self._send((head + lines).encode("utf-8", "surrogateescape") + input)
        status_mark = re.compile(rb"\x00%s status (\d+) ([01])\n" % token.encode())
        end_mark = b"\0%s end\n" % token.encode()
        status: int | None = None
        said = ended = False
        over = 0.0

        def until() -> bool | None:
            nonlocal status, said, ended, over
            self._receive(_POLL)
            if status is None and (found := status_mark.search(self._news)):
                status, said = int(found[1]), found[2] == b"1"
                self._news = self._news[: found.start()] + self._news[found.end() :]
                over = time.monotonic() + _LINGER
            if end_mark in self._news:
                self._news = self._news.replace(end_mark, b"")
                ended = True
            # A mark that is not whole stays; a NUL of the script's own goes on when what follows is no mark.
            start = -1
            while (start := self._news.find(b"\0", start + 1)) >= 0:
                rest = self._news[start + 1 : start + 1 + len(token)]
                if token.encode().startswith(rest):
                    break
            ready = len(self._news) if start < 0 or (status is not None and ended) else start
            if ready:
                take(self._news[:ready])
                self._news = self._news[ready:]
            self._check()
            return True if status is not None and (ended or time.monotonic() > over) else None

        self._machine.watch(until, within=within, doing="end a program", wake=_NO_PAUSE)
        assert status is not None
        if not ended:
            self._answer(b"drop\n", b"dropped\n")
        mark = b"\0%s said\n" % token.encode()
        words = self._answer(b"said %s\n" % token.encode(), mark) if said else b""
        return status, words.decode("utf-8", "replace").strip()

    def _answer(self, request: bytes, mark: bytes) -> bytes:
        """What comes before ``mark``, for a request that takes no time."""
        self._news = b""
        self._send(request)

        def until() -> bool | None:
            self._receive(_POLL)
            self._check()
            return self._news.endswith(mark) or None

        self._machine.watch(until, within=_ANSWER_SECONDS, doing="answer", wake=_NO_PAUSE)
        return self._news.removesuffix(mark)

    def _send(self, data: bytes) -> None:
        wire = self._machine.control
        view = memoryview(data)
        while view:
            self._machine.check()
            self._check()
            if select.select([], [wire], [], _POLL)[1]:
                try:
                    view = view[wire.send(view[:65536], socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    continue
                except OSError:
                    self._machine.check()
                    raise

    def _receive(self, patience: float) -> None:
        """Take what has come, or a good piece of it; wait for at most ``patience`` seconds where nothing has."""
        wire, most = self._machine.control, len(self._news) + _PIECE
        while len(self._news) < most and select.select([wire], [], [], patience)[0]:
            try:
                news = wire.recv(1 << 18)
            except ConnectionResetError:
                news = b""
            if not news:  # QEMU has ended
                self._machine.check()
                raise self._lost()
            self._news += news
            patience = 0

    def _check(self) -> None:
        """Raise GuestFailed where the guest has restarted, or the shell has ended."""
        if self._machine.restarts > self._restarts:
            raise GuestFailed("the guest restarted itself while a step ran in it", tail=self._machine.console.tail())
        if self._machine.deserted:
            raise self._lost()

    def _lost(self) -> GuestFailed:
        return GuestFailed("the shell that waited in the guest has ended", tail=self._machine.console.tail(),
                           hint="did the step end all of root's processes?")  # fmt: skip
