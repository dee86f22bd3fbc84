"""Copying files into the guest."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from imagesmith.archive import Archive, archive_of
from imagesmith.interfaces import Root
from imagesmith.kinds import Mode, Options, RecipeFile, Step, file_digest
from imagesmith.steps._files import GuestPath, Owner, ids


class _Source(Options):
    path: RecipeFile
    contents: bool

    def identity(self) -> dict[str, object]:
        """A link is copied as a link, so it counts as one; `site/` is what is in the folder that it leads to."""
        return {"contents": self.contents, "path": {"contents": file_digest(self.path, follow=self.contents)}}


def _source(value: object) -> object:
    return {"path": value, "contents": value.endswith("/")} if isinstance(value, str) else value


class Copy(Step, name="copy", version=2):
    """Copy a file or a folder into the guest.

    The slashes at the end mean what they mean to rsync:

    - `from: site, to: /srv` makes `/srv/site`; `from: site/, to: /srv` puts the contents of `site` into `/srv`.
    - `from: motd, to: /etc/motd` makes the file of that name; `from: motd, to: /etc/` makes `/etc/motd`, and so does
      `to: /etc`, where that is a directory.

    Directories that are missing are made; those that are there keep their owner and mode. Files that are there are
    replaced. Links are copied as links. Owners are root unless `owner` is given; a file is 0644, or 0755 where the
    source is executable, unless `mode` is given (directories get the search bits that go with it). Times are the
    build's SOURCE_DATE_EPOCH.
    """

    source: Annotated[_Source, BeforeValidator(_source), WithJsonSchema({"type": "string"})] = Field(
        alias="from", description="A file or folder, relative to the recipe."
    )
    to: GuestPath = Field(description="Where in the guest: an absolute path.")
    owner: Owner = Field("root", description="user, user:group, or numbers, as the guest knows them.")
    mode: Mode | None = Field(None, description='The files\' mode, in octal and in quotes: "0644".')

    def identity(self) -> dict[str, object]:
        """The source's name counts where it may be part of the target: only the guest knows if `to` is a folder."""
        return super().identity() | {"name": "" if self.source.contents else self.source.path.name}

    def describe(self) -> str:
        """Name source and target."""
        return f"{self.source.path.name} -> {self.to}"

    def apply(self, root: Root) -> None:
        """Do it."""
        uid, gid = ids(root, self.owner)
        path, mode = self.source.path, self.mode

        def build(archive: Archive) -> None:
            if not path.is_dir():
                inside = self.to.endswith("/") or root.exists(f"{self.to}/.")
                target = str(PurePosixPath(self.to, path.name)) if inside else self.to
                archive.tree(target, path, mode=mode, uid=uid, gid=gid)
            elif self.source.contents:
                archive.tree(self.to, path.resolve(), mode=mode, uid=uid, gid=gid)
            else:
                archive.tree(str(PurePosixPath(self.to, path.name)), path, mode=mode, uid=uid, gid=gid)

        root.unpack(archive_of(build, epoch=root.epoch))
