"""What a recipe's variables are given from outside, and where its secrets come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from imagesmith import document
from imagesmith.document import Document, Where
from imagesmith.errors import nearest


@dataclass(frozen=True)
class Overrides:
    """Values of variables from outside, the strongest last: environment, --var-file, --var."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    files: Sequence[Path] = ()
    given: Mapping[str, str] = field(default_factory=dict)


def values_from_outside(
    found: Document, overrides: Overrides, declared: Mapping[str, object], axes: Mapping[str, object]
) -> dict[str, object]:
    """The strongest value of each variable from outside; text becomes the type of the default.

    ``axes`` are the variables that the matrix sets. What is wrong is noted in the document.
    """
    given: dict[str, object] = {}

    def unknown(name: str) -> str:
        if name in axes:
            return f"'{name}' is an axis of the matrix; choose with --variant"
        return f"unknown variable '{name}'{nearest(name, declared)}"

    for name, text in sorted(overrides.environment.items()):
        if name.startswith("IMAGESMITH_VAR_") and name.removeprefix("IMAGESMITH_VAR_") in declared:
            given[name.removeprefix("IMAGESMITH_VAR_")] = text
    for file in overrides.files:
        other = document.load(file)
        found.complaints.extend(other.complaints)
        if not isinstance(other.value, Mapping):
            other.complain((), "must be a mapping of variables to values")
            found.complaints.append(other.complaints[-1])
            continue
        for name, value in other.value.items():
            if name not in declared:
                found.complaints.append(other.complaint((name,), unknown(name), key=True))
            given[name] = value
    for name, text in overrides.given.items():
        if name not in declared:
            found.complain(("variables",), f"--var: {unknown(name)}")
        given[name] = text
    for name, value in given.items():
        declaration = declared.get(name)
        default = declaration.get("default") if isinstance(declaration, Mapping) else declaration
        if isinstance(value, str) and default is not None and not isinstance(default, str):
            try:
                given[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                pass
    return given


def secret_source(found: Document, source: object, where: Where) -> dict[str, str]:
    """Where the secret declared at ``where`` comes from; empty where it cannot be told, which is noted.

    A file is named relative to the document's own folder, in whichever of the files it was merged of it is declared.
    """
    words = ("env", "file", "command")
    if isinstance(source, Mapping) and len(source) == 1:
        (word, value), = source.items()
        if word in words and isinstance(value, str):
            folder, own = found.origin(where)[0].file.parent, found.file.parent
            if word == "file" and folder != own:
                value = os.path.relpath(folder / Path(value).expanduser(), own)
            return {word: value}
        if word not in words:
            found.complain((*where, "secret", word), f"unknown source '{word}'{nearest(word, words)}", key=True)
            return {}
    found.complain((*where, "secret"), "must be one of {env: NAME}, {file: PATH}, {command: PROGRAM ARGS}")
    return {}
