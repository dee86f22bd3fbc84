"""The step `stamp`."""

from __future__ import annotations

from pydantic import Field

from imagesmith.archive import archive_of
from imagesmith.interfaces import Root
from imagesmith.kinds import Step

PLACE = "/etc/stamp"


class Stamp(Step, name="stamp", version=1, shorthand="text"):
    """Leave a line of text in /etc/stamp."""

    text: str = Field(description="The line.")

    def describe(self) -> str:
        """Show the line."""
        return self.text

    def apply(self, root: Root) -> None:
        """Do it."""
        content = f"{self.text}\n".encode()
        root.unpack(archive_of(lambda archive: archive.data(PLACE, content), epoch=root.epoch))
