"""An answer file that is YAML or JSON, held against a JSON Schema of ours: what does not fit, at its line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imagesmith.document import Document, foreign, spell
from imagesmith.errors import RecipeError, nearest
from imagesmith.kinds import Remark, Rendered

_WORDS = {"object": "a mapping", "array": "a list", "string": "text", "integer": "a whole number", "number": "a number",
          "boolean": "true or false", "null": "nothing"}  # fmt: skip
_MOST_REMARKS = 20
_SCHEMAS = Path(__file__).parent / "schemas"


def rules(name: str) -> dict[str, Any]:
    """A schema of ours, a file of ``schemas/``."""
    found: dict[str, Any] = json.loads((_SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def read(rendered: Rendered) -> Document | Remark:
    """The text as YAML (JSON is YAML), or the remark that it is none."""
    try:
        return foreign(rendered.text, rendered.path)
    except RecipeError as error:
        complaint = error.complaints[0]
        return rendered.remark(complaint.message, complaint.line)


def line_of(document: Document, where: Iterable[str | int], *, key: bool = False) -> int:
    """The line of the text where a value, or its key, stands."""
    return document.complaint(tuple(where), "", key=key).line


def held(rendered: Rendered, document: Document, schema: Mapping[str, Any]) -> list[Remark]:
    """What of a document does not fit a JSON Schema (draft 2020-12)."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    found = []
    for error in Draft202012Validator(schema).iter_errors(document.value):
        deepest = best_match([error])
        assert deepest is not None
        where = tuple(deepest.absolute_path)
        message, at = _message(deepest, where)
        place = spell(where)
        key = at != where or (deepest.validator == "required" and isinstance(where[-1] if where else 0, str))
        remark = rendered.remark(f"{place}: {message}" if place else message, line_of(document, at, key=key))
        if remark not in found:
            found.append(remark)
    return found[:_MOST_REMARKS]


def _message(error: Any, where: tuple[str | int, ...]) -> tuple[str, tuple[str | int, ...]]:
    """In our words, without the value (it may be long, or nobody's business); and the place that it is about."""
    value, wanted = error.instance, error.validator_value
    match error.validator:
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else list(wanted)
            return f"must be {' or '.join(_WORDS[kind] for kind in kinds)}, not {_kind(value)}", where
        case "required":
            missing = [name for name in wanted if name not in value]
            return f"needs '{missing[0]}'", where
        case "additionalProperties":
            known = error.schema.get("properties", {})
            name = next(key for key in value if key not in known)
            return f"unknown key '{name}'{nearest(name, known)}", (*where, name)
        case "enum":
            words = ", ".join(str(word) for word in wanted)
            return f"must be one of {words}{nearest(str(value), map(str, wanted))}", where
        case "const":
            return f"must be {wanted}", where
        case "minItems" | "minProperties":
            return "is empty", where
    return str(error.message)[:200], where


def _kind(value: object) -> str:
    names: list[tuple[type[Any], str]] = [
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"),
    ]  # fmt: skip
    return _WORDS[next((name for kind, name in names if isinstance(value, kind)), "null")]
