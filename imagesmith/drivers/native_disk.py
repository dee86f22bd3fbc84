"""The native driver for disks whose origin the user trusts: the host's own kernel mounts their root file system.

Needs root. Each step: the layers are shown as a raw file (disk/attach.py), the root partition is mounted over a loop
device in a private mount namespace, the step works there as in a tree, and all of it is gone again, flushed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagesmith import tree
from imagesmith.disk.attach import LAYER_FILE, attached, layer_files, make_overlay
from imagesmith.disk.flatten import make_layer
from imagesmith.disk.partitions import Partition, find_partitions, root_of
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Root
from imagesmith.machine.inject import debugfs

FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_HINT = "use the guestfs driver (via: guestfs)"


@dataclass(frozen=True)
class NativeDisk:
    """The driver (interfaces.Driver)."""

    host: Host
    name: str = "native"

    @contextmanager
    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> Iterator[NativeDiskSession]:
        """Open a session. Raises BuildError where the user is not root."""
        if os.geteuid() != 0:
            raise BuildError("only root can mount a disk's file system", hint=_HINT)
        yield NativeDiskSession(self.host, epoch, list(below))


@dataclass
class NativeDiskSession:
    """A run of steps (interfaces.Session). Opening and mounting takes a fraction of a second, so nothing is kept."""

    host: Host
    epoch: int
    below: list[Path] = field(default_factory=list)

    @contextmanager
    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None, resumable: bool = False
    ) -> Iterator[Root]:
        """Open the next layer for one step (interfaces.Session)."""
        self.below[-1] = below or self.below[-1]
        with (
            attached(make_layer(self.below, into, self.host), self.host, writable=True) as disk,
            open_disk(disk.path, self.host, epoch=self.epoch, log=log, timeout=timeout) as root,
        ):
            yield root
        self.below.append(into)


@contextmanager
def open_files(below: Sequence[Path], host: Host, *, epoch: int, log: Log) -> Iterator[Files]:
    """Access to a disk's root file system (interfaces.Files). What mounting does to it goes to a file that is removed.

    ``below`` are the folders of its layers. Raises BuildError where it cannot be mounted.
    """
    files = layer_files(below)
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        top = Path(folder, LAYER_FILE)
        make_overlay(files[-1], top, host)
        with (
            attached([*files, top], host, writable=True) as disk,
            open_disk(disk.path, host, epoch=epoch, log=log) as root,
        ):
            yield root


@contextmanager
def open_disk(
    raw: Path, host: Host, *, epoch: int, log: Log, timeout: float | None = None
) -> Iterator[tree.TreeRoot]:
    """Open the root file system of a raw disk, with what its /etc/fstab mounts below it from the same disk.

    Raises BuildError where the kernel is not let near it, or where it is no root file system.
    """
    parts = find_partitions(raw, host)
    found = root_of(parts)
    _check(found)
    mount = tree.BlockMount(str(raw), found.offset, found.size, found.fstype)
    fstab = _unmounted_fstab(raw, found, host)
    if fstab is None:
        with tree.open_root(host, mount, epoch=epoch, log=log, timeout=timeout) as root:
            _check_root(root)
            fstab = root.read("/etc/fstab").decode("utf-8", "replace") if root.exists("/etc/fstab") else ""
            inner = inner_mounts(fstab, parts)
            if not inner:
                yield root
                return
    inner = inner_mounts(fstab, parts)
    for _, part in inner:
        _check(part, "vfat")
    mount = replace(mount, inner=tuple((point, part.offset, part.size, part.fstype) for point, part in inner))
    with tree.open_root(host, mount, epoch=epoch, log=log, timeout=timeout) as root:
        _check_root(root)
        yield root


def _unmounted_fstab(raw: Path, part: Partition, host: Host) -> str | None:
    """The fstab, if it can be told without mounting: quicker than to mount once more with what it names."""
    if part.fstype != "ext4" or host.find("debugfs") is None:
        return None
    said = debugfs(f"{raw}?offset={part.offset}", ["show_super_stats -h", "stat /etc/fstab", "cat /etc/fstab"], host)
    about, asked, fstab = said.partition("debugfs: cat /etc/fstab\n")
    sound = asked and "Filesystem features:" in about and "needs_recovery" not in about
    return fstab if sound and "Type: symlink" not in about else None  # debugfs follows no link


def _check_root(root: Root) -> None:
    if not root.exists("/etc"):
        raise BuildError("the disk's largest file system is no root file system: it has no /etc", hint=_HINT)


def inner_mounts(fstab: str, parts: Sequence[Partition]) -> list[tuple[str, Partition]]:
    """What an fstab(5) mounts below ``/`` from these partitions, the outer mount points first.

    What is not on this disk is left out; so is what the fstab itself does not mount at boot (``noauto``).
    """
    found = []
    for line in fstab.splitlines():
        words = line.split("#", 1)[0].split() if not line.lstrip().startswith("#") else []
        if len(words) < 3 or not words[1].startswith("/") or words[1] == "/" or "noauto" in words[3:4]:
            continue
        found += [(words[1], part) for part in parts if words[0] in _names(part)][:1]
    return sorted(found, key=lambda one: (one[0].count("/"), one[0]))


def _names(part: Partition) -> set[str]:
    names = {"LABEL": part.label, "PARTLABEL": part.name, "UUID": part.uuid, "PARTUUID": part.guid}
    return {f"{name}={value}" for name, value in names.items() if value}


def _check(part: Partition, *more: str) -> None:
    if part.fstype not in {*FILE_SYSTEMS, *more}:
        seen = part.fstype or "of an unknown type"
        raise BuildError(
            f"a file system of the disk is {seen}; the native driver mounts {', '.join(FILE_SYSTEMS)}", hint=_HINT
        )
