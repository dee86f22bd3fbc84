"""VMDK files: streamOptimized, as appliances carry it, or monolithicSparse, as machines run from it.

Source: VMware, Virtual Disk Format 5.0, "Hosted Sparse Extent Header" and "The Disk DescriptorFile".
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from uuid import UUID

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log
from imagesmith.outputs import _grains
from imagesmith.outputs._clusters import write_image
from imagesmith.outputs._common import convert, identifier

_SECTOR = 512
_HEADER = struct.Struct("<4sIIQQQQ")
"""magicNumber, version, flags, capacity, grainSize, descriptorOffset, descriptorSize (the last four in sectors)."""


def write_vmdk(disk: Disk, target: Path, seed: str, host: Host, log: Log, *, adapter: str) -> None:
    """Write the disk as a streamOptimized VMDK that names itself the same way every time.

    ``adapter`` is ``ide`` or ``lsilogic``: what the descriptor says the disk was made for. What ``disk.earlier`` has of
    it is copied from there (see _clusters). Raises ToolFailed.
    """
    name = identifier(seed, "vmdk")
    form = _grains.Grains(lambda sectors: _grains.text(target.name, sectors, adapter, _content(name), str(name)))
    write_image(disk, target, host, log, form)


def write_sparse_vmdk(disk: Disk, target: Path, seed: str, host: Host, log: Log) -> None:
    """Write the disk as a monolithicSparse VMDK for LSI Logic's controller, likewise. Raises ToolFailed, BuildError."""
    convert(disk, target, "vmdk", host, log, options={"subformat": "monolithicSparse", "adapter_type": "lsilogic"})
    with target.open("r+b") as stream:
        magic, _, _, _, _, offset, size = _HEADER.unpack(stream.read(_HEADER.size))
        if magic != b"KDMV" or not offset or not size:
            raise BuildError(f"qemu-img wrote no VMDK with an embedded descriptor to {target.name}")
        stream.seek(offset * _SECTOR)
        text = settle(stream.read(size * _SECTOR).rstrip(b"\0").decode("ascii", "replace"), seed)
        stream.seek(offset * _SECTOR)
        stream.write(text.encode("ascii", "replace").ljust(size * _SECTOR, b"\0"))


def settle(descriptor: str, seed: str) -> str:
    """Replace qemu-img's random content id, and add the image's UUID, without which VirtualBox refuses the disk."""
    name = identifier(seed, "vmdk")
    text = re.sub(r"(?m)^CID=[0-9a-f]+$", f"CID={_content(name):08x}", descriptor, count=1)
    return text.rstrip("\n") + f'\nddb.uuid.image = "{name}"\n'


def _content(name: UUID) -> int:
    return name.int % 0xFFFFFFFE  # ffffffff means "no parent", fffffffe "not written yet"
