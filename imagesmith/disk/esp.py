"""An EFI system partition: FAT with files in it, written into a raw disk without a mount, always the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from imagesmith.disk.ext4 import clock
from imagesmith.disk.gpt import SECTOR, Part
from imagesmith.host import Host

_PURPOSE = "write the EFI system partition"


def make_esp(raw: Path, part: Part, files: Mapping[str, Path], host: Host, *, serial: str, epoch: int) -> None:
    """Make the file system in ``part`` of ``raw`` and copy ``files`` (name in it -> file here) into it.

    ``serial`` is the volume's number: eight hexadecimal digits.
    """
    make_fat(raw, files, host, offset=part.offset, size=part.size, bits=32, label="ESP", serial=serial, epoch=epoch)


def make_fat(
    raw: Path, files: Mapping[str, Path], host: Host, *,
    offset: int, size: int, bits: int, label: str, serial: str, epoch: int,
) -> None:  # fmt: skip
    """Make a FAT file system (``bits``: 16 or 32) with ``files`` at ``offset`` of the file ``raw``, in bytes.

    FAT32 has at least 65525 clusters, of one sector here, and FAT16 at least 4085 (Microsoft's fatgen103, "FAT Type
    Determination").
    """
    environment = {**clock(epoch), "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    host.run(["mkfs.vfat", "--invariant", "-F", str(bits), "-s", "1", "-n", label, "-i", serial,
              f"--offset={offset // SECTOR}", raw, str(size // 1024)],
             purpose=_PURPOSE, env=environment)  # fmt: skip
    image = f"{raw}@@{offset}"
    folders = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents if parent.name})
    if folders:
        host.run(["mmd", "-i", image, *(f"::{folder}" for folder in folders)], purpose=_PURPOSE, env=environment)
    for name, source in sorted(files.items()):
        host.run(["mcopy", "-i", image, source, f"::{name}"], purpose=_PURPOSE, env=environment)
