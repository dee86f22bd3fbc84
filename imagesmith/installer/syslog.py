"""What an installer logs, besides its console: lines that come by UDP or through a virtio-serial port.

The lines go to a file that cannot grow without end, and to whoever watches.
"""

from __future__ import annotations

import re
import socket
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Self

from imagesmith.installer.peers import GUESTS_HOST, is_ours
from imagesmith.machine.console import LOG_LIMIT, Lines, plain

_WAITING = 20_000
"""Lines that are kept for the watcher, which takes them several times a second."""
_PRIORITY = re.compile(rb"^<\d{1,3}>")  # RFC 3164, 4.1.1


class Journal:
    """The installer's log, from wherever it comes."""

    def __init__(self, log: Path) -> None:
        """``log`` is a file to make."""
        self.log = log
        self._kept = 0
        self._lines: deque[str] = deque(maxlen=_WAITING)
        self._lock = threading.Lock()

    def add(self, lines: list[str]) -> None:
        """Take lines in."""
        lines = [line for line in lines if line]
        with self._lock:
            self._lines.extend(lines)
            if lines and self._kept < LOG_LIMIT:
                with suppress(OSError), self.log.open("a", encoding="utf-8") as file:  # the watch goes on without it
                    self._kept += file.write("".join(f"{line}\n" for line in lines))

    def take(self) -> list[str]:
        """The lines since the last call."""
        with self._lock:
            taken = list(self._lines)
            self._lines.clear()
        return taken


class Syslog:
    """A receiver of syslog messages by UDP (RFC 3164) on the loopback address, for as long as a ``with`` block lasts.

    What another user of this host sends is not taken (peers.py).
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._known: dict[int, bool] = {}

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._read, name="syslog", daemon=True)
        self._ended = False
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    @property
    def address(self) -> tuple[str, int]:
        """Where the guest finds it: address and port."""
        return GUESTS_HOST, self._socket.getsockname()[1]

    def _read(self) -> None:
        while not self._ended:
            message, (_, port) = self._socket.recvfrom(65536)
            if message and self._ours(port):
                self._journal.add(plain(_PRIORITY.sub(b"", message)).split("\n"))

    def _ours(self, port: int) -> bool:
        if port not in self._known:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[port] = is_ours("udp", port)
        return self._known[port]


class Ports:
    """Reads virtio-serial ports until the machine ends."""

    def __init__(self, wires: tuple[socket.socket, ...], journal: Journal) -> None:
        for number, wire in enumerate(wires):
            threading.Thread(target=self._read, args=(wire, journal), name=f"port {number}", daemon=True).start()

    def _read(self, wire: socket.socket, journal: Journal) -> None:
        lines = Lines()
        while True:
            try:
                news = wire.recv(65536)
            except OSError:
                break
            if not news:
                break
            journal.add(lines.feed(news))
        journal.add(lines.pending.split("\n"))
