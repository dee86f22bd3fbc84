"""qcow2 and raw, and what all outputs have in common: the same bytes every time, and nothing half-written."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from imagesmith.errors import ImagesmithError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Maker
from imagesmith.kinds import DiskOutput, known
from tests.consumers import ask, image_info, same_disk

MIB = 1 << 20
MAKER = Maker(
    name="web-golden", version="2026.11", description='A web server\'s <golden> "image" & more', arch="x86_64",
    epoch=1_700_000_000, seed="5eed" * 16, cpus=2, memory=1 << 30, firmware=("bios",),
)  # fmt: skip
DISK_OUTPUTS: list[tuple[str, Mapping[str, object]]] = [
    ("qcow2", {}), ("qcow2", {"compression": "zlib"}), ("qcow2", {"compression": "none"}), ("raw", {}), ("ova", {}),
    ("ova", {"hardware": "vmware"}), ("ovf", {}), ("vagrant", {}), ("vagrant", {"provider": "virtualbox"}),
    ("raw", {"compression": "zstd"}), ("raw", {"compression": "xz"}), ("raw", {"compression": "gzip"}),
    ("vmdk", {}), ("vmdk", {"subformat": "monolithicSparse"}), ("vdi", {}), ("vhd", {}),
    ("vhd", {"subformat": "fixed"}), ("vhdx", {}), ("azure", {}), ("gce", {}), ("ec2", {"bucket": "images"}),
    ("ec2", {"bucket": "images", "format": "raw"}), ("libvirt", {}), ("bhyve", {}), ("quickemu", {}), ("xen", {}),
    ("container-disk", {}),
    ("vagrant", {"provider": "vmware_desktop"}), ("vagrant", {"provider": "hyperv"}),
    ("vagrant", {"extra_disks": ["1G"]}),
]  # fmt: skip


def make_disk(folder: Path, size: int = 64 * MIB + 512 * 1024) -> Disk:
    """A disk of two layers with something to read and something empty; its size is no whole number of MiB."""
    folder.mkdir(parents=True, exist_ok=True)
    base, top = folder / "base.qcow2", folder / "top.qcow2"
    ask("qemu-img", "create", "-q", "-f", "qcow2", base, str(size))
    for place, pattern in (("0", "0x11"), ("20M", "0x22")):
        ask("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {place} 3M", base)
    ask("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, top)
    ask("qemu-io", "-f", "qcow2", "-c", "write -P 0x33 21M 1M", "-c", "write -P 0x44 63M 512k", top)
    return Disk(top, size, firmware=("bios", "uefi"))


def write(name: str, options: Mapping[str, object], disk: Disk, directory: Path, maker: Maker = MAKER) -> list[Path]:
    """Make one output of a disk."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = known("outputs")[name].model_validate(options)
    assert isinstance(kind, DiskOutput)
    return list(kind.write(disk, maker, directory, Host(), lambda line: None))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize(("compression", "type"), [("zstd", "zstd"), ("zlib", "zlib"), ("none", "zlib")])
def test_qcow2_stands_alone_and_holds_the_same_bytes(disk: Disk, tmp_path: Path, compression: str, type: str) -> None:
    (image,) = write("qcow2", {"compression": compression}, disk, tmp_path)
    assert image.name == "web-golden.qcow2"
    same_disk(disk.path, image, "qcow2")
    ask("qemu-img", "check", "-f", "qcow2", image)
    info = image_info(image, "qcow2")
    assert "backing-filename" not in info
    assert info["virtual-size"] == disk.virtual_size
    about = info["format-specific"]["data"]
    assert (about["compat"], about["compression-type"]) == ("1.1", type)


def test_compression_makes_a_qcow2_smaller(disk: Disk, tmp_path: Path) -> None:
    sizes = {c: write("qcow2", {"compression": c}, disk, tmp_path / c)[0].stat().st_size for c in ("zstd", "none")}
    assert sizes["zstd"] < sizes["none"] / 4


def test_raw_is_sparse_and_a_whole_number_of_mebibytes(disk: Disk, tmp_path: Path) -> None:
    (image,) = write("raw", {}, disk, tmp_path)
    assert image.name == "web-golden.raw"
    same_disk(disk.path, image, "raw")
    size = image.stat()
    assert size.st_size == 65 * MIB
    assert size.st_blocks * 512 < 16 * MIB


@pytest.mark.parametrize(("compression", "ending"), [("zstd", "zst"), ("xz", "xz"), ("gzip", "gz")])
def test_a_compressed_raw_holds_the_same_disk(disk: Disk, tmp_path: Path, compression: str, ending: str) -> None:
    (packed,) = write("raw", {"compression": compression}, disk, tmp_path)
    assert packed.name == f"web-golden.raw.{ending}"
    assert packed.stat().st_size < MIB
    with (tmp_path / "again.raw").open("wb") as out:
        Host().run([compression, "-dc", packed], purpose="unpack", stdout=out)
    assert (tmp_path / "again.raw").stat().st_size == 65 * MIB
    same_disk(disk.path, tmp_path / "again.raw", "raw")


@pytest.mark.parametrize(("name", "options"), DISK_OUTPUTS)
def test_written_twice_it_is_the_same_file(
    disk: Disk, tmp_path: Path, name: str, options: Mapping[str, str]
) -> None:
    first, second = (write(name, options, disk, tmp_path / n) for n in ("first", "second"))
    assert [f.name for f in first] == [f.name for f in second]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.name.startswith("web-golden")
    assert sorted(first) == sorted((tmp_path / "first").iterdir()), "something else was left"


def test_progress_is_told_in_tenths(disk: Disk, tmp_path: Path) -> None:
    lines: list[str] = []
    kind = known("outputs")["qcow2"].model_validate({})
    assert isinstance(kind, DiskOutput)
    kind.write(disk, MAKER, tmp_path, Host(), lines.append)
    assert lines[-1] == "web-golden.qcow2: 100 %"
    assert len(lines) <= 10


def test_labels_tell_the_outputs_of_a_recipe_apart() -> None:
    labels = [known("outputs")[name].model_validate(options) for name, options in DISK_OUTPUTS]
    assert {kind.label for kind in labels if isinstance(kind, DiskOutput)} == {
        "qcow2", "raw", "raw.zst", "raw.xz", "raw.gz", "vmdk", "sparse.vmdk", "vdi", "vhd", "fixed.vhd",
        "vhdx", "azure", "gce.tar.gz", "ec2.vmdk", "ec2.raw", "libvirt", "bhyve",
        "quickemu", "xen", "container-disk", "ova", "ovf", "libvirt.box", "virtualbox.box",
        "vmware_desktop.box", "hyperv.box",
    }  # fmt: skip


def test_a_disk_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "no.qcow2").write_bytes(b"not a qcow2")
    for number, (name, options) in enumerate(DISK_OUTPUTS):
        out = tmp_path / str(number)
        with pytest.raises(ImagesmithError, match=r"qemu-img failed|no qcow2 image"):
            write(name, options, Disk(tmp_path / "no.qcow2", MIB), out)
        assert not list(out.iterdir())


FULL = """
import sys
from pathlib import Path
from imagesmith.errors import BuildError
from imagesmith.interfaces import Disk
from tests.test_outputs import DISK_OUTPUTS, write
from tests.test_oci import SmallRoot, write_oci
out = Path(sys.argv[1])
disk = Disk(Path(sys.argv[2]), int(sys.argv[3]))
for name, options in [*DISK_OUTPUTS, ("oci", {})]:
    try:
        write(name, options, disk, out) if name != "oci" else write_oci(out, SmallRoot(noise=20 << 20))
    except BuildError as error:
        print("\\n" + name, error, error.hint, sorted(p.name for p in out.iterdir()), sep=" | ")
"""


def test_no_space_left_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """On a file system of 8 MiB, in a mount namespace of its own."""
    noisy = tmp_path / "noisy.qcow2"
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(20 * MIB))
    ask("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "noise", noisy)
    small = tmp_path / "small"
    small.mkdir()
    said = ask(
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
        'mount -t tmpfs -o size=8m none "$0" && exec "$1" -c "$2" "$0" "$3" "$4"',
        small, sys.executable, FULL, noisy, str(20 * MIB), cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    lines = [line for line in said.splitlines() if " | " in line]
    assert [line.split(" | ")[0] for line in lines] == [*(name for name, _ in DISK_OUTPUTS), "oci"]
    for line in lines:
        assert "no space left on device: cannot write web-golden" in line
        assert "--output" in line
        assert line.endswith("[]")
