"""The commands that look after the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith.errors import RecipeError

if TYPE_CHECKING:
    from imagesmith.store import Store

cache_app = typer.Typer(no_args_is_help=True, help="Look after the store of layers.")


def _store(*, rebuild: bool = False) -> Store:
    from imagesmith.workbench import open_store

    return open_store(rebuild=rebuild)


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
    from pydantic import TypeAdapter, ValidationError

    from imagesmith.kinds import Size

    try:
        size: int = TypeAdapter(Size).validate_python(limit)
    except ValidationError:
        raise RecipeError((), f"--limit {limit}: write a size such as 512M or 10G") from None
    removed = _store().collect(size)
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
