"""The user, let into a running guest over its SSH connection, at a terminal in the guest."""

from __future__ import annotations

import os
import secrets
import select
import shlex
import signal
import termios
import time
from collections.abc import Sequence
from contextlib import ExitStack

from imagesmith.errors import GuestFailed
from imagesmith.host import Process
from imagesmith.interfaces import Connection, Terminal

_SECONDS = 60.0
_SHELL = "cd /root 2>/dev/null || cd /; command -v bash >/dev/null && exec bash -l; exec sh -i"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def shell(connection: Connection, terminal: Terminal) -> None:
    """Run a shell as root (interfaces.Enterable). Raises GuestFailed where there is no way in."""
    connection.check()
    question = secrets.token_hex(16)
    become = f"sudo -k -S -p {question} --" if connection.sudo_password else "sudo -n --"
    inside = (f"env -i PATH={_PATH} HOME=/root LANG=C.UTF-8 TERM={shlex.quote(terminal.kind)} "
              f"/bin/sh -c {shlex.quote(_SHELL)}")  # fmt: skip
    script = f'[ "$(id -u)" != 0 ] || exec {inside}; exec {become} {inside}'
    command = f"exec /bin/sh -c {shlex.quote(script)}"  # whatever the user's own shell is
    terminal.say("a shell in the running guest, over SSH")
    at_terminal(connection, terminal, [command], question if connection.sudo_password else "")


def at_terminal(connection: Connection, terminal: Terminal, command: Sequence[str], question: str = "") -> int:
    """Run a command, or the user's own shell, at a terminal in the guest; return ssh's exit status.

    ``question`` is what sudo asks for its password with, where it will. ssh gets a terminal of its own, which is passed
    on: the program that holds the connection reads what is typed, and runs in the background of the user's terminal,
    where it may not.
    """
    with ExitStack() as stack:
        ours, theirs = os.openpty()
        stack.callback(os.close, ours)
        termios.tcsetwinsize(theirs, terminal.size)
        try:
            process = stack.enter_context(connection.host.start(
                ["ssh", *connection.options, "-tt", "-e", "none", f"{connection.user}@{connection.name}", *command],
                purpose="let you into a guest", stdin=theirs, stdout=theirs, stderr=theirs,
                env={"TERM": terminal.kind},
            ))  # fmt: skip
        finally:
            os.close(theirs)
        if question:
            _answer(ours, question.encode(), connection.sudo_password, process)

        def resize(rows: int, columns: int) -> None:
            termios.tcsetwinsize(ours, (rows, columns))
            process.send_signal(signal.SIGWINCH)

        terminal.relay(ours, lambda: _read(ours), lambda data: os.write(ours, data), resize,
                       lambda: process.poll() is not None)  # fmt: skip
        return process.wait()


def _answer(terminal: int, question: bytes, password: str, process: Process) -> None:
    """Wait for sudo's question and answer it. It has switched the echo off by then (sudo: src/tgetpass.c)."""
    said, deadline = b"", time.monotonic() + _SECONDS
    while question not in said:
        if time.monotonic() > deadline or process.poll() is not None:
            words = said.decode("utf-8", "replace").strip()
            raise GuestFailed("sudo did not ask for the password" + (f": {words}" if words else ""))
        if select.select([terminal], [], [], 0.25)[0]:
            said += _read(terminal) or b""
    os.write(terminal, password.encode() + b"\n")


def _read(terminal: int) -> bytes | None:
    """What is to be seen; None when nobody has the other end open any more."""
    try:
        return os.read(terminal, 1 << 16) or None
    except OSError:
        return None
