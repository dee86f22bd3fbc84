"""The command that writes a recipe to begin with."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith import cli_complete as complete
from imagesmith import terminal
from imagesmith.cli_build import usage

if TYPE_CHECKING:
    from imagesmith.starters import Starter

_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


def init(
    folder: Annotated[Path | None, typer.Argument(help="The folder to fill, called as the recipe will be; what --from "
                                                  "names, without it.", show_default=False, metavar="[DIR]")] = None,
    start: Annotated[str, typer.Option("--from", help="What to begin with: debian, ubuntu, fedora, rocky, alma, "
                                       "opensuse, alpine, arch, windows, web, docker-host or k8s-node.",
                                       show_default=False, autocompletion=complete.starters)] = "",
    key: Annotated[str, typer.Option(help="The public SSH key of the first user, or a file of keys; yours from ~/.ssh "
                                     "or else Vagrant's, without it.", show_default=False)] = "",
) -> None:  # fmt: skip
    """Write a recipe that builds, and what goes with it, into a folder.

    At a terminal and without --from it asks; otherwise it asks nothing. Nothing is overwritten.
    """
    from imagesmith import reference
    from imagesmith.starters import SCHEMA, STARTERS, files_of, given, starter

    asking = not start and terminal.there()
    if asking:
        for name, one in STARTERS.items():
            typer.echo(f"  {name:<12} {one.description}", err=True)
        start = typer.prompt("begin with", default="debian", err=True)
    start = start or "debian"
    chosen = starter(start)
    if asking and folder is None:
        folder = Path(typer.prompt("folder, called as the recipe", default=start, err=True))
    folder = folder or Path(start)
    keys = _keys(chosen, key, asking=asking)
    name = folder.absolute().name
    files = files_of(chosen, name, keys)
    aside = {".gitignore": b"output/\n", SCHEMA: f"{json.dumps(reference.schema(), indent=1)}\n".encode()}
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise usage(f"{folder / there[0]} is there already, and nothing is overwritten; name another folder")
    files |= {file: content for file, content in aside.items() if not (folder / file).exists()}
    try:
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
            print(folder / file)
    except OSError as error:
        raise usage(f"{error.filename} cannot be written: {error.strerror}") from None
    wanted = "".join(f" --var {variable}=FILE" for variable in given(chosen))
    print(f"next: cd {shlex.quote(str(folder))}\n      imagesmith validate {name}.yaml{wanted}\n"
          f"      imagesmith build {name}.yaml{wanted}")  # fmt: skip


def _keys(chosen: Starter, word: str, *, asking: bool) -> str:
    """The public keys that log in, one a line; empty for Vagrant's, or where nobody does."""
    if not chosen.lets_in:
        if word:
            raise usage(f"--key {word}: this recipe makes no user")
        return ""
    from pydantic import TypeAdapter, ValidationError

    from imagesmith.kinds import PublicKeys

    folder = Path(os.environ.get("HOME") or "/", ".ssh")
    word = word or next((str(folder / name) for name in _KEYS if (folder / name).is_file()), "")
    if asking:
        word = typer.prompt("public SSH key of the first user, or its file ('vagrant': the well-known one)",
                            default=word or "vagrant", err=True)  # fmt: skip
    if word in ("", "vagrant"):
        return ""
    try:
        word = str(Path(word).expanduser())
        return str(TypeAdapter(PublicKeys).validate_python(word, context={"folder": Path()}))
    except RuntimeError as error:  # there is no such user
        raise usage(f"--key {word}: {error}") from None
    except ValidationError as error:
        raise usage(f"--key {word}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
