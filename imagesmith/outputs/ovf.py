"""The OVF output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._ovf import Hardware, manifest, write_package


class Ovf(DiskOutput, name="ovf", version=1, shorthand="hardware"):
    """The files of an OVA side by side: OVF descriptor, manifest and a streamOptimized VMDK.

    ``generic`` hardware is an IDE disk and a virtio network adapter; ``vmware`` is PVSCSI and VMXNET3.
    """

    hardware: Hardware = Field("generic", description="The virtual hardware that the descriptor asks for")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the package's files."""
        name = f"{maker.name}.ovf"
        with workspace(directory, name) as work:
            digests = write_package(
                disk, maker, work, host, log, hardware=self.hardware,
                descriptor_name=name, disk_name=f"{maker.name}-disk1.vmdk",
            )  # fmt: skip
            (work / f"{maker.name}.mf").write_text(manifest(digests), encoding="utf-8")
            return finish(work, directory, [*digests, f"{maker.name}.mf"])
