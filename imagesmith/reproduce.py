"""Whether an artifact that was written twice is the same file, and where it is not."""

from __future__ import annotations

import tarfile
from pathlib import Path

_CHUNK = 1 << 20


def difference(first: Path, second: Path) -> str:
    """Say where two files begin to differ, or nothing where they are the same.

    In a tar (that is compressed or not) the member is named, and the place in it.
    """
    at = _offset(first, second)
    if at is None:
        return ""
    return _in_tar(first, second) or f"at byte {at:,}"


def _offset(first: Path, second: Path) -> int | None:
    at = 0
    with first.open("rb") as one, second.open("rb") as other:
        while True:
            a, b = one.read(_CHUNK), other.read(_CHUNK)
            if a != b:
                return at + _common(a, b)
            if not a:
                return None
            at += len(a)


def _common(a: bytes, b: bytes) -> int:
    """How many bytes at the beginning are the same."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _in_tar(first: Path, second: Path) -> str:
    try:
        with tarfile.open(first, "r:*") as one, tarfile.open(second, "r:*") as other:
            while True:
                a, b = one.next(), other.next()
                if a is None or b is None:
                    name = (a or b or tarfile.TarInfo("")).name
                    return f"{name} is in one of the archives only" if a is not b else "behind the archive's members"
                if a.name != b.name:
                    return f"the archive has {a.name} where it had {b.name}"
                for what in ("type", "mode", "uid", "gid", "size", "mtime", "linkname", "pax_headers"):
                    if getattr(a, what) != getattr(b, what):
                        return f"{a.name}: {what} is {getattr(a, what)!s} and {getattr(b, what)!s}"
                if a.isreg() and (place := _in_member(one, a, other, b)) is not None:
                    return f"{a.name}, at byte {place:,} of it"
    except (tarfile.TarError, EOFError, OSError):
        return ""


def _in_member(one: tarfile.TarFile, a: tarfile.TarInfo, other: tarfile.TarFile, b: tarfile.TarInfo) -> int | None:
    left, right = one.extractfile(a), other.extractfile(b)
    assert left is not None
    assert right is not None
    at = 0
    while chunk := left.read(_CHUNK):
        twin = right.read(_CHUNK)
        if chunk != twin:
            return at + _common(chunk, twin)
        at += len(chunk)
    return None
