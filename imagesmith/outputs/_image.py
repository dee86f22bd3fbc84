"""What the formats of application containers share: their options, the configuration made of them, and layers.

Source: OCI image specification 1.0, config.md and layer.md; Docker's own image specification 1.2 has the same
configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from imagesmith.interfaces import Maker
from imagesmith.kinds import FilesOutput, secrets_in
from imagesmith.outputs._gzip import GzipWriter
from imagesmith.outputs._rootfs import Member, copy
from imagesmith.outputs._squeeze import Sink, tar_into

ARCHITECTURES: Mapping[str, Mapping[str, str]] = {  # Go's names: GOARCH, and the variant that goes with it
    "x86_64": {"architecture": "amd64"},
    "aarch64": {"architecture": "arm64", "variant": "v8"},
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _port(value: object) -> str:
    parts = re.fullmatch(r"(\d{1,5})(?:/(tcp|udp|sctp))?", str(value))
    if parts is None or isinstance(value, bool) or not 0 < int(parts[1]) < 65536:
        raise ValueError("must be a port such as 80 or 53/udp")
    return f"{int(parts[1])}/{parts[2] or 'tcp'}"


Port = Annotated[str, BeforeValidator(_port),
                 WithJsonSchema({"type": ["integer", "string"], "examples": [80, "53/udp"]})]  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A layer that was written to a file."""

    path: Path
    diff_id: str
    """SHA-256 of the tar, in hex."""
    blob: str
    """SHA-256 of the file: the same where it is not compressed."""
    size: int
    """Bytes of the file."""
    plain: int
    """Bytes of the files in it."""
    made_by: str
    """For the image's history."""


class ContainerImage(FilesOutput):
    """An image for application containers. Subclass it with a name."""

    entrypoint: tuple[str, ...] = Field((), description="What a container runs; its arguments follow")
    cmd: tuple[str, ...] = Field((), description="The default arguments, or, without an entrypoint, the command")
    env: Mapping[str, str] = Field({}, description="Environment variables")
    user: str = Field("", description="Who runs it: a name or number, or user:group")
    ports: tuple[Port, ...] = Field((), description="Ports that it listens on: 80, 53/udp")
    labels: Mapping[str, str] = Field({}, description="Labels, beside those with the recipe's name and version")
    workdir: str = Field("", pattern="^(/.*)?$", description="The working directory, an absolute path")

    @model_validator(mode="after")
    def _public(self) -> ContainerImage:
        if secrets_in(self):
            raise ValueError("a secret would be left in the image for all to read: give it to the container instead")
        return self

    def config(self, maker: Maker) -> dict[str, object]:
        """Return the container's own configuration (config.md, "config")."""
        found = {
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.cmd) if self.cmd or self.entrypoint else ["/bin/sh"],
            "Env": [f"{key}={value}" for key, value in sorted({"PATH": _PATH, **self.env}.items())],
            "User": self.user,
            "ExposedPorts": {port: {} for port in sorted(self.ports)},
            "Labels": {**labels(maker), **self.labels},
            "WorkingDir": self.workdir,
        }
        return {key: value for key, value in found.items() if value}

    def image(self, maker: Maker, layers: Sequence[Layer]) -> bytes:
        """Return the image's configuration."""
        return image_config(maker, layers, self.config(maker))


def labels(maker: Maker) -> dict[str, str]:
    """Return the labels that say what an image is (annotations.md)."""
    about = {"title": maker.name, "version": maker.version, "description": maker.description}
    return {f"org.opencontainers.image.{key}": value for key, value in about.items() if value}


def image_config(maker: Maker, layers: Sequence[Layer], container: Mapping[str, object]) -> bytes:
    """Return an image's configuration: the container's, the layers and their history."""
    created = datetime.fromtimestamp(maker.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    comment = maker.description or maker.name
    return to_json({
        "created": created,
        **ARCHITECTURES[maker.arch],
        "os": "linux",
        "config": container,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in layers]},
        "history": [{"created": created, "created_by": layer.made_by, "comment": comment} for layer in layers],
    })  # fmt: skip


def write_layer(path: Path, found: Iterator[Member], *, made_by: str, compress: bool = True) -> Layer:
    """Write members as a layer, gzipped or plain."""
    with path.open("wb") as out:
        packed, plain = Digest(out), Digest()
        if compress:
            with GzipWriter(packed.write) as gzip:
                plain.out = gzip
                with tar_into(plain) as tar:
                    size = copy(found, tar)
        else:
            with tar_into(packed) as tar:
                size = copy(found, tar)
            plain = packed
    return Layer(path, plain.name, packed.name, packed.size, size, made_by)


def reference(maker: Maker) -> tuple[str, str]:
    """Return the image's repository and tag: the recipe's name and version, as far as a reference may hold them.

    The grammar is the distribution project's (reference): lower-case words joined by ``.``, ``_`` or ``-``; a tag of
    at most 128 letters, digits, ``_``, ``.`` and ``-`` that begins with neither of the last two.
    """
    separator = re.compile("[^a-z0-9]+")
    repository = separator.sub(lambda run: run[0] if run[0] in ("-", "_", ".") else "-", maker.name.lower())
    tag = re.sub("[^A-Za-z0-9_.-]+", "-", maker.version).lstrip(".-")[:128]
    return repository.strip("-_.") or "image", tag or "latest"


class Digest:
    """Names and counts what passes through it."""

    def __init__(self, out: Sink | None = None) -> None:
        self.out = out
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        """Take some bytes."""
        self._hash.update(data)
        self.size += len(data)
        if self.out is not None:
            self.out.write(data)
        return len(data)

    @property
    def name(self) -> str:
        """The SHA-256 of all that was written, in hex."""
        return self._hash.hexdigest()


def to_json(value: object) -> bytes:
    """Return canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
