"""The VHD output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._fit import demand_arch
from imagesmith.outputs._vhd import Subformat, write_vhd


class Vhd(DiskOutput, name="vhd", version=1, shorthand="subformat"):
    """A VHD, its size a multiple of 1 MiB: for Hyper-V's machines of generation 1, XenServer and VirtualBox.

    A fixed one is as large as the disk and is called NAME.fixed.vhd. Azure takes it; the output azure says so, too.
    """

    subformat: Subformat = Field("dynamic", description="Grow with what is written, or hold every byte from the start")

    @property
    def label(self) -> str:
        """Tell the two subformats apart."""
        return "vhd" if self.subformat == "dynamic" else "fixed.vhd"

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        demand_arch(arch, "x86_64", "what reads a VHD", "take vhdx for Hyper-V on Arm, azure for Azure")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, then name it."""
        self.fit(maker.arch, disk.firmware)
        if "bios" not in disk.firmware:
            log("the disk boots by UEFI alone: Hyper-V starts a VHD by BIOS, so take vhdx for it")
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            write_vhd(disk, work / name, maker, host, log, subformat=self.subformat)
            return finish(work, directory, [name])
