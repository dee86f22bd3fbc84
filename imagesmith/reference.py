"""The JSON Schema of a recipe, and the reference of kinds: both from the kinds' own declarations."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Any, get_args

from imagesmith.examples import examples
from imagesmith.kinds import FAMILIES, Kind, Options, known
from imagesmith.recipe import ARCHITECTURES, NAME, CheckOptions, Common, Login, Machine, StepOptions


def _schema_of(model: type[Options], place: str) -> dict[str, Any]:
    """The options of a kind or group; ``place`` (``steps/copy``) finds their examples."""
    found: dict[str, Any] = _linked(_plain(model.model_json_schema(by_alias=True)))
    groups = found.pop("$defs", {})
    properties = {}
    for name, value in found.get("properties", {}).items():
        shown = examples(place, name)
        option = {**_inlined(value, groups), **({"examples": shown} if shown and "examples" not in value else {})}
        properties[name] = _or_expression(option)
    return {**found, "properties": properties}


def _plain(schema: Any) -> Any:
    """Without the titles that pydantic makes of names: editors would show them in the place of a meaning."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _plain(item) for key, item in schema.items() if key != "title" or isinstance(item, dict)}


def _inlined(schema: Any, groups: Mapping[str, Any]) -> Any:
    """A group of options is written out where it is referred to, so that kinds' schemas can stand in one."""
    if isinstance(schema, list):
        return [_inlined(item, groups) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in groups:
        return _inlined({**groups[name], **{key: item for key, item in schema.items() if key != "$ref"}}, groups)
    return {key: _inlined(item, groups) for key, item in schema.items()}


def _or_expression(option: dict[str, Any]) -> dict[str, Any]:
    """An option's value may always be an expression in Jinja2, whatever it comes to."""
    if option.get("type") == "string" and not {"pattern", "enum", "const", "minLength"} & set(option):
        return option
    described: dict[str, Any] = {key: option[key] for key in ("description", "default", "examples") if key in option}
    value = {key: item for key, item in option.items() if key not in described}
    return {**described, "anyOf": [value, {"type": "string", "pattern": "\\{[{%]"}]}


def _linked(schema: Any) -> Any:
    """Where a kind's option is itself a kind of a family, refer to that family (kinds.AnswerFile)."""
    if isinstance(schema, list):
        return [_linked(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _linked(value) for key, value in schema.items() if key != "x-kinds"}
    return {**found, "$ref": f"#/$defs/{schema['x-kinds']}"} if "x-kinds" in schema else found


def _doc(kind: type[Kind]) -> str:
    return inspect.getdoc(kind) or ""


def _entry(kind: type[Kind], common: type[Common] | None) -> dict[str, Any]:
    options = _schema_of(kind, f"{kind.family}/{kind.name}")
    options["description"] = _doc(kind)
    forms: list[dict[str, Any]] = [options]
    if kind.shorthand:
        short = options.get("properties", {}).get(_alias(kind, kind.shorthand), {})
        forms.insert(0, {key: value for key, value in short.items() if key != "default"})
    if not kind.model_json_schema().get("required"):
        forms.append({"type": "null"})
    if common is not None and issubclass(common, StepOptions):
        forms.append({"const": False, "description": "Leave it out."})
    value = {"description": _doc(kind), **({"anyOf": forms} if len(forms) > 1 else forms[0])}
    properties: dict[str, Any] = {}
    if common is not None:
        properties = _schema_of(common, kind.family)["properties"]
    return {
        "type": "object", "properties": {**properties, kind.name: value}, "required": [kind.name],
        "additionalProperties": False, "description": _doc(kind).split("\n")[0],
    }  # fmt: skip


def _alias(kind: type[Kind], option: str) -> str:
    field = kind.model_fields.get(option)
    return (field.alias if field is not None else None) or option


_FAMILIES = {
    "steps": "What is done to the system, in this order; each leaves a layer.",
    "checks": "What must hold in a booted throw-away copy, or there is no image.",
    "outputs": "The formats that are wanted.",
}


def _list_of(family: str, common: type[Common]) -> dict[str, Any]:
    kinds = known(family)
    names = {"enum": list(kinds), "description": "; ".join(f"{n}: {_doc(k).splitlines()[0]}" for n, k in kinds.items())}
    entries = [_entry(kind, common) for kind in kinds.values()]
    return {"type": "array", "description": _FAMILIES[family], "items": {"anyOf": [names, *entries]}}


_EXTENDS: dict[str, Any] = {
    "description": "Another recipe's file: what it says holds here, too; this one's values go before it.",
    "anyOf": [
        {"type": "string", "examples": ["common.yaml"]},
        {"type": "object", "additionalProperties": False, "required": ["recipe"], "properties": {
            "recipe": {"type": "string", "description": "The other recipe's file.", "examples": ["common.yaml"]},
            "without": {"type": "array", "items": {"type": "string"}, "examples": [["outputs", "steps.packages"]],
                        "description": "What of it is left out: a key, or KEY.NAME of one variable, step …"}}},
    ],
}  # fmt: skip
_VALUE = {"type": ["string", "number", "boolean"]}
_MATRIX: dict[str, Any] = {
    "type": "object", "description": "Axes: the recipe makes one image for each combination of their values.",
    "properties": {
        "include": {"type": "array", "items": {"type": "object"},
                    "description": "Added to the combinations that they contradict in no axis, or ones more.",
                    "examples": [[{"suite": "trixie", "size": "8G"}]]},
        "exclude": {"type": "array", "items": {"type": "object", "additionalProperties": _VALUE},
                    "description": "Combinations that are left out.", "examples": [[{"suite": "trixie"}]]},
    },
    "additionalProperties": {"type": "array", "minItems": 1, "items": _VALUE,
                             "description": "An axis: a variable, and the values that it takes."},
    "examples": [{"suite": ["bookworm", "trixie"]}],
}  # fmt: skip


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a recipe."""
    text: dict[str, Any] = {"type": ["string", "number"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "imagesmith recipe",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["base"]}, {"required": ["extends"]}],
        "properties": {
            "name": {"type": "string", "pattern": f"^{NAME.pattern}$", "examples": ["web"],
                     "description": "Names files and labels; the file's name without its extension by default."},
            "version": {**text, "description": "Free text; box versions want digits and dots.", "default": "0",
                        "examples": ["2026.11"]},
            "description": {"type": "string", "description": "What the image is, for boxes, labels and the manifest.",
                            "examples": ["A web server"]},
            "arch": {"enum": list(ARCHITECTURES), "description": "The guest's processor.", "default": "x86_64"},
            "extends": _EXTENDS,
            "matrix": _MATRIX,
            "variables": {"type": "object", "description": "Defaults; {secret: {env|file|command: …}} for secrets.",
                          "examples": [{"user": "ops", "token": {"secret": {"env": "DEPLOY_TOKEN"}}}]},
            "machine": {**_schema_of(Machine, "machine"), "description": inspect.getdoc(Machine)},
            "login": {**_schema_of(Login, "login"), "description": inspect.getdoc(Login)},
            "checkpoints": {"enum": [True, False, "with-secrets"],
                            "description": "Whether running guests' states are kept between online steps."},
            "base": {"oneOf": [_entry(kind, None) for kind in known("bases").values()],
                     "description": "Where the disk begins: exactly one."},
            "steps": _list_of("steps", StepOptions),
            "checks": _list_of("checks", CheckOptions),
            "outputs": _list_of("outputs", Common),
        },
        "$defs": {"answers": {"oneOf": [_entry(kind, None) for kind in known("answers").values()]}},
    }


def overview() -> str:
    """Every kind with its first line, by family."""
    lines = []
    for family in FAMILIES:
        lines.append(f"{family}:")
        for name, kind in known(family).items():
            lines.append(f"  {name:<14} {_doc(kind).splitlines()[0]}")
    return "\n".join(lines)


def manual(kind: type[Kind], *, level: int = 2) -> str:
    """A kind's manual page, in Markdown: its docstring and a table of its options."""
    lines = [f"{'#' * level} {kind.name}", "", _doc(kind), ""]
    if kind.model_fields:
        lines += ["| option | value | default | meaning |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        short = " (a bare value stands for it)" if kind.shorthand in {name, field.alias} else ""
        meaning = (field.description or "") + short
        lines.append(f"| `{field.alias or name}` | {_type(field.annotation)} | {default} | {meaning} |")
    return "\n".join(lines).rstrip() + "\n"


def whole() -> str:
    """The reference of all kinds, in Markdown."""
    parts = ["# Kinds\n\nMade by `imagesmith kinds --markdown` from the kinds' own declarations.\n"]
    for family in FAMILIES:
        parts.append(f"## {family.capitalize()}\n")
        parts += [manual(kind, level=3) for kind in known(family).values()]
    return "\n".join(parts)


def _default(value: object) -> str:
    if value in ((), [], None, "", {}):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(annotation: object) -> str:
    if annotation is type(None):
        return "nothing"
    if isinstance(annotation, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    names = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "Path": "file",
             "tuple": "list", "list": "list", "Mapping": "mapping", "dict": "mapping"}  # fmt: skip
    if get_args(annotation) and getattr(annotation, "__origin__", None) is None:
        return " or ".join(f"`{value}`" for value in get_args(annotation) if value != "")
    origin = getattr(annotation, "__origin__", annotation)
    if str(origin).endswith("Literal"):
        return " or ".join(f"`{value}`" for value in get_args(annotation) if value != "")
    if str(origin).endswith("Union"):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    name = getattr(origin, "__name__", str(origin))
    return names.get(name, "options")
