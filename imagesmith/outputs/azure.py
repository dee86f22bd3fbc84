"""The Azure output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._fit import demand_drivers, demand_firmware
from imagesmith.outputs._vhd import write_vhd


class Azure(DiskOutput, name="azure", version=1, shorthand="generation"):
    """A fixed VHD whose size is a multiple of 1 MiB, as Azure imports it: a page blob, of which an image is made.

    Machines of generation 1 boot by BIOS, those of generation 2 by UEFI; the file is the same for both.
    """

    generation: Literal[1, 2] | None = Field(
        None, description="The machines that it is for; by default 2, or 1 where the disk does not boot by UEFI"
    )

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        if self.generation == 1 and arch != "x86_64":
            raise BuildError(f"Azure's machines of generation 1 are x86_64, and this guest is {arch}",
                             hint="take generation 2")  # fmt: skip
        if self.generation is not None:
            wanted, other = ("bios", 2) if self.generation == 1 else ("uefi", 1)
            who = f"an Azure machine of generation {self.generation}"
            demand_firmware(firmware, wanted, who, f"take generation {other}, or make the disk bootable by both")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert, and tell how it is imported."""
        self.fit(maker.arch, disk.firmware)
        demand_drivers(disk, [("hv_storvsc", "hv_netvsc")], "Azure", log)
        name = f"{maker.name}.azure.vhd"
        generation = self.generation or (2 if "uefi" in disk.firmware else 1)
        with workspace(directory, name) as work:
            write_vhd(disk, work / name, maker, host, log, subformat="fixed")
            made = finish(work, directory, [name])
        arch = "" if maker.arch == "x86_64" else " --architecture Arm64"
        log(f"upload {name} as a page blob, then: az disk create --hyper-v-generation V{generation}{arch} --source URL")
        return made
