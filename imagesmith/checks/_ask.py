"""What several checks need: asking again until it is so, and reading answers."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest, Result

ASK_SECONDS = 120.0
"""For a question that takes milliseconds on an idle machine, and half a minute in an emulated one on a busy host."""
_PAUSE = 1.0


def ask(guest: Guest, script: str) -> Result:
    """Ask the guest something quick. Raises TimedOut, GuestFailed."""
    return guest.run(script, timeout=ASK_SECONDS)


def quote(text: str) -> str:
    """A word for a shell."""
    return shlex.quote(text)


def eventually(attempt: Callable[[], str], within: float) -> str:
    """Return what ``attempt`` returns, trying again for ``within`` seconds while it raises CheckFailed."""
    deadline = time.monotonic() + within
    while True:
        try:
            return attempt()
        except CheckFailed:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE)


def shown(output: str, lines: int = 15, width: int = 300) -> str:
    """The end of an output, indented, for a message; ``(nothing)`` where there is none."""
    kept = [line[:width] for line in output.strip().splitlines()][-lines:]
    return "\n".join("    " + line for line in kept) if kept else "    (nothing)"
