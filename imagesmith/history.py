"""What each place of a recipe was last made of, and how long that took: remembered beyond what the store still holds.

One small JSON file a place, in the store's folder ``history``. It is for telling people; nothing is decided by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

_MOST = 4 << 20
"""Bytes; a file that is larger is none of ours."""


@dataclass(frozen=True)
class Past:
    """What was made once."""

    key: str
    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    world: Mapping[str, object] = field(default_factory=dict)
    """See plan.Node."""
    below: str = ""
    """The key below."""
    under: str = ""
    """What the node below was called."""
    seconds: float = 0.0


def note(store: Path, place: str, past: Past) -> None:
    """Remember what was made at a place. Where it cannot be written, it is not remembered."""
    with suppress(OSError):
        folder = store / "history"
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump({"place": place, **asdict(past)}, stream)
        Path(name).rename(_file(store, place))


def recall(store: Path, place: str) -> Past | None:
    """What was last made at a place; None where that is not known."""
    try:
        path = _file(store, place)
        if path.stat().st_size > _MOST:
            return None
        found = json.loads(path.read_text("utf-8"))
        return Past(**{name: found[name] for name in Past.__dataclass_fields__}) if found["place"] == place else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def everything(store: Path) -> Iterator[tuple[str, Past]]:
    """Every place that is remembered, and what was last made there."""
    for path in sorted((store / "history").glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            place = str(json.loads(path.read_text("utf-8"))["place"])
            if (past := recall(store, place)) is not None:
                yield place, past


def _file(store: Path, place: str) -> Path:
    return store / "history" / (hashlib.sha256(place.encode(errors="surrogatepass")).hexdigest()[:40] + ".json")
