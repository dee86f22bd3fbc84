"""A bootable disk of a root file system: what is in it, that it is the same every time, and what can go wrong."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from imagesmith.disk.assemble import DiskSpec, assemble
from imagesmith.disk.image import virtual_size
from imagesmith.disk.partitions import Partition, find_partitions, root_of
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Log
from imagesmith.tree import DirectoryMount, OverlayMount, open_root

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
HOST = Host()
SPEC = DiskSpec(size=160 * MIB, arch="x86_64", seed="ab" * 32, epoch=1_700_000_000, cmdline="quiet")
LONG = "n" * 255
AS_ROOT = os.geteuid() == 0
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


def quiet(_: str) -> None:
    pass


class Folder:
    """A plain folder as a finished root file system, without namespaces."""

    def __init__(self, folder: Path) -> None:
        self.mountpoint = folder

    def inside(
        self, argv: Sequence[str | Path], *, purpose: str, env: Mapping[str, str] | None = None, log: Log | None = None
    ) -> None:
        HOST.run(argv, purpose=purpose, env=env, log=log)

    def read(self, path: str) -> bytes:
        return (self.mountpoint / path.lstrip("/")).read_bytes()

    def pack(self, out: object, *, exclude: Sequence[str] = ()) -> None:
        raise NotImplementedError


def plant(root: Path, order: random.Random) -> Path:
    """A root file system of a few MiB, made in an order and at a time of its own."""
    folders = ["boot", "etc", "usr/bin", "var/lib/many"]
    for folder in folders:
        (root / folder).mkdir(parents=True)
    content = random.Random(7)
    files = {"boot/vmlinuz-6.1": content.randbytes(300_000), "boot/initrd.img-6.1": content.randbytes(200_000),
             "etc/hostname": b"golden\n", "etc/shadow": b"root:*:::::::\n", "usr/bin/ping": content.randbytes(5000),
             "etc/empty": b"", "usr/bin/holes": content.randbytes(4096) + bytes(200_000) + b"end", f"etc/{LONG}": b"x",
             **{f"var/lib/many/file-{n:04}": str(n).encode() for n in range(400)}}  # fmt: skip
    for name in order.sample(sorted(files), len(files)):
        (root / name).write_bytes(files[name])
        (root / name).chmod(0o644)
    (root / "etc/shadow").chmod(0o640)
    (root / "usr/bin/ping").chmod(0o4755)
    for name in order.sample(["usr/bin/a", "usr/bin/z"], 2):
        (root / name).hardlink_to(root / "usr/bin/ping")
    (root / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    (root / "initrd.img").symlink_to("boot/initrd.img-6.1")
    (root / "etc/long-link").symlink_to("/" + "t" * 200)
    os.mkfifo(root / "etc/fifo")
    if AS_ROOT:
        os.chown(root / "etc/shadow", 0, 42)
        os.chown(root / "var/lib/many", 1234, 70_000)
        os.setxattr(root / "usr/bin/ping", "security.capability", CAPABILITY)
        os.mknod(root / "etc/null", 0o20666, os.makedev(1, 3))
    for path in sorted(root.rglob("*")):
        os.utime(path, (time.time(), 1_600_000_000), follow_symlinks=False)
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("tree") / "root", random.Random(1))


@pytest.fixture(scope="module")
def raw(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembled disk, as a raw file."""
    folder = tmp_path_factory.mktemp("assembled")
    assemble(Folder(tree), folder / "disk.qcow2", SPEC, HOST, quiet)
    assert [p.name for p in folder.iterdir()] == ["disk.qcow2"]
    assert virtual_size(folder / "disk.qcow2", HOST) == SPEC.size
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / "disk.qcow2", folder / "disk.raw"], check=True)
    return folder / "disk.raw"


@pytest.fixture(scope="module")
def root(raw: Path) -> Partition:
    return root_of(find_partitions(raw, HOST))


@pytest.fixture(scope="module")
def debugfs(raw: Path, root: Partition) -> Callable[[str], str]:
    def ask(command: str) -> str:
        return HOST.run(["debugfs", "-R", command, f"{raw}?offset={root.offset}"], purpose="test").text

    return ask


# -- what is in it -------------------------------------------------------------------------------------------------


def test_the_disk_has_a_bios_boot_partition_an_esp_and_a_root_that_can_grow(raw: Path) -> None:
    found = [(p.number, p.name, p.fstype, p.label) for p in find_partitions(raw, HOST)]
    assert found == [(1, "bios", "", ""), (2, "esp", "vfat", "ESP"), (3, "root", "ext4", "root")]
    last = find_partitions(raw, HOST)[-1]
    assert last.offset + last.size == SPEC.size - MIB


def test_the_file_system_is_sound(raw: Path, root: Partition) -> None:
    HOST.run(["e2fsck", "-fn", f"{raw}?offset={root.offset}"], purpose="test")


def test_every_file_arrives_as_it_was(debugfs: Callable[[str], str], tree: Path, tmp_path: Path) -> None:
    for name in ("usr/bin/holes", f"etc/{LONG}", "var/lib/many/file-0399", "etc/empty"):
        debugfs(f"dump /{name} {tmp_path / 'out'}")
        assert (tmp_path / "out").read_bytes() == (tree / name).read_bytes()
    ping = debugfs("stat /usr/bin/ping")
    assert "Mode:  04755" in ping
    assert "Links: 3" in ping
    assert debugfs("stat /usr/bin/a").splitlines()[0] == ping.splitlines()[0]
    assert "t" * 200 in debugfs("stat /etc/long-link") + debugfs("cat /etc/long-link")
    assert "Type: FIFO" in debugfs("stat /etc/fifo")
    assert "mtime: 0x5f5e1000" in ping


@pytest.mark.skipif(not AS_ROOT, reason="only root makes such files")
def test_owners_devices_and_capabilities_arrive(debugfs: Callable[[str], str]) -> None:
    assert "Group:    42" in debugfs("stat /etc/shadow")
    assert "User:  1234   Group: 70000" in debugfs("stat /var/lib/many")
    assert "Type: character special" in debugfs("stat /etc/null")
    assert debugfs("ea_get -x /usr/bin/ping security.capability").split("=")[1].split() == [
        f"{byte:02x}" for byte in CAPABILITY
    ]


def test_no_time_of_this_host_is_in_it(debugfs: Callable[[str], str]) -> None:
    for name in ("/", "/etc/hostname", "/vmlinuz", "/boot/grub", "/boot/grub/grub.cfg", "/lost+found"):
        lines = [line for line in debugfs(f"stat {name}").splitlines() if "time: 0x" in line]
        assert lines
        assert {line.split()[1] for line in lines} <= {"0x6553f100:00000000", "0x5f5e1000:00000000"}


def test_grub_boots_the_links_that_the_guest_keeps_up_to_date(debugfs: Callable[[str], str]) -> None:
    assert debugfs("cat /boot/grub/grub.cfg") == (GOLDEN / "grub.cfg").read_text()


def test_the_loader_for_uefi_is_where_firmware_looks(raw: Path) -> None:
    done = HOST.run(["mdir", "-i", f"{raw}@@{2 * MIB}", "-b", "-/", "::"], purpose="test")
    assert done.text.split() == ["::/EFI/", "::/EFI/BOOT/", "::/EFI/BOOT/BOOTX64.EFI"]


def test_a_bios_finds_code_in_the_first_sector(raw: Path) -> None:
    with raw.open("rb") as stream:
        sector = stream.read(512)
        stream.seek(MIB)
        core = stream.read(512)
    assert (sector[510:], sector[0x5C:0x64]) == (b"\x55\xaa", (2048).to_bytes(8, "little"))
    assert core[0x1F4:0x1FC] == (2049).to_bytes(8, "little")


# -- the same every time -------------------------------------------------------------------------------------------


def test_equal_trees_give_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    """Made at another time, in another order, in another folder, and seen through an overlay."""
    assemble(Folder(tree), tmp_path / "one.qcow2", SPEC, HOST, quiet)
    time.sleep(1.1)
    again = plant(tmp_path / "elsewhere", random.Random(2))
    assemble(Folder(again), tmp_path / "two.qcow2", SPEC, HOST, quiet)
    assert (tmp_path / "one.qcow2").read_bytes() == (tmp_path / "two.qcow2").read_bytes()


@pytest.mark.skipif(not AS_ROOT, reason="the tree's owners are root's")
def test_a_tree_in_layers_gives_the_same_bytes_as_a_flat_one(tree: Path, tmp_path: Path) -> None:
    base, upper, work = tmp_path / "base", tmp_path / "upper", tmp_path / "work"
    subprocess.run(["cp", "-a", tree, base], check=True)
    (base / "etc/junk").write_text("removed by the layer above")
    shutil.copy2(base / "etc/hostname", tmp_path / "hostname")
    (base / "etc/hostname").write_text("another name\n")
    upper.mkdir()
    work.mkdir()
    with open_root(HOST, OverlayMount((str(base),), str(upper), str(work)), epoch=SPEC.epoch, log=quiet) as opened:
        opened.remove(["/etc/junk"])
        opened.inside(["cp", "-p", tmp_path / "hostname", opened.mountpoint / "etc/hostname"], purpose="test")
        opened.inside(["touch", "-d", "@1600000000", opened.mountpoint / "etc"], purpose="test")
    with open_root(HOST, OverlayMount((str(base), str(upper))), epoch=SPEC.epoch, log=quiet) as opened:
        assemble(opened, tmp_path / "layers.qcow2", SPEC, HOST, quiet)
    with open_root(HOST, DirectoryMount(str(tree)), epoch=SPEC.epoch, log=quiet) as opened:
        assemble(opened, tmp_path / "flat.qcow2", SPEC, HOST, quiet)
    assert (tmp_path / "layers.qcow2").read_bytes() == (tmp_path / "flat.qcow2").read_bytes()


# -- choices -------------------------------------------------------------------------------------------------------


def test_a_boot_configuration_of_the_trees_own_is_kept(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "root"
    subprocess.run(["cp", "-a", tree, own], check=True)
    (own / "boot/grub").mkdir()
    (own / "boot/grub/grub.cfg").write_text("# mine\n")
    assemble(Folder(own), tmp_path / "disk.qcow2", SPEC, HOST, quiet)
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "disk.qcow2", tmp_path / "raw"], check=True)
    place = root_of(find_partitions(tmp_path / "raw", HOST)).offset
    done = HOST.run(["debugfs", "-R", "cat /boot/grub/grub.cfg", f"{tmp_path / 'raw'}?offset={place}"], purpose="test")
    assert done.text == "# mine\n"


# -- what can go wrong ---------------------------------------------------------------------------------------------


def test_without_a_kernel_the_message_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "root/boot").mkdir(parents=True)
    with pytest.raises(BuildError, match="no kernel") as caught:
        assemble(Folder(tmp_path / "root"), tmp_path / "disk.qcow2", SPEC, HOST, quiet)
    assert "packages" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_a_tree_that_does_not_fit_says_both_sizes_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    large, into = tmp_path / "root", tmp_path / "into"
    subprocess.run(["cp", "-a", tree, large], check=True)
    (large / "etc/large").write_bytes(os.urandom(110 * MIB))
    into.mkdir()
    with pytest.raises(BuildError, match=r"files take 1\d\d MiB, and the disk has 95 MiB") as caught:
        assemble(Folder(large), into / "disk.qcow2", SPEC, HOST, quiet)
    assert "machine.disk" in caught.value.hint
    assert list(into.iterdir()) == []


_FULL = """
import os, sys
from pathlib import Path
import tests.test_assemble as t
from imagesmith.errors import StoreError
into = Path(sys.argv[2])
try:
    t.assemble(t.Folder(Path(sys.argv[1])), into / "disk.qcow2", t.SPEC, t.HOST, t.quiet)
except StoreError as error:
    print(error.message, sorted(os.listdir(into)))
"""


@pytest.mark.skipif(not AS_ROOT, reason="needs a small file system of its own")
@pytest.mark.parametrize("space", ["1m", "3m", "5m"])
def test_no_space_left_on_the_host_is_said_and_leaves_nothing(tree: Path, tmp_path: Path, space: str) -> None:
    (tmp_path / "small").mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size="$1" tmpfs "$4" && exec "$2" -c "$5" "$3" "$4"', "sh",
         space, sys.executable, tree, tmp_path / "small", _FULL],
        cwd=GOLDEN.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("no space left on the store's file system"), done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("[]")


def test_a_missing_file_of_grub_names_the_packages(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagesmith.disk.grub.FOLDERS", (tmp_path,))
    with pytest.raises(BuildError, match="GRUB's files for i386-pc") as caught:
        assemble(Folder(tree), tmp_path / "disk.qcow2", SPEC, HOST, quiet)
    assert "grub-pc-bin" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
