"""Which file systems of a disk in the libguestfs appliance are the guest's, and where they belong.

libguestfs' own inspection knows every system and takes as long as starting the appliance. Where there are plain file
systems alone and one of them holds /etc/os-release (os-release(5)), its fstab says as much.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from imagesmith.disk.partitions import Partition, parse_blkid
from imagesmith.drivers.appliance import Appliance, decode
from imagesmith.drivers.native_disk import inner_mounts
from imagesmith.errors import BuildError

_ROOTS = {"ext2": "ro", "ext3": "ro,noload", "ext4": "ro,noload", "xfs": "ro,norecovery"}
"""What a root file system may be, and how it is looked at without a change to it."""
_OTHERS = {"", "vfat", "swap", "LVM2_member"}
_MOST = 1 << 20
"""Bytes of an fstab."""
_DEVICES = """
echo OWN=$(readlink -f /dev/block/$(mountpoint -d /))
echo
blkid -c /dev/null -o export; :
"""
_LOOK = """
mkdir -p /imagesmith-look && mount -o {options} {device} /imagesmith-look && cd /imagesmith-look || exit 0
if [ -e etc/os-release ] || [ -L etc/os-release ]; then
  if [ -L etc ] || [ -L etc/fstab ]; then echo link; else echo root; fi
  [ ! -f etc/fstab ] || head -c {most} etc/fstab | base64
fi
cd / && umount /imagesmith-look
"""


def find_root(appliance: Appliance) -> dict[str, str]:
    """Return the guest's mount points and what is mounted there. Raises BuildError where there is not one root."""
    return _by_fstab(appliance) or _by_inspection(appliance)


def _by_fstab(appliance: Appliance) -> dict[str, str]:
    """The same; nothing where that takes a closer look."""
    own, *blocks = [parse_blkid(block) for block in appliance.shell(_DEVICES).split("\n\n")]
    found = [block for block in blocks if block.get("DEVNAME", own["OWN"]) != own["OWN"]]
    parts = [
        Partition(number, 0, 0, name=block.get("PARTLABEL", ""), fstype=block.get("TYPE", ""),
                  label=block.get("LABEL", ""), guid=block.get("PARTUUID", ""), uuid=block.get("UUID", ""))
        for number, block in enumerate(found)
    ]  # fmt: skip
    if not own["OWN"] or any(part.fstype not in {*_ROOTS, *_OTHERS} for part in parts):
        return {}
    fstabs = dict[str, str]()
    for part in parts:
        if part.fstype in _ROOTS:
            device = found[part.number]["DEVNAME"]
            said = appliance.shell(_LOOK.format(options=_ROOTS[part.fstype], device=shlex.quote(device), most=_MOST))
            kind, _, fstab = said.partition("\n")
            if kind == "link":  # where it leads to, only the guest knows
                return {}
            if kind == "root":
                fstabs[device] = decode(fstab).decode("utf-8", "replace")
    if len(fstabs) != 1:
        return {}
    [(root, fstab)] = fstabs.items()
    if _names_devices(fstab):
        return {}
    inner = {point: found[part.number]["DEVNAME"] for point, part in inner_mounts(fstab, parts)}
    disks = appliance.call("list_devices")
    return {point: own_name(device, disks) for point, device in {"/": root, **inner}.items()}


def own_name(device: str, disks: Sequence[str]) -> str:
    """What libguestfs calls a device: the kernel's name may be another each time the appliance starts.

    libguestfs counts the disks that it was given (guestfs(3), "Block device naming"), and here that is one.
    """
    partition = re.fullmatch(r"/dev/[hsv]d[a-z]+(\d*)", device)
    return disks[0] + partition[1] if partition is not None and len(disks) == 1 else device


def _names_devices(fstab: str) -> bool:
    """Whether something below ``/`` is named by a device: what that is called in the appliance, libguestfs knows."""
    lines = (line.split() for line in fstab.splitlines() if not line.lstrip().startswith("#"))
    return any(len(words) > 2 and words[0].startswith("/dev/") and words[1].startswith("/") and words[1] != "/"
               for words in lines)  # fmt: skip


def _by_inspection(appliance: Appliance) -> dict[str, str]:
    roots = appliance.call("inspect_os")
    if len(roots) != 1:
        found = ", ".join(sorted(map(str, roots))) or "no operating system"
        raise BuildError(
            f"the disk must hold exactly one operating system; libguestfs found {found}",
            hint="an encrypted disk cannot be opened, and only one system on a disk can be worked on",
        )
    return dict(appliance.call("inspect_get_mountpoints", roots[0]))
