"""A terminal for a shell inside: the agent's side. What is typed and shown goes over the pipes to the session."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
from collections.abc import Mapping
from typing import Any

from imagesmith.tree import wire

TYPED = ("typed", "resize")
"""The requests that only a running shell is interested in; they get no answer."""
_GET_PEER = 0x5441  # <asm-generic/ioctls.h>, TIOCGPTPEER: ioctl_tty(2)
_UNLOCK = 0x40045431  # TIOCSPTLCK


def pair(multiplexer: str) -> tuple[int, int]:
    """Open a new pseudo-terminal (pts(4)) of the file system that ``multiplexer`` belongs to: our end, and theirs."""
    master = os.open(multiplexer, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _UNLOCK, struct.pack("i", 0))
    return master, fcntl.ioctl(master, _GET_PEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def resize(master: int, request: Mapping[str, Any]) -> None:
    """Give a terminal the size that a request names."""
    termios.tcsetwinsize(master, (request["rows"], request["columns"]))


def take(slave: int) -> None:
    """Make a terminal this process's own: it leads a session there, so that jobs can be controlled."""
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number)


def pass_on(master: int, child: int, requests: int, answers: int) -> None:
    """Pass on what is typed and shown until ``child`` ends. Raises EOFError where the session is gone."""
    os.set_blocking(master, False)
    ended = os.pidfd_open(child)
    typed = b""
    try:
        over = False
        while not over:
            poll = select.poll()
            poll.register(master, select.POLLIN | (select.POLLOUT if typed else 0))
            poll.register(requests, select.POLLIN)
            poll.register(ended, select.POLLIN)
            events = dict(poll.poll())
            over = ended in events
            if requests in events:
                request, payload = wire.receive(requests)
                if request["op"] == "typed":
                    typed += payload
                elif request["op"] == "resize":
                    resize(master, request)
            if typed:
                typed = typed[_write(master, typed) :]
            while data := _read(master):
                wire.send(answers, {"more": True, "shown": True}, data)
            if not over and events.get(master, 0) & select.POLLHUP:  # nobody has it open: the shell is about to end
                select.select([ended], [], [], 0.05)
        os.waitpid(child, 0)
    finally:
        os.close(ended)


def _write(master: int, data: bytes) -> int:
    try:
        return os.write(master, data)
    except BlockingIOError:
        return 0


def _read(master: int) -> bytes:
    try:
        return os.read(master, 1 << 16)
    except BlockingIOError:
        return b""
    except OSError as error:
        if error.errno == errno.EIO:  # nobody has the other end open
            return b""
        raise
