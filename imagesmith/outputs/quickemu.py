"""The Quickemu output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, finish, qcow2_sameness, workspace, write_qcow2
from imagesmith.outputs._fit import demand_arch, demand_drivers, starts_with


class Quickemu(DiskOutput, name="quickemu", version=1):
    """A qcow2 and Quickemu's configuration of a machine that runs it: ``quickemu --vm NAME.quickemu.conf``.

    Copy both into a folder of their own: Quickemu leaves its files beside the image.
    """

    @property
    def sameness(self) -> str:
        """See Output."""
        return qcow2_sameness("zstd")

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        demand_arch(arch, "x86_64", "Quickemu", "take qcow2")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk and the configuration."""
        self.fit(maker.arch, disk.firmware)
        demand_drivers(disk, [("virtio_blk", "virtio_net")], "Quickemu", log)
        image, settings = f"{maker.name}.quickemu.qcow2", f"{maker.name}.quickemu.conf"
        with workspace(directory, image) as work:
            write_qcow2(disk, work / image, host, log, compression="zstd")
            (work / settings).write_text(configuration(maker, starts_with(disk, maker), image), encoding="utf-8")
            return finish(work, directory, [image, settings])


def configuration(maker: Maker, firmware: str, image: str) -> str:
    """Return a machine's configuration (quickemu_conf(5)): shell that is sourced, paths relative to its own folder."""
    return (
        "#!/usr/bin/quickemu --vm\n"
        'guest_os="linux"\n'
        f'boot="{"legacy" if firmware == "bios" else "efi"}"\n'
        f'secureboot="{"on" if firmware == "uefi-secure" else "off"}"\n'
        f'disk_img="{image}"\n'
        'disk_format="qcow2"\n'
        f'cpu_cores="{maker.cpus}"\n'
        f'ram="{maker.memory // MIB}M"\n'
    )
