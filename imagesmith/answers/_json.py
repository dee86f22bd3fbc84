"""JSON answer files: where each value stands, and what a schema says to it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from imagesmith.answers._schema import held
from imagesmith.document import Document
from imagesmith.kinds import Answer, Remark, Rendered, placeholder

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_SCHEMAS = Path(__file__).parent / "schemas"

Where = tuple[str | int, ...]


def lines(text: str) -> dict[Where, int]:
    """The line (from 1) on which each key, or item of a list, of a JSON text begins. The text must be JSON."""
    found: dict[Where, int] = {(): 1}
    path: list[str | int | None] = []  # of a mapping whose next word is a key, None
    key, line, at = "", 1, 0
    for token in _TOKEN.finditer(text):
        line += text.count("\n", at, token.start())
        at = token.start()
        word = token[0]
        if word in "]}":
            path.pop()
        elif word == ":":
            path[-1] = key
        elif word == ",":
            last = path[-1]
            path[-1] = last + 1 if isinstance(last, int) else None
        elif path and path[-1] is None:
            key = json.loads(word)
            found[_place([*path[:-1], key])] = line
        else:
            found.setdefault(_place(path), line)
            if word in "[{":
                path.append(0 if word == "[" else None)
    return found


def _place(path: Sequence[str | int | None]) -> Where:
    return tuple(part for part in path if part is not None)


class JsonAnswer(Answer):
    """An answer file in JSON: secrets are escaped where they stand, in the user's own file, too."""

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """See Answer: within a string, a secret is written as JSON writes it."""
        inside = {name: json.dumps(value)[1:-1] for name, value in secrets.items()}
        copy = super().revealed(secrets)
        if self._theirs is not None:
            text = self._theirs.text
            for name, value in inside.items():
                text = text.replace(placeholder(name), value)
            copy._theirs = Rendered(text, self._theirs.path, self._theirs.lines)
        return copy


def lint(rendered: Rendered, schema: str) -> Sequence[Remark]:
    """What is no JSON, or not as a schema of ours (a file of ``schemas/``) says."""
    try:
        value = json.loads(rendered.text)
    except json.JSONDecodeError as error:
        return [rendered.remark(f"is no JSON: {error.msg}", error.lineno)]
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        return [rendered.remark(f"is no JSON that a program would read: {error}")]
    where = {place: (line, 1) for place, line in lines(rendered.text).items()}
    rules = json.loads((_SCHEMAS / schema).read_text(encoding="utf-8"))
    return held(rendered, Document(rendered.path, value, where, where), rules)
