"""The Xen output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._fit import demand_arch, demand_drivers
from imagesmith.outputs._raw import write_raw


class Xen(DiskOutput, name="xen", version=1):
    """A raw image with two configurations for Xen's xl: NAME.xen.pv.cfg and NAME.xen.hvm.cfg.

    PV starts the kernel that pygrub finds in the disk's GRUB configuration, with its console on hvc0. HVM boots by
    BIOS, or by UEFI (OVMF) where the disk cannot otherwise. Put the image into ``folder``, then
    ``xl create NAME.xen.hvm.cfg``.
    """

    folder: str = Field(
        "/var/lib/xen/images", pattern="^/[^,\"'\\\\\n]*$",
        description="Where the image will be on the host that runs it",
    )  # fmt: skip

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output."""
        demand_arch(arch, "x86_64", "Xen with pygrub or HVM", "take raw, and give Xen the kernel from inside it")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk and both configurations."""
        self.fit(maker.arch, disk.firmware)
        demand_drivers(disk, [("xen_blkfront", "xen_netfront")], "Xen", log)
        image = f"{maker.name}.xen.raw"
        bios = "bios" in disk.firmware
        settings = {
            f"{maker.name}.xen.hvm.cfg": self.configuration(maker, image, "hvm", bios=bios),
            f"{maker.name}.xen.pv.cfg": self.configuration(maker, image, "pv"),
        }
        with workspace(directory, image) as work:
            write_raw(disk, work / image, host, log)
            for name, text in settings.items():
                (work / name).write_text(text, encoding="utf-8")
            return finish(work, directory, [image, *settings])

    def configuration(self, maker: Maker, image: str, type: Literal["pv", "hvm"], *, bios: bool = True) -> str:
        """Return a domain's configuration (xl.cfg(5), xl-disk-configuration(5)); strings quoted, numbers not."""
        if type == "pv":
            how, device = 'bootloader = "pygrub"\nextra = "console=hvc0"\n', "xvda"
        else:
            how, device = f'firmware = "{"bios" if bios else "ovmf"}"\nserial = "pty"\n', "hda"
        target = f"{self.folder.rstrip('/')}/{image}"
        return (
            f'name = "{maker.name}"\n'
            f'type = "{type}"\n'
            f"memory = {maker.memory // MIB}\n"
            f"vcpus = {maker.cpus}\n"
            f"{how}"
            f'disk = [ "format=raw, vdev={device}, access=rw, target={target}" ]\n'
            'vif = [ "bridge=xenbr0" ]\n'
            'on_poweroff = "destroy"\n'
            'on_reboot = "restart"\n'
            'on_crash = "destroy"\n'
        )
