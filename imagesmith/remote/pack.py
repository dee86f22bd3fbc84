"""A layer as pieces of a tar, and a layer of such pieces; a piece as a chunk, compressed with zstd (RFC 8878).

A tree must come back with its owners, modes, times, extended attributes and overlayfs's white-outs, so GNU tar packs
it, in the namespaces of its owner where that is not root. Everything else is files of ours. What is unpacked is looked
at before: no name leads out of the folder, none goes through a link, nothing is larger than what came.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import zstandard

from imagesmith import tree
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.remote.entry import LARGEST, PIECE, Chunk
from imagesmith.store_files import CHECKPOINT, RECORD

_LEVEL = 3
_BLOCK = 1 << 16
_SAME = (
    "--format=posix", "--sort=name", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
)  # fmt: skip
_BACK = ("--numeric-owner", "--same-owner", "--same-permissions", "--acls", "--xattrs", "--xattrs-include=*")
_ON_THE_WAY = ".shared.tar"


# -- chunks ------------------------------------------------------------------------------------------------------


def compress(piece: bytes) -> tuple[Chunk, bytes]:
    """A piece as a chunk, and the chunk's bytes."""
    data = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(piece)
    return Chunk(sha256=hashlib.sha256(data).hexdigest(), size=len(data), plain=len(piece)), data


def verified(chunk: Chunk, data: bytes | None) -> bytes:
    """A chunk's bytes, if they are those. Raises Refused."""
    if data is None:
        raise Refused(f"chunk {chunk.sha256[:16]}… is missing")
    if len(data) != chunk.size or hashlib.sha256(data).hexdigest() != chunk.sha256:
        raise Refused(f"chunk {chunk.sha256[:16]}… is not what its digest says")
    return data


def expand(chunk: Chunk, data: bytes) -> bytes:
    """The piece in a chunk whose bytes were verified. Raises Refused, before it takes more memory."""
    try:
        if zstandard.frame_content_size(data) == chunk.plain <= PIECE and len(data) <= LARGEST:
            piece = zstandard.ZstdDecompressor().decompress(data, max_output_size=chunk.plain)
            if len(piece) == chunk.plain:
                return piece
    except zstandard.ZstdError:
        pass
    raise Refused(f"chunk {chunk.sha256[:16]}… does not unpack to what its entry says")


# -- packing -----------------------------------------------------------------------------------------------------


class _Cutter(io.RawIOBase):
    """A stream that gives what is written to it in pieces."""

    def __init__(self, give: Callable[[bytes], object]) -> None:
        self._give, self._have = give, bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast(bytes, data))
        for start in range(0, len(view), PIECE):
            self._have += view[start : start + PIECE]
            if len(self._have) >= PIECE:
                self._give(bytes(self._have[:PIECE]))
                del self._have[:PIECE]
        return len(view)

    def end(self) -> None:
        """Give what is left."""
        if self._have:
            self._give(bytes(self._have))


def pack(gives: str, folder: Path, host: Host, give: Callable[[bytes], object]) -> None:
    """Pack a finished layer's folder, but for its record and checkpoint: the same pieces every time."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (RECORD, CHECKPOINT))
    cutter = _Cutter(give)
    if gives == "tree":
        with tempfile.TemporaryDirectory(prefix="imagesmith-") as place:
            whole = Path(place, "tar")
            _run(host, ["tar", "--create", f"--file={whole}", *_SAME, f"--directory={folder}", "--", *names])
            with whole.open("rb") as stream:
                while piece := stream.read(PIECE):
                    cutter.write(piece)
    else:
        with tarfile.open(fileobj=cutter, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
            for name in names:
                tar.add(folder / name, name, filter=_plain)
    cutter.end()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    if not (member.isfile() or member.isdir()):
        raise BuildError(f"a layer holds {member.name}, which is neither a file nor a folder")
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _run(host: Host, argv: list[str]) -> None:
    if os.geteuid() == 0:
        host.run(argv, purpose="share a layer")
    else:
        tree.inside(host, argv, purpose="share a layer", log=lambda line: None)


# -- unpacking ---------------------------------------------------------------------------------------------------


class _Joined(io.RawIOBase):
    """Pieces as a stream."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._left = iter(pieces), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        room = memoryview(cast(bytearray, buffer))
        count = min(len(room), len(self._left))
        room[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def unpack(gives: str, pieces: Iterable[bytes], into: Path, host: Host) -> None:
    """Fill a new layer's folder from pieces. Raises Refused for a tar that no layer of ours makes."""
    try:
        if gives == "tree":
            whole = into / _ON_THE_WAY
            with whole.open("wb") as out:
                for piece in pieces:
                    out.write(piece)
            with tarfile.open(whole, "r:") as tar:
                for _ in _looked_at(tar, files_only=False):
                    pass
            _run(host, ["tar", "--extract", f"--file={whole}", *_BACK, f"--directory={into}"])
            whole.unlink()
        else:
            with tarfile.open(fileobj=io.BufferedReader(_Joined(pieces), 1 << 20), mode="r|") as tar:
                for member in _looked_at(tar, files_only=True):
                    _extract(tar, member, into)
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"it is no tar: {error}") from error


def _looked_at(tar: tarfile.TarFile, *, files_only: bool) -> Iterator[tarfile.TarInfo]:
    """The members of a tar. Raises Refused at the first that must not be unpacked."""
    links: set[str] = set()
    seen: set[str] = set()
    for member in tar:
        name = member.name
        parents = {str(parent) for parent in PurePosixPath(name).parents}
        if not _inside(name) or name.split("/")[0] in (RECORD, CHECKPOINT, _ON_THE_WAY) or parents & links:
            raise Refused(f"it would unpack {name!r}, which is no place in a layer")
        if name in seen and not member.isdir():
            raise Refused(f"it holds {name!r} twice")
        known = member.isdir() or member.isreg()
        if not files_only:
            known = known or member.issym() or member.islnk() or member.isdev()
        if not known or member.issparse():
            raise Refused(f"it holds {name!r}, which is of a kind that no layer has")
        if member.islnk() and (not _inside(member.linkname) or member.linkname not in seen):
            raise Refused(f"it would link {name!r} to {member.linkname!r}, which is not in it")
        seen.add(name)
        if member.issym():
            links.add(name)
        yield member


def _inside(name: str) -> bool:
    return bool(name) and not name.startswith("/") and not {"..", ".", ""} & set(name.split("/"))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    path = into / member.name
    if member.isdir():
        path.mkdir(mode=member.mode & 0o777 | 0o700, parents=True, exist_ok=True)
        return
    stream = tar.extractfile(member)
    assert stream is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o777), "wb") as out:
        _copy(cast(BinaryIO, stream), out)
        out.truncate(member.size)


def _copy(source: BinaryIO, out: BinaryIO) -> None:
    """Copy, leaving a hole where there are only zeros."""
    nothing = bytes(_BLOCK)
    while block := source.read(_BLOCK):
        if block == nothing:
            out.seek(len(block), os.SEEK_CUR)
        else:
            out.write(block)
