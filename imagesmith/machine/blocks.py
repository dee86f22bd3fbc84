"""Pages of a guest's memory that are on its disk as well: programs, libraries, and whatever else it has read of files.

A page is looked for in the files that the disk consists of, as they lie in the host's file system: what they mean does
not matter, as long as they do not change. A qcow2 file keeps what is not compressed in whole clusters, and file systems
have blocks of 4 KiB, so a page of a file is there as it is in memory.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from operator import xor
from pathlib import Path

PAGE = 4096
_PIECE = 4 << 20
_PLACES = (21, 149, 277, 405)
"""What words of eight bytes, of a page's 512, its mark is made of."""
_SECONDS = 1.0
"""How long to read on in files at a time; a GiB is read in half a second where the host has it in its memory."""


def marks(data: bytes | bytearray) -> list[int]:
    """A number for each whole page of ``data``: equal pages have equal ones, and others hardly ever."""
    words = memoryview(data)[: len(data) // PAGE * PAGE].cast("Q")
    a, b, c, d = (words[place::512].tolist() for place in _PLACES)
    return list(map(xor, map(xor, a, b), map(xor, c, d)))


class Blocks:
    """What is known of files; they must not change."""

    def __init__(self) -> None:
        self._marks: dict[tuple[int, int], array[int]] = {}
        """Of a file, by its device and inode: it may get another name."""

    def find(self, files: Sequence[Path], wanted: Mapping[int, Sequence[int]], page: Callable[[int], bytes],
             ) -> dict[int, tuple[int, int]]:  # fmt: skip
        """Look for pages; return where those are that were found: the number of a file, and the place in it.

        ``wanted`` are their places in memory by their marks; 0 is not looked for, nearly empty pages have it. ``page``
        gives what is at a place. What is not read of the files in time is read on the next time. Raises OSError.
        """
        found: dict[int, tuple[int, int]] = {}
        deadline = time.monotonic() + _SECONDS
        for number in range(len(files) - 1, -1, -1):  # the oldest is the large one
            with files[number].open("rb", buffering=0) as file:
                known = self._read_on(file.fileno(), deadline)
                for at, mark in enumerate(known):
                    if mark in wanted and mark:
                        missing = [place for place in wanted[mark] if place not in found]
                        block = os.pread(file.fileno(), PAGE, at * PAGE) if missing else b""
                        found |= {place: (number, at * PAGE) for place in missing if page(place) == block}
        return found

    def _read_on(self, file: int, deadline: float) -> array[int]:
        about = os.fstat(file)
        known = self._marks.setdefault((about.st_dev, about.st_ino), array("Q"))
        while time.monotonic() < deadline:
            new = marks(os.pread(file, _PIECE, len(known) * PAGE))
            known.extend(new)
            if not new:
                break
        return known
