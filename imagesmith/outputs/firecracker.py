"""The Firecracker output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.disk.ext4_tar import make_ext4, stage
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput, Size
from imagesmith.outputs._boot import Boot, Modules, find_boot, initrd_names, plain
from imagesmith.outputs._common import MIB, finish, identifier, workspace
from imagesmith.outputs._rootfs import WHOLE, members, need_init, packed, with_files
from imagesmith.outputs._vmlinux import vmlinux

_NEEDED = ("virtio_mmio", "virtio_blk", "ext4")
"""What the kernel needs to reach its root file system: Firecracker has no PCI bus by default."""
_MOST_CPUS = 32
_SPARE = 256 * MIB
_STEP = 64 * MIB
_LABEL = "root"


class Firecracker(FilesOutput, name="firecracker", version=1):
    """A microVM: kernel, initial RAM disk, root file system, and the configuration that ``--config-file`` takes.

    The kernel is uncompressed, the root file system an ext4 without a partition table; it grows with its file
    (``truncate -s 8G``) at the next boot where the image has systemd. The configuration names the files without a
    folder: Firecracker is started in theirs. It has no network interface, which needs a TAP device of the host.
    Debian's kernels learn of the machine's devices from ACPI tables, which Firecracker has since version 1.8.
    """

    size: Size | None = Field(
        None, description="How large the root file system is; by default a quarter and 256 MiB more than its files."
    )

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Look at the kernel, then write the four files."""
        if maker.cpus > _MOST_CPUS:
            raise BuildError(f"a Firecracker microVM has at most {_MOST_CPUS} processors, not {maker.cpus}",
                             hint="lower machine.cpus")  # fmt: skip
        need_init(files, "a Firecracker microVM")
        boot = find_boot(files, "a Firecracker microVM")
        _check(boot, Modules(files, boot.release, host), host)
        base = f"{maker.name}.firecracker"
        names = [f"{base}.json", f"{base}.vmlinux", *([f"{base}.initrd"] if boot.initrd else []), f"{base}.ext4"]
        with workspace(directory, base) as work:
            (work / names[0]).write_text(configuration(maker, base, initrd=bool(boot.initrd)), encoding="utf-8")
            (work / names[1]).write_bytes(vmlinux(boot.kernel, maker.arch, host))
            if boot.initrd:
                (work / f"{base}.initrd").write_bytes(boot.initrd)
            self._write_root(files, maker, work, names[-1], host, log)
            return finish(work, directory, names)

    def _write_root(self, files: Files, maker: Maker, work: Path, name: str, host: Host, log: Log) -> None:
        uuid = str(identifier(maker.seed, "root file system"))
        content = with_files(WHOLE, {"etc/fstab": fstab(uuid).encode()})
        folder = work / "root"
        with packed(files, content) as source:
            staged = stage(members(source, content, maker.epoch), folder)
        size = self.size or -(-(staged.size * 5 // 4 + _SPARE) // _STEP) * _STEP
        log(f"{name}: {staged.size // MIB} MiB of files in {size // MIB} MiB")
        make_ext4(staged, folder, work / name, host, size=size, label=_LABEL, uuid=uuid,
                  hash_seed=str(identifier(maker.seed, "directory hashes")), epoch=maker.epoch)  # fmt: skip
        shutil.rmtree(folder)


def _check(boot: Boot, modules: Modules, host: Host) -> None:
    """Raise BuildError where the kernel would not reach its root file system."""
    wanted = [name for name in _NEEDED if name not in modules.built_in]
    if not wanted:
        return
    there = {plain(name) for name in initrd_names(boot.initrd, host)}
    lacking = [name for name in wanted if name not in there]
    if lacking:
        words = ", ".join(lacking)
        raise BuildError(
            f"in a Firecracker microVM the image's kernel {boot.release} would not find its root file system: "
            f"{words} {'is' if len(lacking) == 1 else 'are'} neither in it nor in its initial RAM disk",
            hint="add them in a step: `printf '%s\\n' " + " ".join(lacking)
            + " >> /etc/initramfs-tools/modules && update-initramfs -u` (dracut: add_drivers+=\" … \")",
        )  # fmt: skip


def fstab(uuid: str) -> str:
    """The root file system's own table of file systems: itself, which grows to its disk's size."""
    return f"UUID={uuid} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n"


def configuration(maker: Maker, base: str, *, initrd: bool) -> str:
    """The configuration of a microVM.

    Source: Firecracker's API definition (src/firecracker/swagger/firecracker.yaml, FullVmConfiguration); the arguments
    are those of its docs/getting-started.md.
    """
    source = {
        "kernel_image_path": f"{base}.vmlinux",
        **({"initrd_path": f"{base}.initrd"} if initrd else {}),
        "boot_args": "console=ttyS0 reboot=k panic=1 pci=off root=/dev/vda rw",
    }
    drive = {"drive_id": "root", "path_on_host": f"{base}.ext4", "is_root_device": True, "is_read_only": False}
    machine = {"vcpu_count": maker.cpus, "mem_size_mib": maker.memory // MIB}
    found = {"boot-source": source, "drives": [drive], "machine-config": machine}
    return json.dumps(found, indent=2) + "\n"
