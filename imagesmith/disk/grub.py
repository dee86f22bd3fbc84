"""GRUB as an assembled disk's boot loader, for BIOS and UEFI, put together from the host's GRUB files.

Nothing of the guest runs. A core image holds GRUB's kernel, the modules to read the disk, and a small configuration
(in a memory disk) that finds the root file system and goes on with the grub.cfg there.

For BIOS three fields must be set that GRUB's own set-up program sets at installation. Their places are in GRUB's
source: grub-core/boot/i386/pc/boot.S and diskboot.S, and include/grub/i386/pc/boot.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

from imagesmith.archive import Archive
from imagesmith.disk.ext4 import clock
from imagesmith.disk.gpt import MIB, SECTOR, Part
from imagesmith.errors import BuildError, MissingTool
from imagesmith.host import Host

_MODULES = (
    "normal", "memdisk", "tar", "part_gpt", "part_msdos", "ext2", "fat", "search", "search_fs_uuid", "search_label",
    "configfile", "linux", "gzio", "test", "echo", "true", "cat", "ls", "sleep", "reboot", "halt", "minicmd", "probe",
    "regexp", "loadenv", "gettext", "all_video", "gfxterm", "font", "serial",
)  # fmt: skip
_PLATFORM = {
    "i386-pc": ["biosdisk"],
    "i386-pc-eltorito": ["biosdisk"],
    "x86_64-efi": ["efi_gop", "efi_uga", "efifwsetup"],
    "arm64-efi": ["efi_gop", "efifwsetup", "fdt"],
}
_WITHOUT = {"arm64-efi": {"serial"}}
_PACKAGES = {
    "i386-pc": ("grub-pc-bin", "grub2-pc-modules", "grub"),
    "x86_64-efi": ("grub-efi-amd64-bin", "grub2-efi-x64-modules", "grub"),
    "arm64-efi": ("grub-efi-arm64-bin", "grub2-efi-aa64-modules", "grub"),
}
FOLDERS = (Path("/usr/lib/grub"), Path("/usr/share/grub"), Path("/usr/lib/grub2"))
"""Where distributions keep GRUB's files, by target."""
EFI_TARGET = {"x86_64": ("x86_64-efi", "EFI/BOOT/BOOTX64.EFI"), "aarch64": ("arm64-efi", "EFI/BOOT/BOOTAA64.EFI")}
CONSOLES = {"x86_64": "console=tty0 console=ttyS0,115200", "aarch64": "console=tty0 console=ttyAMA0,115200"}
"""What the kernel is told to talk to: a screen, and the first serial port."""


def arguments(arch: str, root: str, cmdline: str) -> str:
    """The kernel's command line, quoted for GRUB's language. Raises BuildError for characters that GRUB cannot pass."""
    words = f"root={root} rw {CONSOLES[arch]} {cmdline}".split()
    bad = [word for word in words if not re.fullmatch(r"[!-~]+", word)]
    if bad:
        raise BuildError(f"the kernel's command line may hold printable ASCII alone, not {bad[0]!r}")
    return " ".join(w if re.fullmatch(r"[\w./:,=@%+-]+", w) else "'" + w.replace("'", "'\\''") + "'" for w in words)


def find_platform(target: str, host: Host) -> Path:
    """The folder with GRUB's files for ``target``. Raises MissingTool with the packages that hold them."""
    for folder in FOLDERS:
        if (folder / target / "kernel.img").exists():
            return folder / target
    raise MissingTool(f"GRUB's files for {target} are not installed; they are needed to make a disk bootable",
                      hint="install them: Debian/Ubuntu {}, Fedora {}, Arch {}".format(*_PACKAGES[target]))  # fmt: skip


def core_image(
    target: str, config: str, into: Path, host: Host, *, epoch: int, modules: Sequence[str] = ()
) -> None:  # fmt: skip
    """Make GRUB's core image with ``config`` and ``modules`` inside, besides those that a disk needs.

    ``target`` is ``i386-pc``, ``i386-pc-eltorito`` (for a CD), ``x86_64-efi`` or ``arm64-efi``.
    """
    tool = "grub-mkimage" if host.find("grub-mkimage") or not host.find("grub2-mkimage") else "grub2-mkimage"
    host.require(tool, "make a disk bootable")
    folder = find_platform(target.removesuffix("-eltorito"), host)
    memdisk = into.with_name(into.name + ".memdisk")
    try:
        with memdisk.open("wb") as out, Archive(out, epoch=epoch, ustar=True) as archive:
            archive.data("grub/grub.cfg", config.encode())
        wanted = [*(m for m in _MODULES if m not in _WITHOUT.get(target, ())), *_PLATFORM[target], *modules]
        # A prefix without a folder would make GRUB for UEFI put its own program's folder there.
        host.run([tool, "-O", target, "-d", folder, "-o", into, "-m", memdisk, "-p", "(memdisk)/grub", *wanted],
                 purpose="make a disk bootable", env=clock(epoch))  # fmt: skip
    finally:
        memdisk.unlink(missing_ok=True)


def patch_boot_sector(boot: bytes, core_sector: int) -> bytes:
    """The 440 bytes of code for the MBR, from boot.img, that load GRUB's core from ``core_sector``."""
    code = bytearray(boot[:440])
    struct.pack_into("<Q", code, 0x5C, core_sector)  # GRUB_BOOT_MACHINE_KERNEL_SECTOR
    code[0x64] = 0xFF  # GRUB_BOOT_MACHINE_BOOT_DRIVE: the drive that the BIOS booted from
    code[0x66:0x68] = b"\x90\x90"  # GRUB_BOOT_MACHINE_DRIVE_CHECK: take the BIOS's word for the drive
    return bytes(code)


def patch_core(core: bytes, core_sector: int) -> bytes:
    """GRUB's core with the block list in its first sector saying where the others are: right behind it."""
    if len(core) <= SECTOR:
        raise BuildError("GRUB's core image is too short to be one")
    patched = bytearray(core)
    sectors = -(-len(core) // SECTOR)
    # struct grub_boot_blocklist, the one that diskboot.S begins with, at the end of the sector.
    struct.pack_into("<QHH", patched, 0x1F4, core_sector + 1, sectors - 1, 0x820)
    return bytes(patched)


def install_bios(raw: Path, part: Part, config: str, host: Host, *, epoch: int) -> None:
    """Put GRUB for BIOS into the MBR and the BIOS boot partition ``part`` of a raw disk."""
    image = raw.with_name(raw.name + ".core")
    try:
        core_image("i386-pc", config, image, host, epoch=epoch)
        core = patch_core(image.read_bytes(), part.offset // SECTOR)
    finally:
        image.unlink(missing_ok=True)
    if len(core) > part.size:
        raise BuildError(f"GRUB's core image ({len(core)} bytes) does not fit its partition of {part.size // MIB} MiB")
    boot = (find_platform("i386-pc", host) / "boot.img").read_bytes()
    with raw.open("r+b") as disk:
        disk.write(patch_boot_sector(boot, part.offset // SECTOR))
        disk.seek(part.offset)
        disk.write(core)


def needed(arch: str) -> Sequence[str]:
    """GRUB's targets that a disk of ``arch`` needs."""
    return ["i386-pc", "x86_64-efi"] if arch == "x86_64" else [EFI_TARGET[arch][0]]
