"""Why a node will run: what differs between what the plan asks for and what was last made in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from imagesmith.history import Past, everything
from imagesmith.kinds import Kind, RenderedFile
from imagesmith.options import Options
from imagesmith.plan import Node, Plan
from imagesmith.store import Layer, Store

_SHORT = 40
"""A value of so many characters is shown; a longer one is not."""
_DIGEST = re.compile(r"(?:(sha\d+):)?([0-9a-f]{64,128})")
_PRIVATE = re.compile(r"pass|secret|token|key", re.IGNORECASE)
"""In the name of an option whose value is shown to nobody."""
_UNITS = ((40, "T"), (30, "G"), (20, "M"), (10, "K"))
_SECRET = re.compile("\ue000([^\ue000\ue001]*)\ue001")
_TEXT = get_args(RenderedFile)[1]
"""Marks an option whose value is a rendered template."""


@dataclass(frozen=True)
class Verdict:
    """What will be done about a node."""

    node: Node
    layer: Layer | None
    """Its result, where it is there and will be used."""
    reasons: tuple[str, ...] = ()
    """Why it runs, where it does."""
    seconds: float = 0.0
    """How long that took the last time; 0 where it never ran."""

    @property
    def why(self) -> str:
        """All reasons."""
        return "; ".join(self.reasons)

    def plain(self, now: float) -> dict[str, object]:
        """The verdict as JSON values. ``now`` is in seconds since 1970."""
        node = self.node
        found: dict[str, object] = {
            "name": node.name, "verb": node.verb, "gives": node.gives, "key": node.key,
            "state": "there" if self.layer is not None else "run", "seconds": self.seconds,
        }  # fmt: skip
        if node.driver:
            found |= {"driver": node.driver, "why_driver": node.why_driver}
        if self.layer is not None:
            return {**found, "age": round(now - self.layer.made)}
        return {**found, "reasons": list(self.reasons)}


def reasons(plan: Plan, store: Store) -> Iterator[Verdict]:
    """For each node: whether its result is there and will be used, and if not, why."""
    past = _Past(plan, store)
    running: set[str] = set()
    there = {node.name: store.find(node.key) for node in plan.nodes}
    for node in plan.nodes:
        layer, last = there[node.name], past.of(node)
        if node.entry is not None and not node.entry.step.cache:
            why = ["cache: false"]
        elif node.below is not None and node.below.name in running:
            why = [f"'{node.below.name}' runs"]
        elif layer is not None:
            yield Verdict(node, layer, (), _seconds(layer.facts))
            continue
        else:
            why = _why(node, last)
        running.add(node.name)
        yield Verdict(node, None, tuple(why), last.seconds if last is not None else 0.0)


class _Past:
    """What was made in the places of a plan."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._wanted = {_what(node.place, node.options) for node in plan.nodes}
        self._places: dict[str, Past] = {}
        for layer in sorted(store.layers(), key=lambda layer: layer.made):
            facts = layer.facts
            if facts.get("options") is not None:
                self._places[str(facts.get("place"))] = Past(
                    key=layer.key, name=layer.name, options=cast(Mapping[str, object], facts["options"]),
                    world=cast(Mapping[str, object], facts.get("world", {})), seconds=_seconds(facts),
                )  # fmt: skip
        self._places |= dict(everything(store.root))  # beyond what the store still holds
        self._whats = {_what(place, past.options): past for place, past in self._places.items()}

    def of(self, node: Node) -> Past | None:
        """What was last made in a node's place, or of the same options in another; None where nothing was.

        Steps move when others come or go before them: what is another step's now was not made in this one's place.
        """
        last = self._places.get(node.place)
        if last is not None and _canonical(last.options) == _canonical(node.options):
            return last
        if node.verb == "step" and (moved := self._whats.get(_what(node.place, node.options))) is not None:
            return moved
        theirs = last is not None and node.verb == "step" and _what(node.place, last.options) in self._wanted
        return None if theirs else last


def _what(place: str, options: object) -> tuple[str, str]:
    """A step whatever its number is."""
    return re.sub(r" step \d+ ", " step ", place), _canonical(options)


def _why(node: Node, last: Past | None) -> list[str]:
    if last is None:
        return ["never built"]
    if last.key == node.key:
        return ["it was built, and collected since"]
    found = [*_changes(node.kind, last.options, node.options, base=node.verb == "base"), *_worlds(node, last)]
    if found:
        return found
    if last.under and node.below is not None and last.under != node.below.name:
        return [f"it follows '{node.below.name}' now, and followed '{last.under}'"]
    if last.below and node.below is not None and last.below != node.below.key:
        return [f"'{node.below.name}' is another than when it was last built"]
    return ["what it stands on changed"]


def _worlds(node: Node, last: Past) -> Iterator[str]:
    """What changed of all that is in a key beside options."""
    was, now = last.world, cast(Mapping[str, object], _json(node.world))
    for name in sorted({*was, *now} if was else ()):
        old, new = was.get(name), now.get(name)
        if old == new:
            continue
        if name == "kind's version":
            what = type(node.kind).name if node.kind is not None else node.name
            yield f"imagesmith does '{what}' in another way now (version {old} -> {new})"
        elif name == "mode":
            yield f"it runs {new} now, and ran {old}"
        else:
            yield f"{name} changed: {_shown(old, name)} -> {_shown(new, name)}"


def _changes(kind: object, was: Mapping[str, object], now: Mapping[str, object], *, base: bool = False,
             within: str = "") -> Iterator[str]:  # fmt: skip
    """What of options changed, in words. ``kind`` knows the files that they name; ``within``: of which option."""
    new_ones = cast(Mapping[str, object], _json(now))
    changed = [name for name in sorted({*was, *new_ones}) if was.get(name) != new_ones.get(name)]
    if "text" in changed and len(changed) > 1:  # an answer file's text follows from its options
        changed.remove("text")
    for name in changed:
        yield from _change(kind, name, was.get(name), new_ones.get(name), base=base, within=within)


def _change(kind: object, name: str, old: object, new: object, *, base: bool, within: str) -> Iterator[str]:
    label = f"option {within}{name}"
    if base and not within and name in ("contents", "checksum") and isinstance(old, str) and isinstance(new, str):
        yield f"base digest changed: {_shown(old)} -> {_shown(new)}"
    elif (files := _files(kind, name)) and _digests(old) != _digests(new):
        yield from _file_changes(kind, name, files, old, new)
    elif _nested(old) and _nested(new) and _label(old) != _label(new):
        yield f"{label} changed: {_label(old)} -> {_label(new)}"
    elif _nested(old) and _nested(new):
        (word, version, options), (_, later, more) = cast(list[object], old), cast(list[object], new)
        if version != later:
            yield f"imagesmith writes '{word}' in another way now (version {version} -> {later})"
        yield from _changes(_value(kind, name), cast(Mapping[str, object], options), cast(Mapping[str, object], more),
                            within=f"{within}{name}.")  # fmt: skip
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        others = [f"the value of {each}" for each in new if each in old and old[each] != new[each]]
        yield f"{label} changed: {', '.join([*filter(None, [' '.join(_added([*old], [*new]))]), *others])}"
    elif isinstance(old, list) and isinstance(new, list):
        words = _added([_label(item) for item in old], [_label(item) for item in new])
        if not words and len(old) == len(new) and sorted(map(_canonical, old)) != sorted(map(_canonical, new)):
            words = sorted({_label(b) for a, b in zip(old, new, strict=True) if a != b})
        yield f"{label} changed: {' '.join(words) or 'order'}"
    elif isinstance(old, str) and isinstance(new, str) and (_rendered(kind, name) or (name == "text" and not base)):
        what = "the answer file's text" if name == "text" else f"the text that option {within}{name} renders to"
        yield f"{what} changed{_from_line(old, new)}"
    elif _short(old) and _short(new) and not _PRIVATE.search(name):
        yield f"{label} changed: {_shown(old, name)} -> {_shown(new, name)}"
    else:
        yield f"{label} changed{_from_line(str(old), str(new))}"


def _file_changes(kind: object, name: str, files: Sequence[Path], old: object, new: object) -> Iterator[str]:
    before, after = _digests(old), _digests(new)
    for number, path in enumerate(files):
        if len(before) != len(after):
            yield f"option {name} names other files"
            return
        if len(files) != len(after) or before[number] != after[number]:
            word = "folder" if path.is_dir() else "file"
            if isinstance(kind, Kind) and type(kind).shorthand == name:
                word = type(kind).name
            yield f"{word} {path.name} changed"


# -- looking at values -------------------------------------------------------------------------------------------


def _value(kind: object, name: str) -> object:
    """The value of the option that a recipe calls ``name``."""
    if not isinstance(kind, Options):
        return None
    for field, info in type(kind).model_fields.items():
        if name in (field, info.alias):
            return getattr(kind, field)
    return None


def _files(kind: object, name: str) -> list[Path]:
    """The files that an option names."""
    value = _value(kind, name)
    if isinstance(value, Options):
        return [path for inner in type(value).model_fields for path in _files(value, inner)]
    return [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, Path)]


def _digests(value: object) -> list[str]:
    """The digests of files in an option's identity."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return [value]
    if isinstance(value, Mapping):
        return [digest for item in value.values() for digest in _digests(item)]
    return [digest for item in value for digest in _digests(item)] if isinstance(value, list) else []


def _rendered(kind: object, name: str) -> bool:
    if not isinstance(kind, Options):
        return False
    fields = type(kind).model_fields.items()
    return any(name in (field, info.alias) and _TEXT in info.metadata for field, info in fields)


def _nested(value: object) -> bool:
    """Whether a value is the identity of a kind inside another: its name, version and options."""
    return (isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int)
            and isinstance(value[2], Mapping))  # fmt: skip


def _added(old: Sequence[object], new: Sequence[object]) -> list[str]:
    def word(item: object) -> str:
        return f"'{item}'" if str(item).startswith("-") else str(item)

    return [f"+{word(item)}" for item in new if item not in old] + [f"-{word(item)}" for item in old if item not in new]


def _label(item: object) -> str:
    return str(cast(list[object], item)[0]) if _nested(item) else _shown(item)


def _from_line(old: str, new: str) -> str:
    """From which line on two texts differ, where that says something."""
    before, after = old.splitlines(), new.splitlines()
    if max(len(before), len(after)) < 2:
        return ""
    shorter = min(len(before), len(after))
    same = next((number for number in range(shorter) if before[number] != after[number]), shorter)
    return f", from line {same + 1} on"


def _short(value: object) -> bool:
    if isinstance(value, str):
        return (len(value) <= _SHORT and "\n" not in value) or _DIGEST.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int, float))


def _shown(value: object, name: str = "") -> str:
    """A value as a recipe would have it. ``name`` is the option's."""
    if value is None or (value == 0 and name == "machine.disk"):
        return "(not given)"
    if isinstance(value, int) and not isinstance(value, bool) and name == "mode":
        return f"{value:04o}"
    if isinstance(value, int) and name in ("machine.disk", "machine.memory", "size"):
        return next((f"{value >> bits}{unit}" for bits, unit in _UNITS if not value % (1 << bits)), str(value))
    if not isinstance(value, str):
        value = json.dumps(value)
    found = _DIGEST.fullmatch(value)
    if found:
        return f"{found[1] + ':' if found[1] else ''}{found[2][:12]}…"
    text = _SECRET.sub(r"{{ \1 }}", value).partition("\n")[0] or "''"
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def _seconds(facts: Mapping[str, object]) -> float:
    return float(str(facts.get("seconds", 0)))


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _json(value: object) -> object:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
