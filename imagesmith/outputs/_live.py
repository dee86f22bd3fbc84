"""A system that runs from a squashfs with all its changes in memory: what the outputs netboot and iso share.

The image's own initial RAM disk, made by initramfs-tools, looks for its root file system with the script that
``boot=NAME`` names (initramfs-tools(7)). An archive behind it brings such a script, with all that it needs and that RAM
disk may lack: modules of the image's kernel, and losetup of the image with its libraries. So nothing is asked of the
image but a kernel, initramfs-tools and losetup, and no live-boot or busybox.

A squashfs and not the files themselves as a RAM disk, because it takes a third of the memory, and because the kernel
then mounts a root file system that a system can leave (pivot_root), as containers in it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imagesmith import cpio
from imagesmith.archive import guest_file
from imagesmith.disk.grub import CONSOLES
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.outputs._boot import Boot, Modules, find_boot, initrd_names
from imagesmith.outputs._common import MIB
from imagesmith.outputs._elf import closure
from imagesmith.outputs._rootfs import KERNELS, RUNTIME, Content, need_init, read
from imagesmith.outputs._squashfs import write_squashfs

_MODULES = ("loop", "squashfs", "overlay", "isofs")
_LOSETUP = ("/sbin/losetup", "/usr/sbin/losetup")
_OURS = "imagesmith"
_SCRIPT = f"scripts/{_OURS}"
_CONTENT = Content((*RUNTIME, "/boot"), KERNELS, frozenset({"etc/fstab"}))
"""The kernel is outside, and nothing of the disk that fstab speaks of is there."""
_GAP = 512
_REPART = "systemd-repart.service"


@dataclass(frozen=True)
class Live:
    """What boots a live system, apart from its squashfs."""

    kernel: bytes
    initrd: bytes
    """The image's own."""
    more: Mapping[str, bytes]
    """What goes behind it."""
    modules: Modules


def prepare(files: Files, what: str, host: Host) -> Live:
    """Look for all that a live system needs. Raises BuildError, with the way out, where something is missing."""
    need_init(files, what)
    boot = find_boot(files, what)
    _need_initramfs_tools(boot, what, host)
    modules = Modules(files, boot.release, host)
    missing = modules.missing(_MODULES)
    if missing:
        raise BuildError(
            f"{what} needs {', '.join(missing)}, which the image's kernel {boot.release} does not have",
            hint="take the distribution's usual kernel: for Debian linux-image-amd64 or linux-image-cloud-amd64",
        )
    wanted = modules.load(_MODULES)
    return Live(boot.kernel, boot.initrd, {
        _SCRIPT: guest_file("live-boot"),
        f"{_OURS}/modules.order": "".join(f"{name}\n" for name, _ in wanted).encode(),
        **{f"{_OURS}/modules/{name}": content for name, content in wanted},
        **_losetup(files, what),
    }, modules)  # fmt: skip


def _need_initramfs_tools(boot: Boot, what: str, host: Host) -> None:
    there = initrd_names(boot.initrd, host) if boot.initrd else set()
    if "scripts/functions" in there and "scripts/local" in there:
        return
    if not boot.initrd:
        found = "the image's kernel has none"
    elif any(name.startswith(("usr/lib/dracut/", "lib/dracut/")) for name in there):
        found = "the image's is one of dracut"
    else:
        found = "the image's is of another kind"
    raise BuildError(
        f"{what} needs an initial RAM disk that initramfs-tools made, and {found}",
        hint="on Debian and Ubuntu: `packages: [initramfs-tools]` in a step; there is no way yet for distributions "
        "without it",
    )


def _losetup(files: Files, what: str) -> dict[str, bytes]:
    content = next((found for path in _LOSETUP if (found := read(files, path)) is not None), None)
    if content is None:
        raise BuildError(f"{what} needs losetup, which the image does not have",
                         hint="install it in a step: `packages: [mount]` (Debian, Ubuntu)")  # fmt: skip
    loader, libraries = closure(files, "losetup", content)
    if not loader:
        raise BuildError(f"{what} needs a losetup with shared libraries, and the image's is static")
    return {
        f"{_OURS}/losetup": content,
        **{f"{_OURS}/lib/{'loader' if name == loader else name}": data for name, data in libraries.items()},
    }


def write_root(files: Files, into: Path, maker: Maker, host: Host, log: Log) -> None:
    """Write the root file system as a squashfs: what is only needed to start a kernel, and fstab, stay out.

    systemd is kept from growing a partition, of which there is none. Raises MissingTool, ToolFailed.
    """
    there = read(files, f"/lib/systemd/system/{_REPART}") is not None
    content = replace(_CONTENT, masked=(f"etc/systemd/system/{_REPART}",)) if there else _CONTENT
    size = write_squashfs(files, content, into, host, epoch=maker.epoch, compression="zstd")
    log(f"{size // MIB} MiB of files in a squashfs of {into.stat().st_size // MIB} MiB")


def write_initrd(live: Live, into: Path, more: Mapping[str, bytes | Path]) -> None:
    """Write the initial RAM disk: the image's, then an archive with what makes it live, and ``more`` in /imagesmith.

    Zeros between them show the kernel where LZ4 and LZO end, which do not show it themselves (Linux,
    lib/decompress_unlz4.c and decompress_unlzo.c); with the others they count for nothing.
    """
    with into.open("wb") as out:
        out.write(live.initrd + bytes(_GAP))
        cpio.pad(out)
        cpio.write(out, {**live.more, **{f"{_OURS}/{name}": content for name, content in more.items()}}, mode=0o755)


def arguments(arch: str) -> str:
    """What the kernel is told."""
    return f"boot={_OURS} {CONSOLES[arch]}"
