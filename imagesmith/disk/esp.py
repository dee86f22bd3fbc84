"""An EFI system partition: FAT32 with files in it, written into a raw disk without a mount, always the same bytes."""

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
    environment = {**clock(epoch), "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    host.run(["mkfs.vfat", "--invariant", "-F", "32", "-s", "1", "-n", "ESP", "-i", serial,
              f"--offset={part.offset // SECTOR}", raw, str(part.size // 1024)],
             purpose=_PURPOSE, env=environment)  # fmt: skip
    image = f"{raw}@@{part.offset}"
    folders = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents if parent.name})
    if folders:
        host.run(["mmd", "-i", image, *(f"::{folder}" for folder in folders)], purpose=_PURPOSE, env=environment)
    for name, source in sorted(files.items()):
        host.run(["mcopy", "-i", image, source, f"::{name}"], purpose=_PURPOSE, env=environment)
