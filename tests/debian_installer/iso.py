"""An installer ISO made of Debian's own installer package, laid out as the distribution lays out its ISO.

``.disk/info``, ``install.amd/``, isolinux for BIOS and GRUB for UEFI, and a hybrid MBR (Debian's debian-cd,
tools/boot/trixie/boot-x86; debian-installer, build/boot/x86). The menus are the package's. The initrd is its own with
a second archive behind it (Linux, Documentation/driver-api/early-userspace/buffer-format.rst) that adds our key to the
keys that the installer trusts.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

from imagesmith.host import Host
from tests.debian_installer.signer import Signer
from tests.debian_installer.suite import Suite, unpack

PACKAGE = "debian-installer-13-netboot-amd64"
IMAGES = "usr/lib/debian-installer/images/13/amd64/text/debian-installer/amd64"
KEYS = "usr/share/keyrings/archive.gpg"
"""What the installer verifies its components and the archive with."""
LABEL = "Debian 13 amd64 n"
INFO = 'Debian GNU/Linux 13 "Trixie" - Unofficial amd64 NETINST test'
_ISOLINUX = ("isolinux.bin", "ldlinux.c32", "vesamenu.c32", "libcom32.c32", "libutil.c32")
_GRUB = ("normal", "iso9660", "fat", "part_gpt", "part_msdos", "search", "configfile", "linux", "test", "echo",
         "all_video", "gfxterm", "font", "png", "serial", "minicmd")  # fmt: skip


def build(folder: Path, host: Host) -> Path:
    """Make the ISO in ``folder`` (once) and return it."""
    made = folder / "debian-13-amd64-netinst.iso"
    if made.exists():
        return made
    suite = Suite(folder, host)
    images = installer(folder, suite, host)
    tree = folder / "iso"
    for place in (".disk", "install.amd", "isolinux", "boot/grub", "EFI/boot"):
        (tree / place).mkdir(parents=True)
    (tree / ".disk/info").write_text(INFO)
    (tree / ".disk/cd_type").write_text("not_complete\n")
    shutil.copy(images / "linux", tree / "install.amd/vmlinuz")
    keys = _overlay(folder, _keys(images / "initrd.gz", host) + Signer(folder, host).public, host)
    (tree / "install.amd/initrd.gz").write_bytes((images / "initrd.gz").read_bytes() + keys)
    _isolinux(tree, images, folder, suite, host)
    _grub(tree, images, host)
    mbr = unpack(suite.download(["isolinux"])["isolinux"], folder / "isolinux", host) / "usr/lib/ISOLINUX/isohdpfx.bin"
    part = made.with_suffix(".part")
    host.run(
        ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-joliet-long", "-V", LABEL, "-o", part,
         "-isohybrid-mbr", mbr, "-c", "isolinux/boot.cat", "-b", "isolinux/isolinux.bin", "-no-emul-boot",
         "-boot-load-size", "4", "-boot-info-table", "-eltorito-alt-boot", "-e", "boot/grub/efi.img",
         "-no-emul-boot", "-isohybrid-gpt-basdat", tree],
        purpose="make an ISO",
    )  # fmt: skip
    shutil.rmtree(tree)
    part.rename(made)
    return made


def installer(folder: Path, suite: Suite, host: Host) -> Path:
    """The folder of the package with kernel, initrd and menus."""
    return unpack(suite.download([PACKAGE])[PACKAGE], folder / "installer", host) / IMAGES


def kernel_version(kernel: Path) -> str:
    """What ``uname -r`` says under this kernel (Linux, Documentation/arch/x86/boot.rst, kernel_version)."""
    head = kernel.read_bytes()[: 1 << 16]
    at = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return head[at : head.index(b" ", at)].decode("ascii")


def _keys(initrd: Path, host: Host) -> bytes:
    """The keys that the installer trusts as it comes."""
    listing = host.run(["gzip", "-dc", initrd], purpose="read the installer's initrd").stdout
    name = "usr/share/keyrings/debian-archive-keyring.pgp"
    keys = host.run(["cpio", "-i", "--quiet", "--to-stdout", name], purpose="read keys", input=listing).stdout
    assert keys, f"{name} is not in the installer's initrd"
    return keys


def _overlay(folder: Path, keys: bytes, host: Host) -> bytes:
    root = folder / "overlay"
    (root / KEYS).parent.mkdir(parents=True)
    (root / KEYS).write_bytes(keys)
    names = [*reversed([str(parent) for parent in Path(KEYS).parents][:-1]), KEYS]
    made = host.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"], purpose="add keys to the installer's",
                    cwd=root, input="".join(name + "\n" for name in names).encode())  # fmt: skip
    shutil.rmtree(root)
    return host.run(["gzip", "-9n"], purpose="pack an archive", input=made.stdout).stdout


def _here(text: str) -> str:
    """The package's menus, with the places of the ISO."""
    text = text.replace("debian-installer/amd64/boot-screens/", "")
    text = re.sub(r"/?debian-installer/amd64/(?=linux|initrd\.gz)", "/install.amd/", text)
    return text.replace("/install.amd/linux", "/install.amd/vmlinuz")


def _isolinux(tree: Path, images: Path, folder: Path, suite: Suite, host: Host) -> None:
    for source in sorted((images / "boot-screens").iterdir()):
        target = tree / "isolinux" / ("isolinux.cfg" if source.name == "syslinux.cfg" else source.name)
        if source.suffix == ".cfg":
            target.write_text(_here(source.read_text()))
        elif source.suffix != ".c32":  # of another version than isolinux, perhaps
            shutil.copy(source, target)
    names = ["isolinux", "syslinux-common"]
    roots = [unpack(package, folder / name, host) for name, package in suite.download(names).items()]
    for name in _ISOLINUX:
        found = [root / "usr/lib" / place / name for root in roots for place in ("ISOLINUX", "syslinux/modules/bios")]
        shutil.copy(next(file for file in found if file.exists()), tree / "isolinux" / name)


def _grub(tree: Path, images: Path, host: Host) -> None:
    (tree / "boot/grub/grub.cfg").write_text(_here((images / "grub/grub.cfg").read_text()))
    shutil.copy(images / "grub/font.pf2", tree / "boot/grub/font.pf2")
    first, program, efi = tree / "first.cfg", tree / "EFI/boot/bootx64.efi", tree / "boot/grub/efi.img"
    first.write_text("search --file --set=root /.disk/info\nset prefix=($root)/boot/grub\n"
                     "configfile $prefix/grub.cfg\n")  # fmt: skip
    host.run(["grub-mkimage", "-O", "x86_64-efi", "-c", first, "-p", "/boot/grub", "-o", program, *_GRUB],
             purpose="make an ISO for UEFI")  # fmt: skip
    first.unlink()
    efi.write_bytes(bytes(4 << 20))
    host.run(["mkfs.vfat", efi], purpose="make an ISO for UEFI")
    host.run(["mmd", "-i", efi, "::EFI", "::EFI/BOOT"], purpose="make an ISO for UEFI")
    host.run(["mcopy", "-i", efi, program, "::EFI/BOOT/BOOTX64.EFI"], purpose="make an ISO for UEFI")
