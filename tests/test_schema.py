"""The schema that editors read: every option has a meaning and right examples; and an editor's own server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imagesmith import reference
from imagesmith.kinds import FAMILIES, known
from imagesmith.model import CheckOptions, Login, Machine, StepOptions
from tests.language_server import Editor

WEB = Path(__file__).parent.parent / "recipes" / "web.yaml"


def options() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every option: its place and name, its schema, and whether leaving it out tells what it takes."""
    models: dict[str, Any] = {f"{family}/{name}": kind for family in FAMILIES for name, kind in known(family).items()}
    models |= {"machine": Machine, "login": Login, "steps": StepOptions, "checks": CheckOptions}
    for place, model in models.items():
        if model.__module__.startswith("imagesmith."):
            for name, schema in reference._schema_of(model, place)["properties"].items():
                yield f"{place}.{name}", schema, schema.get("default") not in (None, "", [], {})


def shapes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for one in schema.get("anyOf", []):
        yield from shapes(one)


def test_every_option_says_what_it_means_and_shows_what_may_be_written() -> None:
    silent, bare = [], []
    for name, schema, has_default in options():
        if not schema.get("description"):
            silent.append(name)
        closed = any("enum" in s or "const" in s or s.get("type") == "boolean" or "$ref" in s for s in shapes(schema))
        if not (has_default or closed or any("examples" in shape for shape in shapes(schema))):
            bare.append(name)
    assert not silent, "give these a Field(description=…)"
    assert not bare, "give these an example, in imagesmith/examples.py or Field(examples=[…])"


def test_every_example_is_right() -> None:
    whole = reference.schema()
    for name, schema, _ in options():
        for example in schema.get("examples", []):
            jsonschema.Draft202012Validator({**schema, "$defs": whole["$defs"]}).validate(example)
            if "anyOf" in schema:  # any text may be an expression; an example is what the expression comes to
                assert isinstance(example, (str, int, dict, list)), name


def test_everything_that_the_schema_refers_to_is_in_it() -> None:
    whole = reference.schema()
    assert {part.split('"')[0] for part in json.dumps(whole).split('"$ref": "')[1:]} == {"#/$defs/answers"}
    assert whole["$defs"]["answers"]["oneOf"]


@pytest.mark.slow
def test_an_editor_checks_completes_and_explains_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "imagesmith.schema.json").write_text(json.dumps(reference.schema()))
    head = "# yaml-language-server: $schema=imagesmith.schema.json\n"
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(head + WEB.read_text())
    bad.write_text(f"""{head}name: x
machine:
  memroy: 1G
base:
  bootstrap: {{distribution: debain, suite: bookworm}}
steps:
  - pakages: [a]
  - copy: {{form: x, to: /y}}
  -{" "}
outputs: [qcow3]
""")
    rows = good.read_text().splitlines()
    line = next(number for number, row in enumerate(rows, 1) if "bootstrap:" in row)
    with Editor(tmp_path) as editor:
        assert editor.open(good) == []
        told = editor.open(bad)
        for number, word in ((4, "memroy"), (6, '"debian", "ubuntu"'), (8, '"packages"'), (9, '"from"'), (11, '"ova"')):
            assert any(said.startswith(f"{number}: ") and word in said for said in told), told
        assert "with mmdebstrap" in editor.hover(good, line, 4)
        suite = editor.hover(good, line, rows[line - 1].index("suite") + 2)
        assert "code name" in suite
        assert "trixie" in suite
        assert editor.complete(bad, 4, 3) >= {"cpus", "firmware", "memory", "tpm"}
        assert editor.complete(bad, 10, 5) >= {"packages", "template", "user"}
