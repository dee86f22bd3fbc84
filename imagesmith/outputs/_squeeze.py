"""Files compressed on all cores as they are written, with the same bytes on any number of them."""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol, cast

from imagesmith.errors import ToolFailed
from imagesmith.host import PIPE, Host
from imagesmith.outputs._gzip import GzipWriter

Compression = Literal["none", "gzip", "xz", "zstd"]
SUFFIX = {"none": "", "gzip": ".gz", "xz": ".xz", "zstd": ".zst"}


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> int:
        """Take some bytes."""
        ...


def command(compression: str) -> list[str]:
    """Return the program that compresses its input to its output.

    xz cuts its input into blocks of a fixed size, and with two threads or more writes the same on any number of them
    (xz(1), --block-size and --threads); level 1 is 7 % larger than level 6, and ten times as fast. zstd's jobs have a
    size that goes with the level, not with the threads (zstd(1), -T).
    """
    threads = max(2, os.cpu_count() or 1)
    if compression == "xz":
        return ["xz", "-1", "--check=crc64", "--block-size=16MiB", f"-T{threads}", "-c"]
    return ["zstd", "-9", "-q", f"-T{threads}", "-c"]


@contextmanager
def squeezed(path: Path, compression: Compression, host: Host) -> Iterator[Sink]:
    """Open a new file; what is written to it is compressed. Raises MissingTool, ToolFailed."""
    with path.open("wb") as out:
        if compression == "none":
            yield out
        elif compression == "gzip":
            with GzipWriter(out.write) as gzip:
                yield gzip
        else:
            with piped(command(compression), out, host, purpose=f"compress {path.name}") as sink:
                yield sink


@contextmanager
def piped(
    argv: list[str], out: BinaryIO | None, host: Host, *, purpose: str, env: Mapping[str, str] | None = None
) -> Iterator[BinaryIO]:
    """Start a program that reads what is written here, and wait for its end. ``out`` takes its output.

    Raises MissingTool, ToolFailed (with its last words).
    """
    with tempfile.TemporaryFile() as said, host.start(
        argv, purpose=purpose, env=env, stdin=PIPE, stdout=out or said, stderr=said
    ) as process:  # fmt: skip
        assert process.stdin is not None
        broken = False
        try:
            yield process.stdin  # type: ignore[misc]  # an IO[bytes]
            process.stdin.close()
        except BrokenPipeError:
            broken = True
        if process.wait() != 0 or broken:
            said.seek(0)
            tail = said.read().decode("utf-8", "replace").strip()
            raise ToolFailed(f"{argv[0]} failed (exit status {process.returncode}) to {purpose}:\n{tail}",
                             status=process.returncode, tail=tail)  # fmt: skip


@contextmanager
def tar_into(sink: Sink) -> Iterator[tarfile.TarFile]:
    """Open a pax tar that is written to ``sink`` as a stream."""
    out = cast(BinaryIO, sink)  # of which tarfile uses write alone
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as tar:
        yield tar
