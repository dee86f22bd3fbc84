"""A bootable disk of a root file system, without a virtual machine, a mount or root's rights.

Everything is written into one sparse raw file beside the result: partition table, EFI system partition, root file
system, boot loaders. Then it becomes a qcow2. Equal trees with equal specifications give equal bytes.
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imagesmith.disk import ext4, gpt, grub
from imagesmith.disk.esp import make_esp
from imagesmith.disk.gpt import identifier
from imagesmith.disk.kernel import Kernel, find_kernel
from imagesmith.disk.signed import Signed, find_signed, packages
from imagesmith.disk.template import fill
from imagesmith.errors import BuildError, StoreError, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Log, Mounted

ROOT_LABEL = "root"
GRUB_CFG = "/boot/grub/grub.cfg"


@dataclass(frozen=True)
class DiskSpec:
    """What the disk is to be like.

    ``size`` is in bytes (rounded up to whole MiB); ``arch`` is x86_64 or aarch64; every identifier comes from ``seed``
    (a hex digest) and every time that is no file's from ``epoch`` (seconds). ``cmdline`` is added to the kernel's
    command line behind root and consoles; ``timeout`` is how many seconds GRUB's menu waits. ``secure``: it must boot
    under Secure Boot.
    """

    size: int
    arch: str
    seed: str
    epoch: int
    cmdline: str = ""
    timeout: int = 0
    secure: bool = False


def assemble(mounted: Mounted, into: Path, spec: DiskSpec, host: Host, log: Log) -> None:
    """Make ``into``, a qcow2 without a backing file, of a root file system. It boots under BIOS (x86_64) and UEFI.

    Raises BuildError where the tree has no kernel, no signed boot loaders (``spec.secure``) or does not fit, StoreError
    where the host has no space left, MissingTool, ToolFailed. Nothing is left behind on failure.
    """
    disk = gpt.layout(spec.size, spec.arch, spec.seed)
    for target in grub.needed(spec.arch):
        grub.find_platform(target, host)
    entries = _entries(mounted)
    kernel = find_kernel(entries)
    if kernel is None:
        raise BuildError("the root file system has no kernel: neither /vmlinuz nor /boot/vmlinuz* is there",
                         hint="add a kernel to the base's packages, such as linux-image-cloud-amd64")  # fmt: skip
    signed = find_signed(mounted, spec.arch)
    if signed is None and spec.secure:
        raise BuildError("'firmware: uefi-secure' boots only what is signed, and the root file system holds no signed "
                         "boot loaders", hint=f"add {packages(spec.arch)} to the base's packages")  # fmt: skip
    raw = into.with_name(into.name + ".raw")
    try:
        with raw.open("wb") as stream:
            os.truncate(stream.fileno(), disk.size)
        _fill(mounted, raw, disk, kernel, entries, signed, spec, host, log)
        log("turning it into a qcow2")
        host.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, into], purpose="make a qcow2 of the disk")
    except OSError as error:
        into.unlink(missing_ok=True)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _no_space() from error
        raise
    except BaseException as error:
        into.unlink(missing_ok=True)
        if isinstance(error, ToolFailed) and ("No space left" in error.tail or "Disk quota" in error.tail):
            raise _no_space() from error
        raise
    finally:
        raw.unlink(missing_ok=True)


def _no_space() -> StoreError:
    return StoreError("no space left on the store's file system while the disk was assembled",
                      hint="make room (imagesmith cache gc), or let IMAGESMITH_CACHE name another folder")  # fmt: skip


def _entries(mounted: Mounted) -> dict[str, str]:
    """What is in / and /boot, with the targets of links, and the boot loader's folder."""
    lines: list[str] = []
    mounted.inside(
        ["find", mounted.mountpoint, "-mindepth", "1", "-maxdepth", "3",
         "(", "-name", "boot", "-o", "-name", "grub", "-o", "-prune", ")", "-printf", "%P\\t%l\\n"],
        purpose="find the kernel", log=lines.append,
    )  # fmt: skip
    found = (line.split("\t", 1) for line in lines if "\t" in line)
    return {f"/{name}": target for name, target in found}


def _fill(
    mounted: Mounted, raw: Path, disk: gpt.Layout, kernel: Kernel, entries: dict[str, str], signed: Signed | None,
    spec: DiskSpec, host: Host, log: Log,
) -> None:  # fmt: skip
    uuid = identifier(spec.seed, "root file system")
    # Without an initial RAM disk nothing in the guest knows file system UUIDs when the kernel mounts its root.
    root = f"UUID={uuid}" if kernel.initrd else f"PARTUUID={disk.root.guid.lower()}"
    values = {
        "UUID": uuid, "LABEL": ROOT_LABEL, "KERNEL": kernel.kernel, "TIMEOUT": str(spec.timeout),
        "INITRD": f"initrd {kernel.initrd}" if kernel.initrd else "",
        "ARGUMENTS": grub.arguments(spec.arch, root, spec.cmdline),
    }  # fmt: skip
    gpt.write_table(raw, disk, host)
    log(f"writing the root file system ({kernel.kernel})")
    extra: dict[str, bytes | None] = {}
    if GRUB_CFG not in entries:
        missing = [folder for folder in ("/boot", "/boot/grub") if folder not in entries]
        extra = {**dict.fromkeys(missing), GRUB_CFG: fill("boot/grub.cfg", values).encode()}
    ext4.make_root(mounted, raw, host, offset=disk.root.offset, size=disk.root.size, label=ROOT_LABEL, uuid=uuid,
                   hash_seed=identifier(spec.seed, "directory hashes"), epoch=spec.epoch, extra=extra)  # fmt: skip
    log("writing the boot loaders")
    early = fill("boot/early.cfg", values)
    with tempfile.TemporaryDirectory(prefix=raw.name, dir=raw.parent) as scratch:
        files = _efi_files(signed, early, Path(scratch), spec, host, log)
        make_esp(raw, disk.esp, files, host, serial=identifier(spec.seed, "ESP")[:8], epoch=spec.epoch)
    if disk.bios is not None:
        grub.install_bios(raw, disk.bios, early, host, epoch=spec.epoch)


def _efi_files(
    signed: Signed | None, early: str, scratch: Path, spec: DiskSpec, host: Host, log: Log
) -> dict[str, Path]:  # fmt: skip
    """The EFI system partition's files: the tree's signed boot loaders where it has them, else a GRUB made here."""
    if signed is None:
        target, name = grub.EFI_TARGET[spec.arch]
        grub.core_image(target, early, scratch / "grub.efi", host, epoch=spec.epoch)
        return {name: scratch / "grub.efi"}
    log("the boot loaders for UEFI are the root file system's own, signed for Secure Boot")
    contents = {**signed.files, f"{signed.folder}/grub.cfg": early.encode()}
    found = {name: scratch / str(number) for number, name in enumerate(sorted(contents))}
    for name, path in found.items():
        path.write_bytes(contents[name])
    return found
