"""Why a node will run: what differs between what the plan asks for and what was last made under its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from imagesmith.plan import Node, Plan
from imagesmith.store import Layer, Store


@dataclass(frozen=True)
class Verdict:
    """What will be done about a node."""

    node: Node
    layer: Layer | None
    """Its result, where it is there and will be used."""
    why: str = ""
    """Why it runs, where it does."""
    seconds: float = 0.0
    """How long that took the last time; 0 where it never ran."""


def reasons(plan: Plan, store: Store) -> Iterator[Verdict]:
    """For each node: whether its result is there and will be used, and if not, why."""
    latest: dict[str, Layer] = {}
    for layer in sorted(store.layers(), key=lambda layer: layer.made):
        latest[str(layer.facts.get("place"))] = layer
    running: set[str] = set()
    for node in plan.nodes:
        last = latest.get(node.place)
        if node.entry is not None and not node.entry.step.cache:
            why = "cache: false"
        elif node.below is not None and node.below.name in running:
            why = f"'{node.below.name}' runs"
        elif (there := store.find(node.key)) is not None:
            yield Verdict(node, there)
            continue
        else:
            why = _difference(node, last)
        running.add(node.name)
        yield Verdict(node, None, why, float(str(last.facts.get("seconds", 0))) if last is not None else 0.0)


def _difference(node: Node, last: Layer | None) -> str:
    if last is None:
        return "never built"
    was, now = cast(Mapping[str, object], last.facts.get("options", {})), node.options
    parts = []
    for name in sorted({*was, *now}):
        old, new = was.get(name), now.get(name)
        if old == new or (isinstance(new, tuple) and list(new) == old):
            continue
        if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
            added = [f"+{item}" for item in new if item not in old]
            gone = [f"-{item}" for item in old if item not in new]
            parts.append(f"{name} changed: {' '.join(added + gone) or 'order'}")
        elif isinstance(new, Mapping) and "contents" in new:
            parts.append(f"the contents of {name} changed")
        elif isinstance(old, (int, float)) and isinstance(new, (int, float)):
            parts.append(f"{name} changed: {old} -> {new}")
        else:
            parts.append(f"{name} changed")
    return "; ".join(parts) or "what it stands on changed"
