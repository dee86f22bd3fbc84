"""The answer file `notes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.interfaces import Delivery, Medium
from imagesmith.kinds import Answer


class Notes(Answer, name="notes", version=1):
    """Notes for an installer that fetches them by HTTP. Your own `file` may take the template's place."""

    template = str(Path(__file__).with_name("notes.j2"))

    hostname: str = Field("example", description="The system's name.")

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """By HTTP; the kernel's command line says where."""
        told = ("notes={url}notes",)
        return [Delivery("http", {"notes": self.rendered.text.encode()}, arguments=told, fetched="notes")]
