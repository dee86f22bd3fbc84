"""Whatever Linux compresses its kernel, its modules and its initial RAM disk with, taken apart.

The magic numbers are those of Linux, Documentation/arch/x86/boot.rst ("payload_offset") and lib/decompress.c.
"""

from __future__ import annotations

import bz2
import lzma
import tempfile
import zlib
from collections.abc import Sequence

from imagesmith.errors import BuildError, Refused
from imagesmith.host import PIPE, Host

LIMIT = 1 << 30
"""Bytes that may come out: more than any kernel or initial RAM disk has."""
_PROGRAMS: tuple[tuple[bytes, Sequence[str]], ...] = (
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dcq")),
    (b"\x02\x21\x4c\x18", ("lz4", "-dcq")),
    (b"\x89LZO", ("lzop", "-dcq")),
)


def decompress(data: bytes, what: str, host: Host) -> bytes | None:
    """Return what ``data`` was before it was compressed, or None where it does not look compressed.

    What follows the compressed stream is ignored by gzip, xz, lzma and bzip2, and an error for zstd, lz4 and lzop,
    which are programs of the host. Raises MissingTool; Refused for what is damaged or larger than LIMIT.
    """
    for magic, argv in _PROGRAMS:
        if data.startswith(magic):
            return _through(argv, data, what, host)
    try:
        if data.startswith((b"\x1f\x8b", b"\x1f\x9e")):
            return _whole(zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, LIMIT + 1), what)
        if data.startswith(b"\xfd7zXZ"):
            return _whole(lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, LIMIT + 1), what)
        if data.startswith(b"\x5d\0\0"):
            return _whole(lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, LIMIT + 1), what)
        if data.startswith(b"BZh"):
            return _whole(bz2.BZ2Decompressor().decompress(data, LIMIT + 1), what)
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise Refused(f"{what} is damaged: {error}") from error
    return None


def _whole(found: bytes, what: str) -> bytes:
    if len(found) > LIMIT:
        raise Refused(f"{what} is larger than {LIMIT >> 30} GiB once it is decompressed")
    return found


def _through(argv: Sequence[str], data: bytes, what: str, host: Host) -> bytes:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as said:
        source.write(data)
        source.seek(0)
        with host.start(argv, purpose=f"read {what}", stdin=source, stdout=PIPE, stderr=said) as process:
            assert process.stdout is not None
            found = _whole(process.stdout.read(LIMIT + 1), what)
            if process.wait() == 0:
                return found
        said.seek(0)
        words = said.read(1000).decode("utf-8", "replace").strip()
        raise Refused(f"{what} is damaged: {argv[0]} says: {words}")


def need(data: bytes, what: str, host: Host) -> bytes:
    """See decompress; raises BuildError where it does not look compressed."""
    found = decompress(data, what, host)
    if found is None:
        raise BuildError(f"{what} is compressed in a way that is not known (it begins with {data[:6].hex(' ')})")
    return found
