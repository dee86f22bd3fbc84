"""The table of rooms in docs/architecture.md, held against the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "imagesmith"
FOUNDATION = {"errors", "host", "archive", "interfaces", "kinds"}
KINDS = {"bases", "answers", "steps", "checks", "outputs"}
MAY: dict[str, set[str]] = {
    "errors": set(),
    "host": {"errors"},
    "archive": {"errors"},
    "cpio": {"errors"},
    "interfaces": {"host"},
    "digests": set(),
    "options": {"digests", "errors"},
    "plugins": set(),
    "kinds": {"errors", "host", "interfaces", "options", "plugins"},
    "password": set(),
    **{family: FOUNDATION | {family} for family in KINDS},
    "bases": FOUNDATION | {"apt", "bases", "keys", "look"},
    "answers": FOUNDATION | {"answers", "document"},
    "outputs": FOUNDATION | {"outputs", "cpio", "disk"},
    "steps": FOUNDATION | {"apt", "password", "steps"},
    "qmp": {"errors"},
    "store_index": {"errors", "store_files"},
    "store_files": {"errors"},
    "store_record": {"store_index", "store_files"},
    "store_care": {"store_index", "store_files", "store_record"},
    "store": {"errors", "store_index", "store_files", "store_care", "store_record"},
    "scratch": {"store_files"},
    "fetch": {"errors", "events", "host", "interfaces", "store_files", "fetch_http", "fetch_sums"},
    "fetch_http": {"errors", "events", "interfaces", "store_files"},
    "fetch_sums": {"errors", "host"},
    "tree": {"errors", "host", "interfaces", "tree", "archive"},
    "disk": {"errors", "host", "interfaces", "disk", "qmp", "archive"},
    "machine": {"errors", "host", "interfaces", "machine", "disk", "qmp", "archive"},
    "drivers": {"errors", "host", "interfaces", "drivers", "tree", "disk", "machine", "qmp", "archive"},
    "installer": {"errors", "host", "interfaces", "installer", "keys", "machine", "disk", "qmp", "archive", "cpio"},
    "inventory": {"errors"},
    "compare": {"inventory"},
    "look": {"disk", "errors", "host", "installer", "interfaces", "inventory", "look"},
    "probe": {"errors", "host", "machine"},
    "doctor": {"errors", "host", "kinds", "machine", "probe", "tree"},
    "document": {"errors"},
    "render": {"errors", "kinds", "password"},
    "model": {"errors", "kinds"},
    "extends": {"document", "errors", "model"},
    "matrix": {"document", "errors"},
    "variables": {"document", "errors"},
    "recipe": {"errors", "extends", "kinds", "document", "matrix", "model", "render", "variables"},
    "secrets": {"errors", "host", "recipe"},
    "plan": {"errors", "kinds", "recipe"},
    "lint": {"errors", "host", "lint_packages", "lint_places", "lint_scripts", "lint_secrets", "plan"},
    "lint_packages": {"errors", "host", "lint_places", "plan"},
    "lint_places": {"document", "errors", "kinds", "plan"},
    "lint_scripts": {"errors", "host", "kinds", "lint_places", "plan"},
    "lint_secrets": {"errors", "kinds", "lint_places", "plan"},
    "starters": {"errors", "kinds", "recipe"},
    "remote": {"disk", "errors", "fetch_http", "host", "kinds", "plan", "remote", "store", "store_files", "tree"},
    "events": set(),
    "examples": set(),
    "apt": set(),
    "keys": {"errors"},
    "stale": {"plan", "store"},
    "why": {"history", "kinds", "options", "plan", "store"},
    "history": set(),
    "engine": {"engine_leaves", "engine_node", "errors", "events", "host", "interfaces", "kinds", "plan", "store"},
    "reproduce": set(),
    "room": {"errors"},
    "engine_leaves": {"engine_node", "errors", "host", "interfaces", "kinds", "plan", "recipe", "reproduce", "room",
                      "store"},
    "engine_node": {"advice", "errors", "events", "history", "interfaces", "kinds", "plan", "recipe", "store"},
    "advice": set(),
    "failure": {"errors", "view_words"},
    "timeline": {"events"},
    "treemap": {"inventory"},
    "report": {"compare", "errors", "failure", "inventory", "render", "timeline", "treemap", "view_words"},
    "evidence": {"errors", "machine", "plan", "report", "timeline"},
    "publish": {"compare", "engine_node", "errors", "evidence", "host", "interfaces", "inventory", "kinds", "plan",
                "report", "store", "store_files", "timeline"},
    "reference": {"examples", "kinds", "recipe"},
    "junit": set(),
    "terminal": set(),
    "view": {"events", "view_github", "view_live", "view_plain", "view_words"},
    "view_github": {"events", "view_plain", "view_words"},
    "view_live": {"events", "view_plain", "view_words"},
    "view_plain": {"events", "view_words"},
    "view_words": set(),
}
FREE = {"api", "cli", "cli_build", "cli_failure", "cli_cache", "cli_complete", "cli_diff", "cli_image", "cli_init",
        "cli_run", "cli_shell", "workbench"}
ONE_PLACE = {  # module from outside -> the only modules of ours that may import it
    "subprocess": {"host"}, "guestfs": {"drivers/guestfs", "drivers/guestfs_worker"}, "requests": {"fetch_http"},
    "yaml": {"document", "variables"}, "jinja2": {"render"},
    "pycdlib": {"installer/iso"}, "winrm": {"drivers/winrm"}, "jsonschema": {"answers/_schema"},
    "zstandard": {"look/contained", "machine/memory", "outputs/_qcow2", "remote/pack"},
    "cryptography": {"remote/trust"}, "fsspec": {"remote/where"},
    "typer": {"cli", "cli_build", "cli_cache", "cli_complete", "cli_diff", "cli_image", "cli_init", "cli_run",
              "cli_shell"},
    "rich": {"view_live"},
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[tuple[str, bool]]:
    """Names of imported modules, and whether the import stands at the top of the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(name.name, id(node) in top) for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "imagesmith":
                found |= {(f"imagesmith.{name.name}", id(node) in top) for name in node.names}
            else:
                found.add((node.module, id(node) in top))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    here = room(path)
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "imagesmith" and len(parts) > 1 and here not in {*FREE, "__init__"}:
            if parts[1] == "__version__":
                continue
            assert parts[1] == here or parts[1] in MAY[here], f"{here} must not import {name}"
            if here in KINDS and parts[1] == here and len(parts) > 2:
                assert parts[2].startswith("_"), f"a kind must not import another: {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_of_the_outside_are_used_in_one_place(path: Path) -> None:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for module, at_top in imports(path):
        outside = module.split(".")[0]
        if outside in ONE_PLACE:
            assert name in ONE_PLACE[outside], f"only {ONE_PLACE[outside]} may import {outside}"
        if outside == "guestfs":
            assert not at_top, "guestfs is imported when it is needed"


def test_core_modules_can_be_read_in_one_sitting() -> None:
    long = {p.name: n for p in modules() if (n := len(p.read_text().splitlines())) > 450}
    assert not long
