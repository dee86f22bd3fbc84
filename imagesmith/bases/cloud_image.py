"""A ready-made disk image, from a publisher or a file, as the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from imagesmith.bases._source import Sourced
from imagesmith.host import Host
from imagesmith.interfaces import Installation, Medium, Workshop
from imagesmith.kinds import UNKEYED, AnswerFile, Duration, Remark, known

_DISK = Medium(Path())
"""No ISO: the disk itself is booted."""


def _seed(value: object) -> object:
    """A bare name that is no kind of answer file is a file for cloud-init."""
    return {"cloud-init": value} if isinstance(value, str) and value not in known("answers") else value


class CloudImage(Sourced, name="cloud-image", version=1):
    """Begin with a disk image that somebody publishes (`url`), or with one that is here (`path`).

    Any format that qemu-img reads. What is fetched must be known by a checksum: its own (`sha256:…`, `sha512:…`), or
    the URL or file of a list such as SHA256SUMS, whose line for the URL's last part counts and whose GPG signature is
    verified where `keyring` is given (detached with `signature`, else clear-signed). `checksum: none` takes whatever
    the server sends when the base is made.

    With a `seed` the image is booted once with it, sets itself up (cloud-init, Ignition), and is switched off: what
    that left is the base. The seed is an answer file: `{cloud-init: user-data.yaml.j2}` (a bare name means the same),
    `{cloud-init: {user: ops, …}}`, `{ignition: config.bu}`.
    """

    format: Literal["", "qcow2", "raw", "vdi", "vhdx", "vmdk", "vpc"] = Field(
        "", description="The image's format, where its header does not tell (a fixed VHD is `vpc`)."
    )
    seed: Annotated[
        AnswerFile | None, BeforeValidator(_seed),
        WithJsonSchema({"anyOf": [{"x-kinds": "answers"}, {"type": "string"}]}),
        Field(description="What the image sets itself up with, at its first boot: an answer file."),
    ] = None  # fmt: skip
    within: Annotated[Duration, UNKEYED] = Field(1800.0, description="How long that may take.")

    @property
    def boots(self) -> bool:
        """To be seeded."""
        return self.seed is not None

    @property
    def worldly(self) -> bool:
        """Unless one image is named by its contents, and nothing runs in it."""
        return self.seed is not None or (bool(self.url) and not self.pinned)

    def identity(self) -> dict[str, object]:
        """The contents where they are known (then it does not matter where they come from), else the source."""
        found = {"format": self.format, **self.source_identity()}
        if self.seed is not None:
            found["seed"] = [type(self.seed).name, type(self.seed).version, self.seed.identity()]
        return found

    def lint(self, host: Host) -> Sequence[Remark]:
        """See Kind."""
        return self.seed.lint(host) if self.seed is not None else ()

    def make(self, into: Path, shop: Workshop) -> None:
        """Fetch it where it is not here, verify it, make a qcow2 of it, and let it set itself up."""
        if self.seed is not None:
            self.seed.deliveries(_DISK)  # whatever is wrong with it is told before anything is fetched
        shop.import_disk(self.source(shop), into, format=self.format)
        if self.seed is not None:
            shop.install(
                Installation(
                    iso=None, deliver=self.seed.deliveries, signs=self.seed.signs, within=self.within,
                    read_within=self.within / 2, log_arguments=self.seed.log_arguments, log_ports=self.seed.log_ports,
                ),
                into,
            )  # fmt: skip
