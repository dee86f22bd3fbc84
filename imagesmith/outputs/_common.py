"""What the disk outputs share: a folder to work in, qemu-img, and identifiers that come out the same every time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.outputs._clusters import write_image
from imagesmith.outputs._qcow2 import CODECS, LAYOUT, Base, Qcow2

MIB = 1 << 20
GIB = 1 << 30
_PROGRESS = re.compile(r"\s*\((\d+)\.\d+/100%\)\s*")


@contextmanager
def workspace(directory: Path, what: str) -> Iterator[Path]:
    """Make a folder inside ``directory`` for unfinished files; it is gone afterwards, whatever happens.

    Finished files are renamed out of it, so that nothing half-written ever has a final name. Raises BuildError where
    the space ran out, from Python or from a program.
    """
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=directory) as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _full(directory, what) from error
        except ToolFailed as error:
            told = "No space left on device" in error.tail or "Disk quota exceeded" in error.tail
            if not told and _free(directory) >= MIB:  # qemu-img -c calls a full disk an "Invalid argument"
                raise
            raise _full(directory, what) from error


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _full(directory: Path, what: str) -> BuildError:
    return BuildError(
        f"no space left on device: cannot write {what} in {directory}",
        hint="free some space there, or write elsewhere with --output; 'imagesmith cache gc' frees the store's",
    )


def finish(work: Path, directory: Path, names: Sequence[str]) -> list[Path]:
    """Move finished files from the work folder to where they belong; return them in the given order."""
    return [(work / name).replace(directory / name) for name in names]


def convert_command(
    source: Path, target: Path, format: str, *, options: Mapping[str, str] | None = None, compress: bool = False
) -> list[str]:
    """Return the command that makes an image of a qcow2 (its backing chain included).

    ``-m 16`` reads ahead and still writes in order, so the result is the same every time; with ``-W`` it is not.
    """
    settings = ",".join(f"{name}={value}" for name, value in (options or {}).items())
    return [
        "qemu-img", "convert", "-p", "-m", "16", *(["-c"] if compress else []), "-f", "qcow2", "-O", format,
        *(["-o", settings] if settings else []), str(source), str(target),
    ]  # fmt: skip


def convert(
    disk: Disk, target: Path, format: str, host: Host, log: Log, *, options: Mapping[str, str] | None = None,
    compress: bool = False,
) -> None:  # fmt: skip
    """Write the disk in another format, with a line of progress every ten per cent. Raises ToolFailed."""
    command = convert_command(disk.path, target, format, options=options, compress=compress)
    host.run(command, purpose=f"write {target.name}", log=_tenths(log, target.name))


def write_qcow2(
    disk: Disk, target: Path, host: Host, log: Log, *, compression: str, base: Base | None = None
) -> None:  # fmt: skip
    """Write a qcow2 version 3 that stands alone, or on ``base``, and check it. Raises Refused, ToolFailed.

    ``compression`` is zstd, zlib or none. What ``disk.earlier`` has of it is copied from there (see _clusters).
    """
    below = None if base is None else (base.path, base.format)
    write_image(disk, target, host, log, Qcow2(CODECS.get(compression), base), below=below)
    alone = {"driver": "qcow2", "file": {"driver": "file", "filename": str(target)}, "backing": None}
    host.run(["qemu-img", "check", "-q", f"json:{json.dumps(alone)}"], purpose=f"check {target.name}")


def qcow2_sameness(compression: str) -> str:
    """What parts of such an image depend on (see kinds.Output.sameness)."""
    codec = CODECS.get(compression)
    return f"qcow2 {LAYOUT} {compression if codec is None else codec.version}"


def copy_variables(disk: Disk, maker: Maker, work: Path) -> list[str]:
    """Write the UEFI variable store of the image's (first) firmware, where the disk has one; return the file's name."""
    store = next((disk.variables[name] for name in maker.firmware if name in disk.variables), None)
    if store is None:
        return []
    name = f"{maker.name}.variables.fd"
    shutil.copyfile(store, work / name)
    return [name]


def _tenths(log: Log, name: str) -> Callable[[str], None]:
    said = 0

    def take(line: str) -> None:
        nonlocal said
        progress = _PROGRESS.fullmatch(line)
        if progress is None:
            if line.strip():
                log(line)
        elif int(progress[1]) // 10 > said:
            said = int(progress[1]) // 10
            log(f"{name}: {said * 10} %")

    return take


def identifier(seed: str, what: str) -> uuid.UUID:
    """Return a UUID (RFC 9562, version 5) that is the same for the same image and differs between images."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{seed}/{what}")


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
