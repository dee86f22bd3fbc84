"""Components of the installer that a mirror may lack, made of the same suite's regular packages.

A component (udeb) is a package without documentation; the programs in it are the regular ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from imagesmith.host import Host
from tests.debian_installer.suite import Suite

LIBRARIES = "usr/lib/x86_64-linux-gnu"
MODULES = ("fs/ext4/ext4", "fs/jbd2/jbd2", "fs/mbcache", "lib/crc16", "lib/libcrc32c", "crypto/crc32c_generic",
           "drivers/block/virtio_blk")  # fmt: skip
"""ext4 and what it needs; virtio_blk is in another component, which may be missing, too."""


def repack(folder: Path, suite: Suite, kernel: str, host: Host) -> list[Path]:
    """Make ``e2fsprogs-udeb`` and ``ext4-modules-…-di`` in ``folder``. ``kernel`` is the installer's (uname -r)."""
    if made := sorted(folder.glob("*.udeb")):
        return made
    image = f"linux-image-{kernel}"
    packages = suite.download(["e2fsprogs", "libext2fs2t64", "libcom-err2", "libss2", image])
    regular = folder / "regular"
    regular.mkdir(parents=True)
    for package in packages.values():
        host.run(["dpkg-deb", "-x", package, regular], purpose="unpack a package")
    e2fsprogs, modules = folder / "e2fsprogs", folder / "modules"
    _e2fsprogs(regular, e2fsprogs)
    for name in MODULES:
        place = Path(f"usr/lib/modules/{kernel}/kernel/{name}.ko.xz")
        (modules / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(regular / place, modules / place)

    def pack(root: Path, name: str, source: str, fields: Mapping[str, str]) -> Path:
        version = host.run(["dpkg-deb", "-f", packages[source], "Version"], purpose="read a version").text.strip()
        control = {"Package": name, "Version": version, "Architecture": "amd64", "Priority": "standard",
                   "Section": "debian-installer", "Maintainer": "test <root@localhost>", **fields,
                   "Description": "made for a test"}  # fmt: skip
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
        made = folder / f"{name}_{version.rpartition(':')[2]}_amd64.udeb"
        host.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-b", root, made], purpose="make a component")
        return made

    needs = {"Depends": "libblkid1-udeb, libc6-udeb, libuuid1-udeb"}
    holds = {"Provides": "ext4-modules, ext3-modules, ext2-modules", "Depends": f"kernel-image-{kernel}-di",
             "Kernel-Version": kernel}  # fmt: skip
    made = [pack(e2fsprogs, "e2fsprogs-udeb", "e2fsprogs", needs),
            pack(modules, f"ext4-modules-{kernel}-di", image, holds)]  # fmt: skip
    for used in (regular, e2fsprogs, modules):
        shutil.rmtree(used)
    return made


def _e2fsprogs(regular: Path, root: Path) -> None:
    for folder in ("usr/sbin", LIBRARIES, "etc"):
        (root / folder).mkdir(parents=True)
    shutil.copy(regular / "etc/mke2fs.conf", root / "etc")
    for program in ("mke2fs", "e2fsck", "tune2fs", "resize2fs", "dumpe2fs"):
        shutil.copy(regular / "usr/sbin" / program, root / "usr/sbin")
    for number in (2, 3, 4):
        (root / f"usr/sbin/mkfs.ext{number}").symlink_to("mke2fs")
        (root / f"usr/sbin/fsck.ext{number}").symlink_to("e2fsck")
    for library in ("libext2fs.so.2", "libe2p.so.2", "libcom_err.so.2", "libss.so.2"):
        shutil.copy(regular / LIBRARIES / library, root / LIBRARIES)
