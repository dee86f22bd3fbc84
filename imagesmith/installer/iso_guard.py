"""Bounds for what an ISO makes us read and write: it is somebody else's work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imagesmith.errors import ImagesmithError, Refused

STRUCTURE_LIMIT = 96 << 20
"""Bytes of directories that are read: several times what the largest DVDs have (some 50 000 files)."""
CHUNK = 1 << 20
_LEAST = 2048


class Bounded:
    """Takes what pycdlib writes, up to a limit."""

    def __init__(self, into: BinaryIO, limit: int, what: str) -> None:
        self._into, self._limit, self._what = into, limit, what
        self.written = 0

    def write(self, data: bytes) -> int:
        """Write it on. Raises Refused beyond the limit."""
        self.written += len(data)
        if self.written > self._limit:
            raise Refused(f"{self._what} has more bytes than it can have ({self._limit})")
        self._into.write(data)
        return len(data)


class Metered:
    """A file whose reader has ``left`` bytes to read, each read counting for at least a sector (None: no limit)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left: int | None = STRUCTURE_LIMIT
        self.size = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        """See io.RawIOBase. Raises Refused when nothing is left."""
        wanted = self.size if size < 0 else min(size, self.size)
        if self.left is not None:
            self.left -= max(wanted, _LEAST)
            if self.left < 0:
                raise Refused(f"its directories have more than {STRUCTURE_LIMIT >> 20} MiB")
        return self._file.read(wanted)

    def copy(self, offset: int, length: int, into: Bounded) -> None:
        """Copy bytes, as many as there are."""
        self._file.seek(offset)
        while length > 0 and (chunk := self._file.read(min(length, CHUNK))):
            into.write(chunk)
            length -= len(chunk)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.IOBase."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See io.IOBase."""
        return self._file.tell()

    def close(self) -> None:
        """See io.IOBase."""
        self._file.close()


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside pycdlib is a Refused."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{path} is not an ISO that can be read: {error.message}") from error
    except (ImagesmithError, OSError):
        raise
    except Exception as error:  # of a hostile or broken structure: anything (KeyError, struct.error, RecursionError …)
        what = str(error) or type(error).__name__
        raise Refused(f"{path} is not an ISO that can be read: {what}",
                      hint="is it the file that you mean, and was it downloaded whole?") from error  # fmt: skip
