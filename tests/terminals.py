"""A person at a terminal: a program is started at one, waited for, and typed to."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], *, size: tuple[int, int] = (30, 100)) -> None:
        self._pid, self._end = pty.fork()
        if self._pid == 0:
            os.execvpe(argv[0], argv, {**env, "TERM": "xterm"})
        termios.tcsetwinsize(self._end, size)
        self.seen = ""
        self._at = 0

    def expect(self, text: str, *, within: float = 600) -> str:
        """Wait until something is shown after what was waited for before; return all between the two."""
        deadline = time.monotonic() + within
        while (found := self.seen.find(text, self._at)) < 0:
            if time.monotonic() > deadline or not self._read():
                os.kill(self._pid, signal.SIGTERM)
                raise AssertionError(f"'{text}' was not shown:\n{self.seen[self._at :]}")
        between, self._at = self.seen[self._at : found], found + len(text)
        return between

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._end, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        termios.tcsetwinsize(self._end, (rows, columns))

    def end(self) -> int:
        """Wait for the program's end; return its exit status."""
        while self._read():
            pass
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def _read(self) -> bool:
        if not select.select([self._end], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._end, 65536)
        except OSError:  # nobody has the other end open any more
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)


def works_as_a_terminal(user: Terminal, before: str, shown: str, *, prompt: str = "# ") -> None:
    """Hold a shell at a prompt to what people expect: a size that follows the window's, and Ctrl-C.

    ``before`` is run first, and shows ``shown``.
    """
    user.expect(prompt)
    user.type(f"{before}; stty size; tty\n")
    assert f"{shown}\r\n30 100" in user.expect("/dev/pts/0")
    user.resize(40, 120)
    user.type("sh -c 'echo be''gun; exec sleep 1000'\n")
    user.expect("begun")
    user.type("\x03")
    user.expect(prompt)
    user.type("stty size\n")
    user.expect("40 120")
