"""The partition table of an assembled disk, as a script for sfdisk(8).

GPT with, in this order: a BIOS boot partition for GRUB's core image (x86_64 alone), an EFI system partition, and the
root file system to the end of the disk, so that it can grow. Type GUIDs: UEFI specification 2.10, section 5.3.3 (EFI
system partition); GRUB manual, "BIOS installation"; UAPI group, Discoverable Partitions Specification (root).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from imagesmith.errors import BuildError
from imagesmith.host import Host

SECTOR = 512
MIB = 1 << 20
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
ROOT = {"x86_64": "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "aarch64": "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"}
ROOT_START = 64 * MIB
SMALLEST = 128 * MIB


@dataclass(frozen=True)
class Part:
    """One partition: its number from 1, and where it is, in bytes."""

    number: int
    name: str
    type: str
    guid: str
    offset: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A disk's partitions; ``bios`` is None where the architecture has no BIOS. ``size`` is in bytes."""

    size: int
    guid: str
    bios: Part | None
    esp: Part
    root: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them, by number."""
        return tuple(part for part in (self.bios, self.esp, self.root) if part is not None)


def identifier(seed: str, what: str) -> str:
    """An UUID that is the same whenever ``seed`` and ``what`` are (RFC 9562, version 5)."""
    return str(uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_OID, "imagesmith"), f"{seed}:{what}"))


def layout(size: int, arch: str, seed: str) -> Layout:
    """Lay out a disk of ``size`` bytes, rounded up to whole MiB. Raises BuildError where it is too small."""
    size = -(-size // MIB) * MIB
    if size < SMALLEST:
        raise BuildError(f"a disk of {size // MIB} MiB is too small for boot loaders and a root file system",
                         hint=f"raise machine.disk; the least is {SMALLEST // MIB}M")  # fmt: skip
    if arch not in ROOT:
        raise BuildError(f"no disk can be assembled for '{arch}'", hint=f"arch is one of {', '.join(sorted(ROOT))}")

    def part(number: int, name: str, kind: str, offset: int, end: int) -> Part:
        return Part(number, name, kind, identifier(seed, f"partition {name}").upper(), offset, end - offset)

    bios = part(1, "bios", BIOS_BOOT, MIB, 2 * MIB) if arch == "x86_64" else None
    esp = part(2, "esp", ESP, 2 * MIB, ROOT_START)
    root = part(3, "root", ROOT[arch], ROOT_START, size - MIB)  # the last MiB holds the table's second copy
    return Layout(size, identifier(seed, "disk").upper(), bios, esp, root)


def script(disk: Layout) -> str:
    """Spell out a layout for sfdisk."""
    lines = ["label: gpt", f"label-id: {disk.guid}", "unit: sectors", "first-lba: 2048", ""]
    for part in disk.parts:
        lines.append(f"{part.number} : start={part.offset // SECTOR}, size={part.size // SECTOR}, type={part.type}, "
                     f'uuid={part.guid}, name="{part.name}"')  # fmt: skip
    return "\n".join(lines) + "\n"


def write_table(raw: Path, disk: Layout, host: Host) -> None:
    """Write the partition table into a raw disk file of the layout's size."""
    host.run(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--wipe", "never", raw],
             purpose="write the disk's partition table", input=script(disk).encode())  # fmt: skip
