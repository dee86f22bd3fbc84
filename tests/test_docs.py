"""What README and docs say, held against the code: links, recipes, commands, names of tests and modules, tables."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from imagesmith import cli, recipe, reference
from imagesmith.kinds import FAMILIES, known
from tests.pages import FENCED, PAGES, ROOT, blocks, name, stand_in
from tests.test_architecture import MAY


def code(page: Path) -> list[str]:
    """Inline code and the lines of shell blocks and of plain blocks."""
    text = page.read_text()
    shown = [block for block in blocks(page) if block.words[:1] in (("sh",), ())]
    return [line for block in shown for line in block.text.splitlines()] + re.findall(
        r"`([^`\n]+)`", FENCED.sub("", text)
    )


def recipes() -> list[Any]:
    """The blocks marked ``yaml recipe FILE…``: a whole recipe, and the files that it names."""
    return [pytest.param(block.files, block.text, id=f"{name(page)}-{block.line}")
            for page in PAGES for block in blocks(page) if block.words[:2] == ("yaml", "recipe")]  # fmt: skip


@pytest.mark.parametrize(("files", "text"), recipes())
def test_every_whole_recipe_in_the_docs_is_a_good_one(files: list[str], text: str, tmp_path: Path) -> None:
    for file in files:
        stand_in(tmp_path / file)
    (tmp_path / "recipe.yaml").write_text(text)
    recipe.load_all(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_the_index_leads_to_every_page() -> None:
    docs = ROOT / "docs"
    links = set(re.findall(r"\]\(([^)#\s]+)", (docs / "README.md").read_text()))
    assert {str(page.relative_to(docs)) for page in PAGES if docs in page.parents} - links == {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_in_the_docs_is_there(page: Path) -> None:
    top: Any = typer.main.get_command(cli.app)
    for line in code(page):
        for part in re.split(r"&&|\||;", line):
            words = re.sub(r"^\S*\$ |^(sudo |[A-Z_a-z]+=\S* )*", "", part.strip()).removeprefix(".venv/bin/").split()
            if len(words) < 2 or words[0] != "imagesmith" or words[1].startswith(("<", "…", "-")):
                continue
            command = top.commands.get(words[1])
            assert command is not None, line
            rest = list(itertools.takewhile(lambda word: word != "--", words[2:]))
            if hasattr(command, "commands") and rest and re.fullmatch("[a-z]+", rest[0]):
                assert rest[0] in command.commands, line
                command = command.commands[rest[0]]
            options = {"--help", "-h"} | {option for param in command.params for option in param.opts}
            for word in rest:
                option = re.match(r"\[?(--?[a-z][a-z-]*)", word)
                assert option is None or option[1] in options, f"{option and option[1]}: {line}"


def test_the_commands_reference_names_every_command_and_option() -> None:
    text = (ROOT / "docs" / "reference" / "command.md").read_text()
    top: Any = typer.main.get_command(cli.app)
    missing = []
    for command in top.commands.values():
        section = re.search(rf"^## imagesmith {command.name}\b.*?(?=^## )", text, re.M | re.S)
        missing += [command.name] if section is None else []
        for one in (command, *getattr(command, "commands", {}).values()):
            options = {max(param.opts, key=len) for param in one.params if not getattr(param, "hidden", False)}
            missing += [f"{one.name} {option}" for option in sorted(options)
                        if option.startswith("--") and section is not None and option not in section[0]]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_and_module_that_is_named_is_there(page: Path) -> None:
    defined = {found for file in (ROOT / "tests").glob("test_*.py")
               for found in re.findall(r"def (test_\w+)", file.read_text())}  # fmt: skip
    inner = page.name == "architecture.md" or page.parent.name == "explanation"
    for text in re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text())):
        if re.fullmatch(r"test_\w+", text):
            assert text in defined, text
        if re.fullmatch(r"[\w/]+\.py", text) and text.startswith(("tests/", "imagesmith/")):
            assert (ROOT / text).exists(), text
        elif re.fullmatch(r"\w+/[\w/]+\.py", text) and inner:
            assert (ROOT / "imagesmith" / text).exists(), text


def test_the_table_of_rooms_is_the_one_that_is_held() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.search(r"^\| room \|.*\n\|---.*\n((?:\|.*\n)+)", text, re.M)
    assert table is not None
    said = {}
    for row in table[1].splitlines():
        rooms, others = (re.findall(r"`(\w+)`", cell) for cell in row.strip("|").split("|"))
        said.update({key: set(others) for key in rooms})
    assert said == MAY


def test_every_module_has_a_place_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for module in (ROOT / "imagesmith").iterdir():
        if module.suffix == ".py" and module.stem != "__init__":
            assert module.name in text, module.name
        elif module.is_dir() and (module / "__init__.py").exists():
            assert f"{module.name}/" in text, module.name


def test_the_reference_of_kinds_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "kinds.md").read_text() == reference.whole(), "run: make docs"


def test_the_recipes_reference_names_every_base_and_step_option() -> None:
    text = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    for option in recipe.StepOptions.model_fields:
        assert f"| `{option}` |" in text
    for base in known("bases"):
        assert f"| `{base}` |" in text


def test_what_is_proven_is_said_of_every_kind() -> None:
    text = (ROOT / "docs" / "proven.md").read_text()
    for family in FAMILIES:
        for kind in known(family):
            assert f"`{kind}`" in text, f"docs/proven.md does not name {kind}"
