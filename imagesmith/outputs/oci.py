"""The OCI output."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, cast

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput, secrets_in
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._gzip import GzipWriter
from imagesmith.outputs._layer import copy_layer, packed

_ARCHITECTURES: Mapping[str, Mapping[str, str]] = {  # Go's names: GOARCH, and the variant that goes with it
    "x86_64": {"architecture": "amd64"},
    "aarch64": {"architecture": "arm64", "variant": "v8"},
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MEDIA = "application/vnd.oci.image."


def _port(value: object) -> str:
    parts = re.fullmatch(r"(\d{1,5})(?:/(tcp|udp|sctp))?", str(value))
    if parts is None or isinstance(value, bool) or not 0 < int(parts[1]) < 65536:
        raise ValueError("must be a port such as 80 or 53/udp")
    return f"{int(parts[1])}/{parts[2] or 'tcp'}"


Port = Annotated[str, BeforeValidator(_port),
                 WithJsonSchema({"type": ["integer", "string"], "examples": [80, "53/udp"]})]  # fmt: skip


class Oci(FilesOutput, name="oci", version=1):
    """A container image in one file: an OCI layout that ``docker load`` takes, too, as do podman, ctr and skopeo.

    The root file system is one layer, without what only a machine needs: the contents of /boot, kernel modules and
    firmware, /dev, /proc, /run, /sys and /tmp; fstab and resolv.conf are empty.
    """

    entrypoint: tuple[str, ...] = Field((), description="What a container runs; its arguments follow")
    cmd: tuple[str, ...] = Field((), description="The default arguments, or, without an entrypoint, the command")
    env: Mapping[str, str] = Field({}, description="Environment variables")
    user: str = Field("", description="Who runs it: a name or number, or user:group")
    ports: tuple[Port, ...] = Field((), description="Ports that it listens on: 80, 53/udp")
    labels: Mapping[str, str] = Field({}, description="Labels, beside those with the recipe's name and version")
    workdir: str = Field("", pattern="^(/.*)?$", description="The working directory, an absolute path")

    @model_validator(mode="after")
    def _public(self) -> Oci:
        if secrets_in(self):
            raise ValueError("a secret would be left in the image for all to read: give it to the container instead")
        return self

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the layer, then the archive around it."""
        name = f"{maker.name}.oci.tar"
        with workspace(directory, name) as work:
            layer = work / "layer.tar.gz"
            with layer.open("wb") as out:
                compressed, plain = _Digest(out), _Digest()
                with packed(files) as source, GzipWriter(compressed.write) as gzip:
                    plain.out = gzip
                    sink = cast(BinaryIO, plain)  # of which tarfile uses write alone
                    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 18) as tar:
                        size = copy_layer(source, tar, maker.epoch)
            log(f"{name}: {size // MIB} MiB in one layer, {compressed.size // MIB} MiB compressed")
            documents = self._documents(maker, plain.name, compressed.name, compressed.size)
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
                for folder in ("blobs", "blobs/sha256"):  # or skopeo makes them root's, and fails as another user
                    archive.directory(folder)
                for path, content in documents.items():
                    archive.data(path, content)
                archive.file(f"blobs/sha256/{compressed.name}", layer)
            return finish(work, directory, [name])

    def config(self, maker: Maker) -> dict[str, object]:
        """Return the container's own configuration (config.md, "config")."""
        about = {"title": maker.name, "version": maker.version, "description": maker.description}
        labels = {f"org.opencontainers.image.{key}": value for key, value in about.items() if value}
        found = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd) if self.cmd or self.entrypoint else ["/bin/sh"],
            "Env": [f"{key}={value}" for key, value in sorted({"PATH": _PATH, **self.env}.items())],
            "User": self.user,
            "ExposedPorts": {port: {} for port in sorted(self.ports)},
            "Labels": {**labels, **self.labels},
            "WorkingDir": self.workdir,
        }
        return {key: value for key, value in found.items() if value}

    def _documents(self, maker: Maker, diff_id: str, blob: str, size: int) -> dict[str, bytes]:
        """Return the small files: the OCI layout, and Docker's manifest.json that points at the same blobs."""
        created = datetime.fromtimestamp(maker.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        config = _json({
            "created": created,
            **_ARCHITECTURES[maker.arch],
            "os": "linux",
            "config": self.config(maker),
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            "history": [{"created": created, "created_by": "imagesmith", "comment": maker.description or maker.name}],
        })  # fmt: skip
        config_name = hashlib.sha256(config).hexdigest()
        manifest = _json({
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}manifest.v1+json",
            "config": {"mediaType": f"{_MEDIA}config.v1+json", "digest": f"sha256:{config_name}", "size": len(config)},
            "layers": [{"mediaType": f"{_MEDIA}layer.v1.tar+gzip", "digest": f"sha256:{blob}", "size": size}],
        })  # fmt: skip
        manifest_name = hashlib.sha256(manifest).hexdigest()
        repository, tag = reference(maker)
        index = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}index.v1+json",
            "manifests": [{
                "mediaType": f"{_MEDIA}manifest.v1+json",
                "digest": f"sha256:{manifest_name}",
                "size": len(manifest),
                "platform": {**_ARCHITECTURES[maker.arch], "os": "linux"},
                "annotations": {
                    "org.opencontainers.image.ref.name": tag,
                    "io.containerd.image.name": f"docker.io/library/{repository}:{tag}",
                },
            }],
        }  # fmt: skip
        docker = [{
            "Config": f"blobs/sha256/{config_name}",
            "RepoTags": [f"{repository}:{tag}"],
            "Layers": [f"blobs/sha256/{blob}"],
        }]  # fmt: skip
        return {
            "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
            "index.json": _json(index),
            "manifest.json": _json(docker),
            f"blobs/sha256/{config_name}": config,
            f"blobs/sha256/{manifest_name}": manifest,
        }


def reference(maker: Maker) -> tuple[str, str]:
    """Return the image's repository and tag: the recipe's name and version, as far as a reference may hold them.

    The grammar is the distribution project's (reference): lower-case words joined by ``.``, ``_`` or ``-``; a tag of
    at most 128 letters, digits, ``_``, ``.`` and ``-`` that begins with neither of the last two.
    """
    separator = re.compile("[^a-z0-9]+")
    repository = separator.sub(lambda run: run[0] if run[0] in ("-", "_", ".") else "-", maker.name.lower())
    tag = re.sub("[^A-Za-z0-9_.-]+", "-", maker.version).lstrip(".-")[:128]
    return repository.strip("-_.") or "image", tag or "latest"


class _Digest:
    """Names and counts what passes through it."""

    def __init__(self, out: BinaryIO | GzipWriter | None = None) -> None:
        self.out = out
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        if self.out is not None:
            self.out.write(data)
        return len(data)

    @property
    def name(self) -> str:
        return self._hash.hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
