"""Screenshots as PNG where QEMU is too old to write one itself (its screendump knows PNG since 7.1)."""

from __future__ import annotations

import re
import struct
import zlib

# The one form that QEMU writes (netpbm's ppm(5), "P6"): no comments, 255 as the largest value.
_HEADER = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


def from_ppm(picture: bytes) -> bytes:
    """Turn a binary PPM into a PNG (W3C, Portable Network Graphics, third edition). Raises ValueError."""
    head = _HEADER.match(picture)
    if head is None:
        raise ValueError("not a binary PPM with 8 bits a channel")
    width, height = int(head[1]), int(head[2])
    pixels = memoryview(picture)[head.end() :]
    if len(pixels) < width * height * 3:
        raise ValueError("the picture is cut off")
    # Each row begins with its filter's type: 0, none.
    rows = b"".join(b"\0" + bytes(pixels[y * width * 3 : (y + 1) * width * 3]) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
