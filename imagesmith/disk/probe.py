"""What a foreign disk image is, from its own bytes, and whether opening it would lead anywhere else.

QEMU guesses formats and follows what an image's header names: backing files, data files, extents. An image from
elsewhere must get neither chance, so its header is read here first, and QEMU is then told the format.

Sources: QEMU, docs/interop/qcow2.txt; VMware Virtual Disk Format 1.1 (vmdk.py); Microsoft, Virtual Hard Disk Image
Format Specification 1.0 ("conectix" footer, type at 60, current size at 48) and [MS-VHDX] 2.2.1; VirtualBox,
src/VBox/Storage/VDICore.h (signature at 64); ECMA-119, 8.1 (CD001); UEFI specification 2.10, section 5 (MBR and GPT
signatures); Linux, Documentation/filesystems/ext4 (magic at 1080) and XFS, "XFSB".
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from imagesmith.disk.vmdk import check_vmdk
from imagesmith.errors import Refused, nearest

FORMATS = ("qcow2", "raw", "vdi", "vhdx", "vmdk", "vpc")
"""What can be imported, in QEMU's words (``vpc`` is Microsoft's VHD)."""
ALIASES = {"vhd": "vpc", "img": "raw"}
LARGEST = 16 << 40
"""Bytes: the largest virtual disk that is believed (16 TiB)."""

_HEAD = 64 * 1024
_QCOW2 = b"QFI\xfb"
_VHD = b"conectix"
_ELSE = {
    b"LUKS\xba\xbe": "a LUKS container: encrypted", b"QED\x00": "a QED image", b"COWD": "an ESX sparse extent",
    b"WithoutFreeSpace": "a Parallels image", b"WithouFreSpacExt": "a Parallels image", b"\x1f\x8b": "a gzip file",
    b"\xfd7zXZ\x00": "an xz file", b"\x28\xb5\x2f\xfd": "a zstd file", b"BZh": "a bzip2 file", b"PK\x03\x04": "a zip",
}  # fmt: skip


@dataclass(frozen=True)
class _Ends:
    """The beginning and the end of a file, and its length in bytes."""

    path: Path
    head: bytes
    tail: bytes
    length: int


def _read(path: Path) -> _Ends:
    if not path.exists():
        raise Refused(f"no such image: {path}")
    if not path.is_file():
        raise Refused(f"{path} is no regular file")
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
        length = path.stat().st_size
        stream.seek(max(0, length - 512))
        return _Ends(path, head, stream.read(512), length)


def probe(path: Path) -> str:
    """Return the format of a file: one of FORMATS, or ``iso``. Raises Refused for whatever is none.

    Without a signature of its own a file is ``raw`` only where it begins with a partition table or a file system.
    """
    ends = _read(path)
    found = _signature(ends)
    if found:
        return found
    for magic, what in _ELSE.items():
        if ends.head.startswith(magic):
            raise Refused(f"{path} is {what}", hint="unpack or convert it first; these are read: " + ", ".join(FORMATS))
    if ends.head[257:262] == b"ustar":
        raise Refused(f"{path} is a tar archive (an OVA or a box?)", hint="unpack it, and name the disk inside")
    if not _looks_raw(ends.head):
        raise Refused(f"{path} is no disk image that is known: it has no header, partition table or file system",
                      hint="if it is a raw disk all the same, say so with 'format: raw'")  # fmt: skip
    return "raw"


def _signature(ends: _Ends) -> str:
    head = ends.head
    if head.startswith(_QCOW2):
        if head[4:8] == b"\0\0\0\x01":
            raise Refused(f"{ends.path} is a qcow image of version 1", hint="convert it with qemu-img first")
        return "qcow2"
    if head.startswith(b"KDMV") or head[:512].lstrip().lower().startswith(b"# disk descriptorfile"):
        return "vmdk"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head[64:68] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head.startswith(_VHD) or ends.tail.startswith(_VHD):
        return "vpc"
    return "iso" if head[32769:32774] == b"CD001" else ""


def _looks_raw(head: bytes) -> bool:
    return (head[510:512] == b"\x55\xaa" or head[512:520] == b"EFI PART" or head[4096:4104] == b"EFI PART"
            or head[1080:1082] == b"\x53\xef" or head.startswith(b"XFSB"))  # fmt: skip


def chosen_format(path: Path, asked: str) -> str:
    """The format to open ``path`` with: ``asked`` where it fits the file, else what the file is. Raises Refused."""
    if not asked:
        found = probe(path)
        if found == "iso":
            raise Refused(f"{path} is an ISO image, not a disk", hint="a disk is wanted here; an ISO is its own base")
        return found
    word = ALIASES.get(asked.lower(), asked.lower())
    if word not in FORMATS:
        raise Refused(f"'{asked}' is no disk format that is read{nearest(word, [*FORMATS, *ALIASES])}",
                      hint="one of " + ", ".join(FORMATS))  # fmt: skip
    if word == "raw":
        return word
    found = _signature(_read(path))
    if found != word:
        raise Refused(f"{path} is no {word} image" + (f", but {found}" if found else ""),
                      hint="correct 'format', or leave it out")  # fmt: skip
    return word


def check_header(path: Path, format: str) -> None:
    """Refuse an image that is cut off, encrypted, or would make QEMU open another file."""
    ends = _read(path)
    try:
        if format == "qcow2":
            _check_qcow2(ends)
        elif format == "vmdk":
            check_vmdk(path, ends.head)
        elif format == "vpc":
            _check_vhd(ends)
        elif format == "vdi":
            _check_vdi(ends)
        elif format == "raw" and (ends.length == 0 or ends.length % 512):
            raise Refused(f"{path} is no raw disk: its {ends.length} bytes are no whole sectors of 512",
                          hint="it may be cut off; compare its checksum with the publisher's")  # fmt: skip
    except (struct.error, ValueError):
        raise _cut_off(path) from None


def _cut_off(path: Path) -> Refused:
    return Refused(f"{path} is cut off or damaged", hint="fetch it again, and compare its checksum")


def _check_qcow2(ends: _Ends) -> None:
    head, path = ends.head, ends.path
    version, backing, _, bits, _, encryption = struct.unpack_from(">IQIIQI", head, 4)
    if version not in {2, 3}:
        raise Refused(f"{path} is a qcow2 of version {version}, which is unknown")
    if backing:
        raise Refused(f"{path} has a backing file: it is a part of an image, and may name any file of this host",
                      hint="ask its maker for a whole image (qemu-img convert makes one)")  # fmt: skip
    if encryption:
        raise Refused(f"{path} is encrypted")
    if not 9 <= bits <= 21:
        raise _cut_off(path)
    length = 72
    if version == 3:
        features, length = struct.unpack_from(">Q", head, 72)[0], struct.unpack_from(">I", head, 100)[0]
        if features & 4:
            raise Refused(f"{path} keeps its data in another file, which may be any file of this host")
        if features & 2:
            raise Refused(f"{path} is marked as corrupt", hint="mend it with qemu-img check -r all, if it is yours")
        if features & ~0x1F:
            raise Refused(f"{path} needs features of qcow2 that are unknown here")
    while length + 8 <= len(head):
        kind, size = struct.unpack_from(">II", head, length)
        if kind == 0:
            break
        if kind == 0x44415441:
            raise Refused(f"{path} names another file for its data, which may be any file of this host")
        length += 8 + (size + 7) // 8 * 8


def _check_vdi(ends: _Ends) -> None:
    # QEMU's check for this format does not look where the file ends.
    kind, data = struct.unpack_from("<I", ends.head, 76)[0], struct.unpack_from("<I", ends.head, 344)[0]
    block, _, _, allocated = struct.unpack_from("<IIII", ends.head, 376)
    if kind == 4:
        raise Refused(f"{ends.path} is a differencing disk: it is a part of an image")
    if data + block * allocated > ends.length:
        raise _cut_off(ends.path)


def _check_vhd(ends: _Ends) -> None:
    if not ends.tail.startswith(_VHD):
        raise _cut_off(ends.path)
    size, kind = struct.unpack_from(">Q", ends.tail, 48)[0], struct.unpack_from(">I", ends.tail, 60)[0]
    if kind == 4:
        raise Refused(f"{ends.path} is a differencing disk: it is a part of an image, and names another file")
    if kind == 2 and size != ends.length - 512:
        raise _cut_off(ends.path)
    if kind == 3:
        _check_vhd_blocks(ends)


def _check_vhd_blocks(ends: _Ends) -> None:
    # QEMU has no check for this format: a block that lies behind the file's end would be read as zeros. The dynamic
    # header ("cxsparse") has the block table's offset at 16, its length at 28 and the block size at 32.
    at = struct.unpack_from(">Q", ends.head, 16)[0]
    with ends.path.open("rb") as stream:
        stream.seek(min(at, ends.length))
        header = stream.read(1024)
        table, entries, block = (*struct.unpack_from(">Q", header, 16), *struct.unpack_from(">II", header, 28))
        if not header.startswith(b"cxsparse") or entries * 4 > ends.length or not block:
            raise _cut_off(ends.path)
        stream.seek(min(table, ends.length))
        blocks = array("I", stream.read(entries * 4))
    if sys.byteorder == "little":
        blocks.byteswap()
    bitmap = -(-block // (512 * 8 * 512)) * 512
    last = max((number for number in blocks if number != 0xFFFFFFFF), default=0)
    if len(blocks) != entries or (last and last * 512 + bitmap + block > ends.length):
        raise _cut_off(ends.path)
