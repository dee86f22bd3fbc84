"""The VDI output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import convert, finish, identifier, workspace

_SIGNATURE_AT, _SIGNATURE = 64, b"\x7f\x10\xda\xbe"
_IMAGE_AT, _MODIFIED_AT = 392, 408
"""VirtualBox, src/VBox/Storage/VDICore.h, VDIHEADER1PLUS behind the 72 bytes of VDIPREHEADER: uuidCreate and
uuidModify, RTUUIDs, which are little-endian. uuidLinkage and uuidParentModify stay zero: there is no parent."""


class Vdi(DiskOutput, name="vdi", version=1):
    """A VDI, dynamically allocated: VirtualBox's own format."""

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then put identifiers that are the same every time in place of qemu-img's random ones."""
        name = f"{maker.name}.vdi"
        with workspace(directory, name) as work:
            convert(disk, work / name, "vdi", host, log)
            settle(work / name, maker.seed)
            return finish(work, directory, [name])


def settle(image: Path, seed: str) -> None:
    """Set the image's identifiers. Raises BuildError where it is no VDI."""
    with image.open("r+b") as stream:
        stream.seek(_SIGNATURE_AT)
        if stream.read(4) != _SIGNATURE:
            raise BuildError(f"qemu-img wrote no VDI to {image.name}")
        for place, what in ((_IMAGE_AT, "vdi"), (_MODIFIED_AT, "vdi modification")):
            stream.seek(place)
            stream.write(identifier(seed, what).bytes_le)
