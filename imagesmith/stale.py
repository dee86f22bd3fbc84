"""Which layers are older than the world: by their age, and by what their repositories say today."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from imagesmith.plan import Node, Plan
from imagesmith.store import Layer, Store


def stale(
    plan: Plan, store: Store, moved: Callable[[str, str], bool], *, older_than: float | None, now: float
) -> dict[str, str]:
    """The nodes of the plan's spine that should run again, and why.

    ``moved`` tells whether what is at an address is not what a layer saw there (by its SHA-256); ``older_than`` is in
    seconds, and counts for whatever depends on servers. Of those, only the lowest needs to be
    named: all that follows runs with it.
    """
    for number, node in enumerate(plan.spine, 1):
        layer = store.find(node.key)
        if node.kind is None or not node.kind.worldly:
            continue
        if layer is None:
            if any(store.find(above.key) is not None for above in plan.spine[number:]):
                return {node.name: "what it saw is not known any more: its layer was collected"}
            continue
        gone = [url for url, digest in sorted(seen(layer).items()) if moved(url, digest)]
        if gone:
            return {node.name: f"{gone[0]} has changed since" + (f", and {len(gone) - 1} more" if gone[1:] else "")}
        if older_than is not None and now - layer.made > older_than:
            return {node.name: "it is older than that"}
    return {}


def seen(layer: Layer) -> Mapping[str, str]:
    """What a layer's maker saw of the world: addresses and SHA-256."""
    return cast(Mapping[str, str], layer.facts.get("seen", {}))


def worldly(node: Node) -> bool:
    """Whether a node's result depends on what servers hold today."""
    return node.kind is not None and node.kind.worldly
