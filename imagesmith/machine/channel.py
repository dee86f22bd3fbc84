"""The control channel: shell scripts run as the guest's root through a virtio-serial port.

It needs no network, no sshd and no password, only a small systemd unit that is put into a throw-away copy of the disk
before it boots (inject.py). Requests and answers are lines::

    NUMBER SECONDS BASE64(script)          to the guest
    ready                                  from the guest, each time its side (re)starts
    NUMBER STATUS BASE64(output)           from the guest; output: stdout and stderr, the first 256 KiB
"""

from __future__ import annotations

import base64
import binascii
import re
import select
import time

from imagesmith.errors import GuestFailed, TimedOut
from imagesmith.interfaces import Result
from imagesmith.machine.arguments import CONTROL_PORT
from imagesmith.machine.qemu import Machine

SERVICE = "imagesmith-control.service"
SCRIPT_PATH = "/etc/imagesmith-control"
_LIMIT = 256 * 1024
_LINE_LIMIT = 2 * _LIMIT
_ANSWER = re.compile(rb"(\d{1,9}) (\d{1,3}) ([A-Za-z0-9+/=]*)")
_SLACK = 60.0
"""Seconds that an answer may be late beyond the script's own deadline: starting a shell takes seconds at times."""

# IgnoreOnIsolate: it must go on speaking when start-up ends in emergency mode (systemd.unit(5)).
UNIT = f"""\
[Unit]
Description=Control channel of imagesmith, in this throw-away copy only
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
IgnoreOnIsolate=yes

[Service]
ExecStart=/bin/sh {SCRIPT_PATH}
Restart=always
RestartSec=1
OOMScoreAdjust=-900
"""

# The guest's side, for any POSIX shell with coreutils or busybox. The port cannot be opened twice, hence descriptor 3
# for all time. `timeout` ends what runs too long, so that the next request finds somebody listening.
SCRIPT = f"""\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 LC_ALL=C.UTF-8
umask 077
port=/dev/virtio-ports/{CONTROL_PORT}
while [ ! -c "$port" ] || [ ! -d /run ]; do
    for name in /sys/class/virtio-ports/*/name; do
        if [ -r "$name" ] && [ "$(cat "$name")" = {CONTROL_PORT} ]; then
            port=/dev/$(basename "$(dirname "$name")")
        fi
    done
    sleep 0.3
done
work=$(mktemp -d /run/imagesmith.XXXXXX) || exit 1
cd /
exec 3<>"$port" || exit 1
echo ready >&3
while read -r number seconds script <&3; do
    printf %s "$script" | base64 -d >"$work/script"
    (umask 022; exec timeout -k 5 "$seconds" /bin/sh "$work/script") >"$work/output" 2>&1 </dev/null 3>&-
    status=$?
    printf '%s %s %s\\n' "$number" "$status" "$(head -c {_LIMIT} "$work/output" | base64 | tr -d '\\n')" >&3
done
"""


class Channel:
    """Our side of one machine's control channel."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._buffer = b""
        self._number = 0
        self._answers: dict[int, Result] = {}
        self.ready = False
        """Whether the guest's side has spoken since the guest started (or restarted)."""

    def listen(self) -> None:
        """Take what has come from the guest, without waiting. Raises GuestFailed for anything but the protocol."""
        wire = self._machine.control
        while select.select([wire], [], [], 0)[0]:
            try:
                news = wire.recv(65536)
            except ConnectionResetError:
                return
            if not news:  # QEMU has ended; Machine.check says why
                return
            self._buffer += news
            *lines, self._buffer = self._buffer.split(b"\n")
            for line in lines:
                self._take(line.rstrip(b"\r"))
            if len(self._buffer) > _LINE_LIMIT:
                raise GuestFailed("the guest sends rubbish through the control channel")

    def _take(self, line: bytes) -> None:
        if line == b"ready":
            self.ready = True
            return
        parts = _ANSWER.fullmatch(line)
        if parts is not None:  # anything else is the rest of an answer that a restart cut off
            try:
                output = base64.b64decode(parts[3], validate=True).decode("utf-8", "replace")
            except binascii.Error:
                return
            self._answers[int(parts[1])] = Result(int(parts[2]), output)

    def ask(self, script: str, *, timeout: float, again: bool = False) -> Result:
        """Run a script in the guest. ``again``: send it anew if the guest restarts itself meanwhile.

        Raises TimedOut (after ``timeout`` seconds of the guest's clock, or when no answer comes), GuestFailed.
        """
        number, restarts = self._send(script, timeout), self._machine.restarts

        def answered() -> Result | None:
            nonlocal number, restarts
            self.listen()
            if number not in self._answers and self._machine.restarts > restarts:
                if not again:
                    raise GuestFailed("the guest restarted itself while a script ran in it",
                                      tail=self._machine.console.tail())  # fmt: skip
                number, restarts = self._send(script, timeout), self._machine.restarts
            return self._answers.pop(number, None)

        begun = time.monotonic()
        result = self._machine.watch(answered, within=timeout + _SLACK, doing="answer a request")
        # What is left by a program that timeout(1) ended: 124, 137 when it took a KILL, 143 from busybox.
        if result.status in {124, 137, 143} and time.monotonic() - begun >= timeout:
            raise TimedOut(f"a script did not end within {timeout:g} s in the guest", tail=result.output)
        return result

    def _send(self, script: str, timeout: float) -> int:
        self._number += 1
        body = base64.b64encode(script.encode())
        wire = self._machine.control
        wire.settimeout(30)
        try:
            wire.sendall(b"%d %d %s\n" % (self._number, max(1, round(timeout)), body))
        except TimeoutError:
            raise GuestFailed("the guest does not read from its control channel",
                              tail=self._machine.console.tail()) from None  # fmt: skip
        except OSError:
            self._machine.check()
            raise
        return self._number

