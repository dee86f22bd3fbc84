"""Takes from a shared cache what a plan lacks: asked from the last nodes backwards, so that nothing is fetched that a
later one makes useless. What cannot be had, or must not be trusted, is left to be made here.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from imagesmith.disk.attach import LAYER_FILE, read_header, restand
from imagesmith.errors import ImagesmithError, Interrupted, Refused
from imagesmith.host import Host
from imagesmith.plan import Node, Plan
from imagesmith.remote.entry import LARGEST_ENTRY, Chunk, Entry, Part, agree, entry_name, lineage, origin, read_entry
from imagesmith.remote.pack import expand, unpack, verified
from imagesmith.remote.trust import Trust
from imagesmith.remote.where import Away, Where
from imagesmith.store import Layer, Use
from imagesmith.store_files import free, human

WORKERS = 4
"""Chunks that are on their way at once."""


@dataclass
class Came:
    """What came of it."""

    nodes: list[str] = field(default_factory=list)
    """The names of the nodes whose results were taken."""
    fetched: int = 0
    """Bytes that were fetched."""
    refused: list[str] = field(default_factory=list)
    """Why entries were not taken, in words."""
    away: str = ""
    """Why the cache was given up."""

    def lines(self, where: str) -> Iterator[str]:
        """What is to be told."""
        if self.nodes:
            yield f"shared cache {where}: {len(self.nodes)} results taken, {human(self.fetched)} fetched"
        if self.away:
            yield f"shared cache {where}: {self.away}; building without it"
        if self.refused:
            more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
            yield f"shared cache {where}: not taken: {self.refused[0]}{more}"


def pull(plan: Plan, use: Use, where: Where, trust: Trust, host: Host, *, again: Collection[str] = ()) -> Came:
    """Bring into the store what a build of the plan would have to make, as far as the cache has it.

    ``again`` names nodes that are to run whatever is there. Raises Interrupted.
    """
    came = Came()
    if not trust.keys:
        came.away = "no key is trusted, so nothing is taken"
        return came
    taker = _Taker(use, where, trust, host, came)
    try:
        _take_all(plan, taker, again)
    except Away as error:
        came.away = error.message
    return came


def _take_all(plan: Plan, taker: _Taker, again: Collection[str]) -> None:
    """Take the leaves alone, where they can all be had and were made of the same; else what they are made of, and then
    those leaves that were made of that.
    """
    store = taker.use.store
    last = () if plan.inventory is None else (plan.inventory,)
    leaves = [*plan.outputs, *plan.checks, *last]
    here = {node: taker.here(node, again) for node in leaves}
    lacking = [node for node in leaves if here[node] is None]
    if leaves and not lacking:
        return
    known: dict[str, str] = {}
    for layer in here.values():
        known |= lineage(store, layer) if layer is not None else {}
    entries = {node: taker.entry(node, again) for node in lacking}
    if lacking and _agree(known, entries.values()) and all([taker.bring(node, entries[node]) for node in lacking]):
        return
    wanted = {node.below for node in lacking} if plan.outputs or plan.checks else {plan.sealed}
    for top in reversed([node for node in plan.spine if node in wanted]):
        for node in reversed(top.chain):
            layer = taker.here(node, again)
            if layer is None or not agree(known, lineage(store, layer)):
                entry = taker.entry(node, again)
                if entry is not None and agree(known, entry.lineage) and taker.bring(node, entry):
                    layer = taker.here(node, again)
            if layer is not None:
                known |= lineage(store, layer)
                break
    for node, entry in entries.items():
        under = taker.here(node.below, again) if node.below is not None else None
        if entry is None or under is None or taker.here(node, again) is not None:
            continue
        if entry.lineage.get(under.key) == origin(under):
            taker.bring(node, entry)


def _agree(known: dict[str, str], entries: Iterable[Entry | None]) -> bool:
    """Whether there are all entries, and they and what is known agree on what they were made of."""
    together = dict(known)
    for entry in entries:
        if entry is None or not agree(together, entry.lineage):
            return False
        together |= entry.lineage
    return True


class _Taker:
    """Takes one node's result after the other."""

    def __init__(self, use: Use, where: Where, trust: Trust, host: Host, came: Came) -> None:
        self.use, self._where, self._trust, self._host, self._came = use, where, trust, host, came
        self._entries: dict[str, Entry | None] = {}
        self._counting = Lock()

    def here(self, node: Node, again: Collection[str]) -> Layer | None:
        """A node's result as the store has it, if it counts."""
        return self.use.find(node.key) if node.name not in again else None

    def entry(self, node: Node, again: Collection[str]) -> Entry | None:
        """What the cache has of a node, if it can be trusted. Raises Away."""
        if node.name in again:
            return None
        if node.key not in self._entries:
            self._entries[node.key] = self._read(node)
        return self._entries[node.key]

    def _read(self, node: Node) -> Entry | None:
        try:
            signed = self._where.read(entry_name(node.key), LARGEST_ENTRY)
            if signed is None:
                return None
            entry = read_entry(self._trust.opened(signed), node.key)
            if entry.top.gives != node.gives:
                raise Refused("it is of another kind")
            return entry
        except Refused as error:
            self._came.refused.append(f"{node.name}: {error.message}")
            return None

    def bring(self, node: Node, entry: Entry | None) -> bool:
        """Put a node's result into the store, with the layers that it needs; whether that went well. Raises Away."""
        if entry is None or self._entries[node.key] is None:
            return False
        try:
            self._bring(entry)
        except (Away, Interrupted):
            raise
        except KeyboardInterrupt:
            self._host.cancel()
            raise
        except (ImagesmithError, OSError) as error:
            self._entries[node.key] = None
            self._came.refused.append(f"{node.name}: {str(error).splitlines()[0]}")
            return False
        self._came.nodes.append(node.name)
        return True

    def _bring(self, entry: Entry) -> None:
        """Make the layers of an entry that the store does not have."""
        there: dict[str, Layer] = {}
        for part in entry.layers:
            layer = self.use.find(part.key)
            if layer is None or origin(layer) != part.origin:
                break
            there[part.origin] = layer
        missing = entry.layers[len(there) :]
        room, needed = free(self.use.store.root), sum(part.plain for part in missing)
        if needed > room:
            raise Refused(f"it needs {human(needed)}, and {human(room)} are free in {self.use.store.root}")
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pull")
        try:
            chunks = {chunk.sha256: chunk for part in missing for chunk in part.chunks}
            coming = {sha256: pool.submit(self._fetch, chunk) for sha256, chunk in chunks.items()}
            for part in missing:
                there[part.origin] = self._make(part, coming, there, {} if there else entry.below)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _make(self, part: Part, coming: Mapping[str, Future[Path]], there: dict[str, Layer],
              made_of: dict[str, str]) -> Layer:  # fmt: skip
        below = list(there.values())
        replacing = self.use.find(part.key) is not None
        with self.use.making(part.key, gives=part.gives, name=part.name, parent=below[-1] if below else None,
                             fresh=replacing) as slot:  # fmt: skip
            if slot.layer is not None:  # another build made it meanwhile
                if origin(slot.layer) != part.origin:
                    raise Refused(f"{part.name} was just made here, too")
                return slot.layer
            unpack(part.gives, self._pieces(part, coming), slot.folder, self._host)
            _stand(part, slot.folder, there)
            more = {"origin": part.origin, **({"lineage": made_of} if made_of else {})}
            layer = slot.commit({**part.facts, **more}, made=part.made)
        for chunk in part.chunks:
            self._kept(chunk).unlink(missing_ok=True)
        return layer

    # -- chunks ------------------------------------------------------------------------------------------------

    def _kept(self, chunk: Chunk) -> Path:
        """Where a chunk is until its layer is made; what a build that ended too early left there is used."""
        return self.use.store.blobs / f"sha256-{chunk.sha256}"

    def _fetch(self, chunk: Chunk) -> Path:
        kept = self._kept(chunk)
        if not kept.exists():
            data = verified(chunk, self._where.read(chunk.name, chunk.size))
            part = kept.with_name(f"{kept.name}.{os.getpid()}.new")
            try:
                part.touch(mode=0o600)
                part.write_bytes(data)
                part.replace(kept)
            finally:
                part.unlink(missing_ok=True)
            with self._counting:
                self._came.fetched += len(data)
        return kept

    def _pieces(self, part: Part, coming: Mapping[str, Future[Path]]) -> Iterator[bytes]:
        for chunk in part.chunks:
            try:
                data = coming[chunk.sha256].result().read_bytes()
            except FileNotFoundError:  # another layer or build had the same chunk, and is done with it
                data = self._fetch(chunk).read_bytes()
            try:
                yield expand(chunk, verified(chunk, data))
            except Refused:
                self._kept(chunk).unlink(missing_ok=True)
                raise


def _stand(part: Part, folder: Path, there: Mapping[str, Layer]) -> None:
    """Let a layer's disk stand on the one of this store that is what it stood on."""
    file = folder / LAYER_FILE
    if part.gives != "disk" or not file.exists():
        return
    backing = read_header(file).backing
    if bool(backing) != (part.backing is not None):
        raise Refused(f"the disk of {part.name} stands on {backing or 'nothing'}")
    if part.backing is not None:
        restand(file, there[part.backing].folder / LAYER_FILE)
