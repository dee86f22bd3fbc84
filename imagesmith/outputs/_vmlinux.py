"""The kernel that is inside a kernel's file: what virtual machine monitors start that have no boot loader.

Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header": a bzImage says itself where its compressed
payload is, and the payload is an ELF file. Documentation/arch/arm64/booting.rst, "Call the kernel image": an Image has
``ARM\\x64`` at byte 56, and may be gzipped as a whole.
"""

from __future__ import annotations

import struct

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.outputs._decompress import need

ELF = b"\x7fELF"
_WHAT = "the image's kernel"
_SETUP_SECTORS, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x248
_PAYLOAD_KNOWN = 0x0208
_WITHOUT_SIZE = b"\x1f\x8b"
"""gzip alone: behind the others' payload stand four bytes with the size (arch/x86/boot/compressed/Makefile)."""


def vmlinux(kernel: bytes, arch: str, host: Host) -> bytes:
    """Return the uncompressed kernel: for x86_64 an ELF file, for aarch64 an Image.

    Raises BuildError for what is neither; Refused, MissingTool where it cannot be decompressed.
    """
    if arch == "aarch64":
        image = kernel if _is_image(kernel) else need(kernel, _WHAT, host)
        if not _is_image(image):
            raise BuildError(f"{_WHAT} is no arm64 Image")
        return image
    if kernel.startswith(ELF):
        return kernel
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS" or len(kernel) < _PAYLOAD + 8:
        raise BuildError(f"{_WHAT} is no bzImage: there is no 'HdrS' at byte {_MAGIC}")
    if struct.unpack_from("<H", kernel, _VERSION)[0] < _PAYLOAD_KNOWN:
        raise BuildError(f"{_WHAT} is older than Linux 2.6.26 and does not say where its payload is")
    offset, length = struct.unpack_from("<II", kernel, _PAYLOAD)
    start = ((kernel[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = kernel[start : start + length]
    if len(payload) < length or length < 8:
        raise BuildError(f"{_WHAT} is cut off at byte {len(kernel)}: its payload should end at {start + length}")
    if not payload.startswith(ELF):
        payload = need(payload if payload.startswith(_WITHOUT_SIZE) else payload[:-4], _WHAT, host)
    if not payload.startswith(ELF):
        raise BuildError(f"{_WHAT} holds no ELF file (it begins with {payload[:4].hex(' ')})")
    return payload


def _is_image(data: bytes) -> bool:
    return data[56:60] == b"ARM\x64"
