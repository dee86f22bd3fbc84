"""Where secrets come from. They are asked for when a build starts, and live in memory only."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from imagesmith.errors import Complaint, ImagesmithError, RecipeError
from imagesmith.host import Host
from imagesmith.recipe import Recipe


def resolve(recipe: Recipe, host: Host, names: Collection[str]) -> dict[str, str]:
    """The values of the named secrets, without a final newline. Raises RecipeError with all that cannot be had."""
    values: dict[str, str] = {}
    complaints: list[Complaint] = []
    for name in sorted(names):
        try:
            values[name] = _value(recipe.secrets[name], recipe.path.parent, host).rstrip("\n")
        except (OSError, ImagesmithError, KeyError, UnicodeDecodeError) as error:
            said = error.message if isinstance(error, ImagesmithError) else str(error)
            complaints.append(Complaint(recipe.path, 1, 1, f"variables.{name}", f"the secret cannot be had: {said}"))
    if complaints:
        raise RecipeError(complaints)
    return values


def _value(source: Mapping[str, str], folder: Path, host: Host) -> str:
    if "value" in source:
        return source["value"]
    if "env" in source:
        if source["env"] not in os.environ:
            raise KeyError(f"the environment variable {source['env']} is not set")
        return os.environ[source["env"]]
    if "file" in source:
        return (folder / Path(source["file"]).expanduser()).read_text(encoding="utf-8")
    argv = shlex.split(source["command"])
    return host.run(argv, purpose="get a secret", timeout=60).text
