"""Firecracker: the kernel taken out of its file, the root file system, the configuration; a microVM boots the files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from imagesmith.disk.ext4_tar import make_ext4, stage
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.outputs._vmlinux import vmlinux
from imagesmith.outputs.firecracker import configuration
from tests import rootless
from tests.conftest import Command
from tests.consumers import ask
from tests.machines import IN_INITRD, MODULES, RELEASE, VMLINUX, MachineRoot, bzimage, console_of, initrd, write_files
from tests.test_oci import NET_RAW
from tests.test_outputs import MAKER

GOLDEN = Path(__file__).parent / "golden/outputs"
RECIPE = Path(__file__).parent / "recipes/diskless.yaml"
COMPRESSORS = {
    "gzip": ["gzip", "-c"], "xz": ["xz", "--check=crc32", "--x86", "--lzma2", "-c"], "zstd": ["zstd", "-q", "-c"],
    "lz4": ["lz4", "-l", "-q", "-c"], "lzop": ["lzop", "-c"], "bzip2": ["bzip2", "-c"], "lzma": ["lzma", "-c"],
}  # fmt: skip


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_kernel_is_taken_out_of_its_file_however_it_is_compressed(compressor: str) -> None:
    payload = Host().run(COMPRESSORS[compressor], purpose="test", input=VMLINUX).stdout
    size = b"" if compressor == "gzip" else struct.pack("<I", len(VMLINUX))
    assert vmlinux(bzimage(payload, size=size), "x86_64", Host()) == VMLINUX


def test_a_real_kernel_is_taken_out_of_its_file() -> None:
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if os.access(path, os.R_OK)]
    if not kernels:
        pytest.skip("no kernel in /boot that this user may read")
    found = vmlinux(kernels[0].read_bytes(), "x86_64", Host())
    kind, machine = struct.unpack_from("<HH", found, 16)
    assert (found[:4], kind, machine) == (b"\x7fELF", 2, 62)  # an executable for x86-64
    table, (size, count) = struct.unpack_from("<Q", found, 32)[0], struct.unpack_from("<HH", found, 54)
    segments = [struct.unpack_from("<IIQQQQ", found, table + size * number) for number in range(count)]
    assert all(offset + length <= len(found) for _, _, offset, _, _, length in segments)
    assert b"Linux version " in found


def test_an_arm_kernel_is_an_image_and_may_be_compressed_as_a_whole() -> None:
    image = bytes(56) + b"ARM\x64" + bytes(100)
    packed = Host().run(["gzip", "-c"], purpose="test", input=image).stdout
    assert vmlinux(image, "aarch64", Host()) == vmlinux(packed, "aarch64", Host()) == image


@pytest.mark.parametrize(("kernel", "words"), [
    (b"MZ" + bytes(5000), "is no bzImage"),
    (bzimage(b"\x1f\x8b" + bytes(100)), "is damaged"),
    (bzimage(b"(\xb5/\xfd" + bytes(100)), "is damaged: zstd says"),
    (bzimage(b"\x12\x34\x56\x78" + bytes(100)), "compressed in a way that is not known .* 12 34 56 78"),
    (bzimage(b"\x7fELF" + bytes(5000))[:3000], "is cut off at byte 3000"),
])  # fmt: skip
def test_what_is_no_kernel_is_refused(kernel: bytes, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        vmlinux(kernel, "x86_64", Host())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One of each file, by how its name ends."""
    found = write_files("firecracker", tmp_path_factory.mktemp("firecracker"))
    assert [path.name for path in found] == [
        f"web-golden.firecracker.{end}" for end in ("json", "vmlinux", "initrd", "ext4")
    ]
    return {path.suffix.strip("."): path for path in found}


def test_the_configuration_is_what_firecrackers_interface_takes(made: Mapping[str, Path]) -> None:
    text = made["json"].read_text()
    assert text == (GOLDEN / "firecracker.json").read_text()
    found = json.loads(text)
    jsonschema.validate(found, json.loads((GOLDEN / "firecracker-api.json").read_text()))
    named = [found["boot-source"]["kernel_image_path"], found["boot-source"]["initrd_path"],
             *(drive["path_on_host"] for drive in found["drives"])]  # fmt: skip
    assert sorted(named) == sorted(path.name for path in made.values() if path.suffix != ".json")
    assert "initrd_path" not in json.loads(configuration(MAKER, "x", initrd=False))["boot-source"]


def test_kernel_and_initrd_are_the_images(made: Mapping[str, Path]) -> None:
    assert made["vmlinux"].read_bytes() == VMLINUX
    assert made["initrd"].read_bytes() == initrd()


def _debugfs(image: Path, *commands: str) -> str:
    return "".join(ask("debugfs", "-R", command, image) for command in commands)


def test_the_root_file_system_is_whole(made: Mapping[str, Path], tmp_path: Path) -> None:
    image = made["ext4"]
    ask("e2fsck", "-fn", image)
    assert image.stat().st_size % (64 << 20) == 0
    about = ask("dumpe2fs", "-h", image)
    assert "Filesystem volume name:   root" in about
    uuid = re.search(r"Filesystem UUID: +(\S+)", about)
    assert uuid is not None
    assert _debugfs(image, "cat /etc/fstab") == f"UUID={uuid[1]} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n"
    names = ("/bin/ping", "/var/web", "/var/fifo", '/var/a ""disk""', "/var/big owner", "/bin/sh", "/bin/busybox", "/",
             "/tmp", "/etc/passwd", "/var/hole")  # fmt: skip
    stat = {name: _debugfs(image, f'stat "{name}"') for name in names}
    assert re.search(r"Mode: +04755 ", stat["/bin/ping"])
    assert re.search(r"User: +33 +Group: +33 ", stat["/var/web"])
    assert re.search(r"Type: FIFO +Mode: +0620", stat["/var/fifo"])
    assert re.search(r"Type: block special +Mode: +0660", stat['/var/a ""disk""'])
    assert "8:300" in stat['/var/a ""disk""']
    assert re.search(r"User: +-294967295 +Group: +70000 ", stat["/var/big owner"])  # 4000000001, as debugfs shows it
    assert 'Fast link dest: "busybox"' in stat["/bin/sh"]
    assert "Links: 2" in stat["/bin/busybox"]
    assert re.search(r"Mode: +0755 ", stat["/"])
    assert re.search(r"Mode: +01777 ", stat["/tmp"])
    assert f"mtime: 0x{MAKER.epoch - 5:08x}" in stat["/etc/passwd"]
    assert f"mtime: 0x{MAKER.epoch:08x}" in stat["/var/web"]
    assert int(re.findall(r"Blockcount: (\d+)", stat["/var/hole"])[0]) <= 2048
    capability = tmp_path / "capability"
    _debugfs(image, f"ea_get -f {capability} /bin/ping security.capability")
    assert capability.read_bytes() == NET_RAW
    assert ask("debugfs", "-R", "ls -p /dev", image).count("\n") <= 3
    busybox = tmp_path / "busybox"
    _debugfs(image, f"dump /bin/busybox {busybox}")
    assert busybox.read_bytes() == Path("/bin/busybox").read_bytes()
    assert _debugfs(image, "cat /usr/lib/\xe4\xf6.txt") == "umlauts\n"


def test_written_twice_it_is_the_same(made: Mapping[str, Path], tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        again = write_files("firecracker", tmp_path / "a longer name of a folder")
    finally:
        os.umask(before)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made.values()]


def test_an_ordinary_user_makes_the_same(made: Mapping[str, Path]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with rootless.home() as home:
        code = (f"from pathlib import Path; from tests.machines import write_files; "
                f"write_files('firecracker', Path({str(home)!r}, 'made'))")  # fmt: skip
        done = rootless.run(home, code)
        assert done.returncode == 0, done.stderr
        for path in made.values():
            assert (home / "made" / path.name).read_bytes() == path.read_bytes()


def test_a_size_is_kept_and_one_that_does_not_do_is_refused(tmp_path: Path) -> None:
    image = write_files("firecracker", tmp_path / "large", size="300M")[-1]
    assert image.stat().st_size == 300 << 20
    with pytest.raises(BuildError, match="does not fit: its files take") as caught:
        write_files("firecracker", tmp_path / "small", size="8M")
    assert "raise the output's size" in caught.value.hint
    assert not list((tmp_path / "small").iterdir())


@pytest.mark.parametrize(("more", "words", "hint"), [
    ({f"boot/initrd.img-{RELEASE}": initrd(IN_INITRD[:2])}, "virtio_mmio, virtio_blk are neither in it nor in its",
     "update-initramfs -u"),
    ({f"{MODULES}/modules.builtin": None}, "would not find its root file system: ext4 is neither", "initramfs"),
    ({"initrd.img": None}, "virtio_mmio, virtio_blk are neither", "initramfs"),
    ({f"{MODULES}/modules.dep": None}, f"kernel {RELEASE} has no modules", "depmod"),
    ({"vmlinuz": None, f"boot/vmlinuz-{RELEASE}": None, "boot/vmlinuz-6.1": None}, "the image has none in / or /boot",
     "kernel: none"),
    ({"sbin/init": None}, "boots the image's init, and the image has none", "systemd-sysv"),
    ({f"boot/initrd.img-{RELEASE}": b"no archive at all"}, "initial RAM disk cannot be read", ""),
])  # fmt: skip
def test_a_guest_that_would_not_boot_is_refused(
    tmp_path: Path, more: Mapping[str, bytes | None], words: str, hint: str
) -> None:
    with pytest.raises(BuildError, match=words) as caught:
        write_files("firecracker", tmp_path, MachineRoot(more))
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_kernel_with_all_that_it_needs_inside_boots_without_an_initial_ram_disk(tmp_path: Path) -> None:
    built_in = "".join(f"kernel/{name}.ko\n" for name in ("ext4", "virtio_blk", "virtio_mmio")).encode()
    root = MachineRoot({"initrd.img": None, f"{MODULES}/modules.builtin": built_in})
    found = write_files("firecracker", tmp_path, root)
    assert [path.suffix for path in found] == [".json", ".vmlinux", ".ext4"]
    assert "initrd_path" not in found[0].read_text()


def test_a_name_that_leads_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"a file with the name '\.\.'"):
        write_files("firecracker", tmp_path, MachineRoot({"../etc/passwd": b"x"}))


def _link(name: str, target: str) -> tarfile.TarInfo:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.LNKTYPE, target
    return link


def test_links_stay_inside_and_device_nodes_may_have_two_names(tmp_path: Path) -> None:
    device, way_out = tarfile.TarInfo("sda"), tarfile.TarInfo("etc")
    device.type, device.devmajor, device.devminor = tarfile.BLKTYPE, 8, 0
    way_out.type, way_out.linkname = tarfile.SYMTYPE, "/etc"
    staged = stage([(device, None), (_link("disk", "sda"), None), (way_out, None)], tmp_path / "good")
    assert [(m.name, m.devmajor) for m in staged.members] == [("sda", 8), ("disk", 8), ("etc", 0)]
    for number, link in enumerate((_link("x", "etc/passwd"), _link("x", "/etc/passwd"), _link("x", "../good/etc"))):
        with pytest.raises(Refused, match=r"has no .* for its link 'x'"):
            stage([(way_out, None), (link, None)], tmp_path / str(number))


def test_many_small_files_find_inodes(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"srv/{number}"), io.BytesIO()) for number in range(4000)]
    staged, image = stage(members, tmp_path / "root"), tmp_path / "image"
    names = {"label": "root", "uuid": str(uuid.UUID(int=1)), "hash_seed": str(uuid.UUID(int=2))}
    make_ext4(staged, tmp_path / "root", image, Host(), size=staged.size + (1 << 20), epoch=1, **names)
    ask("e2fsck", "-fn", image)


def test_more_processors_than_firecracker_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.machines.MAKER", replace(MAKER, cpus=33))
    with pytest.raises(BuildError, match="at most 32 processors, not 33"):
        write_files("firecracker", tmp_path)


@pytest.mark.slow
def test_a_microvm_boots_the_files_to_a_login(command: Command, tmp_path: Path) -> None:
    """QEMU's microvm is the machine most like Firecracker's that runs without KVM."""
    command("build", RECIPE, "--only", "firecracker")
    folder = command.output / "diskless"
    config = json.loads((folder / "diskless.firecracker.json").read_text())
    source, machine = config["boot-source"], config["machine-config"]
    root = tmp_path / "root.ext4"
    shutil.copyfile(folder / config["drives"][0]["path_on_host"], root)
    os.truncate(root, 2 << 30)
    said = console_of(
        ["qemu-system-x86_64", "-M", "microvm", "-smp", str(machine["vcpu_count"]), "-m", str(machine["mem_size_mib"]),
         "-kernel", folder / source["kernel_image_path"], "-initrd", folder / source["initrd_path"],
         # without KVM nothing tells the kernel how fast its clock is
         "-append", source["boot_args"] + " tsc_early_khz=1000000",
         "-drive", f"file={root},format=raw,if=none,id=root,cache=unsafe", "-device", "virtio-blk-device,drive=root"],
        tmp_path / "console.log", "debian login:",
    )  # fmt: skip
    assert "FAILED" not in said
    assert int(re.findall(r"Block count: +(\d+)", ask("dumpe2fs", "-h", root))[0]) == (2 << 30) // 4096  # it has grown
