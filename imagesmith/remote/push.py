"""Puts into a shared cache what the store has of a plan: chunks first, then the entry that names them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import BoundedSemaphore

from imagesmith.disk.attach import LAYER_FILE, read_header
from imagesmith.errors import BuildError, Interrupted, Refused
from imagesmith.host import Host
from imagesmith.kinds import secrets_in
from imagesmith.plan import ONLINE, Node, Plan
from imagesmith.remote.entry import (
    LARGEST_ENTRY,
    Chunk,
    Entry,
    Part,
    below,
    entry_name,
    origin,
    read_entry,
    shared_facts,
)
from imagesmith.remote.pack import compress, pack
from imagesmith.remote.trust import Signer, Trust
from imagesmith.remote.where import Where
from imagesmith.store import Layer, Use
from imagesmith.store_files import human

WORKERS = 4
"""Chunks that are packed and sent at once."""


@dataclass
class Went:
    """What came of it."""

    nodes: list[str] = field(default_factory=list)
    """The names of the nodes whose results were put there."""
    sent: int = 0
    """Bytes that were sent."""
    secret: list[str] = field(default_factory=list)
    """Nodes that are kept here, as secrets went into them or what is below them."""
    failed: str = ""
    """Why it was given up."""

    def lines(self, where: str) -> Iterator[str]:
        """What is to be told."""
        if self.nodes:
            yield f"shared cache {where}: {len(self.nodes)} results put there, {human(self.sent)} sent"
        if self.secret:
            yield f"shared cache {where}: {len(self.secret)} results are not shared: secrets went into them"
        if self.failed:
            yield f"shared cache {where}: not everything was put there: {self.failed}"


def push(
    plan: Plan, use: Use, where: Where, signer: Signer, trust: Trust, host: Host, *, but: Collection[str] = ()
) -> Went:  # fmt: skip
    """Put there what the store has of the plan and the cache does not, or has older.

    ``but`` names nodes that are not to be shared. Entries there that neither ``trust`` nor our own key vouches for are
    replaced. Raises Interrupted.
    """
    went = Went()
    giver = _Giver(use, where, signer, trust.and_of(signer), host, went)
    try:
        for node in plan.nodes:
            layer = use.find(node.key)
            if layer is None or node.name in but:
                continue
            if _holds_secrets(node):
                went.secret.append(node.name)
            else:
                giver.give(node, layer)
    except Interrupted:
        raise
    except (BuildError, OSError) as error:
        went.failed = str(error).splitlines()[0]
    return went


def _holds_secrets(node: Node) -> bool:
    """Whether a secret went into a node's result, or into one below it."""
    kinds: list[object] = []
    for one in node.chain:
        checks = [entry.kind for entry in one.recipe.checks] if one.verb == "check" else []
        kinds += [one.kind, *checks, one.recipe.login if one.driver in ONLINE else None]
    return bool(secrets_in(kinds))


class _Giver:
    """Gives one node's result after the other."""

    def __init__(self, use: Use, where: Where, signer: Signer, trust: Trust, host: Host, went: Went) -> None:
        self._use, self._where, self._signer, self._trust, self._host = use, where, signer, trust, host
        self._went = went
        self._known: dict[str, Part] = {}
        """The layers that are there, by origin."""

    def give(self, node: Node, layer: Layer) -> None:
        """Put a node's result there, unless the same or a newer one is there."""
        there = self._there(node.key)
        if there is not None:
            self._known |= {part.origin: part for part in there.layers}
            if there.top.origin == origin(layer) or there.top.made > layer.made:
                return
        chain = self._use.store.chain(layer)
        parts = [self._part(one, chain) for one in chain]
        entry = Entry(key=node.key, layers=parts, below=below(self._use.store, chain[0]))
        self._where.write(entry_name(node.key), self._signer.sealed(entry.line()))
        self._went.nodes.append(node.name)

    def _there(self, key: str) -> Entry | None:
        try:
            signed = self._where.read(entry_name(key), LARGEST_ENTRY)
            return None if signed is None else read_entry(self._trust.opened(signed), key)
        except Refused:
            return None

    def _part(self, layer: Layer, chain: list[Layer]) -> Part:
        mine = origin(layer)
        if mine not in self._known:
            self._known[mine] = Part(
                key=layer.key, gives=layer.gives, name=layer.name, origin=mine, made=layer.made,  # type: ignore[arg-type]
                facts=shared_facts(layer), backing=_backing(layer, chain), chunks=self._send(layer),
            )  # fmt: skip
        return self._known[mine]

    def _send(self, layer: Layer) -> list[Chunk]:
        """Put a layer's chunks there; those that are there already stay, so that what was broken off goes on."""
        sending: list[Future[Chunk]] = []
        turns = BoundedSemaphore(2 * WORKERS)  # pieces in memory
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="push")

        def send(piece: bytes) -> Chunk:
            try:
                chunk, data = compress(piece)
                if self._where.size(chunk.name) != chunk.size:
                    self._where.write(chunk.name, data)
                    self._went.sent += len(data)
                return chunk
            finally:
                turns.release()

        def give(piece: bytes) -> None:
            for done in sending:
                if done.done() and done.exception() is not None:
                    done.result()
            if self._host.cancelled:
                raise Interrupted()
            turns.acquire()
            sending.append(pool.submit(send, piece))

        try:
            pack(layer.gives, layer.folder, self._host, give)
            return [done.result() for done in sending]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _backing(layer: Layer, chain: list[Layer]) -> str | None:
    """The origin of the layer that the header of a layer's disk names."""
    file = layer.folder / LAYER_FILE
    backing = read_header(file).backing if layer.gives == "disk" and file.exists() else ""
    if not backing:
        return None
    return next((origin(one) for one in chain if backing == f"../{one.id}/{LAYER_FILE}"), None)
