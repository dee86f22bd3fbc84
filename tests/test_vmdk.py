"""streamOptimized VMDKs of our own writing: QEMU and libvmdk take them, and what is used again changes no byte."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from imagesmith.errors import BuildError
from imagesmith.interfaces import Disk, Earlier
from imagesmith.outputs import _grains
from tests.consumers import ask, image_info, same_disk
from tests.test_outputs import write
from tests.test_qcow2 import MIB, Writes, layer, samples, writes  # noqa: F401 (a fixture)

GOLDEN = Path(__file__).parent / "golden/outputs"
SIZE = 68 * MIB
"""Three tables of grains, the last one not full."""


def vmdk(path: Path, into: Path, earlier: Earlier | None = None) -> Path:
    return write("vmdk", {}, Disk(path, SIZE, earlier=earlier), into)[0]


@settings(max_examples=8, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(below=writes(), first=writes(), second=writes())
def test_whatever_was_used_again_it_is_the_same_file(
    samples: Path, below: Writes, first: Writes, second: Writes  # noqa: F811
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = layer(folder / "base.qcow2", below, samples, size=SIZE)
        old, new = (layer(folder / f"{n}.qcow2", spread(what), samples, base, size=SIZE)
                    for n, what in (("old", first), ("new", second)))  # fmt: skip
        earlier, whole = vmdk(old, folder / "0"), vmdk(new, folder / "1")
        for image, disk in ((earlier, old), (whole, new)):
            same_disk(disk, image, "vmdk")
            info = image_info(image, "vmdk")
            assert info["format-specific"]["data"]["create-type"] == "streamOptimized"
            assert info["virtual-size"] == SIZE
        for number, disk_of_it in enumerate((old, None)):  # by the layers, or by looking at the bytes
            again = vmdk(new, folder / f"again{number}", Earlier([earlier], disk_of_it))
            assert again.read_bytes() == whole.read_bytes()


def spread(what: Writes) -> Writes:
    """The same writes, each also far behind."""
    return [*what, *((command, at + 60 * MIB // 512, length) for command, at, length in what)]


def test_an_appliance_takes_its_disk_from_another_output(samples: Path, tmp_path: Path) -> None:  # noqa: F811
    disk = layer(tmp_path / "disk.qcow2", [("write -s words", 0, 2000), ("write -s noise", 100_000, 2000)], samples,
                 size=SIZE)  # fmt: skip
    [alone] = write("ova", {}, Disk(disk, SIZE), tmp_path / "alone")
    first = vmdk(disk, tmp_path / "first")
    [ova] = write("ova", {}, Disk(disk, SIZE, earlier=Earlier([first], disk)), tmp_path / "ova")
    assert ova.read_bytes() == alone.read_bytes()
    found = Disk(disk, SIZE, earlier=Earlier([ova], disk))
    [box] = write("vagrant", {"provider": "virtualbox"}, found, tmp_path / "box")
    with tarfile.open(box) as tar:
        inside = tar.extractfile("box-disk1.vmdk")
        assert inside is not None
        (tmp_path / "box.vmdk").write_bytes(inside.read())
    same_disk(disk, tmp_path / "box.vmdk", "vmdk")


def test_what_is_no_whole_vmdk_is_not_used(samples: Path, tmp_path: Path) -> None:  # noqa: F811
    disk = layer(tmp_path / "disk.qcow2", [("write -s words", 0, 2000)], samples, size=SIZE)
    whole = vmdk(disk, tmp_path / "0")
    data = whole.read_bytes()
    foot = len(data) - 1024

    def rotten(byte: int) -> bytes:
        return data[:byte] + bytes([data[byte] ^ 0x40]) + data[byte + 1 :]

    for number, damaged in enumerate((
        data[:4096], data[:-512], data[: len(data) // 2] + bytes(len(data) // 2),
        rotten(foot + 19), rotten(foot + 63),  # a capacity, a place of the directory, beyond everything
        rotten(128 * 512 + 11),  # and a grain of a GiB
    )):  # fmt: skip
        (tmp_path / "damaged.vmdk").write_bytes(damaged)
        again = vmdk(disk, tmp_path / f"again{number}", Earlier([tmp_path / "damaged.vmdk"], None))
        assert again.read_bytes() == data


def test_what_is_too_large_for_a_streamed_vmdk_is_refused() -> None:
    with tempfile.TemporaryFile() as file:
        writer = _grains.Writer(file.fileno(), 8 << 31, b"")
        assert writer.data(0, (2 << 40) - (128 << 9) - 512) == 128 << 9
        assert writer.data(1, 512) == (2 << 40) - 512
        with pytest.raises(BuildError, match="2 TiB"):
            writer.data(2, 512)


def test_the_descriptor() -> None:
    text = _grains.text("web.vmdk", 8388608, "ide", 0x12345678, "00000000-0000-5000-8000-000000000000")
    assert text == (GOLDEN / "descriptor.vmdk").read_text()


def test_libvmdk_reads_every_table(samples: Path, tmp_path: Path) -> None:  # noqa: F811
    disk = layer(tmp_path / "disk.qcow2", spread([("write -s words", 0, 2000)]), samples, size=SIZE)
    told = ask("vmdkinfo", vmdk(disk, tmp_path / "out"))
    assert "Stream optimized" in told
    assert "71303168" in told
