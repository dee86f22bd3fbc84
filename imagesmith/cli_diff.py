"""The command diff: what differs between two images, or between what two builds left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith.errors import BuildError, ImagesmithError

if TYPE_CHECKING:
    from imagesmith.compare import Change, Difference, FileChange
    from imagesmith.inventory import Inventory

_SHOWN = 20
_METAVAR = "IMAGE|FOLDER"


def diff(
    before: Annotated[Path, typer.Argument(help="An image in any format, or the folder that a build left.",
                                           metavar=_METAVAR, show_default=False)],
    after: Annotated[Path, typer.Argument(help="What it is compared with.", metavar=_METAVAR, show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with everything.")] = False,
    everything: Annotated[bool, typer.Option("--all", help=f"Show more than {_SHOWN} lines of each kind.")] = False,
) -> int:  # fmt: skip
    """Tell what differs between two images: packages, files, modes, services, users, kernels, sizes.

    Nothing of them is mounted by this host's kernel, or booted. The exit code is 0 where nothing differs, 1 where
    something does, 2 where that cannot be told.
    """
    from imagesmith.compare import difference
    from imagesmith.view_words import printable

    try:
        (old, old_size), (new, new_size) = _inventory(before), _inventory(after)
    except ImagesmithError as error:
        error.exit_code = max(error.exit_code, 2)
        raise
    found = difference(old, new)
    if as_json:
        sizes = {"image": {"before": old_size, "after": new_size}} if old_size and new_size else {}
        print(json.dumps({"before": str(before), "after": str(after), **found.plain(), **sizes}, indent=2))
    else:
        for line in _told(found, (old_size, new_size), None if everything else _SHOWN):
            print(printable(line))
    return 0 if found.same else 1


def _inventory(path: Path) -> tuple[Inventory, int]:
    """The inventory of an image or an output folder, and the image's size in bytes (0: a folder)."""
    from imagesmith import inventory
    from imagesmith.host import Host
    from imagesmith.look.image import examine
    from imagesmith.workbench import appliance_reader

    if path.is_dir():
        file = path / inventory.FILE
        if not file.is_file():
            raise BuildError(f"{path} holds no {inventory.FILE}: no build of this version left it",
                             hint="build again, or name an image in it")  # fmt: skip
        return inventory.read(file), 0
    if path.name == inventory.FILE:
        return inventory.read(path), 0
    host = Host()
    found = examine(path, host, lambda line: None, appliance=appliance_reader(host), whole=True)
    if found.inventory is None:
        why = "; ".join(found.notes) or f"it is {found.format}"
        raise BuildError(f"{path}: what is in it cannot be seen: {why}")
    return found.inventory, found.size


def _told(found: Difference, images: tuple[int, int], most: int | None) -> Iterator[str]:
    for what in ("system", "kernels", "packages", "services", "users", "groups"):
        changes: Sequence[Change] = getattr(found, what)
        if changes:
            yield _heading(what, changes)
            yield from _cut([f"  {c.sign} {_words(c)}" for c in changes], most)
    if found.files:
        yield _heading("files", found.files)
        for lines in _groups(found.files, whole=most is None):
            yield from _cut(lines, most)
    if found.same:
        yield "the same: packages, files, modes, owners, services, users, kernels"
    yield _size("files in all", *found.sizes)
    if all(images):
        yield _size("image", *images)
    if found.unsure:
        files = f"{found.unsure} file{'s' if found.unsure > 1 else ''} that not everybody may read"
        yield f"note: compared by size, mode and owner alone: {files}; compare the images themselves to be sure"
    yield from (f"note: {note}" for note in dict.fromkeys(found.notes))


def _heading(what: str, changes: Sequence[Change | FileChange]) -> str:
    from imagesmith.compare import counted

    return f"{what}: {counted(changes)}"


def _words(change: Change) -> str:
    if change.before is not None and change.after is not None:
        return f"{change.name}: {change.before} -> {change.after}"
    value = change.before if change.after is None else change.after
    return f"{change.name}: {value}" if value else change.name


def _groups(files: Sequence[FileChange], *, whole: bool) -> Iterator[list[str]]:
    """Added, removed, and changed ones, those with other modes or owners first.

    Unless all is wanted (``whole``), a folder that is added or removed stands for what is in it.
    """
    from imagesmith.compare import folded

    for sign in "+-":
        some = [c for c in files if c.sign == sign]
        if whole:
            yield [f"  {sign} {c.path}" for c in some]
        else:
            yield [f"  {sign} {c.path}" + (f" and {count:,} in it" if count else "") for c, count, _ in folded(some)]
    changed = [c for c in files if c.sign == "~"]
    changed.sort(key=lambda c: (not {"mode", "owner", "type"} & set(c.how), c.path))
    yield [f"  ~ {c.path}: {c.told()}" for c in changed]


def _cut(lines: list[str], most: int | None) -> Iterator[str]:
    yield from lines[:most]
    if most is not None and len(lines) > most:
        yield f"  {lines[0].lstrip()[0]} … and {len(lines) - most} more (--all shows them)"


def _size(what: str, before: int, after: int) -> str:
    return f"{what}: {before / 2**20:,.1f} MiB -> {after / 2**20:,.1f} MiB ({(after - before) / 2**20:+,.1f} MiB)"
