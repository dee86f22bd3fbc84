"""How answer files get to an installer: which way, and what the machine is given for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imagesmith import cpio
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.installer import iso
from imagesmith.interfaces import Delivery, Way

_WORDS: Mapping[Way, str] = {
    "initrd": "appended to its initial RAM disk", "volume": "on a second volume", "floppy": "on a floppy disk",
    "http": "by HTTP", "fw_cfg": "through QEMU's firmware configuration", "medium": "in a copy of the ISO",
}  # fmt: skip
_FLOPPY_KIB = 1440
_PURPOSE = "make a floppy disk with answer files"


@dataclass(frozen=True)
class Given:
    """What a machine is given so that the answer files are there. All of it is in the private folder."""

    initrd: Path | None = None
    """All initrds in one."""
    volume: Path | None = None
    floppy: Path | None = None
    fw_cfg: tuple[tuple[str, Path], ...] = ()


def words(delivery: Delivery) -> str:
    """For people: which files, and how they get there."""
    label = f" '{delivery.label}'" if delivery.label else ""
    return f"{', '.join(sorted(delivery.files)) or 'nothing'} {_WORDS[delivery.way]}{label}"


def choose(deliveries: Sequence[Delivery], way: Way | None, hindrances: Mapping[Way, str]) -> Delivery:
    """Return the delivery by ``way``, or else the first that nothing hinders.

    ``hindrances``: for ways that cannot be had here, why. Raises BuildError.
    """
    able = [one for one in deliveries if one.way not in hindrances]
    if way is None:
        if able:
            return able[0]
        raise BuildError("the answer file cannot reach this installer: " + "; ".join(
            f"{one.way}: {hindrances[one.way]}" for one in deliveries) if deliveries
            else "nobody knows how this kind of answer file reaches this installer",
            hint="is it the right kind of answer file for this ISO?")  # fmt: skip
    found = next((one for one in deliveries if one.way == way), None)
    if found is None:
        offered = ", ".join(dict.fromkeys(one.way for one in able))
        raise BuildError(f"this installer does not take this kind of answer file by '{way}'",
                         hint=f"'deliver' may be: auto, {offered}" if offered else "")  # fmt: skip
    if way in hindrances:
        raise BuildError(f"the answer file cannot go by '{way}' here: {hindrances[way]}")
    return found


def deliver(delivery: Delivery, folder: Path, host: Host, *, initrds: Sequence[Path] = ()) -> Given:
    """Make in the private ``folder`` what the machine is given; ``initrds`` are the installer's own.

    What goes by HTTP, or in a copy of the ISO, is none of it. Raises BuildError, ToolFailed, MissingTool.
    """
    more = cpio.archive(delivery.files) if delivery.way == "initrd" else b""
    initrd = None
    if initrds or more:
        initrd = folder / "initrd"
        with os.fdopen(os.open(initrd, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            cpio.join(initrds, more, out)
    if delivery.way == "volume":
        volume = folder / "volume.iso"
        iso.write_volume(volume, delivery.label, delivery.files)
        return Given(initrd, volume=volume)
    if delivery.way == "floppy":
        return Given(initrd, floppy=_floppy(delivery, folder, host))
    if delivery.way == "fw_cfg":
        items = []
        for number, (name, content) in enumerate(sorted(delivery.files.items())):
            _write(folder / f"item{number}", content)
            items.append((name, folder / f"item{number}"))
        return Given(initrd, fw_cfg=tuple(items))
    return Given(initrd)


def arguments(delivery: Delivery, url: str) -> tuple[str, ...]:
    """The delivery's arguments for the kernel, with the server's URL in its place."""
    return tuple(argument.replace("{url}", url) for argument in delivery.arguments)


def _floppy(delivery: Delivery, folder: Path, host: Host) -> Path:
    """A FAT12 floppy of 1.44 MB (mkfs.fat(8), mtools(1))."""
    image, label = folder / "floppy.img", ["-n", delivery.label] if delivery.label else []
    if sum(len(content) for content in delivery.files.values()) > _FLOPPY_KIB * 1024:
        raise BuildError(f"the answer files do not fit on a floppy disk of {_FLOPPY_KIB} KiB")
    _write(image, bytes(_FLOPPY_KIB * 1024))
    environment = {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    host.run(["mkfs.vfat", "--invariant", "-F", "12", *label, image], purpose=_PURPOSE)
    folders = {str(parent) for name in delivery.files for parent in PurePosixPath(name).parents if parent.name}
    if folders:
        host.run(["mmd", "-i", image, *(f"::{name}" for name in sorted(folders))], purpose=_PURPOSE, env=environment)
    for name, content in sorted(delivery.files.items()):
        host.run(["mcopy", "-i", image, "-", f"::{name}"], purpose=_PURPOSE, env=environment, input=content)
    return image


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
