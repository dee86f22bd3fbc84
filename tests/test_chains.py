"""Long chains of layers: short to open, and what is read through them is what was written."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from imagesmith import tree
from imagesmith.disk import flatten
from imagesmith.disk.attach import attached, chain_of, layer_files
from imagesmith.disk.flatten import make_layer
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.store_files import file_sha256
from tests.conftest import Command, Golden

MIB = 1 << 20
HOST = Host()
SIZE = 32 * MIB
PIECE = 96 << 10
"""One and a half clusters, so that parts of clusters come from below."""


EVERY = 8


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers take in those below them sooner than they would."""
    monkeypatch.setattr(flatten, "EVERY", EVERY)


def quiet(line: str) -> None:
    pass


def base(folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", str(SIZE)], check=True)
    subprocess.run(["qemu-io", "-c", "write -q -P 7 0 8M", folder / "disk.qcow2"], check=True)
    return folder


def whole(file: Path) -> bytes:
    raw = file.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", file, raw], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


def test_a_disk_of_many_layers_stays_short_and_holds_what_was_written(tmp_path: Path) -> None:
    folders = [base(tmp_path / "000000")]
    random_, content = random.Random(7), bytearray(b"\x07" * (8 * MIB) + bytes(SIZE - 8 * MIB))
    digests, depths = [file_sha256(folders[0] / "disk.qcow2")], list[int]()
    for number in range(1, 3 * EVERY + 4):
        part, folder = tmp_path / f"{number:06}.part", tmp_path / f"{number:06}"
        part.mkdir()
        files = make_layer(folders, part, HOST)
        at, fill = random_.randrange(0, SIZE // 4096 - 64) * 4096, number % 251
        # Every fifth takes back what was there: it writes zeros, and every tenth lets go of the room as well.
        how = f"-P {fill}" if number % 5 else "-z" if number % 10 else "-z -u"
        subprocess.run(["qemu-io", "-d", "unmap", "-c", f"write -q {how} {at} {PIECE}", files[-1]], check=True)
        content[at : at + PIECE] = (bytes([fill]) if number % 5 else b"\0") * PIECE
        part.rename(folder)
        folders.append(folder)
        depths.append(len(layer_files(folders)))
        digests.append(file_sha256(folder / "disk.qcow2"))
    assert max(depths) == EVERY + 2, "what is between two of them, these, and the base"
    assert depths[EVERY - 2 : EVERY] == [EVERY, 2], "the base, and the layer that took in those below it"
    assert depths[-1] == 4 + 3
    assert [file.resolve() for file in chain_of(folders[-1] / "disk.qcow2")] == layer_files(folders)
    assert whole(folders[-1] / "disk.qcow2") == content
    assert [file_sha256(folder / "disk.qcow2") for folder in folders] == digests, "none changed once it was finished"
    assert HOST.run(["qemu-img", "check", "-q", folders[3 * EVERY] / "disk.qcow2"], purpose="check a layer").status == 0


def test_a_layer_that_takes_in_others_is_not_as_large_as_what_they_gave_up(tmp_path: Path) -> None:
    folders = [base(tmp_path / "000000")]
    for number in range(1, EVERY + 1):
        folders.append(tmp_path / f"{number:06}")
        folders[-1].mkdir()
        file = make_layer(folders[:-1], folders[-1], HOST)[-1]
        if number == 3:
            subprocess.run(["qemu-io", "-d", "unmap", "-c", "discard -q 0 8M", file], check=True)
    assert whole(folders[-1] / "disk.qcow2") == bytes(SIZE)
    assert (folders[-1] / "disk.qcow2").stat().st_blocks * 512 < MIB, "8 MiB of zeros are not written"


def test_a_disk_that_is_open_goes_on_in_a_layer_that_took_in_others(tmp_path: Path) -> None:
    folders = [base(tmp_path / "0")]
    content = bytearray(b"\x07" * (8 * MIB) + bytes(SIZE - 8 * MIB))
    part = tmp_path / "1.part"
    part.mkdir()
    with attached(make_layer(folders, part, HOST), HOST, writable=True) as disk:
        for number in range(1, EVERY + 3):
            with disk.path.open("r+b", buffering=0) as raw:
                raw.seek(number * PIECE)
                raw.write(bytes([number]) * PIECE)
            content[number * PIECE : (number + 1) * PIECE] = bytes([number]) * PIECE
            disk.flush()
            folders.append(part.rename(part.with_suffix("")))
            part = tmp_path / f"{number + 1}.part"
            part.mkdir()
            new = make_layer(folders, part, HOST)[-1]
            disk.advance(new, below=folders[-1] / "disk.qcow2")
            assert disk.path.read_bytes()[: EVERY * 2 * PIECE] == content[: EVERY * 2 * PIECE]
    assert len(layer_files(folders)) == 1 + 1 + 2
    assert whole(folders[-1] / "disk.qcow2") == content


def test_a_chain_that_was_made_before_chains_were_kept_short_goes_on(tmp_path: Path) -> None:
    folders = [base(tmp_path / "000")]
    for number in range(1, 2 * EVERY):
        folders.append(tmp_path / f"{number:03}")
        folders[-1].mkdir()
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b",
                        f"../{folders[-2].name}/disk.qcow2", folders[-1] / "disk.qcow2", str(SIZE)],
                       check=True)  # fmt: skip
    assert len(layer_files(folders)) == 2 * EVERY
    (tmp_path / "new").mkdir()
    assert len(make_layer(folders, tmp_path / "new", HOST)) == EVERY + 2


def overlays(folder: Path, count: int) -> tuple[str, ...]:
    """Layers of a tree: each adds to a folder that all share, and takes away what the one two below it made."""
    for number in range(count):
        place = folder / f"{number:03}/all"
        place.mkdir(parents=True)
        (place / f"{number}").write_text(str(number))
        (place / "last").write_text(str(number))
    return tuple(str(folder / f"{number:03}") for number in range(count))


def test_a_tree_has_as_many_layers_as_overlayfs_takes_and_one_more_is_refused_in_words(tmp_path: Path) -> None:
    layers = overlays(tmp_path, tree.DEEPEST + 1)
    with tree.open_root(HOST, tree.OverlayMount(layers[1:]), epoch=0, log=quiet) as root:
        assert root.read("/all/last").decode() == str(tree.DEEPEST)
        assert root.read("/all/1") == b"1"
    with (
        pytest.raises(BuildError, match=r"501 layers.*at most 500") as caught,
        tree.open_root(HOST, tree.OverlayMount(layers), epoch=0, log=quiet),
    ):
        pass
    assert "one step" in caught.value.hint


RECIPE = """\
name: long
machine: {firmware: bios}
base: BASE
steps:
"""


def steps(folder: Path, base: str, count: int) -> Path:
    """A recipe of steps that each add a line to a file, and take a file away that an earlier one made."""
    lines = [
        f"  - shell: 'echo {number} >> /etc/n; echo {number} > /srv/{number}; rm -f /srv/{number - 3}'"
        for number in range(1, count + 1)
    ]
    path = folder / "long.yaml"
    path.write_text(RECIPE.replace("BASE", base) + "\n".join(lines) + "\noutputs: [tar, qcow2]\n")
    return path


def files_of(archive: Path) -> tuple[str, str]:
    read = subprocess.run(["tar", "-xOf", archive, "etc/n"], capture_output=True, text=True, check=True).stdout
    names = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout
    return read, " ".join(sorted(name for name in names.split() if name.startswith("srv/") and name != "srv/"))


@pytest.mark.slow
def test_two_hundred_steps_on_a_tree(tmp_path: Path, command: Command) -> None:
    bootstrap = "{bootstrap: {distribution: debian, suite: bookworm}}"
    command("build", steps(tmp_path, bootstrap, 200), "--no-checks")
    read, left = files_of(next((command.output / "long").glob("*.tar*")))
    assert read.split() == [str(number) for number in range(1, 201)]
    assert left == "srv/198 srv/199 srv/200"


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts disks")
def test_two_hundred_steps_on_a_disk(tmp_path: Path, command: Command, golden: Golden) -> None:
    [image] = golden.folder.glob("*.qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", image, tmp_path / "base.qcow2"], check=True)
    command("build", steps(tmp_path, "{disk: {path: base.qcow2, trusted: true}}", 200), "--no-checks")
    read, left = files_of(next((command.output / "long").glob("*.tar*")))
    assert read.split() == [str(number) for number in range(1, 201)]
    assert left == "srv/198 srv/199 srv/200"
    shown = subprocess.run(["qemu-img", "info", "--backing-chain", "--output=json", _top(command.store)],
                           capture_output=True, check=True).stdout  # fmt: skip
    assert len(json.loads(shown)) == 1 + 200 // 32 + 201 % 32
    command("cache", "verify")


def _top(store: Path) -> Path:
    return max(store.glob("layers/*/disk.qcow2"), key=lambda path: path.parent.name)
