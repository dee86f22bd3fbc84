"""The variants of a recipe: every combination of its matrix's axes, without ``exclude``, with ``include``.

The rules are those of GitHub Actions (workflow syntax, ``jobs.<job_id>.strategy.matrix``): what is excluded goes first;
then each mapping of ``include`` is added to every combination that it contradicts in no axis, or is one by itself.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imagesmith.document import Document, Where
from imagesmith.errors import nearest

MOST = 1000
"""How many variants a recipe may have."""
_WORDS = ("include", "exclude")
_RESERVED = ("name", "version", "description", "variant")


@dataclass(frozen=True)
class Variant:
    """One of the images that a recipe describes."""

    name: str
    """The recipe's name, and the values of the axes after it."""
    values: Mapping[str, object] = field(default_factory=dict)
    """What the matrix gives to variables; empty where the recipe has none."""


def variants(found: Document, name: str) -> list[Variant]:
    """The variants of a recipe of that name, in the order of the axes' values; what is wrong is noted in the document.
    """
    top = found.value
    matrix = top.get("matrix") if isinstance(top, Mapping) else None
    if matrix is None:
        return [Variant(name)]
    before = len(found.complaints)
    axes = _axes(found, matrix)
    if len(found.complaints) > before or not isinstance(matrix, Mapping):
        return []
    variables = top.get("variables") if isinstance(top, Mapping) else None
    declared = [
        word for word, value in (variables.items() if isinstance(variables, Mapping) else ())
        if word not in axes and not (isinstance(value, Mapping) and "secret" in value)
    ]  # fmt: skip
    out = _mappings(found, matrix, "exclude", axes, ())
    add = _mappings(found, matrix, "include", axes, declared)
    if len(found.complaints) > before:
        return []
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    chosen = [one for one in chosen if not any(_holds(one, other) for other in out)]
    rows = [(one, dict(one)) for one in chosen]
    alone = []
    for extra in add:
        fits = [row for own, row in rows if all(_same(own[key], extra[key]) for key in extra if key in own)]
        for row in fits:
            row.update(extra)
        if not fits:
            alone.append((extra, extra))
    return _named(found, name, [*rows, *alone], axes)


def _axes(found: Document, matrix: object) -> dict[str, list[object]]:
    if not isinstance(matrix, Mapping):
        found.complain(("matrix",), "must be a mapping of axes to lists of values")
        return {}
    axes: dict[str, list[object]] = {}
    for name, values in matrix.items():
        where: Where = ("matrix", name)
        if name in _WORDS:
            continue
        if not name.isidentifier():
            found.complain(where, f"'{name}' is no name for an axis: letters, digits, _", key=True)
        elif name in _RESERVED:
            found.complain(where, f"'{name}' is the recipe's own and cannot be an axis", key=True)
        elif not isinstance(values, list) or not values:
            found.complain(where, f"must be a list of values{nearest(name, _WORDS)}")
        else:
            for index, value in enumerate(values):
                if not isinstance(value, (str, int, float)):
                    found.complain((*where, index), "must be text, a number, true or false: it names a variant")
                elif any(_same(value, other) for other in values[:index]):
                    found.complain((*where, index), f"'{_word(value)}' is there twice")
            axes[name] = values
    if math.prod(map(len, axes.values())) > MOST:
        found.complain(("matrix",), f"comes to more than {MOST} variants")
    return axes


def _mappings(
    found: Document, matrix: Mapping[str, object], word: str, axes: Mapping[str, list[object]],
    declared: Sequence[str],
) -> list[dict[str, object]]:
    """The mappings of ``include`` or ``exclude``: of axes, and of ``declared`` variables, to values."""
    listed = matrix.get(word) or []
    if not isinstance(listed, list):
        found.complain(("matrix", word), "must be a list of mappings")
        return []
    known = [*axes, *declared]
    for index, one in enumerate(listed):
        where: Where = ("matrix", word, index)
        if not isinstance(one, Mapping) or not one:
            found.complain(where, "must be a mapping of axes to values")
            continue
        for key, value in one.items():
            if key not in known:
                what = "neither an axis nor a variable" if word == "include" else "no axis"
                found.complain((*where, key), f"'{key}' is {what}{nearest(key, known)}", key=True)
            elif key in axes and not isinstance(value, (str, int, float)):
                found.complain((*where, key), "must be text, a number, true or false: it names a variant")
            elif word == "exclude" and not any(_same(value, other) for other in axes[key]):
                near = nearest(_word(value), map(_word, axes[key]))
                found.complain((*where, key), f"'{_word(value)}' is no value of the axis '{key}'{near}")
    return [dict(one) for one in listed if isinstance(one, Mapping)]


def _named(
    found: Document, name: str, rows: list[tuple[dict[str, object], dict[str, object]]], axes: Mapping[str, object]
) -> list[Variant]:
    named: dict[str, Variant] = {}
    for own, values in rows:
        parts = [own[key] for key in axes if key in own] or [*own.values()]
        words = [re.sub(r"[^a-z0-9._]+", "-", _word(part).lower()).strip("-.") for part in parts]
        variant = Variant("-".join([name, *filter(None, words)]), values)
        if variant.name in named:
            both = " and ".join(_shown(one.values) for one in (named[variant.name], variant))
            found.complain(("matrix",), f"two variants would be called {variant.name}: {both}")
        named[variant.name] = variant
    if not named:
        found.complain(("matrix",), "leaves no variant")
    return list(named.values())


def _holds(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    return all(key in one and _same(one[key], value) for key, value in other.items())


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other  # in Python 1 is True


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(values: Mapping[str, object]) -> str:
    return "{" + ", ".join(f"{key}: {_word(value)}" for key, value in values.items()) + "}"
