"""What an image is, from its first byte to the packages in it: nothing of it is mounted, booted or believed."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from imagesmith.disk.attach import exported
from imagesmith.disk.image import import_image, inspect
from imagesmith.disk.partitions import Partition, find_partitions, root_of
from imagesmith.disk.probe import probe
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.installer.media import look as look_at_iso
from imagesmith.interfaces import Log
from imagesmith.inventory import Inventory
from imagesmith.look.contained import SQUASHFS, opened
from imagesmith.look.ext4 import Ext4Reader
from imagesmith.look.inventory import EXT, Listing, take
from imagesmith.look.reader import TarReader
from imagesmith.look.squashfs import SquashfsReader
from imagesmith.look.system import DRIVERS, System, kernels, look

Appliance = Callable[[Path], AbstractContextManager[Listing]]
"""Reads the root file system of a qcow2 by other means, where it is no ext4."""
_UNCLEAN = "its root file system was not unmounted; what its journal still holds was not read"
_LOADERS = {b"GRUB": "GRUB", b"SYSLINUX": "SYSLINUX", b"isolinux": "ISOLINUX", b"LILO": "LILO"}


@dataclass(frozen=True)
class Findings:
    """All that is told of an image. Sizes in bytes."""

    path: Path
    format: str
    size: int
    virtual_size: int = 0
    inside: Mapping[str, object] = field(default_factory=dict)
    """What the container format says: a provider, an entry point, a compression."""
    partitions: Sequence[Partition] = ()
    firmware: Sequence[str] = ()
    """What it boots with, as its first sectors and its EFI system partition tell."""
    boot_loaders: Sequence[str] = ()
    system: System | None = None
    notes: Sequence[str] = ()
    inventory: Inventory | None = None
    """Where that was wanted: of everything in the system."""

    def plain(self) -> dict[str, object]:
        """Return it as JSON has it."""
        found = asdict(replace(self, inventory=None))
        del found["inventory"]
        found["path"] = str(self.path)
        if self.system is not None:
            found["system"]["kernels"] = [
                {"release": k.release, "drivers": [name for name in DRIVERS if k.drives(name)]}
                for k in self.system.kernels
            ]  # fmt: skip
        return found


def examine(
    path: Path, host: Host, log: Log, *, appliance: Appliance | None = None, whole: bool = False
) -> Findings:  # fmt: skip
    """Look at an image of any format that is written or imported here; with ``whole``, take its inventory, too.

    Raises BuildError, Refused, ToolFailed.
    """
    if not path.is_file():
        raise BuildError(f"no such image: {path}")
    with tempfile.TemporaryDirectory(prefix="imagesmith-", dir=roomy(path)) as name, path.open("rb") as stream:
        work, size, head = Path(name), path.stat().st_size, stream.read(4)
        if head == SQUASHFS:
            system, inventory = _seen(SquashfsReader(path, work, host), whole)
            return Findings(path, "squashfs", size, system=system, inventory=inventory)
        found = opened(path, work)
        if found.trees:
            with ExitStack() as stack:
                streams = [stack.enter_context(tree.open("rb")) for tree in found.trees]
                try:
                    system, inventory = _seen(TarReader(streams), whole)
                except (tarfile.TarError, EOFError) as error:
                    raise Refused(f"{path} holds a damaged tar archive: {error}".splitlines()[0]) from error
                return Findings(path, found.format, size, inside=found.about, system=system, inventory=inventory)
        assert found.disk is not None
        format = probe(found.disk)
        if format == "iso":
            medium = look_at_iso(found.disk)
            about = {"label": medium.label, "installer": medium.family, "name": medium.name,
                     "architecture": medium.arch, "kernel": medium.kernel}  # fmt: skip
            return Findings(path, "iso", size, inside={k: v for k, v in about.items() if v})
        told = format if not found.format else f"{found.format} ({format})"
        findings = Findings(path, told, size, inside=found.about)
        return _disk(found.disk, format, findings, work, host, log, appliance, whole)


def _seen(reader: Listing, whole: bool) -> tuple[System, Inventory | None]:
    return look(reader), take(reader) if whole else None


def drivers_of(image: Path, host: Host) -> frozenset[str] | None:
    """The kernel modules of the newest kernel on a qcow2 of ours; None where its root file system is no ext4."""
    with exported(image, host, writable=False) as raw:
        try:
            root = root_of(find_partitions(raw, host))
            if root.fstype not in EXT:
                return None
            with Ext4Reader(raw, root.offset) as reader:
                found = kernels(reader)
        except BuildError:
            return None
    return found[0].modules if found else None


def roomy(path: Path) -> Path:
    """Beside the image, where there is room for what is taken out of it; or the usual place."""
    beside = path.absolute().parent
    return beside if os.access(beside, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _disk(
    disk: Path, format: str, findings: Findings, work: Path, host: Host, log: Log, appliance: Appliance | None,
    whole: bool,
) -> Findings:  # fmt: skip
    info = inspect(disk, host)
    image = disk
    if format != "qcow2":
        image = work / "copy.qcow2"
        import_image(disk, image, host, log, format=format)
    with exported(image, host, writable=False) as raw:
        parts = find_partitions(raw, host)
        firmware, loaders = _boot(raw, parts, host)
        (system, inventory), notes = _system(raw, parts, image, appliance, whole)
    return Findings(findings.path, findings.format, findings.size, info.virtual_size, findings.inside, parts,
                    firmware, loaders, system, notes, inventory)  # fmt: skip


def _system(
    raw: Path, parts: Sequence[Partition], image: Path, appliance: Appliance | None, whole: bool
) -> tuple[tuple[System | None, Inventory | None], list[str]]:
    try:
        root = root_of(parts)
        why = f"its root file system is {root.fstype}"
        if root.fstype in EXT:
            with Ext4Reader(raw, root.offset) as ext4:
                return _seen(ext4, whole), [_UNCLEAN] if ext4.unclean else []
    except BuildError as error:
        why = error.message
    if appliance is None:
        return (None, None), [f"{why}: what is in it was not looked at"]
    try:
        with appliance(image) as reader:
            return _seen(reader, whole), []
    except BuildError as error:
        return (None, None), [f"{why}; {error.message}"]


def _boot(raw: Path, parts: Sequence[Partition], host: Host) -> tuple[list[str], list[str]]:
    """Firmware that finds something to start, and what that is."""
    with raw.open("rb") as stream:
        head = stream.read(1 << 20)
    firmware, loaders = [], []
    if head[510:512] == b"\x55\xaa" and any(head[:440]):
        firmware.append("bios")
        loaders += [f"{name} (MBR)" for mark, name in _LOADERS.items() if mark in head[:440]]
    for part in parts:
        if part.fstype != "vfat":
            continue
        done = host.run(["mdir", "-/", "-b", "-i", f"{raw}@@{part.offset}", "::/"], purpose="look at the ESP",
                        env={"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}, ok=range(256))  # fmt: skip
        found = [line[2:] for line in done.text.splitlines() if line.lower().endswith(".efi")]
        if any("/efi/boot/boot" in line.lower() for line in found):
            firmware.append("uefi")
        loaders += sorted(found)
    return sorted(set(firmware)), loaders
