"""What a layer's folder says of itself: ``layer.json``, so that an index that was lost or lags behind can be made anew.

Two lines: an object with what the index holds of the layer, and which layer it stands on; and the SHA-256 of that line.
A record whose second line does not fit is none. The record is in no digest of its layer, as it holds these.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from imagesmith.store_files import RECORD
from imagesmith.store_index import Index, Layer

_FIELDS = ("id", "key", "gives", "parent", "name", "facts", "digests", "made", "size")


def write(index: Index, layer: Layer, folder: Path) -> None:
    """Put a layer's record into ``folder``; into a finished layer's, whole or not at all. Raises OSError.

    Where the layer is finished, the caller is the only one who removes layers.
    """
    words: dict[str, object] = {name: getattr(layer, name) for name in _FIELDS}
    words |= {"facts": dict(layer.facts), "digests": dict(layer.digests), "below": _below(index, layer)}
    line = json.dumps(words, sort_keys=True).encode()
    finished = folder.name == layer.id
    file = folder.parent / f"{layer.id}.record" if finished else folder / RECORD
    file.unlink(missing_ok=True)  # it may be another store's, too: copies of layers can be links
    file.touch(mode=0o600)
    with file.open("wb") as stream:
        stream.write(line + b"\n" + _sum(line) + b"\n")
        if finished:
            stream.flush()
            os.fsync(stream.fileno())
    if finished:
        file.rename(folder / RECORD)


def read(folder: Path) -> Layer | None:
    """The layer that a finished folder says it is; None where it says nothing that can be believed."""
    return _read(folder)[0]


def _read(folder: Path) -> tuple[Layer | None, object]:
    try:
        line, _, digest = (folder / RECORD).read_bytes().rstrip(b"\n").rpartition(b"\n")
        if digest != _sum(line):
            return None, None
        words = json.loads(line)
        layer = Layer(folder=folder, used=float(words["made"]), **{name: words[name] for name in _FIELDS})
        return (layer if layer.id == folder.name else None), words["below"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _below(index: Index, layer: Layer) -> object:
    """What tells the layer below from every other one that might have its number, in another store."""
    found = index.layers("id = ?", int(layer.parent)) if layer.parent is not None else []
    return [found[0].key, found[0].made] if found else None


def says_the_same(one: Layer, other: Layer) -> bool:
    """Whether two descriptions of a layer mean the same one; sizes change, and times are no identity."""
    names = ("id", "key", "gives", "parent", "name", "facts", "digests")
    return all(_plain(one, name) == _plain(other, name) for name in names)


def _plain(layer: Layer, name: str) -> str:
    return json.dumps(getattr(layer, name), sort_keys=True)


def take_in(index: Index, folders: Iterable[Path]) -> list[Layer]:
    """Put layers that the index does not know into it: those whose record is sound and whose parent is there.

    Call it inside ``Index.change``, as the only one who removes layers.
    """
    found: list[Layer] = []
    for folder in sorted(folders):
        layer, below = _read(folder)
        if layer is not None and below == _below(index, layer) and (below is None) == (layer.parent is None):
            index.add(layer)
            found.append(layer)
    return found


def _sum(line: bytes) -> bytes:
    return hashlib.sha256(line).hexdigest().encode()
