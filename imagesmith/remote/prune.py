"""Removes from a shared cache what was put there long ago, and the chunks that nothing needs any more."""

from __future__ import annotations

import json
from dataclasses import dataclass

from imagesmith.errors import Refused
from imagesmith.remote.entry import LARGEST_ENTRY
from imagesmith.remote.where import Where

GRACE = 86400.0
"""Seconds for which a chunk stays though no entry names it: somebody may be about to write one."""


@dataclass(frozen=True)
class Pruned:
    """What went."""

    entries: int
    chunks: int


def prune(where: Where, *, older_than: float, now: float) -> Pruned:
    """Remove the entries that were written more than ``older_than`` seconds ago, and those that nobody can read.

    Raises Away.
    """
    needed: set[str] = set()
    entries = chunks = 0
    for name, written in where.list("entries").items():
        named = _chunks_of(where, name) if now - written <= older_than else None
        if named is None:
            where.remove(name)
            entries += 1
        else:
            needed |= named
    for name, written in where.list("chunks").items():
        if name.rpartition("/")[2] not in needed and now - written > GRACE:
            where.remove(name)
            chunks += 1
    return Pruned(entries, chunks)


def _chunks_of(where: Where, name: str) -> set[str] | None:
    """The digests of the chunks that an entry names, whoever signed it; None where it cannot be read."""
    try:
        line = (where.read(name, LARGEST_ENTRY) or b"").partition(b"\n")[0]
        return {str(chunk["sha256"]) for layer in json.loads(line)["layers"] for chunk in layer["chunks"]}
    except (Refused, ValueError, KeyError, TypeError):
        return None
