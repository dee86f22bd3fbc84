"""What a host may lack, and the peers take for granted: stand-ins that go in front of the peer's PATH.

They do the same work in another way and take no longer; where the host has what they stand for, they are not used.
"""

from __future__ import annotations

import os
from pathlib import Path

_KPARTX = r"""#!/bin/sh
# kpartx(8) without a device mapper: the kernel is told of the partitions by partx(8), and links get kpartx's names
set -eu
case $1 in
-asv)
	loop=$(losetup --find --show "$2")
	partx --add "$loop" >&2
	for part in "$loop"p*; do
		ln -sf "$part" "/dev/mapper/${part##*/}"
		echo "add map ${part##*/} (0:0): 0 0 linear 7:0 0"
	done ;;
-dsv)
	for loop in $(losetup --noheadings --output NAME --associated "$2"); do
		rm -f "/dev/mapper/${loop##*/}"p*
		partx --delete "$loop" >&2
		losetup --detach "$loop"
	done ;;
*) echo "kpartx: $*" >&2; exit 2 ;;
esac
"""
_MKFS_FAT = r"""#!/bin/sh
# mkfs.fat(8) where the kernel cannot mount the result: ext2, which no firmware reads
for device; do :; done
exec mke2fs -q -t ext2 "$device"
"""

_NSPAWN = """#!/bin/sh
# systemd-nspawn(1) where no systemd runs that could give it a scope unit, or where the ESP cannot be FAT for bootctl
exec /usr/bin/systemd-nspawn --register=no --keep-unit --setenv=SYSTEMD_RELAX_ESP_CHECKS=1 "$@"
"""


def path(folder: Path) -> dict[str, str]:
    """Write the stand-ins that this host needs into a folder; return the environment that puts them first."""
    bin = folder / "stand-ins"
    bin.mkdir(exist_ok=True)
    for name, text in missing().items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    return {"PATH": f"{bin}:{os.environ['PATH']}:/usr/sbin:/sbin"}


def missing() -> dict[str, str]:
    """The programs to be replaced, with what replaces them."""
    wanted = {}
    if "device-mapper" not in Path("/proc/devices").read_text():
        wanted["kpartx"] = _KPARTX
    fat = "\tvfat\n" in Path("/proc/filesystems").read_text()
    if not fat:
        wanted["mkfs.fat"] = _MKFS_FAT
    if not fat or not Path("/run/systemd/system").is_dir():  # sd_booted(3)
        wanted["systemd-nspawn"] = _NSPAWN
    return wanted
