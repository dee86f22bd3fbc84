"""The user, let into a guest without network, login or password: a console is plugged in, and a shell started at it."""

from __future__ import annotations

import secrets
import shlex

from imagesmith.errors import BuildError
from imagesmith.interfaces import Terminal
from imagesmith.machine.channel import Channel
from imagesmith.machine.qemu import Machine

_DEVICE = "/dev/hvc0"
_SECONDS = 60.0
_NO_CONSOLE = 3
# A console has no session and no owner yet: setsid(1) gives it both, so that jobs work as they should. It goes into the
# background by itself: what a shell sends there ignores Ctrl-C, and so would all that is started at the console.
_START = f"""\
turn=0
while ! stty -F {_DEVICE} >/dev/null 2>&1; do
    turn=$((turn + 1)); [ "$turn" -lt 40 ] || exit {_NO_CONSOLE}
    sleep 0.5
done
export TERM={{kind}} HOME=/root
setsid -f -c sh -c {{shell}} <{_DEVICE} >{_DEVICE} 2>&1
"""
_SHELL = (
    "stty rows {rows} cols {columns}; cd /root 2>/dev/null || cd /; "
    "if command -v bash >/dev/null; then bash -l; else sh -i; fi; printf {end}"
)


def let_in(machine: Machine, channel: Channel, terminal: Terminal) -> None:
    """Let the user in until the shell there ends. The control channel has been heard of.

    Raises BuildError where the guest gets no such console, GuestFailed where it ends meanwhile.
    """
    wire = machine.plug_console()
    mark = secrets.token_hex(16).encode()
    end = b"\x1e" + mark + b"\x1e"
    rows, columns = terminal.size
    shell = _SHELL.format(rows=rows, columns=columns, end=shlex.quote(f"\\036{mark.decode()}\\036"))
    start = _START.format(kind=shlex.quote(terminal.kind), shell=shlex.quote(shell))
    done = channel.ask(start, timeout=_SECONDS)
    if done.status != 0:
        why = "its kernel knows no virtio consoles" if done.status == _NO_CONSOLE else done.output.strip()
        raise BuildError(f"no shell can be started in the guest: {why}")
    terminal.say("a shell in the booted copy, at a console of its own")
    held, over = b"", False

    def receive() -> bytes | None:
        nonlocal held, over
        news = wire.recv(1 << 16)
        if not news:  # QEMU has ended
            machine.check()
            return None
        held += news
        shown, found, _ = held.partition(end)
        over = bool(found)
        keep = 0 if over else next((n for n in range(len(end) - 1, 0, -1) if shown.endswith(end[:n])), 0)
        held = shown[len(shown) - keep :]
        return shown[: len(shown) - keep]

    def resize(rows: int, columns: int) -> None:
        channel.ask(f"stty -F {_DEVICE} rows {rows} cols {columns}", timeout=_SECONDS)

    def ended() -> bool:
        machine.check()
        return over

    terminal.relay(wire.fileno(), receive, wire.sendall, resize, ended)
