"""The VMDK output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._grains import sameness as stream_sameness
from imagesmith.outputs._vmdk import write_sparse_vmdk, write_vmdk


class Vmdk(DiskOutput, name="vmdk", version=2, shorthand="subformat"):
    """A VMDK in one file, with the UUID that VirtualBox asks for: for VMware, VirtualBox and clouds.

    streamOptimized is compressed, for imports (ESXi, vSphere, clouds); monolithicSparse is what VMware Workstation and
    Fusion run, beside a .vmx: NAME.sparse.vmdk.
    """

    subformat: Literal["streamOptimized", "monolithicSparse"] = Field(
        "streamOptimized", description="How it is laid out"
    )

    @property
    def label(self) -> str:
        """Tell the two subformats apart."""
        return "vmdk" if self.subformat == "streamOptimized" else "sparse.vmdk"

    @property
    def sameness(self) -> str:
        """See Output."""
        return stream_sameness() if self.subformat == "streamOptimized" else ""

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then name it."""
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            if self.subformat == "streamOptimized":
                write_vmdk(disk, work / name, maker.seed, host, log, adapter="lsilogic")
            else:
                write_sparse_vmdk(disk, work / name, maker.seed, host, log)
            return finish(work, directory, [name])
