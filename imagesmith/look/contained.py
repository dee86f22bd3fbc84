"""What files hold an image inside: appliances, boxes, archives, compressed disks; and taking it out.

Sources: DMTF DSP0243 1.1.0, 5.3 (an OVA is a tar that begins with the descriptor); Vagrant's box format
(``metadata.json``); OCI image specification 1.0, image-layout.md; Docker Image Specification 1.2 (``manifest.json``);
Google's and Incus' image formats (``disk.raw``; ``metadata.yaml``); RFC 1952, RFC 8878, the .xz format 1.0.4 (magic
numbers); Linux, fs/squashfs/squashfs_fs.h (``hsqs``).
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from imagesmith.errors import Refused

COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2"}
"""How a compressed file begins."""
SQUASHFS = b"hsqs"
LARGEST = 1 << 40
"""Bytes: what is taken out of a compressed file at most."""
_DISKS = re.compile(r"\.(vmdk|vhdx?|qcow2|raw|img|vdi)$")


@dataclass(frozen=True)
class Contained:
    """What was found in a file."""

    format: str
    """``ova``, ``vagrant box``, ``oci``, ``docker-archive``, ``gce``, ``incus``, ``tar``; or nothing, for a disk."""
    about: Mapping[str, object] = field(default_factory=dict)
    disk: Path | None = None
    """The disk that was in it, taken out."""
    trees: tuple[Path, ...] = ()
    """Tars of a root file system that were in it, the lower first."""


def opened(path: Path, work: Path) -> Contained:
    """Take out of a file what holds the system, into the folder ``work``.

    Raises Refused for what is damaged, is too large to be believed, or names files elsewhere.
    """
    with path.open("rb") as stream:
        head = stream.read(512)
    kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")
    if kind:
        plain = work / "plain"
        _decompress(path, plain, kind)
        inner = _tar(plain, work) if _is_tar(plain) else Contained("", disk=plain)
        return Contained(inner.format or "disk", {"compression": kind, **inner.about}, inner.disk, inner.trees)
    return _tar(path, work) if _is_tar(path) else Contained("", disk=path)


def _is_tar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(512)[257:262] == b"ustar"


def _decompress(source: Path, into: Path, kind: str) -> None:
    """Unpack, sparsely, and no more than LARGEST."""
    openers: dict[str, Callable[[Path], Any]] = {
        "gzip": gzip.open, "xz": lzma.open, "bzip2": bz2.open,
        "zstd": lambda path: zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True,
                                                                       closefd=True),
    }  # fmt: skip
    try:
        with openers[kind](source) as packed:
            _sparsely(packed, into, str(source))
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise Refused(f"{source} is damaged or cut off: {error}", hint="fetch it again") from error


def _sparsely(source: BinaryIO, into: Path, name: str) -> None:
    """Copy, with holes for zeros, and no more than LARGEST."""
    with into.open("wb") as out:
        size = 0
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > LARGEST:
                raise Refused(f"{name} unpacks to more than {LARGEST >> 40} TiB, which is not believed")
            if chunk.count(0) == len(chunk):
                out.seek(len(chunk), 1)
            else:
                out.write(chunk)
        out.truncate(size)


def _tar(path: Path, work: Path) -> Contained:
    try:
        with tarfile.open(path, "r:") as tar:
            members = {posixpath.normpath(m.name): m for m in tar if m.isreg()}
            return _of(tar, members, path, work)
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"{path} is a damaged tar archive: {error}") from error


def _of(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], path: Path, work: Path) -> Contained:
    names = list(members)
    if "oci-layout" in members or "manifest.json" in members:
        return _container(tar, members, work)
    descriptor = next((name for name in names if name.endswith(".ovf") and "/" not in name), "")
    if "metadata.json" in members:
        metadata = _json(tar, members, "metadata.json")
        if isinstance(metadata, dict) and isinstance(metadata.get("provider"), str):
            return Contained("vagrant box", {"provider": metadata["provider"]}, _disk(tar, members, work))
    if descriptor:
        return Contained("ova", {"descriptor": descriptor}, _disk(tar, members, work))
    if "disk.raw" in members:
        return Contained("gce", {}, _disk(tar, members, work))
    if "metadata.yaml" in members and "rootfs.img" in members:
        return Contained("incus", {"type": "vm"}, _taken(tar, members["rootfs.img"], work / "rootfs.img"))
    return Contained("tar", {}, trees=(path,))


def _disk(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], work: Path) -> Path:
    """Take the first disk out; a VMDK of one file, or any other image."""
    name = next((name for name in members if _DISKS.search(name)), "")
    if not name:
        raise Refused(f"{tar.name!s} holds no disk image")
    return _taken(tar, members[name], work / f"disk{posixpath.splitext(name)[1]}")


def _taken(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> Path:
    """Take a member out. In a sparse one there may be far more than the archive's bytes."""
    if member.size > LARGEST:
        raise Refused(f"{tar.name!s}: {member.name} is larger than {LARGEST >> 40} TiB, which is not believed")
    with cast(BinaryIO, tar.extractfile(member)) as source:
        _sparsely(source, into, member.name)
    return into


def _blob(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> Path:
    """Take a layer out; where its name is its digest (image-layout.md, "Blobs"), see that it is."""
    taken, name = _taken(tar, member, into), posixpath.normpath(member.name)
    if name.startswith("blobs/sha256/"):
        with taken.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != posixpath.basename(name):
                raise Refused(f"{tar.name!s} is damaged: {name} is not what its name says", hint="fetch it again")
    return taken


def _plain(layer: Path) -> Path:
    """Unpack a layer that is compressed, in its place."""
    with layer.open("rb") as stream:
        head = stream.read(8)
    kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), "")
    if kind:
        unpacked = layer.with_suffix(".tar")
        _decompress(layer, unpacked, kind)
        unpacked.replace(layer)
    return layer


def _json(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], name: str) -> Any:
    member = members.get(name)
    if member is None or member.size > 16 << 20:
        raise Refused(f"{tar.name!s} lacks {name}, or it is too large")
    try:
        return json.loads(cast(BinaryIO, tar.extractfile(member)).read())
    except ValueError as error:
        raise Refused(f"{tar.name!s}: {name} is no JSON: {error}") from None


def _container(tar: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], work: Path) -> Contained:
    def blob(digest: str) -> str:
        return "blobs/" + digest.replace(":", "/", 1)

    try:
        if "manifest.json" in members:
            first = _json(tar, members, "manifest.json")[0]
            config, layers = _json(tar, members, first["Config"]), [posixpath.normpath(n) for n in first["Layers"]]
        else:
            index = _json(tar, members, "index.json")
            manifest = _json(tar, members, blob(index["manifests"][0]["digest"]))
            if "manifests" in manifest:
                manifest = _json(tar, members, blob(manifest["manifests"][0]["digest"]))
            config = _json(tar, members, blob(manifest["config"]["digest"]))
            layers = [blob(layer["digest"]) for layer in manifest["layers"]]
        trees = tuple(_plain(_blob(tar, members[name], work / f"layer-{n}")) for n, name in enumerate(layers))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Refused(f"{tar.name!s} is no whole container image: {error!r} is missing") from None
    settings = config.get("config") or {}
    about = {"architecture": config.get("architecture", ""), "layers": len(trees),
             "entrypoint": settings.get("Entrypoint"), "cmd": settings.get("Cmd"), "user": settings.get("User"),
             "labels": settings.get("Labels"), "ports": sorted(settings.get("ExposedPorts") or {})}  # fmt: skip
    format = "oci" if "oci-layout" in members else "docker-archive"
    return Contained(format, {key: value for key, value in about.items() if value}, trees=trees)
