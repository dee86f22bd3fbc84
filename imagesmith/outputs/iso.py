"""The ISO output."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from imagesmith.disk import grub
from imagesmith.disk.esp import make_fat
from imagesmith.disk.ext4 import clock
from imagesmith.disk.signed import Signed, find_signed
from imagesmith.disk.template import fill
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, identifier, workspace
from imagesmith.outputs._live import arguments, prepare, write_initrd, write_root

_PURPOSE = "write a bootable ISO"
_MODULES = ("iso9660", "search_fs_file")
"""What GRUB needs for the medium, besides what it needs for a disk."""
_ESP = 8 * MIB
_ELTORITO = "boot/grub/bios.img"
_HARDWARE = {"ahci": "SATA", "usb_storage": "USB"}


class Iso(FilesOutput, name="iso", version=1):
    """A live system on a bootable ISO, for BIOS and UEFI, as a CD, or written to a disk or a USB stick as it is.

    The root file system is a squashfs on it; changes are kept in memory and are gone with the power. The image must
    have a kernel, and an initial RAM disk of initramfs-tools (Debian, Ubuntu). Debian's kernel for clouds sees a CD at
    IDE or virtio-scsi and a virtio disk; for real machines (SATA, USB) write `kernel: linux-image-amd64` in the base.
    Where the image has its distribution's signed boot loaders, it boots under Secure Boot.
    """

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write what is on the medium, then the medium."""
        live = prepare(files, "a live ISO", host)
        absent = " and ".join(_HARDWARE[module] for module in live.modules.missing(_HARDWARE))
        if absent:
            log(f"the image's kernel has no drivers for {absent}: the ISO is for virtual machines that need none")
        name = f"{maker.name}.iso"
        image = f"live/{identifier(maker.seed, 'medium')}.squashfs"
        with workspace(directory, name) as work:
            medium = work / "medium"
            (medium / "live").mkdir(parents=True)
            write_root(files, medium / image, maker, host, log)
            (medium / "live/vmlinuz").write_bytes(live.kernel)
            write_initrd(live, medium / "live/initrd", {"medium": f"{image}\n".encode()})
            config = fill("boot/live.cfg", {"FILE": f"/{image}", "ARGUMENTS": arguments(maker.arch)})
            signed = find_signed(files, maker.arch)
            if signed is not None:
                log("the boot loaders for UEFI are the root file system's own, signed for Secure Boot")
            esp = _write_esp(config, signed, work, maker, host)
            bios = _write_bios(config, medium, maker, host) if "i386-pc" in grub.needed(maker.arch) else None
            for path in (medium, *medium.rglob("*")):
                os.utime(path, (maker.epoch, maker.epoch))
            host.run(command(work / name, medium, esp, bios, label(maker.name)), purpose=_PURPOSE,
                     env=clock(maker.epoch))  # fmt: skip
            return finish(work, directory, [name])


def _write_esp(config: str, signed: Signed | None, work: Path, maker: Maker, host: Host) -> Path:
    """A small EFI system partition: GRUB on the removable-media path, or the image's signed boot loaders.

    A signed GRUB looks for its configuration on the partition where it was started from a disk, and on the medium where
    it was started from a CD: it is in both.
    """
    folder = work / "esp"
    if signed is None:
        target, loader = grub.EFI_TARGET[maker.arch]
        (folder / loader).parent.mkdir(parents=True)
        grub.core_image(target, config, folder / loader, host, epoch=maker.epoch, modules=_MODULES)
    else:
        for name, content in {**signed.files, f"{signed.folder}/grub.cfg": config.encode()}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        beside = work / "medium" / signed.folder / "grub.cfg"
        beside.parent.mkdir(parents=True)
        beside.write_text(config, encoding="utf-8")
    esp = work / "esp.img"
    with esp.open("wb") as stream:
        stream.truncate(_ESP)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    make_fat(esp, files, host, offset=0, size=_ESP, bits=16, label="ESP",
             serial=identifier(maker.seed, "ESP").hex[:8], epoch=maker.epoch)  # fmt: skip
    return esp


def _write_bios(config: str, medium: Path, maker: Maker, host: Host) -> Path:
    """GRUB for BIOS on the medium; its code for the boot sector, for when the medium is a disk."""
    core = medium / _ELTORITO
    core.parent.mkdir(parents=True)
    grub.core_image("i386-pc-eltorito", config, core, host, epoch=maker.epoch, modules=_MODULES)
    return grub.find_platform("i386-pc", host) / "boot_hybrid.img"


def label(name: str) -> str:
    """The volume's name: of at most 32 capital letters, digits and underscores (ECMA-119, 7.4.1 and 8.4.8)."""
    return re.sub("[^A-Z0-9_]", "_", name.upper())[:32]


def command(into: Path, medium: Path, esp: Path, bios: Path | None, volume: str) -> list[str | Path]:
    """The command that writes a folder as a bootable ISO; ``bios`` is GRUB's code for the boot sector.

    Two El Torito entries (BIOS: a file on the medium; UEFI: the EFI system partition behind it), and a GPT with a boot
    sector for when it is written to a disk; as grub-mkrescue does it. SOURCE_DATE_EPOCH sets all times and the UUIDs
    that come of them (xorrisofs(1), "Environment"); with ``-r`` all may read what is on it, and nobody writes.
    """
    found: list[str | Path] = ["xorriso", "-as", "mkisofs", "-quiet", "-o", into, "-V", volume, "-iso-level", "3", "-r"]
    if bios is not None:
        found += ["-b", _ELTORITO, "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info",
                  "--grub2-mbr", bios, "-eltorito-alt-boot"]  # fmt: skip
    return [*found, "-append_partition", "2", "0xef", esp, "-appended_part_as_gpt",
            "-e", "--interval:appended_partition_2:all::", "-no-emul-boot", medium]  # fmt: skip
