"""A shell where no program can have a terminal: each line that is typed is run, and its output shown."""

from __future__ import annotations

from collections.abc import Callable

from imagesmith.errors import BuildError
from imagesmith.interfaces import Terminal

PLACE = "/run/.imagesmith-folder"
SCRIPT = f'cd -- "$1" 2>/dev/null || cd /; trap "pwd >{PLACE}" EXIT; eval "$2"'
"""For a shell: the folder to be in and the line. The folder that the line leads to is in ``PLACE`` afterwards."""


def lines(terminal: Terminal, run: Callable[[str], int], where: Callable[[], str]) -> None:
    """Take lines until the user is done. ``run`` gives a line's exit status; ``where`` is for the prompt."""

    def one(line: str) -> None:
        try:
            status = run(line)
        except BuildError as error:
            terminal.say(error.message)
        else:
            if status:
                terminal.say(f"(exit status {status})")

    terminal.lines(lambda: f"{where()}# ", one)
