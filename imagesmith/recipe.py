"""YAML -> Recipe, or its variants.

Every complaint names file, line, column, the place in the recipe and the nearest right word.

All complaints come at once, and nothing outside the recipe's own files is touched.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from imagesmith import document, extends
from imagesmith.document import Document, Where
from imagesmith.errors import Complaint, RecipeError, nearest
from imagesmith.kinds import Base, Check, Kind, Options, Output, Step, Unfit, known, without
from imagesmith.matrix import Variant, variants
from imagesmith.model import CheckOptions, Common, Entry, K, Login, Machine, Recipe, StepOptions
from imagesmith.render import Renderer, Secret
from imagesmith.variables import Overrides, secret_source, values_from_outside

ARCHITECTURES = ("x86_64", "aarch64")
FIRMWARE = ("bios", "uefi", "uefi-secure")
TOP_LEVEL = (
    "name", "version", "description", "arch", "extends", "matrix", "variables", "machine", "login", "checkpoints",
    "base", "steps", "checks", "outputs",
)  # fmt: skip

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""What a recipe may be called: it names files."""

__all__ = [
    "CheckOptions", "Common", "Entry", "Login", "Machine", "Overrides", "Recipe", "StepOptions", "load", "load_all",
    "names", "of_image",
]  # fmt: skip


def load(path: Path, overrides: Overrides | None = None, variant: str = "") -> Recipe:
    """Read a recipe; of one that has a matrix, the variant of that name. Raises RecipeError with every complaint."""
    found = extends.load(path)
    known = _variants(found)
    chosen = [one for one in known if variant in ("", one.name)]
    if len(chosen) != 1 and not found.complaints:
        there = [one.name for one in known]
        wrong = f"has no variant '{variant}'{nearest(variant, there)}" if variant else "makes several variants"
        found.complain(("matrix",), f"{wrong}; one must be named: {', '.join(there)}", key=True)
        chosen = []
    return _recipes(found, overrides, chosen)[0]


def load_all(path: Path, overrides: Overrides | None = None, only: Collection[str] | None = None) -> list[Recipe]:
    """Read all variants of a recipe, or those that ``only`` names. Raises RecipeError with every complaint.

    One without a matrix is its only variant.
    """
    found = extends.load(path)
    return _recipes(found, overrides, [one for one in _variants(found) if only is None or one.name in only])


def names(path: Path) -> list[str]:
    """The names of a recipe's variants; of one without a matrix its own. Raises RecipeError."""
    found = extends.load(path)
    known = _variants(found)
    if not known:
        raise RecipeError(found.complaints)
    return [one.name for one in known]


def _variants(found: Document) -> list[Variant]:
    return variants(found, str(found.at(("name",)) or found.file.stem))


def _recipes(found: Document, overrides: Overrides | None, chosen: Sequence[Variant]) -> list[Recipe]:
    """What a document says, once for each variant; what is wrong in several is told once."""
    recipes = [_Loader(found, overrides or Overrides(), variant).recipe() for variant in chosen]
    if found.complaints:
        raise RecipeError(list(dict.fromkeys(found.complaints)))
    return [recipe for recipe in recipes if recipe is not None]


def of_image(path: Path, *, outputs: Sequence[str] = (), name: str = "", arch: str = "x86_64") -> Recipe:
    """A recipe that takes an image as it is and asks only whether it boots.

    ``outputs`` are written as in a recipe, one each: ``qcow2``, ``raw: {compression: xz}``. Raises RecipeError.
    """
    if not path.is_file():
        raise RecipeError([Complaint(path, 1, 1, "", "no such image")])
    if arch not in ARCHITECTURES:
        raise RecipeError((), f"--arch {arch}: is none of {', '.join(ARCHITECTURES)}{nearest(arch, ARCHITECTURES)}")
    place = Complaint(path, 1, 1, "", "")
    name = name or name_for(path)
    if not NAME.fullmatch(name):
        raise RecipeError((), f"--name {name}: use lower-case letters, digits, dots, hyphens")
    base = known("bases")["disk"].model_validate({"path": path.name}, context={"folder": path.parent})
    check = Entry(cast(Check, known("checks")["boot"]()), CheckOptions(), place)
    return Recipe(
        path=path, name=name, version="0", description="", arch=arch, variables={}, secrets={}, machine=Machine(),
        base=cast(Base, base), base_place=place, steps=(), checks=(check,), outputs=_outputs(outputs),
    )  # fmt: skip


def name_for(path: Path) -> str:
    """A recipe's name for an image: its file's, without suffixes; what begins with a digit is none."""
    stem = re.sub(r"(\.[a-z_][a-z0-9_-]*)+$", "", path.name.lower())
    return "".join(c if c.isascii() and (c.isalnum() or c == ".") else "-" for c in stem).strip("-.") or "image"


def _outputs(entries: Sequence[str]) -> tuple[Entry[Output], ...]:
    found = document.parse("".join(f"- {entry}\n" for entry in entries), Path("--to"))
    loader = _Loader(found, Overrides(environment={}))
    outputs = loader.entries({"outputs": found.value}, "outputs", Output, Common)
    loader.unique_labels(outputs)
    if found.complaints:
        raise RecipeError(found.complaints)
    return tuple(outputs)


class _Loader:
    def __init__(self, found: Document, overrides: Overrides, variant: Variant = Variant("")) -> None:  # noqa: B008
        self._document = found
        self._overrides = overrides
        self._variant = variant
        self._renderer = Renderer({})

    def recipe(self) -> Recipe | None:
        top = self._document.value
        if not isinstance(top, Mapping):
            self._document.complain((), "a recipe is a mapping with name, base, steps, checks and outputs")
            return None
        for key in top:
            if key not in TOP_LEVEL:
                self._document.complain((key,), f"unknown key '{key}'{nearest(key, TOP_LEVEL)}", key=True)
        basics = {
            "name": self._text(top, "name", self._document.file.stem),
            "version": self._text(top, "version", "0"),
            "description": self._text(top, "description", ""),
            "arch": str(self._variant.values.get("arch") or self._text(top, "arch", "x86_64")),
        }
        if not NAME.fullmatch(basics["name"]):
            self._document.complain(("name",), "use lower-case letters, digits, dots, hyphens; it names files")
        if basics["arch"] not in ARCHITECTURES:
            near = nearest(basics["arch"], ARCHITECTURES)
            place = ("matrix", "arch") if "arch" in self._variant.values else ("arch",)
            self._document.complain(place, f"'{basics['arch']}' is none of {', '.join(ARCHITECTURES)}{near}")
        known = {**basics, **({"variant": self._variant.name} if self._variant.values else {})}
        variables, secrets = self._variables(top, known)
        self._renderer = Renderer({**known, **variables, **{name: Secret(name) for name in secrets}})
        machine = self._options(Machine, self._rendered(top.get("machine"), ("machine",)), ("machine",))
        login = self._login(top)
        base = self._base(top)
        steps = self.entries(top, "steps", Step, StepOptions)
        checks = self.entries(top, "checks", Check, CheckOptions)
        outputs = self.entries(top, "outputs", Output, Common)
        self.unique_labels(outputs)
        if machine is None or base is None:
            return None
        return Recipe(
            path=self._document.file, variables=variables, secrets=secrets, machine=machine, base=base[0],
            base_place=base[1], steps=tuple(steps), checks=tuple(checks), outputs=tuple(outputs), login=login,
            checkpoints=self._checkpoints(top), extends=self._document.below, axes=self._variant.values,
            **{**basics, "name": known.get("variant", basics["name"])},
        )  # fmt: skip

    def _folder(self, where: Where) -> Path:
        """What the paths in a value are relative to: the folder of the file in which it was written."""
        return self._document.origin(where)[0].file.parent

    # -- plain values --------------------------------------------------------------------------------------------

    def _text(self, top: Mapping[str, object], key: str, default: str) -> str:
        value = top.get(key, default)
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        self._document.complain((key,), "must be text")
        return default

    def _rendered(self, value: object, where: Where) -> object:
        if isinstance(value, str):
            try:
                return self._renderer.value(value)
            except ValueError as error:
                self._document.complain(where, str(error))
                return value
        if isinstance(value, Mapping):
            return {key: self._rendered(item, (*where, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._rendered(item, (*where, index)) for index, item in enumerate(value)]
        return value

    # -- variables -----------------------------------------------------------------------------------------------

    def _variables(
        self, top: Mapping[str, object], basics: Mapping[str, str]
    ) -> tuple[dict[str, object], dict[str, dict[str, str]]]:
        declared = top.get("variables") or {}
        if not isinstance(declared, Mapping):
            self._document.complain(("variables",), "must be a mapping of names to defaults")
            return {}, {}
        matrix = cast(Mapping[str, object], top.get("matrix")) if self._variant.values else {}
        axes = {name: value for name, value in self._variant.values.items() if name in matrix}
        extra = {name: {"default": value} for name, value in self._variant.values.items() if name not in matrix}
        declared = {name: extra.get(name, value) for name, value in declared.items() if name not in axes}
        given = values_from_outside(self._document, self._overrides, declared, axes)
        plain = {name: value for name, value in axes.items() if name not in basics}
        secrets: dict[str, dict[str, str]] = {}
        for name, declaration in declared.items():
            where: Where = ("variables", name)
            if not name.isidentifier():
                self._document.complain(where, f"'{name}' is no name for a variable: letters, digits, _", key=True)
                continue
            if name in basics:
                self._document.complain(where, f"'{name}' is the recipe's own {name} and cannot be set", key=True)
                continue
            if isinstance(declaration, Mapping) and "secret" in declaration:
                source = secret_source(self._document, declaration["secret"], where)
                secrets[name] = {"value": str(given[name])} if name in given else source
                continue
            default: object = declaration
            if isinstance(declaration, Mapping):
                for key in declaration:
                    if key not in ("default", "description"):
                        known_words = ("default", "description", "secret")
                        self._document.complain((*where, key), f"unknown key '{key}'{nearest(key, known_words)}",
                                                key=True)  # fmt: skip
                default = declaration.get("default")
                where = (*where, "default")
                if default is None and name not in given:
                    self._document.complain(where[:2], f"has no default; give it with --var {name}=…", key=True)
            self._renderer = Renderer({**basics, **plain, **{n: Secret(n) for n in secrets}})
            plain[name] = given[name] if name in given else self._rendered(default, where)
        return plain, secrets

    def _checkpoints(self, top: Mapping[str, object]) -> bool | Literal["with-secrets"]:
        value = top.get("checkpoints", True)
        if isinstance(value, bool):
            return value
        if value != "with-secrets":
            self._document.complain(("checkpoints",), "must be true, false or with-secrets")
            return True
        return "with-secrets"

    # -- login -------------------------------------------------------------------------------------------------

    def _login(self, top: Mapping[str, object]) -> Login | None:
        if top.get("login") is None:
            return None
        return cast(Login | None, self._options(Login, self._rendered(top["login"], ("login",)), ("login",)))

    # -- kinds ---------------------------------------------------------------------------------------------------

    def _base(self, top: Mapping[str, object]) -> tuple[Base, Complaint] | None:
        base = self._rendered(top.get("base"), ("base",))
        choice = known("bases")
        if isinstance(base, str):
            base = {base: None}
        if not isinstance(base, Mapping) or len(base) != 1:
            self._document.complain(("base",), f"must be exactly one of {', '.join(choice)}")
            return None
        (name, value), = base.items()
        found = self._kind("bases", name, value, ("base", name))
        return None if found is None else (cast(Base, found), self._document.complaint(("base", name), "", key=True))

    def entries(
        self, top: Mapping[str, object], key: str, kind: type[K], common: type[Common]
    ) -> list[Entry[K]]:
        entries: list[Entry[K]] = []
        raw = top.get(key) or []
        if not isinstance(raw, list):
            self._document.complain((key,), "must be a list")
            return entries
        mentioned = set()
        for index, item in enumerate(self._rendered(raw, (key,)) or []):  # type: ignore[arg-type, var-annotated]
            where: Where = (key, index)
            named = self._named(item, where, kind.family, common)
            if named is None:
                continue
            name, value, rest = named
            mentioned.add(name)
            options = self._options(common, rest, where)
            if value is False:  # `cleanup: false`: named, so that it is not added by itself, and left out
                continue
            found = self._kind(kind.family, name, value, (*where, name) if isinstance(item, Mapping) else where)
            if found is not None and options is not None and options.when:
                entries.append(Entry(cast(K, found), options, self._document.complaint(where, "")))
        if kind.family == "steps":
            for name, other in known("steps").items():
                if cast(type[Step], other).automatic and name not in mentioned:
                    place = self._document.complaint(("steps",), "")
                    entries.append(Entry(cast(K, other()), common(), place))
        return entries

    def _named(
        self, item: object, where: Where, family: str, common: type[Common]
    ) -> tuple[str, object, dict[str, object]] | None:
        """Split an entry into its kind's name, the kind's options and the options that stand beside."""
        word = family[:-1]
        if isinstance(item, str):
            return item, None, {}
        if not isinstance(item, Mapping):
            self._document.complain(where, f"must be the name of a {word}, or one name with its options")
            return None
        rest = {key: value for key, value in item.items() if key in common.model_fields}
        names = [key for key in item if key not in rest]
        kinds = [name for name in names if name in known(family)]
        if len(names) == 1:
            return names[0], item[names[0]], rest
        if not names:
            # `- user: x` beside nothing is a kind; `- name: x` alone has none
            self._document.complain(where, f"names no {word}: one of {', '.join(known(family))}")
        elif len(kinds) == 1:
            for name in names:
                if name not in kinds:
                    near = nearest(name, [*common.model_fields])
                    self._document.complain((*where, name), f"unknown option '{name}' beside '{kinds[0]}'{near}",
                                            key=True)  # fmt: skip
        elif len(kinds) > 1:
            self._document.complain(where, f"is {' and '.join(kinds)} at once; make it {len(kinds)} {family}")
        else:
            for name in names:
                near = nearest(name, [*known(family), *common.model_fields]) + without()
                self._document.complain((*where, name), f"unknown {word} '{name}'{near}", key=True)
        return None

    def _kind(self, family: str, name: str, value: object, where: Where) -> Kind | None:
        kinds = known(family)
        if name not in kinds:
            near = nearest(name, kinds) or f"; there are {', '.join(kinds)}"
            self._document.complain(where, f"unknown {family[:-1]} '{name}'{near}{without()}", key=True)
            return None
        kind = kinds[name]
        options = kind.options_of(value)
        short = options is not value and not isinstance(value, Mapping) and value is not None
        if not isinstance(options, Mapping):
            self._document.complain(where, f"'{name}' takes options, not a bare value")
            return None
        found = self._options(kind, options, where, shorthand=kind.shorthand if short else "")
        return cast(Kind | None, found)

    def _options(self, model: type[Any], value: object, where: Where, *, shorthand: str = "") -> Any:
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self._document.complain(where, "must be a mapping of options")
            return None
        context = {"folder": self._folder(where), "render": self._renderer.file, "mapped": self._renderer.mapped,
                   "own_template": self._renderer.own}  # fmt: skip
        try:
            return model.model_validate(dict(value), context=context)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                self._explain(model, value, where, shorthand, cast(dict[str, Any], problem))
            return None

    def _explain(
        self, model: type[Options], value: object, where: Where, shorthand: str, problem: dict[str, Any]
    ) -> None:
        """Turn what pydantic found into a complaint at the right place."""
        place: list[str | int] = []
        at: object = value
        for part in problem["loc"]:  # the names of union members stand in `loc` too: they are no places
            is_index = isinstance(at, (list, tuple)) and isinstance(part, int) and part < len(at)
            if is_index or (isinstance(at, Mapping) and part in at):
                at = at[part]  # type: ignore[index]
                place.append(part)
        if shorthand and place[:1] == [shorthand]:
            place = place[1:]
        here: Where = (*where, *place)
        options = sorted({field.alias or name for name, field in model.model_fields.items()})
        last = str(problem["loc"][-1]) if problem["loc"] else ""
        match problem["type"]:
            case "extra_forbidden":
                near = nearest(last, options) or (f"; there are {', '.join(options)}" if options else "")
                self._document.complain(here, f"unknown option '{last}'{near}", key=True)
            case "missing":
                self._document.complain(here, f"option '{last}' is required", key=True)
            case "value_error" if isinstance(problem["ctx"]["error"], Unfit):
                inner = problem["ctx"]["error"]
                given = at.get(inner.kind.name) if isinstance(at, Mapping) else None
                short = "" if isinstance(given, Mapping) else inner.kind.shorthand
                below = (*here, inner.kind.name) if isinstance(at, Mapping) else here
                for more in inner.problems:
                    self._explain(inner.kind, inner.value, below, short, dict(more))
            case "value_error":
                self._document.complain(here, str(problem["ctx"]["error"]))
            case "literal_error":
                near = nearest(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
                self._document.complain(here, f"must be {problem['ctx']['expected']}{near}")
            case _:
                message = str(problem["msg"]).removeprefix("Input ")
                self._document.complain(here, message[:1].lower() + message[1:])

    def unique_labels(self, outputs: Sequence[Entry[Output]]) -> None:
        seen: set[str] = set()
        for entry in outputs:
            if entry.kind.label in seen:
                place = entry.place
                message = f"there are two outputs '{entry.kind.label}'; their files would have the same name"
                self._document.complaints.append(
                    Complaint(place.file, place.line, place.column, place.path, message)
                )
            seen.add(entry.kind.label)

