"""What an image is, from its first byte to the packages in it: nothing of it is mounted, booted or believed."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from imagesmith.disk.attach import exported
from imagesmith.disk.image import import_image, inspect
from imagesmith.disk.partitions import Partition, find_partitions, root_of
from imagesmith.disk.probe import probe
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.installer.media import look as look_at_iso
from imagesmith.interfaces import Log
from imagesmith.look.contained import SQUASHFS, opened
from imagesmith.look.reader import LARGEST, Ext4Reader, Reader, TarReader
from imagesmith.look.system import DRIVERS, INITS, System, kernels, look

Appliance = Callable[[Path], AbstractContextManager[Reader]]
"""Reads the root file system of a qcow2 by other means: where debugfs cannot."""
_LOADERS = {b"GRUB": "GRUB", b"SYSLINUX": "SYSLINUX", b"isolinux": "ISOLINUX", b"LILO": "LILO"}
_EXT = ("ext2", "ext3", "ext4")


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

    def plain(self) -> dict[str, object]:
        """Return it as JSON has it."""
        found = asdict(self)
        found["path"] = str(self.path)
        if self.system is not None:
            found["system"]["kernels"] = [
                {"release": k.release, "drivers": [name for name in DRIVERS if k.drives(name)]}
                for k in self.system.kernels
            ]  # fmt: skip
        return found


def examine(path: Path, host: Host, log: Log, *, appliance: Appliance | None = None) -> Findings:
    """Look at an image of any format that is written or imported here. Raises BuildError, Refused, ToolFailed."""
    if not path.is_file():
        raise BuildError(f"no such image: {path}")
    with tempfile.TemporaryDirectory(prefix="imagesmith-", dir=roomy(path)) as name, path.open("rb") as stream:
        work, size, head = Path(name), path.stat().st_size, stream.read(4)
        if head == SQUASHFS:
            with _squashfs(path, work, host) as reader:
                return Findings(path, "squashfs", size, system=look(reader))
        found = opened(path, work)
        if found.trees:
            with ExitStack() as stack:
                streams = [stack.enter_context(tree.open("rb")) for tree in found.trees]
                try:
                    system = look(TarReader(streams))
                except (tarfile.TarError, EOFError) as error:
                    raise Refused(f"{path} holds a damaged tar archive: {error}".splitlines()[0]) from error
                return Findings(path, found.format, size, inside=found.about, system=system)
        assert found.disk is not None
        format = probe(found.disk)
        if format == "iso":
            medium = look_at_iso(found.disk)
            about = {"label": medium.label, "installer": medium.family, "name": medium.name,
                     "architecture": medium.arch, "kernel": medium.kernel}  # fmt: skip
            return Findings(path, "iso", size, inside={k: v for k, v in about.items() if v})
        told = format if not found.format else f"{found.format} ({format})"
        findings = Findings(path, told, size, inside=found.about)
        return _disk(found.disk, format, findings, work, host, log, appliance)


def drivers_of(image: Path, host: Host) -> frozenset[str] | None:
    """The kernel modules of the newest kernel on a qcow2 of ours; None where its root file system is no ext4."""
    with exported(image, host, writable=False) as raw:
        try:
            root = root_of(find_partitions(raw, host))
        except BuildError:
            return None
        found = kernels(Ext4Reader(raw, root.offset, host)) if root.fstype in _EXT else []
    return found[0].modules if found else None


def roomy(path: Path) -> Path:
    """Beside the image, where there is room for what is taken out of it; or the usual place."""
    beside = path.absolute().parent
    return beside if os.access(beside, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _disk(
    disk: Path, format: str, findings: Findings, work: Path, host: Host, log: Log, appliance: Appliance | None
) -> Findings:
    info = inspect(disk, host)
    image = disk
    if format != "qcow2":
        image = work / "copy.qcow2"
        import_image(disk, image, host, log, format=format)
    with exported(image, host, writable=False) as raw:
        parts = find_partitions(raw, host)
        firmware, loaders = _boot(raw, parts, host)
        system, notes = _system(raw, parts, image, host, appliance)
    return Findings(findings.path, findings.format, findings.size, info.virtual_size, findings.inside, parts,
                    firmware, loaders, system, notes)  # fmt: skip


def _system(
    raw: Path, parts: Sequence[Partition], image: Path, host: Host, appliance: Appliance | None
) -> tuple[System | None, list[str]]:
    try:
        root = root_of(parts)
        why = f"its root file system is {root.fstype}"
        if root.fstype in _EXT:
            return look(Ext4Reader(raw, root.offset, host)), []
    except BuildError as error:
        why = error.message
    if appliance is None:
        return None, [f"{why}: what is in it was not looked at"]
    try:
        with appliance(image) as reader:
            return look(reader), []
    except BuildError as error:
        return None, [f"{why}; {error.message}"]


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


@contextmanager
def _squashfs(path: Path, work: Path, host: Host) -> Iterator[Reader]:
    wanted = ["etc/os-release", "usr/lib/os-release", "etc/hostname", "var/lib/dpkg/status", "lib/apk/db/installed",
              *(f"{lib}/modules/*/modules.{name}" for lib in ("lib", "usr/lib") for name in ("dep", "builtin")),
              *(path.lstrip("/") for paths in INITS.values() for path in paths)]  # fmt: skip
    folder = work / "squashfs"
    host.run(["unsquashfs", "-no-progress", "-no-xattrs", "-d", folder, path, *wanted],
             purpose="look into a squashfs", ok=range(256))  # fmt: skip
    yield FolderReader(folder)


class FolderReader:
    """A root file system that was taken out into a folder; its links lead nowhere outside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _inside(self, path: str) -> Path | None:
        try:
            found = (self._folder / path.lstrip("/")).resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            return None
        return found if found.is_relative_to(self._folder.resolve()) else None

    def names(self, path: str) -> Sequence[str]:
        """See Reader."""
        found = self._inside(path)
        return sorted(p.name for p in found.iterdir()) if found is not None and found.is_dir() else []

    def read(self, path: str) -> bytes:
        """See Reader."""
        found = self._inside(path)
        if found is None or not found.is_file() or found.stat().st_size > LARGEST:
            raise FileNotFoundError(path)
        return found.read_bytes()
