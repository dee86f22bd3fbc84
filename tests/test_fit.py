"""An output that the guest cannot run on is refused: when the recipe is planned, or else before a byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from imagesmith.disk.bootable import boots_with
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk
from imagesmith.look.image import drivers_of
from tests.conftest import Golden
from tests.consumers import ask
from tests.test_outputs import write

MIB = 1 << 20
ESP, LINUX = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0fc63daf-8483-4772-8e79-3d69d8477de4"
BOOT_CODE = b"\xeb\x63\x90"


def make_disk(folder: Path, table: str, *, code: bytes = b"") -> Path:
    """A qcow2, with a backing file, of a disk that sfdisk has partitioned."""
    raw, base, disk = folder / "disk.raw", folder / "base.qcow2", folder / "disk.qcow2"
    with raw.open("wb") as stream:
        stream.write(code)
        stream.truncate(64 * MIB)
    if table:
        Host().run(["sfdisk", "--quiet", raw], purpose="partition a disk", input=table.encode())
    ask("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base)
    ask("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, disk)
    return disk


@pytest.mark.parametrize(("table", "code", "firmware"), [
    (f"label: gpt\nsize=8MiB, type={ESP}\ntype={LINUX}\n", b"", ("uefi",)),
    (f"label: gpt\nsize=8MiB, type={ESP}\ntype={LINUX}\n", BOOT_CODE, ("bios", "uefi")),
    (f"label: gpt\ntype={LINUX}\n", BOOT_CODE, ("bios",)),
    ("label: dos\nsize=8MiB, type=ef\ntype=83\n", b"", ("uefi",)),
    ("label: dos\ntype=83, bootable\n", BOOT_CODE, ("bios",)),
    ("label: dos\ntype=83\n", b"", ("bios", "uefi")),
    ("", b"", ("bios", "uefi")),
])  # fmt: skip
def test_a_disks_table_tells_what_it_boots_with(
    tmp_path: Path, table: str, code: bytes, firmware: tuple[str, ...]
) -> None:
    assert boots_with(make_disk(tmp_path, table, code=code), Host()) == firmware


EVERYTHING = frozenset({
    "virtio_blk", "virtio_net", "virtio_scsi", "nvme", "ena", "xen_blkfront", "xen_netfront", "hv_storvsc", "hv_netvsc",
})  # fmt: skip


@pytest.mark.parametrize(("name", "options", "lacking", "says"), [
    ("libvirt", {}, {"virtio_blk"}, "a libvirt domain with virtio needs .*: virtio_blk"),
    ("bhyve", {}, {"virtio_net"}, "bhyve needs .*: virtio_net"),
    ("quickemu", {}, {"virtio_blk", "virtio_net"}, "Quickemu needs .*: virtio_blk, virtio_net"),
    ("xen", {}, {"xen_netfront"}, "Xen needs .*: xen_netfront"),
    ("azure", {}, {"hv_storvsc"}, "Azure needs .*: hv_storvsc"),
    ("gce", {}, {"virtio_net"}, "Compute Engine needs .*: virtio_net"),
    ("ec2", {"bucket": "images"}, {"ena", "xen_blkfront"}, "EC2 needs .*: ena"),
])  # fmt: skip
def test_a_kernel_without_the_drivers_is_refused(
    tmp_path: Path, name: str, options: Mapping[str, object], lacking: set[str], says: str
) -> None:
    disk = Disk(make_disk(tmp_path, ""), 64 * MIB, drivers=lambda: EVERYTHING - lacking)
    with pytest.raises(BuildError, match=says) as caught:
        write(name, options, disk, tmp_path / "out")
    assert "install a kernel" in caught.value.hint
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("lacking", [{"nvme", "ena"}, {"xen_blkfront", "xen_netfront"}])
def test_either_way_into_ec2_will_do(tmp_path: Path, lacking: set[str]) -> None:
    disk = Disk(make_disk(tmp_path, ""), 64 * MIB, drivers=lambda: EVERYTHING - lacking)
    assert write("ec2", {"bucket": "images"}, disk, tmp_path / "out")


def test_the_kernel_of_the_shared_image_runs_everywhere(golden: Golden) -> None:
    found = drivers_of(golden.folder / "golden.qcow2", Host())
    assert found is not None
    assert found >= EVERYTHING
