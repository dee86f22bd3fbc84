"""VMDK, VDI, VHD, VHDX and what Azure, EC2 and Compute Engine take: read by others, with nothing in them by chance."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.errors import BuildError, RecipeError
from imagesmith.interfaces import Disk
from imagesmith.outputs._vhdx import crc32c
from tests.conftest import Golden
from tests.consumers import NO_KVM, ask, image_info, same_disk
from tests.disk_headers import vdi_ids, vhd_footer, vhdx_ids
from tests.test_outputs import MAKER, MIB, make_disk, write
from tests.test_plan import plan

GOLDEN = Path(__file__).parent / "golden/outputs"
SIZE = 64 * MIB + 512 * 1024
WHOLE = 65 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=SIZE)


@pytest.mark.parametrize(("name", "options", "file", "format", "size"), [
    ("vmdk", {}, "web-golden.vmdk", "vmdk", SIZE),
    ("vmdk", {"subformat": "monolithicSparse"}, "web-golden.sparse.vmdk", "vmdk", SIZE),
    ("vdi", {}, "web-golden.vdi", "vdi", SIZE),
    ("vhd", {}, "web-golden.vhd", "vpc", WHOLE),
    ("vhd", {"subformat": "fixed"}, "web-golden.fixed.vhd", "vpc", WHOLE),
    ("vhdx", {}, "web-golden.vhdx", "vhdx", SIZE),
    ("azure", {}, "web-golden.azure.vhd", "vpc", WHOLE),
])  # fmt: skip
def test_it_holds_the_same_disk(
    disk: Disk, tmp_path: Path, name: str, options: Mapping[str, object], file: str, format: str, size: int
) -> None:
    (image,) = write(name, options, disk, tmp_path)
    assert image.name == file
    same_disk(disk.path, image, format)
    assert image_info(image, format)["virtual-size"] == size
    if format in ("vdi", "vhdx", "vmdk"):
        ask("qemu-img", "check", "-f", format, image)


# -- what the readers of others say --------------------------------------------------------------------------------


@pytest.mark.parametrize(("subformat", "type"), [
    ("streamOptimized", "Stream optimized"), ("monolithicSparse", "Monolithic sparse")
])  # fmt: skip
def test_libvmdk_reads_the_vmdk(disk: Disk, tmp_path: Path, subformat: str, type: str) -> None:
    (image,) = write("vmdk", {"subformat": subformat}, disk, tmp_path)
    said = ask("vmdkinfo", image)
    assert re.search(rf"Disk type:\s+{type}$", said, re.M)
    assert re.search(rf"Media size:.*\({SIZE} bytes\)", said)
    assert re.search(r"Parent content identifier:\s+0xffffffff$", said, re.M)
    assert re.search(r"Number of extents:\s+1$", said, re.M)
    text = image.read_bytes()[512 : 21 * 512].rstrip(b"\0").decode()
    assert re.search(r'^ddb\.uuid\.image = "[0-9a-f-]{36}"$', text, re.M)


@pytest.mark.parametrize(("name", "options", "format", "type", "size"), [
    ("vhd", {}, "VHD", "Dynamic", WHOLE), ("vhd", {"subformat": "fixed"}, "VHD", "Fixed", WHOLE),
    ("azure", {}, "VHD", "Fixed", WHOLE), ("vhdx", {}, "VHDX", "Dynamic", SIZE),
])  # fmt: skip
def test_libvhdi_reads_the_vhd_and_the_vhdx(
    disk: Disk, tmp_path: Path, name: str, options: Mapping[str, object], format: str, type: str, size: int
) -> None:
    said = ask("vhdiinfo", *write(name, options, disk, tmp_path))
    assert re.search(rf"Format\s+: {format} ", said)
    assert re.search(rf"Disk type\s+: {type}$", said, re.M)
    assert re.search(rf"Media size\s+: .*\({size} bytes\)", said)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "format"), [
    ("vmdk", {}, "vmdk"), ("vdi", {}, "vdi"), ("vhdx", {}, "vhdx"), ("azure", {}, "vpc")
])  # fmt: skip
def test_libguestfs_finds_the_system_in_it(
    golden: Golden, tmp_path: Path, name: str, options: Mapping[str, object], format: str
) -> None:
    (image,) = write(name, options, Disk(golden.folder / "golden.qcow2", 3 << 30), tmp_path)
    said = ask("virt-inspector", f"--format={format}", "-a", image, "--no-icon", env=NO_KVM, timeout=900)
    assert "<distro>debian</distro>" in said
    assert "<hostname>debian</hostname>" in said
    assert "<name>nginx-light</name>" in said


# -- what nobody checks --------------------------------------------------------------------------------------------


def distinct(*images: Mapping[str, uuid.UUID]) -> bool:
    """Whether no identifier is there twice, in one image or in two."""
    found = [name for image in images for name in image.values()]
    return len(set(found)) == len(found)


def test_the_vdi_is_named_and_has_no_parent(disk: Disk, tmp_path: Path) -> None:
    one = vdi_ids(*write("vdi", {}, disk, tmp_path / "1"))
    two = vdi_ids(*write("vdi", {}, disk, tmp_path / "2", replace(MAKER, seed="07" * 32)))
    for image in (one, two):
        assert image.pop("linkage").int == image.pop("parent modification").int == 0
        assert {name.version for name in image.values()} == {5}
    assert distinct(one, two)


@pytest.mark.parametrize(("name", "options", "kind"), [
    ("vhd", {}, 3), ("vhd", {"subformat": "fixed"}, 2), ("azure", {}, 2),
])  # fmt: skip
def test_the_vhd_is_as_the_specification_says(
    disk: Disk, tmp_path: Path, name: str, options: Mapping[str, object], kind: int
) -> None:
    one = vhd_footer(*write(name, options, disk, tmp_path / "1"))
    two = vhd_footer(*write(name, options, disk, tmp_path / "2", replace(MAKER, seed="07" * 32)))
    assert one["id"] != two["id"]
    assert (one["kind"], one["size"], one["made"]) == (kind, WHOLE, MAKER.epoch - 946684800)


def test_a_vhd_of_before_2000_has_the_first_time_that_there_is(disk: Disk, tmp_path: Path) -> None:
    assert vhd_footer(*write("vhd", {}, disk, tmp_path, replace(MAKER, epoch=0)))["made"] == 0


def test_the_vhdx_is_as_the_specification_says(disk: Disk, tmp_path: Path) -> None:
    one = vhdx_ids(*write("vhdx", {}, disk, tmp_path / "1"))
    two = vhdx_ids(*write("vhdx", {}, disk, tmp_path / "2", replace(MAKER, seed="07" * 32)))
    assert {name.version for name in one.values()} == {5}
    assert distinct(one, two)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32/ISCSI
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


# -- clouds --------------------------------------------------------------------------------------------------------


def test_the_gce_archive_is_what_googles_own_command_makes(disk: Disk, tmp_path: Path) -> None:
    (archive,) = write("gce", {}, disk, tmp_path)
    assert archive.name == "web-golden.gce.tar.gz"
    with gzip.open(archive) as stream:
        head = stream.read(512)
    assert head[257:265] == b"ustar  \0", "GNU's old format"
    member = tarfile.TarInfo.frombuf(head, "ascii", "strict")
    assert (member.size, member.uid, member.gid, member.uname) == (1 << 30, 0, 0, "")
    assert (member.mtime, member.mode) == (MAKER.epoch, 0o644)
    plain = tmp_path / "plain.raw"
    ask("qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.path, plain)
    os.truncate(plain, 1 << 30)
    names = ask("bash", "-o", "pipefail", "-c", 'tar -xvOzf "$0" 2>names | cmp - plain.raw && cat names', archive,
                cwd=tmp_path)  # fmt: skip
    assert names == "disk.raw\n"


@pytest.mark.parametrize(("format", "type"), [("vmdk", "vmdk"), ("raw", "raw")])
def test_ec2_gets_a_disk_and_what_names_it(disk: Disk, tmp_path: Path, format: str, type: str) -> None:
    options = {"bucket": "images.example", "prefix": "golden/", "format": format}
    image, containers = write("ec2", options, disk, tmp_path)
    same_disk(disk.path, image, type)
    assert containers.read_text() == (GOLDEN / f"ec2-{format}.json").read_text()
    (one,) = json.loads(containers.read_text())
    assert one["UserBucket"]["S3Key"] == f"golden/{image.name}"


# -- guests that cannot run there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "arch", "firmware", "says", "way_out"), [
    ("vhd", {}, "aarch64", ("uefi",), "runs x86_64 guests", "vhdx"),
    ("azure", {"generation": 1}, "aarch64", ("uefi",), "generation 1 are x86_64", "generation 2"),
    ("azure", {"generation": 1}, "x86_64", ("uefi",), "generation 1 boots by BIOS", "generation 2"),
    ("azure", {"generation": 2}, "x86_64", ("bios",), "generation 2 boots by UEFI", "generation 1"),
    ("ec2", {"bucket": "images"}, "aarch64", ("uefi",), "runs x86_64 guests", "import-snapshot"),
])  # fmt: skip
def test_a_guest_that_cannot_run_there_is_refused_before_a_byte_is_written(
    disk: Disk, tmp_path: Path, name: str, options: Mapping[str, object], arch: str, firmware: tuple[str, ...],
    says: str, way_out: str,
) -> None:  # fmt: skip
    with pytest.raises(BuildError, match=says) as caught:
        write(name, options, replace(disk, firmware=firmware), tmp_path, replace(MAKER, arch=arch))
    assert way_out in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "options"), [("vhd", {}), ("vhd", {"subformat": "fixed"}), ("azure", {})])
def test_a_disk_too_large_for_a_vhd_is_refused(tmp_path: Path, name: str, options: Mapping[str, object]) -> None:
    huge = tmp_path / "huge.qcow2"
    ask("qemu-img", "create", "-q", "-f", "qcow2", huge, "2041G")
    with pytest.raises(BuildError, match="a VHD holds 2040 GiB, and the disk has 2041") as caught:
        write(name, options, Disk(huge, 2041 << 30), tmp_path / "out")
    assert "vhdx" in caught.value.hint


def test_what_is_known_beforehand_is_refused_when_the_recipe_is_planned(tmp_path: Path) -> None:
    recipe = (
        "arch: aarch64\nbase: {disk: {path: old.raw}}\n"
        "outputs: [qcow2, vhd, {azure: {generation: 1}}, vhdx, ova, {vagrant: virtualbox}, vagrant]\n"
    )
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, recipe)
    assert [(told.line, told.column) for told in caught.value.complaints] == [(3, 18), (3, 23), (3, 55), (3, 60)]
    assert "take vhdx" in caught.value.message
    assert plan(tmp_path, recipe, only=["qcow2", "vhdx", "libvirt.box"]).outputs
