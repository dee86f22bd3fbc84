"""Who is at the other end of a connection from this host: other users must not speak for the guest, nor listen.

QEMU's user networking connects from the loopback address for the guest. Any user of this host can do that; which user
it is stands in /proc/net/tcp and /proc/net/udp (Linux, Documentation/networking/proc_net_tcp.rst).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

GUESTS_HOST = "10.0.2.2"
"""By this address a guest reaches this host's loopback (QEMU's manual, "Network emulation", user mode)."""


def is_ours(protocol: Literal["tcp", "udp"], port: int) -> bool:
    """Whether the socket that this host's loopback is reached from, by its port, belongs to this user."""
    for line in Path("/proc/net", protocol).read_text().splitlines()[1:]:
        fields = line.split()
        address, _, number = fields[1].partition(":")
        if int(number, 16) == port and address in ("0100007F", "00000000") and int(fields[7]) == os.geteuid():
            return True
    return False
