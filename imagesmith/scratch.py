"""One private folder for all the temporary files of a build, which the next build removes where this one was killed.

It is below the system's folder for temporary files, for its owner alone (0700), and locked by its owner (flock(2)):
whoever can lock it knows that the owner is dead. Programs are not told of it (TMPDIR stays): what libguestfs keeps for
the next time must not go with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagesmith.store_files import Lock, lock_folder, remove_tree

_PREFIX = "imagesmith."  # short: there will be sockets in it


@contextmanager
def scratch() -> Iterator[Path]:
    """Let this process's temporary files be in a folder of its own, removed in the end. For one build at a time.

    Removes those that dead processes of this user left. Raises OSError.
    """
    outside = tempfile.gettempdir()
    _sweep(Path(outside))
    mine = _made(outside)
    tempfile.tempdir = str(mine.path)
    try:
        yield mine.path
    finally:
        tempfile.tempdir = outside
        with suppress(OSError):  # what cannot be removed is the next build's
            remove_tree(mine.path)
        mine.release()


def _made(outside: str) -> Lock:
    while True:
        made = lock_folder(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=outside)))
        if made is not None and made.path.is_dir():
            return made
        if made is not None:  # someone's sweep came between making and locking
            made.release()


def _sweep(outside: Path) -> None:
    for folder in outside.glob(_PREFIX + "*"):
        with suppress(OSError):  # it is another user's, or goes just now
            left = lock_folder(folder)
            if left is not None:
                remove_tree(folder)
                left.release()
