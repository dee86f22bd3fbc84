"""Scripts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from imagesmith.archive import archive_of
from imagesmith.interfaces import Root
from imagesmith.kinds import RecipeFile, Step, secrets_in


class Script(Step, name="script", version=1, shorthand="path"):
    """Run a program of your own in the guest, as root, from `/`: a script with a `#!` line, or a static binary.

    It is put into the guest for the time it runs.
    """

    path: RecipeFile = Field(description="The program, relative to the recipe.")
    args: list[str] = Field([], description="Its arguments. Secrets belong into `env`: every user can see arguments.")
    env: dict[str, str] = Field({}, description="Environment variables; they may hold secrets.")

    @field_validator("path")
    @classmethod
    def _runs(cls, value: object) -> object:
        if isinstance(value, Path) and not (value.is_file() and value.read_bytes().startswith((b"#!", b"\x7fELF"))):
            raise ValueError(f"{value} is not a file that begins with #! and its interpreter, such as #!/bin/sh")
        return value

    @field_validator("args")
    @classmethod
    def _no_secrets(cls, value: list[str]) -> list[str]:
        if secrets_in(value):
            raise ValueError("must hold no secrets, for every user can see them; pass them through env")
        return value

    @property
    def worldly(self) -> bool:
        """It may download things."""
        return True

    def describe(self) -> str:
        """Name it."""
        return self.path.name

    def apply(self, root: Root) -> None:
        """Do it."""
        folder = "/tmp" if root.online else "/run"  # at rest, /run is memory and leaves nothing behind
        place = f"{folder}/imagesmith-{self.path.name}"
        content = self.path.read_bytes()
        root.unpack(archive_of(lambda archive: archive.data(place, content, mode=0o700), epoch=root.epoch))
        try:
            root.run([place, *self.args], env=self.env)
        finally:
            root.remove([place])
