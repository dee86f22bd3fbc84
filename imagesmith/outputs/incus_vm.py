"""The incus-vm output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, qcow2_sameness, workspace, write_qcow2
from imagesmith.outputs._incus import metadata
from imagesmith.outputs._rootfs import write_small_tar


class IncusVm(DiskOutput, name="incus-vm", version=1):
    """A virtual machine's image for Incus and LXD: a file of metadata, and the disk as qcow2.

    `incus image import X.incus-vm.tar.xz X.incus-vm.qcow2 --alias X`, then `incus launch X NAME --vm`; with
    `-c security.secureboot=false` where the disk has no signed boot loader. They boot with UEFI alone. `incus exec`
    works where the image has Incus' agent; `incus console` in any case.
    """

    @property
    def sameness(self) -> str:
        """See Output."""
        return qcow2_sameness("zlib")

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """Refuse a disk that boots with BIOS alone."""
        if firmware and not any(name.startswith("uefi") for name in firmware):
            raise BuildError("Incus boots virtual machines with UEFI, and this disk boots with BIOS alone",
                             hint="say `machine: {firmware: [bios, uefi]}`, or take the output qcow2")  # fmt: skip

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Convert the disk, and describe it."""
        about, image = f"{maker.name}.incus-vm.tar.xz", f"{maker.name}.incus-vm.qcow2"
        with workspace(directory, image) as work:
            write_qcow2(disk, work / image, host, log, compression="zlib")
            write_small_tar(work / about, host, {"metadata.yaml": metadata(maker, {}, {})}, epoch=maker.epoch)
            return finish(work, directory, [about, image])
