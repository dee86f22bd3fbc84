"""Another recipe's result as the base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from imagesmith.kinds import UNKEYED, Base, RecipeFile


class FromRecipe(Base, name="recipe", version=1, shorthand="path"):
    """Begin with another recipe's sealed disk, which is built first where it is not there yet.

    The other recipe's steps, its clean-up included, have run; its checks and outputs have not.
    """

    path: Annotated[RecipeFile, UNKEYED, Field(description="The other recipe's file.")]

    @property
    def recipe(self) -> Path | None:
        """The other recipe's file."""
        return self.path

    def describe(self) -> str:
        """The other recipe's name."""
        return self.path.name
