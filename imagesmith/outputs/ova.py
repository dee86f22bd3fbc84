"""The OVA output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.archive import Archive
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._grains import sameness as stream_sameness
from imagesmith.outputs._ovf import Hardware, demand_pc, manifest, write_package
from imagesmith.outputs._sign import Signing, certificate

_USTAR_LIMIT = 8 << 30
"""Bytes: a ustar header has eleven octal digits for a member's size (POSIX.1-2017, pax)."""


class Ova(DiskOutput, name="ova", version=3, shorthand="hardware"):
    """An appliance in one file: OVF descriptor, manifest and a streamOptimized VMDK, for VirtualBox, VMware, oVirt.

    ``generic`` hardware is an IDE disk and a virtio network adapter, ``virtualbox`` SATA and Intel e1000, ``vmware``
    PVSCSI and VMXNET3. Hardware that the image's kernel has no drivers for is refused. ``sign`` adds a certificate and
    the manifest's signature.
    """

    hardware: Hardware = Field("generic", description="The virtual hardware that the descriptor asks for")
    sign: Signing | None = Field(None, description="Who vouches for it")

    @property
    def sameness(self) -> str:
        """See Output: of the disk in it."""
        return stream_sameness()

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        demand_pc(arch)

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the package's files and put them into a ustar, the descriptor first (DSP0243, section 5.3)."""
        name = f"{maker.name}.ova"
        with workspace(directory, name) as work:
            digests = write_package(
                disk, maker, work, host, log, hardware=self.hardware,
                descriptor_name=f"{maker.name}.ovf", disk_name=f"{maker.name}-disk1.vmdk",
            )  # fmt: skip
            descriptor, image = digests
            if (work / image).stat().st_size >= _USTAR_LIMIT:
                raise BuildError(f"{image} is larger than 8 GiB, which an OVA's tar format cannot hold",
                                 hint="take the output ovf: the same files, side by side")  # fmt: skip
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch, ustar=True) as archive:
                archive.file(descriptor, work / descriptor)
                listed = manifest(digests).encode()
                archive.data(f"{maker.name}.mf", listed)
                if self.sign is not None:
                    archive.data(f"{maker.name}.cert", certificate(self.sign, f"{maker.name}.mf", listed, host))
                archive.file(image, work / image)
            return finish(work, directory, [name])
