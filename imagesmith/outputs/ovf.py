"""The OVF output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._grains import sameness as stream_sameness
from imagesmith.outputs._ovf import Hardware, demand_pc, manifest, write_package
from imagesmith.outputs._sign import Signing, certificate


class Ovf(DiskOutput, name="ovf", version=3, shorthand="hardware"):
    """The files of an OVA side by side: OVF descriptor, manifest and a streamOptimized VMDK.

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
        """Write the package's files."""
        name = f"{maker.name}.ovf"
        with workspace(directory, name) as work:
            digests = write_package(
                disk, maker, work, host, log, hardware=self.hardware,
                descriptor_name=name, disk_name=f"{maker.name}-disk1.vmdk",
            )  # fmt: skip
            listed, names = manifest(digests).encode(), [*digests, f"{maker.name}.mf"]
            (work / f"{maker.name}.mf").write_bytes(listed)
            if self.sign is not None:
                (work / f"{maker.name}.cert").write_bytes(certificate(self.sign, f"{maker.name}.mf", listed, host))
                names.append(f"{maker.name}.cert")
            return finish(work, directory, names)
