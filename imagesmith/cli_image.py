"""The commands for images that are there already: inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imagesmith.look.image import Findings

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
    from imagesmith.workbench import appliance_reader

    host = Host()
    found = examine(image, host, lambda line: None, appliance=None if quick else appliance_reader(host))
    print(json.dumps(found.plain(), indent=2, default=str) if as_json else "\n".join(_told(found)))


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
