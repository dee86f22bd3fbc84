"""Something listens on a TCP port, and can be reached from outside."""

from __future__ import annotations

import select
import socket
from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import ask, eventually
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Duration

# States of a connection (Linux: include/net/tcp_states.h).
_ESTABLISHED, _LISTENING = "01", "0A"
_TABLE = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null"
_CONNECT_SECONDS = 10.0
_STAYS_OPEN_SECONDS = 0.5


class Port(Check, name="port", version=1, shorthand="number"):
    """A program in the guest listens on a TCP port, on an address that others can reach, and takes connections."""

    number: Annotated[int, Field(ge=1, le=65535, description="The TCP port.")]
    within: Annotated[Duration, Field(ge=0, description="How long to wait for it.")] = 60.0

    def describe(self) -> str:
        """See Kind."""
        return str(self.number)

    def check(self, guest: Guest) -> str:
        """See Check."""
        return eventually(lambda: self._once(guest), self.within)

    def _once(self, guest: Guest) -> str:
        addresses = ends(ask(guest, _TABLE).output, self.number, _LISTENING)
        if not addresses:
            raise CheckFailed(f"expected a program that listens on TCP port {self.number}, but there is none")
        if not any(reachable(address) for address in addresses):
            raise CheckFailed(f"port {self.number} is open on {', '.join(addresses)} only, where nobody outside the "
                              "guest can reach it")  # fmt: skip
        try:
            with socket.create_connection(guest.forward(self.number), timeout=_CONNECT_SECONDS) as wire:
                self._prove(guest, wire)
        except OSError as error:
            raise CheckFailed(f"port {self.number} is open in the guest, but cannot be reached: {error}") from error
        return f"listens on {', '.join(addresses)} and takes connections"

    def _prove(self, guest: Guest, wire: socket.socket) -> None:
        """Make sure that the guest has taken the connection: QEMU takes it first, whatever the guest does then."""
        if select.select([wire], [], [], _STAYS_OPEN_SECONDS)[0]:
            if wire.recv(1) == b"":
                raise CheckFailed(f"port {self.number} is open, but connections from outside are closed at once")
            return
        if not ends(ask(guest, _TABLE).output, self.number, _ESTABLISHED):
            raise CheckFailed(f"port {self.number} is open, but connections from outside do not reach it "
                              "(a packet filter in the guest?)")  # fmt: skip


def ends(table: str, port: int, state: str) -> list[str]:
    """The guest's own addresses of the connections in ``state`` on ``port``.

    ``table`` is /proc/net/tcp and tcp6 (Linux: Documentation/networking/proc_net_tcp.rst).
    """
    found = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 4 or fields[3] != state:
            continue
        address, _, number = fields[1].rpartition(":")
        try:
            if int(number, 16) == port:
                found.add(_address(address))
        except (ValueError, OSError):
            continue
    return sorted(found)


def _address(text: str) -> str:
    """An address as the kernel prints it: 32-bit words, each in the machine's byte order (little-endian here)."""
    raw = bytes.fromhex(text)
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def reachable(address: str) -> bool:
    """Whether an address is not the loopback's alone."""
    return not (address.startswith(("127.", "::ffff:127.")) or address == "::1")
