"""Files made of templates."""

from __future__ import annotations

from pydantic import Field, field_validator

from imagesmith.archive import Archive, archive_of
from imagesmith.interfaces import Root
from imagesmith.kinds import Mode, RenderedFile, Step
from imagesmith.steps._files import GuestPath, Owner, ids


class Template(Step, name="template", version=1):
    """Render a Jinja2 template with the recipe's variables, and put the text into the guest.

    A variable that is not there is an error before anything is built.
    """

    source: RenderedFile = Field(alias="from", description="The template, relative to the recipe.")
    to: GuestPath = Field(description="The file to make in the guest: an absolute path.")
    owner: Owner = Field("root", description="user, user:group, or numbers, as the guest knows them.")
    mode: Mode = Field(0o644, description='The file\'s mode, in octal and in quotes: "0644".')

    @field_validator("to")
    @classmethod
    def _is_file(cls, value: str) -> str:
        if value.endswith("/"):
            raise ValueError("must name the file, not the directory that it goes into")
        return value

    def describe(self) -> str:
        """Name the target."""
        return self.to

    def apply(self, root: Root) -> None:
        """Do it."""
        uid, gid = ids(root, self.owner)
        content = self.source.encode()

        def build(archive: Archive) -> None:
            archive.data(self.to, content, mode=self.mode, uid=uid, gid=gid)

        root.unpack(archive_of(build, epoch=root.epoch))
