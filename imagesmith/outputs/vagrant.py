"""The Vagrant output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Artifact, Disk, Log, Maker
from imagesmith.kinds import UNKEYED, DiskOutput, NewPath, Options, RecipeFile, Size
from imagesmith.outputs import _box, _catalog
from imagesmith.outputs._common import finish, qcow2_sameness, workspace
from imagesmith.outputs._grains import sameness as stream_sameness


class Catalog(Options):
    """Where the versions of a box are gathered."""

    box: str = Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", description="The box's name for its users: acme/web")
    folder: NewPath = Field(description="The catalog's folder, relative to the recipe; made where there is none")
    url: str = Field("", pattern="^(https?://.+)?$",
                     description="Where users find that folder on the web; without it, on this machine")  # fmt: skip


class Vagrant(DiskOutput, name="vagrant", version=3, shorthand="provider"):
    """A Vagrant box. The image should have what Vagrant logs in with.

    That is: a user ``vagrant`` with Vagrant's insecure public key and sudo without a password, DHCP on the first
    network adapter, and SSH host keys made at first boot. A box for libvirt also serves Vagrant's qemu provider.

    A ``catalog`` is a folder that every build adds its box to, with ``metadata.json`` for ``vagrant box add`` and
    ``vagrant box update``. A build that gives another box than the one of the recipe's version, 1.2, adds it as 1.2.1.
    """

    provider: Literal["libvirt", "qemu", "virtualbox", "vmware_desktop", "hyperv"] = Field(
        "libvirt", description="The Vagrant provider it is for"
    )
    vagrantfile: RecipeFile | None = Field(None, description="Ruby that follows the box's own Vagrantfile")
    extra_disks: tuple[Size, ...] = Field((), description="More disks, empty, by their sizes (libvirt)")
    catalog: Annotated[Catalog | None, UNKEYED] = Field(None, description="Where the versions of the box are gathered")

    @model_validator(mode="after")
    def _fits(self) -> Vagrant:
        if self.extra_disks and self.provider not in ("libvirt", "qemu"):
            raise ValueError(f"a box for {self.provider} holds one disk: extra_disks are for libvirt")
        if self.catalog is not None and self.provider == "qemu":
            raise ValueError("Vagrant's qemu provider takes the libvirt box of a catalog: give provider libvirt")
        return self

    @property
    def label(self) -> str:
        """Tell the boxes of two providers apart."""
        return f"{self.provider}.box"

    @property
    def sameness(self) -> str:
        """See Output: the disk in a box for libvirt is a qcow2 like any other, that for virtualbox an appliance's."""
        if self.provider == "virtualbox":
            return stream_sameness()
        return qcow2_sameness("zstd") if self.provider in ("libvirt", "qemu") and not self.extra_disks else ""

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        _box.demand_pc(self.provider, arch)

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the image as the provider wants it, and put it into a tar with the metadata first.

        The tar is not compressed: what it holds is.
        """
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            contents = _box.contents(self.provider, disk, maker, work, host, log, extra=self.extra_disks)
            own = "" if self.vagrantfile is None else self.vagrantfile.read_text(encoding="utf-8")
            vagrantfile = _box.vagrantfile(self.provider, maker, uefi="bios" not in disk.firmware) + own
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
                archive.data("metadata.json", _json(contents.metadata))
                archive.data("info.json", _json(_about(maker)))
                archive.data("Vagrantfile", vagrantfile.encode())
                for member, path in contents.members.items():
                    archive.file(member, path)
            return finish(work, directory, [name])

    def published(self, artifacts: Sequence[Artifact], maker: Maker, host: Host) -> Sequence[str]:
        """Add the box to its catalog."""
        if self.catalog is None:
            return ()
        box = _catalog.Box(self.catalog.box, maker.version, maker.description, _box.provider_of(self.provider),
                           artifacts[0].path, artifacts[0].sha256)  # fmt: skip
        version = _catalog.add(box, self.catalog.folder, self.catalog.url, host)
        return [f"{self.catalog.box} {version} is in {self.catalog.folder / 'metadata.json'}"]


def _about(maker: Maker) -> dict[str, str]:
    """Return what ``vagrant box list -i`` shows."""
    made = datetime.fromtimestamp(maker.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"name": maker.name, "version": maker.version, "description": maker.description,
             "architecture": maker.arch, "created": made}  # fmt: skip
    return {key: value for key, value in about.items() if value}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
