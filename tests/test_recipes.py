"""The recipes that we ship: each can be validated, planned, and read with the schema that editors use."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import jsonschema
import pytest
import yaml

from imagesmith import reference
from tests.conftest import Command

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def asked_for(recipe: Path) -> list[str]:
    """Variables that have no default."""
    declared = yaml.safe_load(recipe.read_text()).get("variables") or {}
    return [name for name, said in declared.items() if isinstance(said, dict) and not {"default", "secret"} & set(said)]


@cache
def schema() -> jsonschema.Draft202012Validator:
    """The schema of recipes, which is itself right."""
    jsonschema.Draft202012Validator.check_schema(reference.schema())
    return jsonschema.Draft202012Validator(reference.schema())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_a_recipe_of_ours_is_fine_as_it_stands(recipe: Path, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "given.img"
    file.touch()
    given = [word for name in asked_for(recipe) for word in ("--var", f"{name}={file}")]
    assert "fine" in command("validate", recipe, *given).out
    first = command("plan", recipe, *given).out.splitlines()[0]
    assert re.match(r"(run  |there)  base ", first), first


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_editors_have_no_complaint_about_a_recipe_of_ours(recipe: Path) -> None:
    schema().validate(yaml.safe_load(recipe.read_text()))


def test_every_recipe_says_what_it_is_for(pytestconfig: pytest.Config) -> None:
    for recipe in RECIPES:
        assert recipe.read_text().startswith("# "), recipe
        assert os.access(recipe, os.R_OK)
