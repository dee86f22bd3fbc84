"""The Vagrant output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput, RecipeFile
from imagesmith.outputs._common import GIB, MIB, finish, workspace, write_qcow2
from imagesmith.outputs._ovf import write_package

_LIBVIRT = """\
  config.vm.provider :libvirt do |libvirt|
    libvirt.cpus = {cpus}
    libvirt.memory = {memory}
{uefi}  end
"""
_LIBVIRT_UEFI = """\
    libvirt.loader = [
      "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    ].find {{ |path| File.exist?(path) }}
"""
_VIRTUALBOX = """\
  config.vm.provider :virtualbox do |virtualbox|
    virtualbox.cpus = {cpus}
    virtualbox.memory = {memory}
    virtualbox.customize ["modifyvm", :id, "--nictype1", "virtio"]
{uefi}  end
"""
_VIRTUALBOX_UEFI = """\
    virtualbox.customize ["modifyvm", :id, "--firmware", "efi"]
"""
_VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  # The image need not hold what shared folders want (NFS, rsync, guest additions).
  config.vm.synced_folder ".", "/vagrant", disabled: true
{provider}end
"""


class Vagrant(DiskOutput, name="vagrant", version=1, shorthand="provider"):
    """A Vagrant box. The image should have what Vagrant logs in with.

    That is: a user ``vagrant`` with Vagrant's insecure public key and sudo without a password, DHCP on the first
    network adapter, and SSH host keys made at first boot. A box for libvirt also serves Vagrant's qemu provider.
    """

    provider: Literal["libvirt", "virtualbox"] = Field("libvirt", description="The Vagrant provider it is for")
    vagrantfile: RecipeFile | None = Field(None, description="Ruby that follows the box's own Vagrantfile")

    @property
    def label(self) -> str:
        """Tell the boxes of two providers apart."""
        return f"{self.provider}.box"

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the image as the provider wants it, and put it into a tar with the metadata first.

        The tar is not compressed: what it holds is.
        """
        name = f"{maker.name}.{self.label}"
        metadata: dict[str, object] = {"provider": self.provider}
        with workspace(directory, name) as work:
            if self.provider == "libvirt":
                write_qcow2(disk, work / "box.img", host, log, compression="zstd")
                metadata |= {"format": "qcow2", "virtual_size": -(-disk.virtual_size // GIB)}
                content = ["box.img"]
            else:
                content = list(write_package(
                    disk, maker, work, host, log, hardware="generic",
                    descriptor_name="box.ovf", disk_name="box-disk1.vmdk",
                ))  # fmt: skip
            own = "" if self.vagrantfile is None else self.vagrantfile.read_text(encoding="utf-8")
            vagrantfile = box_vagrantfile(self.provider, maker, uefi="bios" not in disk.firmware) + own
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
                archive.data("metadata.json", _json(metadata))
                archive.data("info.json", _json(_about(maker)))
                archive.data("Vagrantfile", vagrantfile.encode())
                for member in content:
                    archive.file(member, work / member)
            return finish(work, directory, [name])


def box_vagrantfile(provider: str, maker: Maker, *, uefi: bool) -> str:
    """Return the defaults that the box brings; the user's own Vagrantfile overrides them."""
    template, firmware = (_LIBVIRT, _LIBVIRT_UEFI) if provider == "libvirt" else (_VIRTUALBOX, _VIRTUALBOX_UEFI)
    settings = template.format(cpus=maker.cpus, memory=maker.memory // MIB, uefi=firmware.format() if uefi else "")
    return _VAGRANTFILE.format(provider=settings)


def _about(maker: Maker) -> dict[str, str]:
    """Return what ``vagrant box list -i`` shows."""
    made = datetime.fromtimestamp(maker.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"name": maker.name, "version": maker.version, "description": maker.description,
             "architecture": maker.arch, "created": made}  # fmt: skip
    return {key: value for key, value in about.items() if value}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
