"""The Google Compute Engine output."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import GIB, MIB, finish, workspace
from imagesmith.outputs._fit import demand_drivers
from imagesmith.outputs._gzip import GzipWriter
from imagesmith.outputs._raw import Reading, write_raw

_MEMBER = "disk.raw"

_DRIVERS = [("virtio_scsi", "virtio_net"), ("nvme", "gve"), ("virtio_scsi", "gve"), ("nvme", "virtio_net")]
"""What its machine types have: disks by virtio-scsi or NVMe, networks by virtio or gVNIC."""


class Gce(DiskOutput, name="gce", version=1):
    """What Compute Engine makes an image of: NAME.gce.tar.gz with a disk.raw, a multiple of 1 GiB.

    Upload it to a bucket, then: ``gcloud compute images create NAME --source-uri gs://BUCKET/NAME.gce.tar.gz``, with
    ``--guest-os-features=UEFI_COMPATIBLE`` for a disk that boots by UEFI, and ``--architecture=ARM64`` for aarch64.
    """

    @property
    def label(self) -> str:
        """See Output."""
        return "gce.tar.gz"

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk's bytes, then the archive around them.

        The tar is GNU's (magic ``ustar  ``, as ``tar --format=oldgnu`` writes it), for which sizes of 8 GiB and more
        need no further header. The member is plain, though Google's own command makes a sparse one: gzip takes care
        of the zeros, and where a host's file system has holes makes no difference to the bytes.
        """
        demand_drivers(disk, _DRIVERS, "Compute Engine", log)
        name = f"{maker.name}.{self.label}"
        with workspace(directory, name) as work:
            image = work / _MEMBER
            size = write_raw(disk, image, host, log, unit=GIB)
            log(f"{name}: compressing")
            with (work / name).open("wb") as out, GzipWriter(out.write) as gzip:
                _pack(image, size, gzip, maker.epoch, host)
            return finish(work, directory, [name])


def _pack(image: Path, size: int, gzip: GzipWriter, epoch: int, host: Host) -> None:
    """Write the tar: a header, the disk's bytes (whole blocks of 512), and zeros up to a whole record of 20 blocks."""
    member = tarfile.TarInfo(_MEMBER)
    member.size, member.mtime, member.mode = size, epoch, 0o644
    gzip.write(member.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))
    with image.open("rb") as stream:
        shutil.copyfileobj(Reading(stream, host), gzip, MIB)
    end = tarfile.BLOCKSIZE + size + 2 * tarfile.BLOCKSIZE
    gzip.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
