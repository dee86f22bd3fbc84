"""The qcow2 output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal

from pydantic import Field, model_validator

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput, Options, RecipeFile, file_digest
from imagesmith.outputs._common import copy_variables, finish, qcow2_sameness, workspace, write_qcow2
from imagesmith.outputs._qcow2 import Base

_PART = "[A-Za-z0-9_][A-Za-z0-9._+@-]*"  # no protocol's colon, nothing above, nothing hidden


class Delta(Options):
    """An image that the users of ours have already."""

    image: RecipeFile = Field(description="The image, relative to the recipe; complete in itself")
    format: Literal["qcow2", "raw"] = Field("qcow2", description="Its format")
    name: str = Field(
        "", pattern=f"^{_PART}(/{_PART})*$", max_length=1023,
        description="What it is called where ours is used, relative to ours; by default, the file's own name",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, Mapping) and "name" not in value and isinstance(value.get("image"), (str, PurePath)):
            return {**value, "name": PurePath(value["image"]).name}
        return value


class Qcow2(DiskOutput, name="qcow2", version=2, shorthand="compression"):
    """A qcow2 image, version 3, compressed, without a backing file: for QEMU, libvirt, OpenStack and Proxmox.

    zstd needs QEMU 5.1 (2020) or newer to read; zlib is read everywhere and takes four times as long to write.
    Where the disk has UEFI variables, they are written beside it, as NAME.variables.fd.

    With ``delta`` it stands on an image that its users have, and holds only what differs: NAME.delta.qcow2.
    """

    compression: Literal["zstd", "zlib", "none"] = Field("zstd", description="How clusters are compressed")
    delta: Delta | None = Field(None, description="What it stands on: an image that is there where it is used.")

    @property
    def label(self) -> str:
        """Tell an image that stands on another from one that stands alone."""
        return "qcow2" if self.delta is None else "delta.qcow2"

    @property
    def sameness(self) -> str:
        """See Output."""
        below = "" if self.delta is None else f" on {self.delta.format} {file_digest(self.delta.image)}"
        return qcow2_sameness(self.compression) + below

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write it, then let qemu-img look it over."""
        name = f"{maker.name}.{self.label}"
        base = None
        if self.delta is not None:
            base = Base(self.delta.image, self.delta.name, self.delta.format)
        with workspace(directory, name) as work:
            write_qcow2(disk, work / name, host, log, compression=self.compression, base=base)
            return finish(work, directory, [name, *copy_variables(disk, maker, work)])
