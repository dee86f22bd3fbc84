"""The user's terminal, lent to a shell that runs somewhere else: byte by byte, or a line at a time."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import suppress

_TICK = 0.25
"""Seconds between two looks at what has no descriptor: the window's size, and whether the other side has ended."""
_CHUNK = 4096


def there() -> bool:
    """Whether somebody sits at stdin, and sees what is written."""
    return os.isatty(0) and (os.isatty(1) or os.isatty(2))


class UserTerminal:
    """Implements interfaces.Terminal: reads ``keys`` and writes to ``screen``, two descriptors of one terminal."""

    def __init__(self, keys: int = 0, screen: int | None = None) -> None:
        self._keys = keys
        self._screen = (1 if os.isatty(1) else 2) if screen is None else screen
        self.kind = os.environ.get("TERM", "") or "dumb"

    @property
    def size(self) -> tuple[int, int]:
        """See interfaces.Terminal."""
        with suppress(OSError, termios.error):
            rows, columns = termios.tcgetwinsize(self._screen)
            if rows and columns:
                return rows, columns
        return 24, 80

    def say(self, line: str) -> None:
        """See interfaces.Terminal."""
        print(line, file=sys.stderr, flush=True)

    def relay(
        self, ready: int, receive: Callable[[], bytes | None], send: Callable[[bytes], object],
        resize: Callable[[int, int], object], ended: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """See interfaces.Terminal."""
        before = termios.tcgetattr(self._keys)
        size = self.size
        tty.setraw(self._keys, termios.TCSADRAIN)
        try:
            while True:
                found, _, _ = select.select([ready, self._keys], [], [], _TICK)
                if ready in found:
                    data = receive()
                    if data is None:
                        return
                    self._show(data)
                elif ended():
                    return
                if self._keys in found:
                    typed = os.read(self._keys, _CHUNK)
                    if not typed:
                        raise KeyboardInterrupt  # the terminal is gone, and who sat there
                    send(typed)
                if self.size != size:
                    size = self.size
                    resize(*size)
        finally:
            termios.tcsetattr(self._keys, termios.TCSADRAIN, before)

    def lines(self, prompt: Callable[[], str], run: Callable[[str], object]) -> None:
        """See interfaces.Terminal."""
        with suppress(ImportError):  # the user's own editing and history, where Python has it
            import readline  # noqa: F401
        while True:
            try:
                line = input(self._asked(prompt()))
                if line.split()[:1] == ["exit"]:
                    return
                if line.strip():
                    run(line)
            except EOFError:
                self._show(b"\n")
                return

    def _asked(self, prompt: str) -> str:
        """What ``input`` is to show: it writes to stdout, which may be no terminal."""
        if os.isatty(1):
            return prompt
        self.show(prompt)
        return ""

    def show(self, text: str) -> None:
        """See interfaces.Terminal."""
        self._show(text.encode("utf-8", "surrogateescape"))

    def _show(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._screen, view) :]
