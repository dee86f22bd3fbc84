"""QEMU's guest agent, where one runs in the guest: it freezes file systems cleanly, with VSS on Windows.

Its protocol is JSON, a line each way, over a virtio-serial port (QEMU: "QEMU Guest Agent Protocol Reference"). Whether
somebody reads there cannot be told from outside, so it is asked for a number that it must repeat; what stands before
the answer (after a byte 0xFF) is left from before. Guests with fsfreeze(8) have no need of it (ssh_wire.py).
"""

from __future__ import annotations

import json
import random
import select
import socket
import time
from typing import Any

from imagesmith.errors import TimedOut, ToolFailed

PORT = "org.qemu.guest_agent.0"
_THERE_SECONDS = 3.0
_FREEZE_SECONDS = 120.0
"""VSS itself gives up after a minute."""
_MOST = 1 << 20


class GuestAgent:
    """Our side of the agent's port."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._buffer = b""

    def freeze(self) -> bool:
        """Freeze the guest's file systems; False where no agent answers, or where it cannot."""
        if not self._there():
            return False
        try:
            return int(self._ask("guest-fsfreeze-freeze", _FREEZE_SECONDS)) > 0
        except (ToolFailed, TimedOut):
            return False

    def thaw(self) -> None:
        """Let the file systems go. Raises ToolFailed, TimedOut."""
        self._ask("guest-fsfreeze-thaw", _FREEZE_SECONDS)

    def _there(self) -> bool:
        number = random.randrange(1, 1 << 31)
        deadline = time.monotonic() + _THERE_SECONDS
        try:
            self._send("guest-sync-delimited", id=number)
            while (answer := self._answer(deadline)) is not None:
                if answer.get("return") == number:
                    return True
        except OSError:
            pass
        return False

    def _send(self, command: str, **arguments: object) -> None:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._wire.sendall(json.dumps(request).encode() + b"\n")

    def _ask(self, command: str, within: float) -> Any:
        try:
            self._send(command)
            answer = self._answer(time.monotonic() + within)
        except OSError as error:
            raise ToolFailed(f"the guest agent's port: {error.strerror}") from error
        if answer is None:
            raise TimedOut(f"the guest agent did not answer to {command} within {within:g} s")
        if "error" in answer:
            said = answer["error"].get("desc", "no reason given") if isinstance(answer["error"], dict) else "an error"
            raise ToolFailed(f"the guest agent: {command}: {said}")
        return answer.get("return")

    def _answer(self, deadline: float) -> dict[str, Any] | None:
        while True:
            line, end, rest = self._buffer.partition(b"\n")
            if end:
                self._buffer = rest
                try:
                    found = json.loads(line.rpartition(b"\xff")[2])
                except ValueError:  # left from before
                    continue
                if isinstance(found, dict):
                    return found
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._wire], [], [], left)[0]:
                return None
            news = self._wire.recv(65536)
            if not news or len(self._buffer) > _MOST:
                raise OSError(0, "closed, or more than an answer")
            self._buffer += news
