"""Which partitions a raw disk has, and which of them holds the root file system.

sfdisk(8) and blkid(8) do the reading. Partition types: Discoverable Partitions Specification (GPT), and the numbers
that sfdisk knows (MBR).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagesmith.disk.gpt import ROOT, SECTOR
from imagesmith.errors import BuildError
from imagesmith.host import Host

_PURPOSE = "find the root file system of a disk"
_EXTENDED = {"5", "f", "85"}
_LINUX = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}
_ROOT_LABELS = {"root", "rootfs", "cloudimg-rootfs", "/", "linux-root", "rootfs_a"}
_CONTAINERS = {"LVM2_member": "LVM", "crypto_LUKS": "an encrypted volume", "linux_raid_member": "a RAID"}


@dataclass(frozen=True)
class Partition:
    """One partition. ``number`` counts from 1 (0: the whole disk is one file system); places are in bytes.

    ``type`` is a GUID in capitals (GPT) or a hexadecimal number (MBR), ``name`` and ``guid`` the GPT's name and
    identifier for it; ``fstype``, ``label`` and ``uuid`` are the file system's, in blkid's words, and empty where there
    is none.
    """

    number: int
    offset: int
    size: int
    type: str = ""
    name: str = ""
    fstype: str = ""
    label: str = ""
    guid: str = ""
    uuid: str = ""


def parse_table(text: str) -> list[Partition]:
    """Read what ``sfdisk --json`` writes; extended partitions, which only hold others, stay out."""
    table = json.loads(text)["partitiontable"]
    device, sector = str(table.get("device", "")), int(table.get("sectorsize", SECTOR))
    found = []
    for entry in table.get("partitions", ()):
        number = re.search(r"(\d+)$", str(entry["node"]).removeprefix(device).removeprefix("p"))
        kind = str(entry.get("type", ""))
        if number is None or kind.lower() in _EXTENDED:
            continue
        found.append(Partition(int(number.group(1)), int(entry["start"]) * sector, int(entry["size"]) * sector,
                               kind.upper() if "-" in kind else kind, str(entry.get("name", "")),
                               guid=str(entry.get("uuid", "")).lower()))  # fmt: skip
    return sorted(found, key=lambda part: part.number)


def parse_blkid(text: str) -> dict[str, str]:
    """Read what ``blkid --output export`` writes: NAME=value, with backslashes before odd characters."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in pairs}


def find_partitions(raw: Path, host: Host) -> list[Partition]:
    """The partitions of a raw disk (a file, perhaps exported from a qcow2), with the file systems in them.

    A disk without a partition table is one partition with the number 0.
    """
    size = raw.stat().st_size
    done = host.run(["sfdisk", "--json", raw], purpose=_PURPOSE, ok=(0, 1), timeout=60)
    parts = parse_table(done.text) if done.status == 0 and done.text.strip() else []
    parts = [part for part in parts if 0 <= part.offset < size and 0 < part.size <= size - part.offset]
    return [_look(raw, part, host) for part in parts or [Partition(0, 0, size)]]


def _look(raw: Path, part: Partition, host: Host) -> Partition:
    done = host.run(["blkid", "-p", "-O", str(part.offset), "-S", str(part.size), "--output", "export", raw],
                    purpose=_PURPOSE, ok=(0, 2, 8), timeout=60)  # 2: nothing found; 8: ambivalent # fmt: skip
    found: Mapping[str, str] = parse_blkid(done.text) if done.status == 0 else {}
    return replace(part, fstype=found.get("TYPE", ""), label=found.get("LABEL", ""),
                   uuid=found.get("UUID", ""))  # fmt: skip


def root_of(parts: Sequence[Partition]) -> Partition:
    """The partition with the root file system: by its GPT type, else by a label, else the largest that Linux uses.

    Raises BuildError where there is none.
    """
    linux = [part for part in parts if part.fstype in _LINUX]
    typed = [part for part in linux if part.type in ROOT.values()]
    labelled = [part for part in linux if {part.label.lower(), part.name.lower()} & _ROOT_LABELS]
    for found in (typed, labelled, linux):
        if found:
            return max(found, key=lambda part: (part.size, -part.number))
    inside = sorted({_CONTAINERS[part.fstype] for part in parts if part.fstype in _CONTAINERS})
    seen = ", ".join(sorted({part.fstype or "nothing known" for part in parts})) or "no partition"
    raise BuildError(
        f"no root file system was found on the disk; seen: {seen}",
        hint=f"it is inside {' and '.join(inside)}; steps reach it with 'via: guestfs'" if inside else
             "the disk must hold a Linux system",
    )  # fmt: skip
