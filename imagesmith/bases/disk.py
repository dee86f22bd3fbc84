"""A disk image that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from imagesmith.interfaces import Workshop
from imagesmith.kinds import UNKEYED, Base, RecipeFile


class DiskImage(Base, name="disk", version=1, shorthand="path"):
    """Begin with a disk image from a file: qcow2, raw, VMDK, VDI, VHD or VHDX.

    It is copied into the store, and grown to ``machine.disk`` where that is larger. An image with a backing file, an
    external data file, or extents outside its own folder is refused.
    """

    path: RecipeFile = Field(description="The image, relative to the recipe.")
    format: Literal["", "qcow2", "raw", "vdi", "vhdx", "vmdk", "vpc"] = Field(
        "", description="The image's format, where its header does not tell (a fixed VHD is `vpc`)."
    )
    trusted: Annotated[bool, UNKEYED] = Field(
        False, description="Whether this host's own kernel may mount its file systems (faster, and needs root)."
    )

    @field_validator("path")
    @classmethod
    def _path(cls, value: Path) -> Path:
        if not value.is_file():
            raise ValueError(f"is a folder, not a disk image: {value}")
        return value

    @property
    def trusted_origin(self) -> bool:
        """As the recipe says."""
        return self.trusted

    def describe(self) -> str:
        """The file's name."""
        return self.path.name

    def make(self, into: Path, shop: Workshop) -> None:
        """Import it."""
        shop.import_disk(self.path, into, format=self.format)
