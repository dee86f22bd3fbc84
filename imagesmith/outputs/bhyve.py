"""The bhyve output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._fit import demand_arch, demand_drivers, demand_firmware
from imagesmith.outputs._raw import write_raw


class Bhyve(DiskOutput, name="bhyve", version=1):
    """A raw image, and vm-bhyve's configuration of a machine that runs it on FreeBSD.

    Put both into DATASTORE/NAME/, the configuration as NAME.conf; then ``vm start NAME``. It boots by UEFI (port
    bhyve-firmware), and its network adapter is on the switch ``public``.
    """

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        demand_arch(arch, "x86_64", "bhyve with vm-bhyve", "take raw")
        demand_firmware(firmware, "uefi", "bhyve",
                        "make the disk bootable by UEFI, or take raw and start it with grub2-bhyve")  # fmt: skip

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk and the configuration."""
        self.fit(maker.arch, disk.firmware)
        demand_drivers(disk, [("virtio_blk", "virtio_net")], "bhyve", log)
        image, settings = f"{maker.name}.bhyve.raw", f"{maker.name}.bhyve.conf"
        with workspace(directory, image) as work:
            write_raw(disk, work / image, host, log)
            (work / settings).write_text(configuration(maker, image), encoding="utf-8")
            return finish(work, directory, [image, settings])


def configuration(maker: Maker, image: str) -> str:
    """Return a machine's configuration (vm(8), "CONFIGURATION FORMAT").

    Lines that begin with no small letter are passed over, and so is what follows a ``#``, quoted or not. The uuid is
    left to vm-bhyve, so that two machines of one image have two.
    """
    return (
        f"# vm-bhyve: DATASTORE/{maker.name}/{maker.name}.conf, with {image} beside it\n"
        'loader="uefi"\n'
        f'cpu="{maker.cpus}"\n'
        f'memory="{maker.memory // MIB}M"\n'
        'disk0_type="virtio-blk"\n'
        f'disk0_name="{image}"\n'
        'network0_type="virtio-net"\n'
        'network0_switch="public"\n'
        'virt_random="yes"\n'
    )
