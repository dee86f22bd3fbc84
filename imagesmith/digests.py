"""The SHA-256 of files, and of large ones only once as long as they stay as they are.

Hashing a disk of a few hundred megabytes takes as long as all the rest of a plan. What a file's inode says of its
change (stat(2): st_ctime cannot be set by anybody) is kept with its digest; a file that changed within the last two
two seconds is not remembered, as its next change might fall on the same tick of the clock. A program that has mapped
the file (mmap(2)) changes its times at its first write to a page after that was written to the medium, so that is done
before a digest is remembered; a mapped file in tmpfs may change unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

_LARGE = 1 << 20
_MOST = 1000
_SETTLED = 2.0
_known: dict[str, str] = {}
_file: Path | None = None


def remember_in(file: Path) -> None:
    """Keep the digests of large files in ``file`` from now on, where its folder is there; and use what is in it."""
    global _file
    if _file == file or not file.parent.is_dir():
        return
    _file = file
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        _known.update({str(key): str(value) for key, value in json.loads(file.read_bytes()).items()})


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises OSError."""
    with path.open("rb") as stream:
        found = os.fstat(stream.fileno())
        key = _key(found)
        if found.st_size >= _LARGE and key in _known:
            return _known[key]
        if found.st_size >= _LARGE and abs(time.time() - found.st_ctime) > _SETTLED:
            with contextlib.suppress(OSError):  # where nothing can be written, nothing is waiting to be
                os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        settled = abs(time.time() - found.st_ctime) > _SETTLED and _key(os.fstat(stream.fileno())) == key
    if found.st_size >= _LARGE and settled:
        _known[key] = digest
        _save()
    return digest


def _key(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _save() -> None:
    if _file is None:
        return
    with contextlib.suppress(OSError):  # it is not needed
        newest = dict(list(_known.items())[-_MOST:])
        with tempfile.NamedTemporaryFile("w", dir=_file.parent, prefix=_file.name, delete=False) as new:  # mode 0600
            json.dump(newest, new, indent=0)
        Path(new.name).replace(_file)
