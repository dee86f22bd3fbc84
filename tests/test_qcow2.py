"""qcow2 images of our own writing: QEMU takes them, and what is used again of an earlier one changes no byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagesmith.errors import Refused
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Earlier
from imagesmith.kinds import known
from imagesmith.store import Store
from tests.conftest import Command
from tests.consumers import ask, image_info, same_disk
from tests.test_drivers import as_root, small_disk, small_tree  # noqa: F401 (fixtures)
from tests.test_outputs import write

KIB = 1 << 10
MIB = 1 << 20
SIZE = 3 * MIB + 700 * KIB + 512
"""Of a test's disk: no whole number of clusters."""
Writes = Sequence[tuple[str, int, int]]
"""What is written to a layer: a command of qemu-io's, and where, and how much, in sectors."""


@st.composite
def writes(draw: st.DrawFn) -> Writes:
    """A few writes: one byte over and over, noise that no compressor makes smaller, zeros."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, SIZE // 512 - 1))
        length = min(draw(st.sampled_from([1, 7, 128, 300, 2000])), SIZE // 512 - start)
        command = draw(st.sampled_from(["write -P 7", "write -P 8", "write -s noise", "write -z", "write -s words"]))
        found.append((command, start, length))
    return found


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files for qemu-io: noise, and text."""
    folder = tmp_path_factory.mktemp("samples")
    chance = random.Random(5)
    (folder / "noise").write_bytes(chance.randbytes(MIB))
    (folder / "words").write_bytes(b" ".join(b"%d" % chance.randrange(10**6) for _ in range(170_000)))
    return folder


def layer(
    path: Path, what: Writes, samples: Path, below: Path | None = None, options: str = "", size: int = SIZE
) -> Path:  # fmt: skip
    """A qcow2 layer with these writes in it."""
    on = [] if below is None else ["-F", "qcow2", "-b", below]
    ask("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", options] if options else []), *on, path, str(size))
    commands = [word for command, at, length in what for word in ("-c", f"{command} {at * 512} {length * 512}")]
    if commands:
        ask("qemu-io", "-f", "qcow2", *commands, path, cwd=samples)
    return path


def qcow2(path: Path, into: Path, earlier: Earlier | None = None, **options: object) -> Path:
    """The output of a disk."""
    return write("qcow2", options, Disk(path, SIZE, earlier=earlier), into)[0]


def sound(image: Path, disk: Path) -> None:
    """QEMU finds no fault in an image, no cluster that is counted and not used, and the disk's bytes."""
    found = json.loads(ask("qemu-img", "check", "--output=json", "-f", "qcow2", image))
    assert not {"leaks", "corruptions"} & set(found), found
    same_disk(disk, image, "qcow2")


@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(below=writes(), first=writes(), second=writes(), compression=st.sampled_from(["zstd", "zlib", "none"]))
def test_whatever_was_used_again_it_is_the_same_file(
    samples: Path, below: Writes, first: Writes, second: Writes, compression: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = layer(folder / "base.qcow2", below, samples)
        old, new = (layer(folder / f"{n}.qcow2", what, samples, base) for n, what in (("old", first), ("new", second)))
        earlier = qcow2(old, folder / "0", compression=compression)
        whole = qcow2(new, folder / "1", compression=compression)
        sound(earlier, old)
        sound(whole, new)
        for number, disk in enumerate((old, None)):  # by the layers, or by looking at the bytes
            again = qcow2(new, folder / f"again{number}", Earlier([earlier], disk), compression=compression)
            assert again.read_bytes() == whole.read_bytes()
        delta = {"compression": compression, "delta": {"image": str(earlier), "name": "base.qcow2"}}
        on_base = qcow2(new, folder / "2", **delta)
        (folder / "2/base.qcow2").symlink_to(earlier)
        sound(on_base, new)
        other = layer(folder / "other.qcow2", below[:3], samples, new)
        again = qcow2(other, folder / "3", Earlier([on_base], new), **delta)
        assert again.read_bytes() == qcow2(other, folder / "4", **delta).read_bytes()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    """A disk of two layers with something of everything."""
    folder = tmp_path_factory.mktemp("disk")
    base = layer(folder / "base.qcow2", [("write -s noise", 256, 2000), ("write -s words", 2600, 1500)], samples)
    return layer(folder / "top.qcow2", [("write -P 9", 0, 100), ("write -z", 2700, 200),
                                        ("write -s words", SIZE // 512 - 3, 3)], samples, base)  # fmt: skip


def test_one_core_writes_the_same_file(disk: Path, tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    on_all = qcow2(disk, tmp_path / "all")
    try:
        os.sched_setaffinity(0, {min(cores)})
        on_one = qcow2(disk, tmp_path / "one")
    finally:
        os.sched_setaffinity(0, cores)
    assert on_all.read_bytes() == on_one.read_bytes()


@pytest.mark.parametrize("options", [
    "cluster_size=64k", "cluster_size=4k,compression_type=zstd", "cluster_size=256k", "cluster_size=16k,extended_l2=on",
    "compat=0.10",
])  # fmt: skip
def test_a_disk_that_is_compressed_itself_is_read(disk: Path, samples: Path, tmp_path: Path, options: str) -> None:
    squeezed = tmp_path / "squeezed.qcow2"
    ask("qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, disk, squeezed)
    top = layer(tmp_path / "top.qcow2", [("write -s words", 2001, 9)], samples, squeezed)
    for source in (squeezed, top):
        image = qcow2(source, tmp_path / source.stem)
        sound(image, source)
        again = qcow2(top, tmp_path / f"again-{source.stem}", Earlier([image], source))
        sound(again, top)
    assert (tmp_path / "squeezed/web-golden.qcow2").read_bytes() == qcow2(disk, tmp_path / "plain").read_bytes()


@pytest.mark.parametrize("harm", ["cut", "gone", "its disk is gone", "no image", "rotten", "a far table"])
def test_an_earlier_image_that_is_no_good_changes_nothing(disk: Path, tmp_path: Path, harm: str) -> None:
    whole = qcow2(disk, tmp_path / "whole")
    bad = tmp_path / "bad.qcow2"
    its_disk: Path | None = disk
    shutil.copy(whole, bad)
    if harm == "cut":
        os.truncate(bad, 70_000)
    elif harm == "gone":
        bad.unlink()
    elif harm == "no image":
        bad.write_bytes(b"?" * 4096)
    elif harm == "rotten":
        its_disk = None  # so that its clusters are looked at
        with bad.open("r+b") as stream:
            stream.seek(1 << 16)  # the first compressed one
            stream.write(b"?" * 4096)
    elif harm == "a far table":
        with bad.open("r+b") as stream:
            stream.seek(40)  # the place of the L1 table
            stream.write(b"\x80")
    else:
        its_disk = tmp_path / "nowhere.qcow2"
    again = qcow2(disk, tmp_path / "again", Earlier([bad], its_disk))
    assert again.read_bytes() == whole.read_bytes()


def test_a_vagrant_box_and_an_image_share_what_they_hold(disk: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    box, image = write("vagrant", {}, Disk(disk, SIZE), tmp_path / "box")[0], qcow2(disk, tmp_path / "image")
    kind: Any = known("outputs")["qcow2"].model_validate({})
    assert kind.sameness == known("outputs")["vagrant"].model_validate({}).sameness  # type: ignore[attr-defined]
    assert kind.sameness != known("outputs")["qcow2"].model_validate({"compression": "zlib"}).sameness  # type: ignore[attr-defined]
    from tests.test_outputs import MAKER

    (tmp_path / "again").mkdir()
    found = Disk(disk, SIZE, earlier=Earlier([box], disk))
    [again] = kind.write(found, MAKER, tmp_path / "again", Host(), lines.append)
    assert again.read_bytes() == image.read_bytes()
    assert any("clusters are those of an earlier one" in line for line in lines)


# -- on an image that the users have -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given_image(disk: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that most of the disk is in, and something else: compressed, smaller than the disk."""
    folder = tmp_path_factory.mktemp("given")
    other = layer(folder / "other.qcow2", [("write -s words", 10, 200), ("write -P 3", 6000, 900)], samples, disk)
    ask("qemu-img", "convert", "-c", "-O", "qcow2", other, folder / "golden-12.qcow2")
    return folder / "golden-12.qcow2"


def test_a_delta_holds_what_differs_from_a_given_image(disk: Path, given_image: Path, tmp_path: Path) -> None:
    image = qcow2(disk, tmp_path / "out", delta={"image": str(given_image)})
    assert image.name == "web-golden.delta.qcow2"
    assert image.stat().st_size < qcow2(disk, tmp_path / "whole").stat().st_size
    about = image_info(image, "qcow2")
    assert about["backing-filename"] == "golden-12.qcow2"
    assert about["backing-filename-format"] == "qcow2"
    shutil.copy(given_image, image.parent / "golden-12.qcow2")
    sound(image, disk)
    ask("qemu-img", "rebase", "-f", "qcow2", "-b", "", image)
    (image.parent / "golden-12.qcow2").unlink()
    sound(image, disk)


def test_a_delta_on_a_raw_image_in_another_folder(disk: Path, given_image: Path, tmp_path: Path) -> None:
    raw = tmp_path / "given.img"
    ask("qemu-img", "convert", "-O", "raw", given_image, raw)
    os.truncate(raw, SIZE + 5 * MIB)
    image = qcow2(disk, tmp_path / "out", delta={"image": str(raw), "format": "raw", "name": "bases/v1.img"})
    (image.parent / "bases").mkdir()
    shutil.copy(raw, image.parent / "bases/v1.img")
    sound(image, disk)
    assert image_info(image, "qcow2")["backing-filename-format"] == "raw"


def test_a_delta_on_the_disk_itself_is_empty(disk: Path, tmp_path: Path) -> None:
    whole = qcow2(disk, tmp_path / "whole")
    image = qcow2(disk, tmp_path / "out", delta={"image": str(whole), "name": "whole.qcow2"})
    assert image.stat().st_size <= 5 * 64 * KIB


@pytest.mark.parametrize("name", ["../base.qcow2", "/srv/base.qcow2", "nbd:unix:s", "json:{}", ".base", "a//b", "a/"])
def test_a_delta_names_nothing_but_a_file_below_its_own_folder(given_image: Path, name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        known("outputs")["qcow2"].model_validate({"delta": {"image": str(given_image), "name": name}})


def test_a_delta_stands_on_an_image_that_is_complete(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="stands on another image"):
        qcow2(disk, tmp_path, delta={"image": str(disk)})
    assert not list(tmp_path.iterdir())


# -- in a build --------------------------------------------------------------------------------------------------

RECIPE = """\
name: small
base: {disk: {path: ground.qcow2, trusted: true}}
variables: {word: one}
steps:
  - shell: "echo {{ word }} > /srv/word"
  - cleanup: false
outputs: [qcow2, {vagrant: {provider: libvirt}}, {qcow2: {delta: {image: ground.qcow2}}}]
"""


@as_root
def test_a_build_uses_what_it_can_of_an_earlier_one(small_disk: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copy(small_disk / "disk.qcow2", tmp_path / "ground.qcow2")
    recipe = tmp_path / "small.yaml"
    recipe.write_text(RECIPE)
    command = Command(tmp_path / "store", tmp_path / "output")

    def build(*words: str) -> str:
        command("build", recipe, *words)
        logs = tmp_path / "output/small/logs"
        return "".join(next(logs.glob(f"*-{name}.log")).read_text() for name in ("output-qcow2", "output-libvirt-box"))

    assert build().count("clusters are those of an earlier one") == 1  # of the other output, from the same disk
    assert build("--var", "word=two").count("clusters are those of an earlier one") == 2
    [*_, top] = [layer.folder for layer in Store(tmp_path / "store").layers() if layer.gives == "disk"]
    whole = qcow2(top / "disk.qcow2", tmp_path / "whole")
    assert (tmp_path / "output/small/small.qcow2").read_bytes() == whole.read_bytes()
    assert whole.read_bytes() in (tmp_path / "output/small/small.libvirt.box").read_bytes()
    assert "sound" in command("cache", "verify").out
    shutil.copy(tmp_path / "ground.qcow2", tmp_path / "output/small")
    sound(tmp_path / "output/small/small.delta.qcow2", top / "disk.qcow2")
