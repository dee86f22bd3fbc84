"""The KubeVirt containerDisk output."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace, write_qcow2
from imagesmith.outputs._image import image_config, labels, reference, write_layer
from imagesmith.outputs._layout import write_layout
from imagesmith.outputs._rootfs import Member

_QEMU = 107
"""The user and group that QEMU runs as in KubeVirt's pods."""


class ContainerDisk(DiskOutput, name="container-disk", version=1):
    """A disk for KubeVirt's ``containerDisk`` volumes: a container image that holds one file, /disk/NAME.qcow2.

    It is an OCI layout that ``docker load`` takes, too, called NAME-disk; push it to a registry:
    ``skopeo copy oci-archive:NAME.container-disk.tar docker://REGISTRY/NAME-disk:VERSION``. The layer is not
    compressed, because the disk in it is.
    """

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk, the layer around it, and the archive around that."""
        name = f"{maker.name}.container-disk.tar"
        with workspace(directory, name) as work:
            image = work / f"{maker.name}.qcow2"
            write_qcow2(disk, image, host, log, compression="zstd")
            found = _members(image, maker.epoch)
            layer = write_layer(work / "layer.tar", found, made_by="imagesmith", compress=False)
            image.unlink()
            repository, tag = reference(maker)
            config = image_config(maker, [layer], {"Labels": labels(maker)})
            write_layout(work / name, config, [layer], maker, (f"{repository}-disk", tag))
            return finish(work, directory, [name])


def _members(image: Path, epoch: int) -> Iterator[Member]:
    """Give the folder /disk and the image in it, which is all that there is (KubeVirt, container-register-disks.md)."""
    folder, file = tarfile.TarInfo("disk"), tarfile.TarInfo(f"disk/{image.name}")
    for member in (folder, file):
        member.uid = member.gid = _QEMU
        member.mtime = epoch
    folder.type, folder.mode = tarfile.DIRTYPE, 0o555
    file.mode, file.size = 0o440, image.stat().st_size
    yield folder, None
    with image.open("rb") as stream:
        yield file, stream
