"""The EC2 output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._fit import demand_arch, demand_drivers
from imagesmith.outputs._grains import sameness as stream_sameness
from imagesmith.outputs._raw import write_raw
from imagesmith.outputs._vmdk import write_vmdk

_DRIVERS = [("nvme", "ena"), ("xen_blkfront", "xen_netfront")]
"""Instances built on Nitro, and the older ones on Xen."""


class Ec2(DiskOutput, name="ec2", version=2, shorthand="bucket"):
    """What Amazon's VM import takes: a disk, to be put into an S3 bucket, and the JSON that names it there.

    Upload NAME.ec2.vmdk (or NAME.ec2.raw), then: ``aws ec2 import-image --boot-mode legacy-bios --disk-containers
    file://NAME.ec2.containers.json``, with ``uefi`` for a disk that boots by UEFI alone.
    """

    bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="The S3 bucket that the disk will be in"
    )
    prefix: str = Field("", description="What stands before the file's name in the bucket: images/")
    format: Literal["vmdk", "raw"] = Field(
        "vmdk", description="vmdk is streamOptimized, and much the smaller one to upload"
    )

    @property
    def label(self) -> str:
        """Tell the two formats apart."""
        return f"ec2.{self.format}"

    @property
    def sameness(self) -> str:
        """See Output."""
        return stream_sameness() if self.format == "vmdk" else ""

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """See Output. The API's Architecture is i386 or x86_64 (EC2 API Reference, ImportImage)."""
        demand_arch(arch, "x86_64", "VM import (import-image)",
                    "take raw, make a snapshot of it (aws ec2 import-snapshot) and register that as an arm64 image")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the disk, and what names it."""
        self.fit(maker.arch, disk.firmware)
        demand_drivers(disk, _DRIVERS, "EC2", log)
        name, listed = f"{maker.name}.{self.label}", f"{maker.name}.{self.label}.containers.json"
        with workspace(directory, name) as work:
            if self.format == "raw":
                write_raw(disk, work / name, host, log)
            else:
                write_vmdk(disk, work / name, maker.seed, host, log, adapter="lsilogic")
            (work / listed).write_text(self.containers(maker, name), encoding="utf-8")
            made = finish(work, directory, [name, listed])
        mode = "legacy-bios" if "bios" in disk.firmware else "uefi"
        log(f"upload {name}, then: aws ec2 import-image --boot-mode {mode} --disk-containers file://{listed}")
        return made

    def containers(self, maker: Maker, name: str) -> str:
        """Return the list of disks (EC2 API Reference, ImageDiskContainer and UserBucket)."""
        about = " ".join(word for word in (maker.name, maker.version) if word)
        disk: Mapping[str, object] = {
            "Description": about,
            "Format": self.format,
            "UserBucket": {"S3Bucket": self.bucket, "S3Key": self.prefix + name},
        }
        return json.dumps([disk], indent=2, ensure_ascii=False) + "\n"
