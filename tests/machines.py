"""A root file system of a few MB that seems to be a whole machine's, with kernel and modules; and real boots."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from imagesmith import cpio
from imagesmith.host import Host
from imagesmith.kinds import FilesOutput, known
from imagesmith.machine.console import plain
from tests.consumers import ask
from tests.test_oci import SmallRoot
from tests.test_outputs import MAKER

RELEASE = "6.1.0-9-test"
MODULES = f"lib/modules/{RELEASE}"
VMLINUX = b"\x7fELF\x02\x01\x01" + bytes(9) + b"vmlinux " * 999
IN_INITRD = ("scripts/functions", "scripts/local", f"usr/{MODULES}/kernel/drivers/virtio/virtio_mmio.ko",
             f"usr/{MODULES}/kernel/drivers/block/virtio_blk.ko")  # fmt: skip


def bzimage(payload: bytes, *, size: bytes = b"") -> bytes:
    """A kernel's file around a compressed payload, as Documentation/arch/x86/boot.rst has it."""
    head = bytearray(4 * 512)
    head[0x1F1] = 3
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x020F)
    struct.pack_into("<II", head, 0x248, 64, len(payload + size))
    return bytes(head) + b"\x90" * 64 + payload + size + b"code behind it"


def initrd(names: Sequence[str] = IN_INITRD) -> bytes:
    """An initial RAM disk as initramfs-tools makes one: microcode first, then the rest, compressed."""
    early = cpio.archive({"kernel/x86/microcode/GenuineIntel.bin": b"microcode"}) + bytes(512)
    rest = cpio.archive(dict.fromkeys(names, b"x"))
    return early + Host().run(["zstd", "-q", "-c"], purpose="test", input=rest).stdout


def _host_programs() -> dict[str, bytes]:
    """The host's losetup and its libraries, as ldd finds them."""
    losetup = Path("/sbin/losetup")
    libraries = re.findall(r"(/\S+) \(0x", ask("ldd", losetup))
    return {path.strip("/"): Path(path).read_bytes() for path in (str(losetup), *libraries)}


class MachineRoot(SmallRoot):
    """See the module. ``more`` replaces what is there (bytes: a file, str: a link, None: nothing)."""

    def __init__(self, more: Mapping[str, bytes | str | None] | None = None) -> None:
        modules = {
            f"{MODULES}/modules.dep": b"kernel/fs/squashfs/squashfs.ko:\nkernel/fs/overlayfs/overlay.ko:\n"
            b"kernel/fs/isofs/isofs.ko: kernel/drivers/cdrom/cdrom.ko.gz\nkernel/drivers/cdrom/cdrom.ko.gz:\n"
            b"kernel/drivers/block/loop.ko:\n",
            f"{MODULES}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
            f"{MODULES}/kernel/drivers/cdrom/cdrom.ko.gz": gzip.compress(b"cdrom's module", mtime=0),
            **{f"{MODULES}/kernel/{path}.ko": f"{path}'s module".encode() for path in (
                "fs/squashfs/squashfs", "fs/overlayfs/overlay", "fs/isofs/isofs", "drivers/block/loop")},
        }  # fmt: skip
        found: dict[str, bytes | str | None] = {
            "sbin/init": "../bin/busybox", f"boot/vmlinuz-{RELEASE}": bzimage(gzip.compress(VMLINUX, mtime=0)),
            "vmlinuz": f"boot/vmlinuz-{RELEASE}", f"boot/initrd.img-{RELEASE}": initrd(),
            "initrd.img": f"boot/initrd.img-{RELEASE}", **modules, **_host_programs(), **(more or {}),
        }  # fmt: skip
        self.gone = frozenset(found)
        super().__init__(more={name: what for name, what in found.items() if what is not None})

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
        ours = dict(self.more)
        for member, stream in super()._members():
            if member.name in self.gone and member.name not in ours:
                continue
            ours.pop(member.name, None)
            yield member, stream
        hole = self._member("var/hole", size=3 << 20)
        yield hole, io.BytesIO(bytes(2 << 20) + b"end of hole".rjust(1 << 20, b"\0"))
        fifo = self._member("var/fifo", tarfile.FIFOTYPE, mode=0o620)
        fifo.gid = 5
        yield fifo, None
        device = self._member('var/a "disk"', tarfile.BLKTYPE, mode=0o660)
        device.gid, device.devmajor, device.devminor = 6, 8, 300
        yield device, None
        owned = self._member("var/big owner", size=3)
        owned.uid, owned.gid = 4_000_000_001, 70_000
        yield owned, io.BytesIO(b"abc")


def write_files(
    name: str, directory: Path, files: SmallRoot | None = None, *, log: Callable[[str], None] = lambda line: None,
    **options: object,
) -> list[Path]:  # fmt: skip
    """Make one output of a root file system."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = known("outputs")[name].model_validate(options)
    assert isinstance(kind, FilesOutput)
    made = list(kind.write(files or MachineRoot(), MAKER, directory, Host(), log))
    assert sorted(made) == sorted(directory.iterdir()), "something else was left"
    return made


def console_of(argv: Sequence[str | Path], log: Path, until: str, *, within: float = 600) -> str:
    """Start a QEMU (its arguments, apart from what all need) and return its console's text once ``until`` is there.

    ``until`` is a regular expression.
    """
    with Host().start(
        [argv[0], "-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults", "-display", "none", "-no-reboot",
         "-serial", f"file:{log}", *argv[1:]],
        purpose="boot an image",
    ) as machine:  # fmt: skip
        deadline = time.monotonic() + within
        while True:
            words = plain(log.read_bytes()) if log.exists() else ""
            if re.search(until, words):
                return words
            assert machine.poll() is None, f"QEMU ended:\n{words[-3000:]}"
            assert time.monotonic() < deadline, f"no {until!r} on the console; its end:\n{words[-3000:]}"
            time.sleep(0.5)
