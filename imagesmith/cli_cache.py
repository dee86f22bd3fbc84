"""The commands that look after the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from imagesmith import cli_build as parts
from imagesmith.cli_build import Recipes, VarFiles, Vars
from imagesmith.errors import RecipeError

if TYPE_CHECKING:
    from imagesmith.store import Store

cache_app = typer.Typer(no_args_is_help=True, help="Look after the store of layers.")


def _store(*, rebuild: bool = False) -> Store:
    from imagesmith.workbench import open_store

    return open_store(rebuild=rebuild)


def _number(kind: Any, text: str, complaint: str) -> float:
    """What a size or an age comes to. Raises RecipeError with the complaint."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return cast(float, TypeAdapter(kind).validate_python(text))
    except ValidationError:
        raise RecipeError((), complaint) from None


@cache_app.command("list")
def cache_list() -> None:
    """List the layers: id, what it is, size, age and name."""
    import time

    from imagesmith.view import duration

    for layer in _store().layers():
        age = duration(time.time() - layer.made)
        print(f"{layer.id}  {layer.gives:<6}  {layer.size / 2**20:9.1f} MiB  {age:>14}  {layer.name}")


@cache_app.command("size")
def cache_size() -> None:
    """Print how much the store takes."""
    store = _store()
    print(f"{store.size() / 2**20:.1f} MiB in {len(store.layers())} layers, in {store.root}")


@cache_app.command("gc")
def cache_gc(
    limit: Annotated[str, typer.Option(help="Remove what was used longest ago until the store is this small.")] = "10G",
) -> None:
    """Collect: remove the layers that were used longest ago, never what a build or another layer needs."""
    from imagesmith.kinds import Size

    removed = _store().collect(int(_number(Size, limit, f"--limit {limit}: write a size such as 512M or 10G")))
    print(f"removed {len(removed)} layers, {sum(layer.size for layer in removed) / 2**20:.1f} MiB")


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove everything that no running build needs."""
    _store().clear()


@cache_app.command("verify")
def cache_verify(
    repair: Annotated[bool, typer.Option("--repair", help="Put the index right, and remove what is damaged: it is made "
                                                          "again when it is needed.")] = False,
) -> int:  # fmt: skip
    """Look for damage: missing files, flipped bits, an index that lags behind."""
    problems = _store(rebuild=repair).verify(repair=repair, note=print)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems" if problems else "sound")
    return 1 if problems and not repair else 0


# -- shared caches -----------------------------------------------------------------------------------------------

Url = Annotated[str, typer.Option("--url", help="The shared cache: a folder, s3://, gs://, https:// (to pull alone).")]


@cache_app.command("push")
def cache_push(
    recipes: Recipes,
    url: Url,
    key: Annotated[Path, typer.Option("--key", envvar="IMAGESMITH_CACHE_KEY", show_envvar=False,
                                      help="The private key that signs.")],
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
) -> int:  # fmt: skip
    """Put into a shared cache what the store has of recipes."""
    from imagesmith.engine import with_followers
    from imagesmith.fetch_http import shown
    from imagesmith.host import Host
    from imagesmith.remote.shared import shared

    caches, host, status = shared("", url, key, None), Host(), 0
    assert caches is not None
    for plan in parts.plans_of(recipes, parts.overrides_of(var, var_file)):
        with _store().using() as use:
            went = caches.push(plan, use, host, with_followers(plan, ()))
        for line in went.lines(shown(url)):
            print(f"{plan.recipe.name}: {line}")
        if not went.nodes and not went.failed:
            print(f"{plan.recipe.name}: nothing is there that the cache does not have")
        status = max(status, 1 if went.failed else 0)
    return status


@cache_app.command("pull")
def cache_pull(
    recipes: Recipes,
    url: Url,
    trust: Annotated[Path, typer.Option("--trust", envvar="IMAGESMITH_CACHE_TRUST", show_envvar=False,
                                        help="The public keys of those whose results are taken.")],
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
) -> int:  # fmt: skip
    """Take from a shared cache what builds of recipes would have to make."""
    from imagesmith.engine import with_followers
    from imagesmith.fetch_http import shown
    from imagesmith.host import Host
    from imagesmith.remote.shared import shared

    caches, host, status = shared(url, "", None, trust), Host(), 0
    assert caches is not None
    for plan in parts.plans_of(recipes, parts.overrides_of(var, var_file)):
        with _store().using() as use:
            came = caches.pull(plan, use, host, with_followers(plan, ()))
        for line in came.lines(shown(url)):
            print(f"{plan.recipe.name}: {line}")
        if not came.nodes and not came.away and not came.refused:
            print(f"{plan.recipe.name}: the cache has nothing that is not there")
        status = max(status, 1 if came.away or came.refused else 0)
    return status


@cache_app.command("prune")
def cache_prune(
    url: Url,
    older_than: Annotated[str, typer.Option(help="Remove what was put there longer ago than this.")] = "30d",
) -> None:
    """Remove from a shared cache what was put there long ago, and the chunks that nothing needs any more."""
    import time

    from imagesmith.kinds import Duration
    from imagesmith.remote.prune import prune
    from imagesmith.remote.where import where

    age = _number(Duration, older_than, f"--older-than {older_than}: write an age such as 12h or 30d")
    gone = prune(where(url), older_than=age, now=time.time())
    print(f"removed {gone.entries} entries and {gone.chunks} chunks")
