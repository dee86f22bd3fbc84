"""Foreign disk images, partition tables, and the bytes of boot loaders."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagesmith.bases.disk import DiskImage
from imagesmith.disk import gpt, grub
from imagesmith.disk.image import import_image, inspect, overlay, probe, virtual_size
from imagesmith.disk.kernel import Kernel, find_kernel
from imagesmith.disk.partitions import Partition, find_partitions, parse_blkid, parse_table, root_of
from imagesmith.disk.probe import check_header
from imagesmith.errors import BuildError, ImagesmithError, Refused
from imagesmith.host import Host

GOLDEN = Path(__file__).parent / "golden"
MIB = 1 << 20
HOST = Host()
SEED = "ab" * 32


def quiet(_: str) -> None:
    pass


def qemu_img(*args: object) -> str:
    return subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk: a boot signature, 3 MiB that are no zeros, 16 MiB in all."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    content = bytearray(os.urandom(3 * MIB))
    content[510:512] = b"\x55\xaa"
    with path.open("wb") as stream:
        stream.write(content)
        stream.truncate(16 * MIB)
    return path


def converted(raw: Path, into: Path, format: str, options: str = "") -> Path:
    path = into / f"disk.{format}"
    qemu_img("convert", "-f", "raw", "-O", format, *(["-o", options] if options else []), raw, path)
    return path


# -- partition tables we write -------------------------------------------------------------------------------------


def test_the_partition_table_is_spelled_out_the_same_every_time() -> None:
    text = gpt.script(gpt.layout(4096 * MIB, "x86_64", SEED)) + "\n" + gpt.script(
        gpt.layout(4096 * MIB, "aarch64", SEED))  # fmt: skip
    assert text == (GOLDEN / "sfdisk.txt").read_text()


def test_another_seed_gives_other_identifiers() -> None:
    one, other = (gpt.layout(256 * MIB, "x86_64", seed) for seed in ("01", "02"))
    assert not {one.guid, *(p.guid for p in one.parts)} & {other.guid, *(p.guid for p in other.parts)}


def test_sizes_are_rounded_up_to_whole_mebibytes_and_tiny_disks_are_refused() -> None:
    assert gpt.layout(256 * MIB + 1, "x86_64", SEED).size == 257 * MIB
    with pytest.raises(BuildError, match="too small") as caught:
        gpt.layout(MIB, "x86_64", SEED)
    assert "machine.disk" in caught.value.hint


# -- boot loaders --------------------------------------------------------------------------------------------------


def test_the_boot_sector_loads_the_core_from_its_partition() -> None:
    code = grub.patch_boot_sector(bytes(512), 2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x64] == 0xFF
    assert code[0x66:0x68] == b"\x90\x90"
    core = grub.patch_core(bytes(512 * 3 + 1), 2048)
    assert struct.unpack_from("<QHH", core, 0x1F4) == (2049, 3, 0x820)


def test_the_kernels_command_line_is_quoted_for_grub() -> None:
    line = grub.arguments("x86_64", "UUID=1", "quiet dyndbg=file*;x")
    assert line == "root=UUID=1 rw console=tty0 console=ttyS0,115200 quiet 'dyndbg=file*;x'"
    with pytest.raises(BuildError, match="ASCII"):
        grub.arguments("x86_64", "UUID=1", "caf\u00e9")


@pytest.mark.parametrize(
    ("entries", "kernel"),
    [
        ({"/vmlinuz": "boot/vmlinuz-6.1", "/initrd.img": "boot/initrd.img-6.1", "/boot/vmlinuz-6.1": "",
          "/boot/initrd.img-6.1": ""}, Kernel("/vmlinuz", "/initrd.img")),
        ({"/boot/vmlinuz": "vmlinuz-6.8", "/boot/initrd.img": "initrd.img-6.8", "/boot/vmlinuz-6.8": "",
          "/boot/initrd.img-6.8": ""}, Kernel("/boot/vmlinuz", "/boot/initrd.img")),
        ({"/vmlinuz": "boot/vmlinuz-5", "/boot/vmlinuz-6.9.1": "", "/boot/vmlinuz-6.10.1": "",
          "/boot/initramfs-6.10.1.img": "", "/boot/vmlinuz-0-rescue-1": ""},
         Kernel("/boot/vmlinuz-6.10.1", "/boot/initramfs-6.10.1.img")),
        ({"/boot/vmlinuz-linux": "", "/boot/initramfs-linux.img": ""},
         Kernel("/boot/vmlinuz-linux", "/boot/initramfs-linux.img")),
        ({"/vmlinuz": "/vmlinuz", "/boot": ""}, None),
    ],
    ids=["debian", "ubuntu", "fedora-with-a-dead-link", "arch", "none"],
)  # fmt: skip
def test_the_kernel_is_found_by_its_link_else_the_newest(entries: dict[str, str], kernel: Kernel | None) -> None:
    assert find_kernel(entries) == kernel


# -- foreign images ------------------------------------------------------------------------------------------------

FORMATS = [("qcow2", ""), ("vmdk", ""), ("vmdk", "subformat=streamOptimized"), ("vmdk", "subformat=monolithicFlat"),
           ("vdi", ""), ("vhdx", ""), ("vpc", "force_size=on"),
           ("vpc", "subformat=fixed,force_size=on"), ("raw", "")]  # fmt: skip


@pytest.mark.parametrize(("format", "options"), FORMATS)
def test_every_format_is_recognised_and_becomes_a_whole_qcow2(
    raw: Path, tmp_path: Path, format: str, options: str
) -> None:
    image = converted(raw, tmp_path, format, options)
    assert probe(image) == format
    into = tmp_path / "layer.qcow2"
    info = import_image(image, into, HOST, quiet, size=24 * MIB)
    assert (info.format, info.virtual_size) == (format, 16 * MIB)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, into)
    made = json.loads(qemu_img("info", "--output=json", into))
    assert (made["virtual-size"], "backing-filename" in made) == (24 * MIB, False)
    assert made["format-specific"]["data"]["compat"] == "1.1"


@pytest.mark.parametrize(("format", "options"), [f for f in FORMATS if f[0] != "raw" and "Flat" not in f[1]])
def test_an_image_that_was_cut_off_is_refused(raw: Path, tmp_path: Path, format: str, options: str) -> None:
    image = converted(raw, tmp_path, format, options)
    for length in (image.stat().st_size // 2, 70_000, 300):
        os.truncate(image, length)
        with pytest.raises(Refused):
            inspect(image, HOST)


def test_a_disk_never_shrinks_and_the_message_says_what_it_needs(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="16 MiB, more than the 8 MiB") as caught:
        import_image(raw, tmp_path / "x.qcow2", HOST, quiet, size=8 * MIB)
    assert caught.value.hint == "set machine.disk to 1G or more"
    assert list(tmp_path.iterdir()) == []


def test_a_backing_file_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "evil.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", image, "1M")
    with pytest.raises(Refused, match="backing file"):
        import_image(image, tmp_path / "x.qcow2", HOST, quiet)
    assert not (tmp_path / "x.qcow2").exists()


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "evil.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", image, "1M")
    with pytest.raises(Refused, match="another file"):
        inspect(image, HOST)
    content = bytearray(image.read_bytes())
    content[79] &= ~4  # the feature bit away, the name still there
    image.write_bytes(content)
    with pytest.raises(Refused, match="another file"):
        inspect(image, HOST)


def test_an_encrypted_image_is_refused(raw: Path, tmp_path: Path) -> None:
    image = converted(raw, tmp_path, "qcow2")
    with image.open("r+b") as stream:
        stream.seek(32)
        stream.write(b"\0\0\0\x02")  # crypt_method: LUKS
    with pytest.raises(Refused, match="encrypted"):
        inspect(image, HOST)


def test_internal_snapshots_are_no_harm(raw: Path, tmp_path: Path) -> None:
    image = converted(raw, tmp_path, "qcow2")
    qemu_img("snapshot", "-c", "before", image)
    assert inspect(image, HOST).snapshots == ("before",)


@pytest.mark.parametrize(
    "extent", ["/etc/passwd", "../other.vmdk", "nbd:localhost", "json:{}", "C:\\x", "link.vmdk", "nowhere.vmdk"]
)
def test_a_vmdk_may_not_lead_outside_its_folder(raw: Path, tmp_path: Path, extent: str) -> None:
    image = converted(raw, tmp_path, "vmdk", "subformat=monolithicFlat")
    (tmp_path / "link.vmdk").symlink_to("/etc/passwd")
    image.write_text(image.read_text().replace("disk-flat.vmdk", extent))
    with pytest.raises(Refused, match="keeps data in"):
        inspect(image, HOST)


def test_a_vmdk_whose_embedded_descriptor_would_be_followed_is_looked_at_too(tmp_path: Path) -> None:
    header = bytearray(512)
    struct.pack_into("<4sIIQQQQ", header, 0, b"KDMV", 1, 3, 0, 128, 1, 1)  # capacity 0; a descriptor in sector 1
    image = tmp_path / "evil.vmdk"
    image.write_bytes(bytes(header) + b'# Disk DescriptorFile\nRW\x0b100 FLAT "/etc/passwd" 0\n'.ljust(512, b"\0"))
    with pytest.raises(Refused, match="outside its own folder"):
        inspect(image, HOST)


def test_a_vmdk_snapshot_is_refused(raw: Path, tmp_path: Path) -> None:
    image = converted(raw, tmp_path, "vmdk", "subformat=monolithicFlat")
    image.write_text(image.read_text().replace("parentCID=ffffffff", "parentCID=12345678"))
    with pytest.raises(Refused, match="snapshot"):
        inspect(image, HOST)


def test_an_unbelievable_size_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "huge.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", image, f"{17 << 40}")
    with pytest.raises(Refused, match="not believed"):
        inspect(image, HOST)


def test_what_is_no_disk_is_refused_with_what_it_is(tmp_path: Path) -> None:
    for content, words in [
        (os.urandom(4096), "no disk image that is known"), (b"", "no disk image that is known"),
        (b"\x1f\x8b" + bytes(600), "a gzip file"), (b"LUKS\xba\xbe" + bytes(600), "encrypted"),
        (bytes(257) + b"ustar" + bytes(600), "tar archive"), (bytes(32769) + b"CD001" + bytes(2000), "ISO image"),
    ]:  # fmt: skip
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(Refused, match=words):
            inspect(tmp_path / "x", HOST)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Refused, match="no regular file"):
        inspect(tmp_path / "fifo", HOST)
    with pytest.raises(Refused, match="no such image"):
        inspect(tmp_path / "none", HOST)


def test_the_format_that_the_user_names_is_believed_for_raw_and_checked_for_the_others(
    raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(bytes(1024))
    assert inspect(tmp_path / "x", HOST, "raw").virtual_size == 1024
    (tmp_path / "x").write_bytes(bytes(1000))
    with pytest.raises(Refused, match="no whole sectors"):
        inspect(tmp_path / "x", HOST, "raw")
    with pytest.raises(Refused, match="no vmdk image, but qcow2"):
        inspect(converted(raw, tmp_path, "qcow2"), HOST, "vmdk")
    with pytest.raises(Refused, match="did you mean 'vmdk'"):
        inspect(raw, HOST, "vmkd")
    # A raw disk whose guest wrote a qcow2 header to it stays what its owner says it is.
    assert inspect(tmp_path / "disk.qcow2", HOST, "raw").format == "raw"


MAGICS = [b"QFI\xfb\0\0\0\x03", b"QFI\xfb\0\0\0\x02", b"KDMV\x01\0\0\0", b"# Disk DescriptorFile\n", b"vhdxfile",
          b"conectix", bytes(64) + b"\x7f\x10\xda\xbe"]  # fmt: skip


@given(magic=st.sampled_from(MAGICS), body=st.binary(max_size=1200), tail=st.sampled_from([b"", b"conectix" * 64]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_header_makes_the_look_at_it_fall_over(tmp_path: Path, magic: bytes, body: bytes, tail: bytes) -> None:
    image = tmp_path / "fuzz"
    image.write_bytes(magic + body + tail)
    try:
        check_header(image, probe(image))
    except ImagesmithError:
        pass


@given(flips=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=4),
       format=st.sampled_from(["qcow2", "vmdk", "vdi", "vhdx", "vpc"]))  # fmt: skip
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_header_with_flipped_bytes_is_taken_or_refused(
    raw: Path, tmp_path: Path, flips: list[tuple[int, int]], format: str
) -> None:
    sound = tmp_path / f"disk.{format}"
    if not sound.exists():
        converted(raw, tmp_path, format)
    content = bytearray(sound.read_bytes())
    for place, value in flips:
        content[place] = value
    (tmp_path / "fuzz").write_bytes(content)
    try:
        inspect(tmp_path / "fuzz", HOST)
    except ImagesmithError:
        pass


# -- layers --------------------------------------------------------------------------------------------------------


def test_a_layer_names_its_base_so_that_both_can_be_moved_together(raw: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "store" / name).mkdir(parents=True)
    base = converted(raw, tmp_path / "store" / "one", "qcow2")
    top = tmp_path / "store" / "two" / "disk.qcow2"
    overlay(base, top, HOST, size=32 * MIB)
    (tmp_path / "store").rename(tmp_path / "moved")
    top = tmp_path / "moved" / "two" / "disk.qcow2"
    info = json.loads(qemu_img("info", "--output=json", top))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("../one/disk.qcow2", "qcow2")
    assert virtual_size(top, HOST) == 32 * MIB
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, top)


# -- partition tables we read --------------------------------------------------------------------------------------


def test_sfdisks_word_on_a_table_is_read() -> None:
    parts = [{"node": "/x/disk1p5", "start": 6144, "size": 100, "type": "83"},
             {"node": "/x/disk1p2", "start": 4096, "size": 9000, "type": "5"},
             {"node": "/x/disk1p1", "start": 2048, "size": 2048, "type": "83", "bootable": True}]  # fmt: skip
    table = {"label": "dos", "device": "/x/disk1", "sectorsize": 512, "partitions": parts}
    text = json.dumps({"partitiontable": table})
    assert parse_table(text) == [Partition(1, MIB, MIB, "83"), Partition(5, 3 * MIB, 51200, "83")]


def test_blkids_word_on_a_file_system_is_read() -> None:
    assert parse_blkid("DEVNAME=/x\nLABEL=my\\ root\nTYPE=ext4\n") == {"DEVNAME": "/x", "LABEL": "my root",
                                                                      "TYPE": "ext4"}  # fmt: skip


def test_the_root_is_chosen_by_type_then_label_then_size() -> None:
    boot = Partition(1, 0, 10, fstype="ext4", label="boot")
    big = Partition(2, 0, 99, fstype="xfs", label="data")
    labelled = Partition(3, 0, 20, fstype="ext4", label="cloudimg-rootfs")
    typed = Partition(4, 0, 5, type=gpt.ROOT["x86_64"], fstype="btrfs")
    assert root_of([boot, big, labelled, typed]) == typed
    assert root_of([boot, big, labelled]) == labelled
    assert root_of([boot, big]) == big
    with pytest.raises(BuildError, match="no root file system") as caught:
        root_of([Partition(1, 0, 9, fstype="LVM2_member")])
    assert "LVM" in caught.value.hint


def test_partitions_and_file_systems_of_a_real_disk_are_found(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as stream:
        stream.truncate(64 * MIB)
    table = "label: dos\nstart=2048, size=20480, type=c\nstart=22528, type=5\nstart=24576, type=83\n"
    HOST.run(["sfdisk", "-q", disk], purpose="test", input=table.encode())
    HOST.run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "my root", "-E", f"offset={24576 * 512}", disk, "20M"],
             purpose="test")  # fmt: skip
    found = find_partitions(disk, HOST)
    assert [(p.number, p.type, p.fstype, p.label) for p in found] == [(1, "c", "", ""), (5, "83", "ext4", "my root")]
    assert root_of(found).offset == 24576 * 512


def test_a_disk_without_a_table_may_be_one_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    HOST.run(["mke2fs", "-q", "-F", "-t", "ext4", disk, "8M"], purpose="test")
    root = root_of(find_partitions(disk, HOST))
    assert (root.number, root.offset, root.size, root.fstype) == (0, 0, 8 * MIB, "ext4")


# -- the base ------------------------------------------------------------------------------------------------------


def test_whether_a_disk_is_trusted_is_not_in_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(512))

    def base(**options: object) -> DiskImage:
        return DiskImage.model_validate({"path": "a.img", **options}, context={"folder": tmp_path})

    assert base().identity() == base(trusted=True).identity() != base(format="raw").identity()
    assert (base().trusted_origin, base(trusted=True).trusted_origin) == (False, True)
