"""The commands for images that are there already: inspect, convert."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith import cli_build as parts
from imagesmith import cli_complete as complete
from imagesmith.cli_build import Jobs, LogFormat, Output, usage

if TYPE_CHECKING:
    from imagesmith.host import Host
    from imagesmith.interfaces import Disk, Log
    from imagesmith.look.image import Findings
    from imagesmith.plan import Node
    from imagesmith.workbench import Bench

_MIB = 1 << 20


def inspect(
    image: Annotated[Path, typer.Argument(help="An image, appliance, box or archive, in any format.", metavar="IMAGE")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with every package.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Start no appliance where a file system needs one.")] = False,
) -> None:
    """Tell what an image is: format, partitions, boot loaders, system, kernels and their drivers, packages.

    Nothing of it is mounted by this host's kernel, or booted.
    """
    from imagesmith.host import Host
    from imagesmith.look.image import examine
    from imagesmith.view_words import printable
    from imagesmith.workbench import appliance_reader

    host = Host()
    found = examine(image, host, lambda line: None, appliance=None if quick else appliance_reader(host))
    print(json.dumps(found.plain(), indent=2, default=str) if as_json else "\n".join(map(printable, _told(found))))


def convert(
    image: Annotated[Path, typer.Argument(help="A disk image in any format, an appliance, a box.", metavar="IMAGE")],
    to: Annotated[list[str], typer.Option("--to", help="An output, as a recipe names it: ova, 'raw: "
                                          "{compression: xz}'; may be given several times.",
                                          autocompletion=complete.formats)],
    output: Output = Path("output"),
    name: Annotated[str, typer.Option(help="What the new files are called; the image's name without it.")] = "",
    arch: Annotated[str, typer.Option(help="The processor that its system is for.")] = "x86_64",
    check: Annotated[bool, typer.Option("--check", help="Boot the image before it is converted.")] = False,
    jobs: Jobs = 0,
    log_format: LogFormat = "text",
) -> None:  # fmt: skip
    """Write a disk image in other formats, without a recipe. The image itself stays as it is.

    Formats that hold a root file system (oci, tar, lxc …) are made of the system that is on the disk.
    """
    import tempfile

    from imagesmith import api
    from imagesmith.look.contained import opened
    from imagesmith.look.image import roomy
    from imagesmith.recipe import name_for, of_image

    if not image.is_file():
        raise usage(f"{image}: no such image")
    with tempfile.TemporaryDirectory(prefix=".imagesmith-", dir=roomy(image)) as folder:
        found = opened(image, Path(folder))
        if found.disk is None:
            raise usage(f"{image} is a {found.format} of a root file system, not a disk; a recipe makes a disk of it, "
                        "with 'base: {container: …}'")  # fmt: skip
        recipe = of_image(found.disk, outputs=to, name=name or name_for(image), arch=arch)
        planned = api.make_plan(recipe, checks=check)
        parts.run_build(planned, output=output, jobs=jobs, log_format=log_format, verbose=False, fresh=[])


@contextmanager
def imported(image: Path, host: Host, log: Log) -> Iterator[tuple[Node, Disk, Bench]]:
    """An image's disk, in any format, as a guest that can be booted: with the firmware that it boots with ("" if none).

    It is a copy, and gone when the block ends. Raises RecipeError where there is no such image, or no disk in it.
    """
    import tempfile

    from imagesmith import api
    from imagesmith.disk.image import import_image
    from imagesmith.look.contained import opened
    from imagesmith.look.image import roomy
    from imagesmith.recipe import name_for, of_image
    from imagesmith.workbench import Bench

    if not image.is_file():
        raise usage(f"{image}: no such recipe or image")
    with (
        tempfile.TemporaryDirectory(prefix=".imagesmith-", dir=roomy(image)) as work,
        tempfile.TemporaryDirectory(prefix="imagesmith-") as folder,
    ):
        found = opened(image, Path(work))
        if found.disk is None:
            raise usage(f"{image} is a {found.format} of a root file system, not a disk")
        import_image(found.disk, Path(folder, "disk.qcow2"), host, log)
        planned = api.make_plan(of_image(found.disk, name=name_for(image)), outputs=False)
        bench = Bench(parts.the_store(), host, epoch=planned.facts.epoch, note=log)
        disk = bench.disk([Path(folder)])
        yield replace(planned.sealed, firmware=disk.firmware[0] if disk.firmware else ""), disk, bench


def _told(found: Findings) -> list[str]:
    from imagesmith.look.system import DRIVERS

    size = f"{found.size / _MIB:,.1f} MiB"
    if found.virtual_size:
        size += f", a disk of {found.virtual_size / _MIB:,.0f} MiB"
    lines = [f"{found.path}: {found.format}, {size}"]
    lines += [f"  {name}: {_plain(value)}" for name, value in found.inside.items()]
    for part in found.partitions:
        label = part.name or part.label
        what = f"partition {part.number}" if part.number else "no partition table: one file system"
        lines.append(f"  {what}: {part.size / _MIB:,.0f} MiB  {part.fstype or '-'}  {label}".rstrip())
    if found.partitions:
        lines.append(f"  boots with: {', '.join(found.firmware) or 'nothing that is known'}")
        lines += [f"  boot loader: {name}" for name in found.boot_loaders]
    system = found.system
    if system is not None:
        lines.append(f"  system: {system.name or 'unknown'}" + (f", init: {system.init}" if system.init else ""))
        for kernel in system.kernels:
            has = [name for name in DRIVERS if kernel.drives(name)]
            lacks = [name for name in DRIVERS if name not in has]
            lines.append(f"  kernel: {kernel.release}")
            lines.append(f"    drives: {', '.join(has) or 'none of the known virtual hardware'}")
            if lacks:
                lines.append(f"    has no driver for: {', '.join(lacks)}")
        if system.packages:
            lines.append(f"  packages: {len(system.packages)} ({system.package_format}; --json lists them)")
        elif system.package_format:
            lines.append(f"  packages: {system.package_format}")
    return lines + [f"  note: {note}" for note in found.notes]


def _plain(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return str(value)
