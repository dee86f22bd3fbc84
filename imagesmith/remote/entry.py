"""What a shared cache says of a node's result: the layers that it consists of, the oldest first, in chunks.

An entry is whole in itself: a layer never goes on top of another one than it was made on, also where the one below was
made anew, under the same key, on one of the machines. So each layer has an ``origin``, which tells it from every other
one of its key, and a machine that has a layer of this origin need not fetch it. The ``lineage`` of a result, the
origins of all that went into it by key, keeps apart what was made of different layers of one key: a build uses one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagesmith.errors import Refused
from imagesmith.kinds import digest
from imagesmith.store import Layer, Store

PIECE = 16 << 20
"""Bytes of a layer that are packed into a chunk."""
LARGEST = PIECE + (1 << 16)
"""Bytes of a chunk: what cannot be compressed becomes a little longer."""
LARGEST_ENTRY = 64 << 20
_LOCAL = ("made_of", "disk", "origin", "lineage")
"""Facts that are other layers' numbers in one store, and where a layer came from."""

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Chunk(_Plain):
    """A piece of a packed layer."""

    sha256: Sha
    """Of its bytes as they lie in the cache."""
    size: Annotated[int, Field(gt=0, le=LARGEST)]
    """Its bytes there."""
    plain: Annotated[int, Field(gt=0, le=PIECE)]
    """Its bytes unpacked."""

    @property
    def name(self) -> str:
        """Where it is in the cache."""
        return f"chunks/{self.sha256[:2]}/{self.sha256}"


class Part(_Plain):
    """A layer."""

    key: Sha
    gives: Literal["tree", "disk", "files", "record"]
    name: Annotated[str, Field(max_length=1000)]
    origin: Sha
    made: Annotated[float, Field(ge=0)]
    facts: dict[str, Any]
    backing: Sha | None
    """The origin of the layer that a disk's header names."""
    chunks: Annotated[list[Chunk], Field(min_length=1, max_length=1 << 18)]

    @property
    def plain(self) -> int:
        """Its bytes unpacked."""
        return sum(chunk.plain for chunk in self.chunks)


class Entry(_Plain):
    """A node's result. The last of ``layers`` is its own."""

    format: Literal[1] = 1
    key: Sha
    layers: Annotated[list[Part], Field(min_length=1, max_length=2000)]
    below: dict[Sha, Sha]
    """The lineage of what the first layer was made of."""

    @property
    def top(self) -> Part:
        """The node's own layer."""
        return self.layers[-1]

    @property
    def lineage(self) -> dict[str, str]:
        """The origins of its layers and of all that they were made of, by key."""
        return {**self.below, **{part.key: part.origin for part in self.layers}}

    def line(self) -> bytes:
        """What is signed."""
        return self.model_dump_json().encode()


def entry_name(key: str) -> str:
    """Where the entry of a key is."""
    return f"entries/{key}.json"


def read_entry(line: bytes, key: str) -> Entry:
    """The entry of a key, from what was signed. Raises Refused for whatever is none."""
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError as error:
        raise Refused(f"it is no entry: {error.errors()[0]['msg']}") from error
    if entry.key != key or entry.top.key != key:
        raise Refused(f"it is the entry of another key: {entry.key[:16]}…")
    origins = [part.origin for part in entry.layers]
    if len({part.gives for part in entry.layers}) > 1 or len(set(origins)) < len(origins):
        raise Refused("its layers do not belong together")
    for below, part in enumerate(entry.layers):
        if part.backing is not None and part.backing not in origins[:below]:
            raise Refused("one of its layers stands on none of those below it")
        _look_at(part.facts)
    return entry


def _look_at(facts: Mapping[str, Any]) -> None:
    """Refuse facts that would lead out of a layer's folder."""
    files = facts.get("files", [])
    names = [file.get("name") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [0]
    if not all(isinstance(name, str) and re.fullmatch(r"[^/\0]+", name) and name not in (".", "..") for name in names):
        raise Refused("it names artifacts that cannot be")


def origin(layer: Layer) -> str:
    """What tells a layer from every other one of its key, on all machines."""
    there = layer.facts.get("origin")
    return str(there) if there else digest([layer.key, layer.made, dict(layer.digests)])


def lineage(store: Store, layer: Layer) -> dict[str, str]:
    """The origins of a layer and of all that it was made of, by key, as far as they are known."""
    chain = store.chain(layer)
    return {**below(store, chain[0]), **{one.key: origin(one) for one in chain}}


def below(store: Store, first: Layer) -> dict[str, str]:
    """The lineage of what a layer without a parent was made of."""
    known, made_of = first.facts.get("lineage"), first.facts.get("made_of")
    if isinstance(known, dict):
        return dict(known)
    number = str(made_of[0]) if isinstance(made_of, list) and made_of else ""
    found = store.index.layers("id = ?", int(number)) if number.isdigit() else []
    return lineage(store, found[0]) if found else {}


def agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two lineages have the same layer of each key that is in both."""
    return all(other.get(key, found) == found for key, found in one.items())


def shared_facts(layer: Layer) -> dict[str, object]:
    """What is noted of a layer, without what means something in its store alone."""
    facts = {name: value for name, value in layer.facts.items() if name not in _LOCAL}
    return facts | ({"disk": ""} if "disk" in layer.facts else {})  # the disk's number; empty where it is not here
