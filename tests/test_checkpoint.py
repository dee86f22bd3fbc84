"""A machine's state: taken while it runs, and taken up again by another QEMU."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith.errors import GuestFailed, Interrupted
from imagesmith.host import Host
from imagesmith.machine import checkpoint, memory
from imagesmith.machine.arguments import Drive, MachineSpec
from imagesmith.machine.blocks import Blocks
from imagesmith.machine.qemu import Machine
from imagesmith.probe import kernels

COUNTS = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
i=0
while true; do i=$((i + 1)); echo "count $i." >/dev/ttyS0; /bin/busybox sleep 1; done
"""

BALLOON = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_balloon")
FREES = f"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {" ".join(BALLOON)}; do /bin/busybox insmod /$module.ko; done
/bin/busybox mount -t tmpfs tmpfs /mnt
/bin/busybox dd if=/dev/urandom of=/mnt/file bs=1M count=64
echo "full." >/dev/ttyS0
/bin/busybox sleep 1
/bin/busybox rm /mnt/file
while true; do /bin/busybox sleep 1; done
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> MachineSpec:
    """A guest that counts the seconds since it was booted."""
    return guest(tmp_path_factory.mktemp("counter"), COUNTS)


def guest(folder: Path, init: str, modules: Sequence[str] = ()) -> MachineSpec:
    """A guest of which there is one program, with a kernel of this host."""
    (kernel, *_) = kernels()
    root = folder / "root"
    for name in ("bin", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    for module in modules:
        [file] = Path("/lib/modules", kernel.name.removeprefix("vmlinuz-")).rglob(f"{module}.ko")
        shutil.copy(file, root)
    names = "".join(f"{file.relative_to(root)}\n" for file in sorted(root.rglob("*")))
    packed = Host().run(["cpio", "-o", "-H", "newc", "--quiet"], purpose="test", cwd=root, input=names.encode())
    (folder / "initrd").write_bytes(packed.stdout)
    return MachineSpec(kernel=kernel, initrd=folder / "initrd", append="console=ttyS0 quiet no_timer_check",
                       memory_file=True)  # fmt: skip


def test_a_guest_goes_on_where_its_state_was_taken(spec: MachineSpec, tmp_path: Path) -> None:
    host, state = Host(), tmp_path / "state"
    state.mkdir()

    def counted(machine: Machine, number: int) -> None:
        machine.watch(lambda: f"count {number}." in machine.console.text or None, within=120, doing="count")

    first = memory.make(spec.memory)
    with Machine(host, spec, tmp_path / "first.log", memory=first) as machine:
        counted(machine, 2)
        machine.qmp.execute("stop")
        seen = machine.console.text.count("count")
        checkpoint.State(machine, host).write(state)
        machine.qmp.execute("cont")
        counted(machine, seen + 2)  # whose state was taken goes on as well
    os.close(first)
    assert {file.stat().st_mode & 0o777 for file in state.iterdir()} == {0o600}

    second = memory.make(spec.memory)
    with Machine(host, replace(spec, incoming=True), tmp_path / "second.log", memory=second) as machine:
        memory.unpack(state, second, lambda: False)
        checkpoint.restore(machine, state, host)
        machine.qmp.execute("cont")
        counted(machine, seen + 2)
        assert "count 1." not in machine.console.text
    os.close(second)


def test_a_machine_may_end_before_its_memory_is_written(spec: MachineSpec, tmp_path: Path) -> None:
    host, held = Host(), memory.make(spec.memory)
    with Machine(host, spec, tmp_path / "log", memory=held) as machine:
        machine.qmp.execute("stop")
        state = checkpoint.State(machine, host)
    os.close(held)
    state.write(tmp_path)
    again = memory.make(spec.memory)
    memory.unpack(tmp_path, again, lambda: False)
    os.close(again)


def test_what_a_guest_frees_is_no_part_of_its_state(tmp_path: Path) -> None:
    host, spec, size = Host(), guest(tmp_path, FREES, BALLOON), 64 << 20
    held = memory.make(spec.memory)

    def there() -> int:
        return os.fstat(held).st_blocks * 512

    with Machine(host, spec, tmp_path / "log", memory=held) as machine:
        machine.watch(lambda: "full." in machine.console.text or None, within=120, doing="fill its memory")
        full = there()
        assert full > size
        machine.watch(lambda: there() < full - size // 2 or None, within=120, doing="tell what it has freed")
        machine.qmp.execute("stop")
        checkpoint.State(machine, host).write(tmp_path)
    os.close(held)
    assert (tmp_path / "memory.zst").stat().st_size < size  # nobody packs what is random


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    size = 64 << 20
    whole = memory.make(size)
    os.pwrite(whole, bytes(range(256)) * 40000, 4096)
    os.pwrite(whole, b"end", size - 3)
    memory.pack(whole, tmp_path, lambda: False)
    again = memory.make(size)
    memory.unpack(tmp_path, again, lambda: False)
    assert os.pread(again, size, 0) == os.pread(whole, size, 0)
    assert os.fstat(again).st_blocks == os.fstat(whole).st_blocks  # what was never touched takes no space

    good = (tmp_path / "memory.zst").read_bytes()
    huge = good[:4] + bytes([good[4] ^ 64]) + good[5:]  # as if it were exabytes
    for damaged in (good[: len(good) // 2], good[:200] + bytes([good[200] ^ 1]) + good[201:], b"", huge):
        (tmp_path / "memory.zst").write_bytes(damaged)
        with pytest.raises(GuestFailed, match="damaged"):
            memory.unpack(tmp_path, memory.make(size), lambda: False)
    with pytest.raises(GuestFailed, match="another memory"):
        memory.unpack(tmp_path, memory.make(size * 2), lambda: False)
    with pytest.raises(Interrupted):
        memory.unpack(tmp_path, memory.make(size), lambda: True)
    for index in (b"[]", b'{"size": 67108864, "frames": [[0, 10, [[67108864, 4096]]]], "disk": []}',
                  b'{"size": 67108864, "frames": [], "disk": [[0, [[0, 0, 0, 4096]]]]}'):  # fmt: skip
        (tmp_path / "index.zst").unlink()
        memory.write(tmp_path / "index.zst", index)
        with pytest.raises(GuestFailed, match="damaged"):
            memory.unpack(tmp_path, memory.make(size), lambda: False)


def test_what_the_disk_has_as_well_is_not_packed(tmp_path: Path) -> None:
    size, chance = 16 << 20, random.Random(1)
    old, new = chance.randbytes(3 << 20), chance.randbytes(1 << 20)
    own = chance.randbytes(5 * 4096)
    disk = [tmp_path / "old", tmp_path / "new"]
    disk[0].write_bytes(old[:4096] + bytes(100 * 4096) + old + b"not a whole page")
    disk[1].write_bytes(new)
    held = memory.make(size)
    for place, data in ((0, new), (2 << 20, old), (8 << 20, own), (9 << 20, old[-8192:]), (10 << 20, bytes(8192)),
                        (11 << 20, b"x" * 4096 * 20), (12 << 20, old[2048:6144])):  # fmt: skip
        os.pwrite(held, data, place)

    blocks = Blocks()
    for name in ("first", "second"):
        state = tmp_path / name
        state.mkdir()
        memory.pack(held, state, lambda: False, disk=disk, blocks=blocks)
        assert (state / "memory.zst").stat().st_size < len(own) + 2 * 4096
        again = memory.make(size)
        memory.unpack(state, again, lambda: False, disk=disk)
        assert os.pread(again, size, 0) == os.pread(held, size, 0)
        assert os.lseek(again, 10 << 20, os.SEEK_DATA) == 11 << 20  # zeros are a hole

    disk[0].write_bytes(disk[0].read_bytes().replace(old[4096:8192], old[:4096]))
    for changed in (disk, disk[:1]):
        with pytest.raises(GuestFailed, match="damaged"):
            memory.unpack(tmp_path / "first", memory.make(size), lambda: False, disk=changed)


@given(st.lists(st.sampled_from([bytes(4096), b"a" * 4096, b"ab" * 2048, bytes(4095) + b"c", bytes(range(256)) * 16])))
def test_pages_that_are_alike_are_told_apart(pages: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, held, again = Path(name), memory.make(1 << 20), memory.make(1 << 20)
        (folder / "disk").write_bytes(b"".join(reversed(pages[::2])))
        os.pwrite(held, b"".join(pages), 0)
        memory.pack(held, folder, lambda: False, disk=[folder / "disk"])
        memory.unpack(folder, again, lambda: False, disk=[folder / "disk"])
        assert os.pread(again, 1 << 20, 0) == os.pread(held, 1 << 20, 0)
        os.close(held)
        os.close(again)


def test_a_state_fits_the_same_machine_wherever_its_files_are(spec: MachineSpec) -> None:
    version = {"qemu": {"major": 7}}
    here = checkpoint.fit(replace(spec, drives=(Drive(Path("/a/disk.qcow2")),)), version)
    assert here == checkpoint.fit(replace(spec, drives=(Drive(Path("/b/other.qcow2")),), incoming=True), version)
    for other in (replace(spec, memory=spec.memory * 2), replace(spec, cpu="Nehalem"), replace(spec, cpus=2), spec):
        assert checkpoint.fit(other, version) != here
    assert checkpoint.fit(replace(spec, drives=(Drive(Path("/a/disk.qcow2")),)), {"qemu": {"major": 8}}) != here
