"""The base `folder`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from imagesmith.archive import archive_of
from imagesmith.interfaces import Workshop
from imagesmith.kinds import Base, RecipeFile


class Folder(Base, name="folder", version=1, shorthand="path"):
    """Begin with the files of a folder, all of them root's."""

    gives: ClassVar[Literal["tree", "disk"]] = "tree"

    path: RecipeFile = Field(description="The folder, relative to the recipe.")

    def describe(self) -> str:
        """Name the folder."""
        return self.path.name

    def make(self, into: Path, shop: Workshop) -> None:
        """Do it. The owners are as in the guest inside `tree` alone."""
        into.chmod(0o755)
        with shop.tree(into) as root:
            root.unpack(archive_of(lambda archive: archive.tree("/", self.path), epoch=shop.epoch))
