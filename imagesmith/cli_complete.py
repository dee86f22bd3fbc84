"""What a shell offers when Tab is pressed: names of recipes, outputs, steps, kinds.

Typer's own scripts for bash, zsh and fish ask for it (``imagesmith --install-completion``). What a function here cannot
know, because a recipe has an error or does not stand on the line yet, it does not offer; nothing is raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from imagesmith.errors import ImagesmithError

if TYPE_CHECKING:
    from imagesmith.recipe import Recipe

Offers = list[tuple[str, str]]
"""Words, each with what it means. bash shows the words alone."""
_LONGEST = 60


def recipes(incomplete: str) -> Offers:
    """Files that may be recipes, and folders; where there is only one folder, what is in it."""
    word = incomplete.rpartition("/")[2]
    prefix = incomplete[: len(incomplete) - len(word)]
    with suppress(OSError, RuntimeError):  # no such folder, no such user
        start = Path(prefix or ".").expanduser()
        found = [path for path in sorted(start.iterdir()) if path.name.startswith(word)]
        found = [path for path in found if word or not path.name.startswith(".")]
        files = [(prefix + path.name, "") for path in found if path.suffix in (".yaml", ".yml") and path.is_file()]
        folders = [(f"{prefix}{path.name}/", "") for path in found if path.is_dir()]
        return recipes(folders[0][0]) if not files and len(folders) == 1 else files + folders
    return []


def starters() -> Offers:
    """What ``init`` can begin with."""
    from imagesmith.starters import STARTERS

    return [(name, _plain(one.description)) for name, one in STARTERS.items()]


def variants(context: typer.Context) -> Offers:
    """The variants of the recipe on the line."""
    from imagesmith import recipe

    with suppress(ImagesmithError, OSError):
        return words(*(name for path in _paths(context) for name in recipe.names(path)))
    return []


def outputs(context: typer.Context) -> Offers:
    """The outputs of the recipe on the line, by kind and label; all kinds where there is none."""
    found = _recipe(context)
    if found is None:
        return formats()
    offers = {word: "" for entry in found.outputs for word in (type(entry.kind).name, entry.kind.label)}
    return list(offers.items())


def steps(context: typer.Context) -> Offers:
    """The numbers of the steps of the recipe on the line (their names have spaces in them)."""
    found = _recipe(context)
    return [] if found is None else [(str(n), _plain(entry.title)) for n, entry in enumerate(found.steps, 1)]


def formats() -> Offers:
    """The kinds of outputs."""
    return _kinds(["outputs"])


def kinds() -> Offers:
    """Every kind."""
    from imagesmith.kinds import FAMILIES

    return _kinds(FAMILIES)


def words(*known: str) -> Offers:
    """These."""
    return [(word, "") for word in known]


def log_formats() -> Offers:
    """How progress is shown."""
    return words("text", "json", "github")


def on_error() -> Offers:
    """What becomes of a guest in which something failed."""
    return words("clean", "shell")


def _kinds(families: Iterable[str]) -> Offers:
    import inspect

    from imagesmith.kinds import known

    return [(name, _plain((inspect.getdoc(kind) or "").partition("\n")[0]))
            for family in families for name, kind in known(family).items()]  # fmt: skip


def _recipe(context: typer.Context) -> Recipe | None:
    """The recipe on the line; of one with a matrix its first variant."""
    from imagesmith import recipe

    for path in _paths(context):
        with suppress(ImagesmithError, OSError):
            return recipe.load(path, None, recipe.names(path)[0])
    return None


def _paths(context: typer.Context) -> list[Path]:
    given = [context.params.get(name) for name in ("recipe", "recipes", "target")]
    words = [one for value in given for one in (value if isinstance(value, (list, tuple)) else [value])]
    words += context.args  # an option that still wants its value keeps the parser from naming the others
    return [Path(str(word)) for word in words if str(word).endswith((".yaml", ".yml"))]


def _plain(text: str) -> str:
    """A meaning in one short line, without what the shells' scripts would take for their own."""
    text = " ".join(re.sub(r"[^\w\s.,/=+\u2019-]", "", text.replace("'", "\u2019")).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"
