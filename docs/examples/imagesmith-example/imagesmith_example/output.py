"""The output `listing`."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Layered, Log, Maker
from imagesmith.kinds import FilesOutput


class Listing(FilesOutput, name="listing", version=1):
    """A list of all files in the image, with mode, owner and size."""

    def write(self, files: Layered, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write it: one line a file, sorted by name."""
        with tempfile.TemporaryFile() as packed:
            files.pack(packed)
            packed.seek(0)
            with tarfile.open(fileobj=packed) as archive:
                members = sorted(archive, key=lambda member: member.name)
        lines = [f"{m.mode:04o} {m.uid}:{m.gid} {m.size} {m.name}\n" for m in members]
        log(f"{len(lines)} files")
        path = directory / f"{maker.name}.listing.txt"
        path.write_text("".join(lines))
        return [path]
