"""`imagesmith inspect`: what it tells of every format that is written here, and of foreign ones."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from imagesmith.errors import ImagesmithError
from imagesmith.host import Host
from imagesmith.look.contained import opened
from imagesmith.look.ext4 import Ext4Reader
from imagesmith.look.image import examine
from imagesmith.look.reader import TarReader
from imagesmith.look.system import look
from tests.conftest import Command, Golden
from tests.consumers import ask


def told(command: Command, image: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("inspect", str(image), "--json", *more).out)
    return found


@pytest.mark.parametrize("suffix", [".qcow2", ".ova", ".libvirt.box"])
def test_a_disk_in_any_wrapping_is_the_same_system(golden: Golden, command: Command, suffix: str) -> None:
    found = told(command, next(golden.folder.glob(f"*{suffix}")))
    assert found["firmware"] == ["bios", "uefi"]
    assert "GRUB (MBR)" in found["boot_loaders"]
    assert "/EFI/BOOT/BOOTX64.EFI" in found["boot_loaders"]
    assert [part["fstype"] for part in found["partitions"]] == ["", "vfat", "ext4"]
    system = found["system"]
    assert (system["id"], system["init"], system["package_format"]) == ("debian", "systemd", "deb")
    assert "openssh-server" in system["packages"]
    (kernel,) = system["kernels"]
    assert "virtio block" in kernel["drivers"]
    assert "AHCI (SATA)" not in kernel["drivers"]  # Debian's cloud kernel


def test_a_container_image_is_looked_into_and_its_configuration_told(golden: Golden, command: Command) -> None:
    found = told(command, next(golden.folder.glob("*.oci.tar")))
    assert found["format"] == "oci"
    assert found["inside"]["architecture"] == "amd64"
    assert found["system"]["id"] == "debian"
    assert "openssh-server" in found["system"]["packages"]
    assert found["system"]["kernels"] == []


def test_people_are_told_in_words(golden: Golden, command: Command) -> None:
    said = command("inspect", str(next(golden.folder.glob("*.qcow2")))).out
    assert "boots with: bios, uefi" in said
    assert "has no driver for: AHCI (SATA)" in said


def tree(files: dict[str, str], links: dict[str, str] | None = None) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


def files_of(files: dict[str, bytes]) -> TarReader:
    """A root file system of these files."""
    return TarReader([tree({name.lstrip("/"): content.decode() for name, content in files.items()})])


def test_systems_of_other_distributions_are_told() -> None:
    alpine = look(files_of({
        "/etc/os-release": b'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.20.1\nPRETTY_NAME="Alpine Linux v3.20"\n',
        "/lib/apk/db/installed": b"P:musl\nV:1.2.5-r0\n\nP:busybox\nV:1.36.1-r29\n", "/sbin/openrc": b"",
        "/lib/modules/6.6.31-0-virt/modules.dep": b"kernel/drivers/block/virtio_blk.ko.gz: kernel/x.ko.gz\n",
        "/lib/modules/6.6.31-0-virt/modules.builtin": b"kernel/drivers/net/xen-netfront.ko\n",
    }))  # fmt: skip
    assert (alpine.name, alpine.init, alpine.package_format) == ("Alpine Linux v3.20", "OpenRC", "apk")
    assert alpine.packages == {"busybox": "1.36.1-r29", "musl": "1.2.5-r0"}
    assert alpine.kernels[0].drives("virtio block")
    assert alpine.kernels[0].drives("Xen network")
    assert not alpine.kernels[0].drives("NVMe")
    arch = look(files_of({"/var/lib/pacman/local/linux-lts-6.6.30-2/desc": b"", "/etc/hostname": b"box\n"}))
    assert (arch.packages, arch.hostname) == ({"linux-lts": "6.6.30-2"}, "box")
    assert look(files_of({"/var/lib/rpm/rpmdb.sqlite": b""})).package_format == "rpm"


def test_removed_packages_are_not_counted() -> None:
    status = b"Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\n"
    assert look(files_of({"/var/lib/dpkg/status": status})).packages == {"a": "1"}


def test_layers_of_a_container_are_on_top_of_each_other() -> None:
    lower = tree({"usr/lib/os-release": "ID=old\n", "etc/hostname": "one", "opt/a/x": "x", "opt/b": "b"},
                 {"etc/os-release": "../usr/lib/os-release"})  # fmt: skip
    upper = tree({"usr/lib/os-release": "ID=new\n", "etc/.wh.hostname": "", "opt/a/.wh..wh..opq": "", "opt/a/y": "y"})
    reader = TarReader([lower, upper])
    assert look(reader).id == "new"
    assert look(reader).hostname == ""
    assert reader.names("/opt/a") == ["y"]
    assert reader.names("/opt") == ["a", "b"]


def test_links_in_a_file_system_are_followed_inside_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "usr/lib/os-release").write_text("ID=debian\n")
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "lib").symlink_to("/usr/lib")
    (root / "etc/shadow").symlink_to("/etc/passwd")
    (root / "etc/loop").symlink_to("loop")
    with (root / "etc/huge").open("wb") as huge:
        huge.truncate(1 << 40)
    raw = tmp_path / "raw"
    raw.touch()
    ask("mke2fs", "-q", "-t", "ext4", "-d", root, raw, "8M")
    reader = Ext4Reader(raw, 0)
    assert reader.read("/etc/os-release") == b"ID=debian\n"
    assert reader.names("/lib") == ["os-release"]
    for path in ("/etc/shadow", "/etc/loop", "/etc", "/nothing/there", "/etc/huge"):
        with pytest.raises(FileNotFoundError):
            reader.read(path)


def test_what_is_no_image_or_damaged_is_told(tmp_path: Path) -> None:
    for name, content in (("text", b"hello, this is no image\n" * 40), ("cut.gz", gzip.compress(b"x" * 100_000)[:60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImagesmithError, match=r"no disk image|damaged or cut off"):
            examine(tmp_path / name, Host(), print)
    with pytest.raises(ImagesmithError, match="no such image"):
        examine(tmp_path / "missing", Host(), print)


def test_a_container_whose_layer_is_no_tar_is_told(tmp_path: Path) -> None:
    manifest = json.dumps([{"Config": "config", "Layers": ["layer"]}])
    files = {"manifest.json": manifest, "config": "{}", "layer": "?" * 600}
    (tmp_path / "image.tar").write_bytes(tree(files).getvalue())
    with pytest.raises(ImagesmithError, match="holds a damaged tar archive"):
        examine(tmp_path / "image.tar", Host(), print)


def test_a_compressed_disk_is_unpacked_sparsely(tmp_path: Path) -> None:
    (tmp_path / "disk.raw.gz").write_bytes(gzip.compress(b"\1" * 4096 + bytes(64 << 20)))
    (tmp_path / "work").mkdir()
    found = opened(tmp_path / "disk.raw.gz", tmp_path / "work")
    assert found.about == {"compression": "gzip"}
    assert found.disk is not None
    status = found.disk.stat()
    assert status.st_size == 4096 + (64 << 20)
    assert status.st_blocks * 512 < 4 << 20


def test_a_disk_in_a_sparse_tar_is_taken_out_sparsely(tmp_path: Path) -> None:
    with (tmp_path / "disk.raw").open("wb") as disk:
        disk.write(b"\1" * 4096)
        disk.truncate(1 << 30)
    ask("tar", "-S", "--format=oldgnu", "-cf", tmp_path / "gce.tar", "-C", tmp_path, "disk.raw")
    (tmp_path / "work").mkdir()
    found = opened(tmp_path / "gce.tar", tmp_path / "work").disk
    assert found is not None
    assert found.stat().st_size == 1 << 30
    assert found.stat().st_blocks * 512 < 4 << 20


def test_an_image_cannot_command_the_terminal_of_who_looks_at_it(command: Command, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(tree({"etc/os-release": 'PRETTY_NAME="\033]0;gotcha\007x"\n'}).getvalue())
    assert "system: ?]0;gotcha?x" in command("inspect", str(tmp_path / "image.tar")).out


def test_a_squashfs_whose_links_lead_round_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").symlink_to("os-release")
    (tmp_path / "root/etc/hostname").write_text("box")
    ask("mksquashfs", tmp_path / "root", tmp_path / "root.squashfs", "-quiet", "-no-progress")
    system = examine(tmp_path / "root.squashfs", Host(), print).system
    assert system is not None
    assert (system.name, system.hostname) == ("", "box")
