"""A recipe that extends another: their documents merged into one, whose values still know the files they stand in.

What is written in both: of ``variables``, ``machine`` and ``matrix`` each key is the upper recipe's where it has it;
``steps``, ``checks`` and ``outputs`` are those of the recipe below, and then its own; of all else there is the upper
one's alone. A name is never inherited. ``without`` names what is left out of the recipe below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from imagesmith import document
from imagesmith.document import Document, Step, Where
from imagesmith.errors import RecipeError, nearest
from imagesmith.model import StepOptions

BY_KEY = ("variables", "machine", "matrix")
LISTS = ("steps", "checks", "outputs")
_OWN = ("name", "extends")
Origin = tuple[Document, Where]
Item = tuple[Step, object, Origin]
"""A piece of a part: its key or index, its value, and where it was written."""


def load(path: Path) -> Document:
    """Read a recipe, with all that it extends. Raises RecipeError where one of the files cannot be read or merged."""
    return _load(path, ())


def _load(path: Path, above: tuple[Path, ...]) -> Document:
    own = document.load(path)
    if not isinstance(own.value, Mapping) or "extends" not in own.value:
        return own
    name: object = own.value["extends"]
    where: Where = ("extends",)
    without: object = []
    if isinstance(name, Mapping):
        for key in name:
            if key not in ("recipe", "without"):
                own.complain((*where, key), f"unknown option '{key}'{nearest(key, ('recipe', 'without'))}", key=True)
        without, name, where = name.get("without", []), name.get("recipe"), ("extends", "recipe")
    if not isinstance(name, str) or not name:
        own.complain(where, "must be the file of a recipe, or {recipe: FILE, without: [PART, …]}")
        raise RecipeError(own.complaints)
    file, here = path.parent / name, (*above, path.resolve())
    if file.resolve() in here:
        own.complain(where, f"the recipe extends itself, by way of {file}")
    elif not file.is_file():
        near = nearest(file.name, (p.name for p in file.parent.iterdir())) if file.parent.is_dir() else ""
        own.complain(where, f"no such file: {file}{near}")
    if not isinstance(without, list) or not all(isinstance(word, str) for word in without):
        own.complain(("extends", "without"), "must be a list of parts, such as outputs or steps.NAME")
    if own.complaints:
        raise RecipeError(own.complaints)
    below = _load(file, here)
    if not isinstance(below.value, Mapping):
        below.complain((), "a recipe is a mapping with name, base, steps, checks and outputs")
        raise RecipeError(below.complaints)
    return _merge(own, below, cast(list[str], without))


def _merge(own: Document, below: Document, without: Sequence[str]) -> Document:
    inherited = _inherited(own, below, without)
    value: dict[str, object] = {}
    origins: dict[Where, Origin] = {}
    mine = {key: item for key, item in _top(own).items() if item is not None or key not in inherited}
    for key in dict.fromkeys([*inherited, *mine]):
        source = own if key in mine else below
        origins[key,] = (source, (key,))
        old = inherited.get(key, [])
        new = _items(own, key) if key in mine else []
        if old is None or new is None:
            value[key] = _top(source)[key]
        elif key in LISTS:
            value[key] = [item for _, item, _ in [*old, *new]]
            origins |= {(key, place): origin for place, (_, _, origin) in enumerate([*old, *new])}
        else:
            value[key] = {name: item for name, item, _ in [*old, *new]}
            origins |= {(key, name): origin for name, _, origin in [*old, *new]}
    if own.complaints:
        raise RecipeError([*below.complaints, *own.complaints])
    return own.merged(below, value, origins)


def _top(source: Document) -> Mapping[str, object]:
    return cast(Mapping[str, object], source.value)


def _items(source: Document, key: str) -> list[Item] | None:
    """What a part consists of that is merged piece by piece; None for one that is taken whole."""
    value = _top(source)[key]
    pairs: Iterable[tuple[Step, object]]
    if key in LISTS and isinstance(value, list):
        pairs = enumerate(value)
    elif key in BY_KEY and isinstance(value, Mapping):
        pairs = value.items()
    else:
        return None
    return [(name, item, (source, (key, name))) for name, item in pairs]


def _inherited(own: Document, below: Document, without: Sequence[str]) -> dict[str, list[Item] | None]:
    """The parts of the recipe below, but for those that are to be left out."""
    found = {key: _items(below, key) for key, item in _top(below).items() if key not in _OWN and item is not None}
    for number, word in enumerate(without):
        key, _, name = word.partition(".")
        items = found.get(key)
        names = {one: None for item in items or () for one in _names(key, item)}
        if key not in found or (name and name not in names):
            known = [*found, *(f"{key}.{one}" for one in names)]
            own.complain(("extends", "without", number), f"{below.file} has no '{word}'{nearest(word, known)}")
        elif not name:
            del found[key]
        else:
            found[key] = [item for item in items or () if name not in _names(key, item)]
    return found


def _names(key: str, item: Item) -> list[str]:
    """What ``without`` may call an item: a mapping's key; an entry's name, or its kind."""
    name, value, _ = item
    if key in BY_KEY:
        return [str(name)]
    if not isinstance(value, Mapping):
        return [str(value)]
    kinds = [word for word in value if word not in StepOptions.model_fields]
    return [*kinds, *([str(value["name"])] if "name" in value else [])]
