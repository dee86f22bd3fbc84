"""Puts the control channel's guest side into a throw-away copy of a disk, without mounting it and without root.

The copy is shown as a raw file (disk/attach.py), and debugfs(8) writes the files into its ext4 root at the
partition's offset. What debugfs cannot do (other file systems, LVM, a journal that must be replayed first) is left to
whoever can: a function that the caller hands in.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from imagesmith.archive import Archive, archive_of
from imagesmith.disk.attach import exported
from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host
from imagesmith.machine.channel import SCRIPT, SCRIPT_PATH, SERVICE, UNIT

Unpack = Callable[[Path, BinaryIO], None]
"""Unpacks an uncompressed tar at ``/`` of the system on a qcow2, by other means."""
_UNIT_PATH = f"/etc/systemd/system/{SERVICE}"
_WANTS = "/etc/systemd/system/sysinit.target.wants"
# UAPI group, Discoverable Partitions Specification: root of x86_64 and of aarch64.
_ROOT_TYPES = ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "B921B045-1DF0-41C3-AF44-4C6F280D3FAE")
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_PURPOSE = "put the control channel into a throw-away copy of the disk"


@dataclass(frozen=True)
class Place:
    """A partition that may hold the root file system. ``offset`` and ``size`` in bytes."""

    offset: int
    size: int
    is_root: bool


def files() -> BinaryIO:
    """The guest's side of the control channel as a tar."""

    def build(archive: Archive) -> None:
        archive.data(SCRIPT_PATH, SCRIPT.encode())
        archive.data(_UNIT_PATH, UNIT.encode())
        archive.link(f"{_WANTS}/{SERVICE}", f"../{SERVICE}")

    return archive_of(build, epoch=0)


def inject(overlay: Path, host: Host, *, otherwise: Unpack | None = None) -> None:
    """Write the control channel into the qcow2 ``overlay``.

    Raises BuildError where its root file system is not one that debugfs can write and there is no ``otherwise``, or
    where its init is not systemd.
    """
    with exported(overlay, host, writable=True) as raw:
        why = _inject_ext4(raw, host)
    if not why:
        return
    if otherwise is None:
        raise BuildError(f"cannot put the control channel into the guest: {why}")
    otherwise(overlay, files())


def _inject_ext4(raw: Path, host: Host) -> str:
    """Do it, or say why it cannot be done."""
    for place in places(raw, host):
        device = f"{raw}?offset={place.offset}"
        said = debugfs(device, ["stats", "stat /etc", *(f"stat {path}" for path in _SYSTEMD)], host)
        if "Type: directory" not in said:
            continue
        if "needs_recovery" in said:
            return "its root file system was not unmounted, and its journal must be replayed first"
        if "Type: regular" not in said and "Type: symlink" not in said:
            raise BuildError("the image's init is not systemd; images with another init cannot be checked yet",
                             hint="leave out the checks, or build with --no-checks")  # fmt: skip
        _write(device, host)
        return ""
    return "it has no ext4 file system with /etc on a partition of its own"


def places(raw: Path, host: Host) -> list[Place]:
    """Where the root may be: the partition that says so first, then the largest; or the whole disk."""
    try:
        table: dict[str, Any] = json.loads(host.run(["sfdisk", "--json", raw], purpose=_PURPOSE).text)["partitiontable"]
        sector = int(table.get("sectorsize", 512))
        found = [
            Place(int(p["start"]) * sector, int(p["size"]) * sector, str(p["type"]).upper() in _ROOT_TYPES)
            for p in table.get("partitions", ())
        ]
    except (ToolFailed, ValueError, KeyError):
        return [Place(0, 0, True)]
    return sorted(found, key=lambda place: (not place.is_root, -place.size))


def _write(device: str, host: Host) -> None:
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as name:
        script, unit = Path(name, "script"), Path(name, "unit")
        script.write_text(SCRIPT)
        unit.write_text(UNIT)
        # debugfs goes on after an error and ends with 0, so what it did is looked at afterwards. `mkdir` of what is
        # there is such an error. Modes and owners would be the host files' own.
        commands = [
            f"mkdir {_WANTS}",
            *(line for path, source in ((SCRIPT_PATH, script), (_UNIT_PATH, unit)) for line in (
                f"rm {path}", f"write {source} {path}", f"sif {path} mode 0100644", f"sif {path} uid 0",
                f"sif {path} gid 0")),
            f"symlink {_WANTS}/{SERVICE} ../{SERVICE}",
        ]  # fmt: skip
        said = debugfs(device, commands, host, write=True)
        seen = debugfs(device, [f"stat {SCRIPT_PATH}", f"stat {_UNIT_PATH}", f"stat {_WANTS}/{SERVICE}"], host)
        sizes = (len(SCRIPT.encode()), len(UNIT.encode()))
        if seen.count("Type: regular") != 2 or "Type: symlink" not in seen or any(
            f"Size: {size}\n" not in seen for size in sizes
        ):  # fmt: skip
            raise BuildError(f"debugfs did not write the control channel into the guest:\n{said.strip()}",
                             hint="is the image's root file system full or damaged (e2fsck)?")  # fmt: skip


def debugfs(device: str, commands: list[str], host: Host, *, write: bool = False) -> str:
    """Run debugfs commands on ``FILE?offset=BYTES``; its words, complaints included."""
    with tempfile.NamedTemporaryFile("w", prefix="imagesmith-") as batch:
        batch.write("\n".join(commands) + "\n")
        batch.flush()
        done = host.run(["debugfs", *(["-w"] if write else []), "-f", batch.name, device], purpose=_PURPOSE,
                        ok=range(256))  # fmt: skip
    return done.text + done.stderr.decode("utf-8", "replace")
