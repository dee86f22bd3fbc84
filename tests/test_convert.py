"""`imagesmith convert`: an image that is there already, in other formats, without a recipe."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.conftest import Command
from tests.consumers import ask, same_disk
from tests.test_outputs import MIB, make_disk


def image(folder: Path) -> Path:
    """A stand-alone qcow2 with something in it."""
    disk = make_disk(folder / "layers", size=64 * MIB)
    path = folder / "Old Server.qcow2"
    ask("qemu-img", "convert", "-O", "qcow2", disk.path, path)
    return path


def test_an_image_is_written_in_other_formats_and_stays_as_it_is(command: Command, tmp_path: Path) -> None:
    source = image(tmp_path)
    before = hashlib.sha256(source.read_bytes()).digest()
    command("convert", source, "--to", "ova", "--to", "raw: {compression: gzip}", "--name", "server",
            "--output", tmp_path / "out")  # fmt: skip
    folder = tmp_path / "out/server"
    assert {p.name for p in folder.iterdir()} == {"server.ova", "server.raw.gz", "SHA256SUMS", "manifest.json", "logs",
                                                  "inventory.json", "report.html"}  # fmt: skip
    assert hashlib.sha256(source.read_bytes()).digest() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Old Server.qcow2", "layers", "out"]
    command("convert", folder / "server.ova", "--to", "qcow2", "--name", "back", "--output", tmp_path / "out")
    same_disk(source, tmp_path / "out/back/back.qcow2", "qcow2")
    command("convert", folder / "server.ova", "--to", "vagrant", "--name", "again", "--output", tmp_path / "out")
    ask("tar", "-xf", tmp_path / "out/again/again.libvirt.box", "-C", tmp_path, "box.img")
    same_disk(source, tmp_path / "box.img", "qcow2")


def test_what_is_wrong_is_told_before_anything_is_done(command: Command, tmp_path: Path) -> None:
    source = image(tmp_path)
    said = command("convert", source, "--to", "qcow", expect=2).err
    assert "unknown output 'qcow'; did you mean 'qcow2'?" in said
    assert "no such image" in command("convert", tmp_path / "none.vmdk", "--to", "raw", expect=2).err
    assert "did you mean 'aarch64'?" in command("convert", source, "--to", "raw", "--arch", "aarch46", expect=2).err
    said = command("convert", source, "--to", "ova", "--arch", "aarch64", expect=2).err
    assert "aarch64" in said
    assert "--name No Name" in command("convert", source, "--to", "raw", "--name", "No Name", expect=2).err
