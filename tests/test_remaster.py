"""Copies of ISOs with files and arguments in them: what is in them, and that they still boot in every way they did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from imagesmith.errors import BuildError, MissingTool
from imagesmith.host import Host
from imagesmith.installer import menu_edit
from imagesmith.installer.eltorito import hybrid, uefi_images
from imagesmith.installer.iso import Iso
from imagesmith.installer.media import look
from imagesmith.installer.remaster import remaster
from imagesmith.machine import firmware
from imagesmith.machine.arguments import Drive, MachineSpec
from imagesmith.machine.qemu import Machine
from tests import isos

HOST = Host()
ARGUMENTS = ["console=ttyS0", "no_timer_check", "ds=nocloud;s=http://10.0.2.2:8/x/", "a=$b{c}", "auto"]
FILES = {"preseed.cfg": b"d-i debian-installer/locale string C.UTF-8\n", "new/folder/a long name.txt": b"x" * 3000}


@pytest.mark.parametrize("layout", ["plain", "isolinux", "grub", "no-rock-ridge"])
def test_a_copy_has_the_files_and_all_that_was_there(tmp_path: Path, layout: str) -> None:
    tree = isos.ubuntu() if layout == "grub" else isos.debian()
    tree["large"] = bytes(range(256)) * 4096
    source = tmp_path / "a.iso"
    if layout == "isolinux":
        isos.isolinux_hybrid(source, tree, "A Label")
    elif layout == "grub":
        isos.grub_hybrid(source, tree, "A Label")
    else:
        isos.plain(source, tree, "A Label", *([] if layout == "plain" else ["-J", "--norock"]))
    before = source.read_bytes()
    remaster(source, tmp_path / "b.iso", FILES, ARGUMENTS, HOST)
    assert source.read_bytes() == before
    assert (tmp_path / "b.iso").stat().st_mode & 0o777 == 0o600
    with Iso(source) as old, Iso(tmp_path / "b.iso") as new:
        assert (new.label, new.names, new.cd.has_joliet()) == (old.label, old.names, old.cd.has_joliet())
        assert {name: new.read(name) for name in FILES} == FILES
        for name, content in tree.items():
            if name not in ("boot/grub/grub.cfg", "isolinux/isolinux.cfg"):
                assert new.read(name, 2 << 20) == content, name
    after = look(tmp_path / "b.iso")
    assert after.kernel == look(source).kernel
    assert after.arguments == tuple(ARGUMENTS)  # its menus' own entry is the default now
    assert hybrid(tmp_path / "b.iso") == hybrid(source) == (layout in ("isolinux", "grub"))
    assert len(uefi_images(tmp_path / "b.iso")) == len(uefi_images(source))


def test_a_disk_stays_one_to_its_last_sector(tmp_path: Path) -> None:
    remaster(isos.grub_hybrid(tmp_path / "a.iso", isos.ubuntu(), "A"), tmp_path / "b.iso", FILES, [], HOST)
    said = HOST.run(["sfdisk", "--verify", tmp_path / "b.iso"], purpose="look")
    assert "No errors detected" in said.text
    parts = HOST.run(["sfdisk", "--dump", tmp_path / "b.iso"], purpose="look").text
    assert "C12A7328-F81F-11D2-BA4B-00A0C93EC93B" in parts


def test_windows_does_not_wait_for_a_key(tmp_path: Path) -> None:
    prompt, none = b"\xeb\x3c\x90" + b"P" * 509, b"\xeb\x3c\x90" + b"N" * 509
    folder = "efi/microsoft/boot"
    tree = isos.windows() | {f"{folder}/efisys.bin": prompt[:510] + b"\x55\xaa",
                             f"{folder}/efisys_noprompt.bin": none[:510] + b"\x55\xaa"}  # fmt: skip
    source = isos.plain(tmp_path / "a.iso", tree, "SSS", "-r", "-J", "-e", f"{folder}/efisys.bin", "-no-emul-boot")
    remaster(source, tmp_path / "b.iso", {"autounattend.xml": b"<x/>"}, [], HOST)
    remaster(source, tmp_path / "same.iso", {}, [], HOST)
    for copy in ("b.iso", "same.iso"):
        at, = uefi_images(tmp_path / copy)
        assert (tmp_path / copy).read_bytes()[at : at + 9] == b"\xeb\x3c\x90NNNNNN"
    assert len((tmp_path / "same.iso").read_bytes()) == len(source.read_bytes())
    udf = isos.udf(tmp_path / "c.iso", isos.windows(), "SSS")
    remaster(udf, tmp_path / "d.iso", {"autounattend.xml": b"<x/>"}, [], HOST)
    with Iso(tmp_path / "d.iso") as iso:
        assert iso.names == "udf_path"
        assert iso.read("/AutoUnattend.xml") == b"<x/>"
        assert iso.read("/sources/boot.wim") == b"MSWIM"
    with pytest.raises(BuildError, match="no boot menu that arguments could be added to"):
        remaster(udf, tmp_path / "e.iso", {}, ["console=ttyS0"], HOST)
    assert not (tmp_path / "e.iso").exists()


def test_freebsd_takes_variables_of_its_loader(tmp_path: Path) -> None:
    source = isos.plain(tmp_path / "a.iso", isos.freebsd(), "14_1_RELEASE_AMD64_CD")
    remaster(source, tmp_path / "b.iso", {"etc/installerconfig": b"#!/bin/sh\n"},
             ["console=comconsole,vidconsole", "boot_multicons=YES"], HOST)  # fmt: skip
    with Iso(tmp_path / "b.iso") as iso:
        assert iso.read("/etc/installerconfig") == b"#!/bin/sh\n"
        assert iso.read("/boot/loader.conf").decode() == (
            'autoboot_delay="1"\nconsole="comconsole,vidconsole"\nboot_multicons="YES"\n')  # fmt: skip
    with pytest.raises(BuildError, match="takes name=value, not 'quiet'"):
        remaster(source, tmp_path / "c.iso", {}, ["quiet"], HOST)


def test_freebsds_partition_table_is_no_obstacle(tmp_path: Path) -> None:
    """Its ISO has the beginning of a GPT in front, and no backup (release/amd64/mkisoimages.sh)."""
    tree = isos.freebsd() | {"boot/cdboot": b"\xeb\xfe" * 1024, "efi.img": bytes(510) + b"\x55\xaa" + bytes(1 << 20)}
    source = isos.plain(
        tmp_path / "a.iso", tree, "14_1_RELEASE_AMD64_CD", "-R", "-b", "boot/cdboot", "-no-emul-boot",
        "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot",
    )  # fmt: skip
    at, = uefi_images(source)
    disk = tmp_path / "disk"
    disk.write_bytes(source.read_bytes() + bytes(1 << 20))
    HOST.run(["sfdisk", disk], purpose="make a GPT",
             input=f"label: gpt\ntable-length: 8\nfirst-lba: 34\nstart={at // 512}, size=2048, type=U\n".encode())
    source.write_bytes(disk.read_bytes()[: 16 * 2048] + source.read_bytes()[16 * 2048 :])
    assert hybrid(source)
    remaster(source, tmp_path / "b.iso", {"etc/installerconfig": b"#!/bin/sh\n"}, ["boot_multicons=YES"], HOST)
    with Iso(tmp_path / "b.iso") as iso:
        assert iso.read("/etc/installerconfig") == b"#!/bin/sh\n"
        assert iso.read("/boot/cdboot") == tree["boot/cdboot"]
    assert len(uefi_images(tmp_path / "b.iso")) == 1


def test_systemd_boots_menu_is_changed_as_well(tmp_path: Path) -> None:
    source = isos.plain(tmp_path / "a.iso", isos.arch(), "ARCH_202411")
    remaster(source, tmp_path / "b.iso", {}, ["console=ttyS0", "-archisobasedir"], HOST)
    with Iso(tmp_path / "b.iso") as iso:
        assert "default imagesmith.conf" in iso.read("/loader/loader.conf").decode()
        assert iso.read("/loader/entries/imagesmith.conf").decode() == (
            "title imagesmith\nlinux /arch/boot/x86_64/vmlinuz-linux\ninitrd /arch/boot/x86_64/initramfs-linux.img\n"
            "options archisosearchuuid=2024-11-01-10-09-22-00 console=ttyS0\n")  # fmt: skip


def test_menus_in_the_esp_are_changed_where_they_are(tmp_path: Path) -> None:
    """Arch's systemd-boot, and Fedora's GRUB, read their menus from the FAT image that UEFI boots."""
    tree = isos.arch()
    esp = {name: content for name, content in tree.items() if name.startswith("loader/")}
    esp |= {"EFI/BOOT/grub.cfg": b'set default="1"\nmenuentry "x" {\n\tlinuxefi /k\n\tinitrdefi /i\n}\n'}
    source = isos.isolinux_hybrid(tmp_path / "a.iso", tree, "ARCH_202411", esp=esp)
    remaster(source, tmp_path / "b.iso", {}, ["console=ttyS0", "x=$y"], HOST)
    at, = uefi_images(tmp_path / "b.iso")

    def inside(name: str) -> str:
        return HOST.run(["mcopy", "-i", f"{tmp_path / 'b.iso'}@@{at}", f"::{name}", "-"], purpose="look").text

    assert "default imagesmith.conf" in inside("loader/loader.conf")
    assert "archisobasedir=arch" in inside("loader/entries/imagesmith.conf")
    menu = inside("EFI/BOOT/grub.cfg")
    assert menu.startswith('set default="1"')
    assert "  linuxefi /arch/boot/x86_64/vmlinuz-linux archisobasedir=arch" in menu
    assert "console=ttyS0 'x=$y'\n  initrdefi /arch/boot/x86_64/initramfs-linux.img\n}" in menu


@pytest.mark.parametrize("word", ["a\nb", "a\0"])
def test_nothing_is_smuggled_into_a_menu(tmp_path: Path, word: str) -> None:
    source = isos.plain(tmp_path / "a.iso", isos.debian(), "A")
    with pytest.raises(BuildError, match="cannot stand in a boot menu"):
        remaster(source, tmp_path / "b.iso", {}, [word], HOST)
    with pytest.raises(BuildError, match="no name for a file"):
        remaster(source, tmp_path / "b.iso", {"../b": b""}, [], HOST)
    with pytest.raises(ValueError, match="no more than 2047"):
        menu_edit.isolinux(menu_edit.Start("/k", ["/i"], ["x" * 2100]))


def test_without_xorriso_an_iso_that_is_a_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = isos.grub_hybrid(tmp_path / "a.iso", isos.ubuntu(), "A")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Host, "path", str(tmp_path))
    with pytest.raises(MissingTool, match="xorriso"):
        remaster(source, tmp_path / "b.iso", {}, [], Host())
    assert not (tmp_path / "b.iso").exists()


# -- booting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a machine boots an ISO."""

    uefi: bool = False
    disk: bool = False


WAYS = {"bios-cd": Way(), "bios-disk": Way(disk=True), "uefi-cd": Way(uefi=True),
        "uefi-disk": Way(uefi=True, disk=True)}  # fmt: skip


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Remastered copies of ISOs that have a real kernel; only with our arguments does it say anything."""
    folder = tmp_path_factory.mktemp("copies")
    kernel, initrd = isos.real(folder)
    menu = isos.fedora()["EFI/BOOT/grub.cfg"]
    sources = {
        "isolinux": isos.isolinux_hybrid(folder / "debian.iso", isos.debian(kernel, initrd), "Debian 12 amd64 n"),
        "grub": isos.grub_hybrid(folder / "ubuntu.iso", isos.ubuntu(kernel, initrd), "Ubuntu-Server 24.04 amd64"),
        "menu-in-esp": isos.isolinux_hybrid(
            folder / "fedora.iso", isos.fedora(kernel, initrd) | {"isolinux/isolinux.cfg": b"default x\n"},
            "Fedora-S-dvd-x86_64-40", esp={"EFI/BOOT/grub.cfg": menu}),
        "plain-cd": isos.plain(
            folder / "plain.iso", isos.debian(kernel, initrd) | isos.isolinux_files(), "PLAIN", "-r", "-J",
            "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4",
            "-boot-info-table"),
    }  # fmt: skip
    found = {}
    for name, source in sources.items():
        found[name] = folder / f"{name}.iso"
        remaster(source, found[name], FILES, ARGUMENTS, HOST)
        source.unlink()
    return found


def boot(iso: Path, way: Way, folder: Path) -> str:
    """The command line that the kernel was started with."""
    spec = MachineSpec(
        cpu="Nehalem,-cx16", memory=512 << 20, network=False,
        cdroms=() if way.disk else (iso,), drives=(Drive(iso, "raw", read_only=True),) if way.disk else (),
        firmware=firmware.prepare("uefi" if way.uefi else "bios", "x86_64", folder, HOST),
    )  # fmt: skip
    with Machine(HOST, spec, folder / "console.log") as machine:
        found = machine.watch(lambda: isos.STARTED.search(machine.console.text), within=240, doing="start from the ISO")
        return found[1].strip()


@pytest.mark.parametrize(("layout", "way"), [("isolinux", "bios-disk"), ("grub", "uefi-cd")])
def test_a_copy_boots(copies: dict[str, Path], tmp_path: Path, layout: str, way: str) -> None:
    assert set(ARGUMENTS) <= set(boot(copies[layout], WAYS[way], tmp_path).split())


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "way"), [
    ("isolinux", "bios-cd"), ("isolinux", "uefi-cd"), ("isolinux", "uefi-disk"), ("grub", "bios-cd"),
    ("grub", "bios-disk"), ("grub", "uefi-disk"), ("menu-in-esp", "uefi-cd"), ("menu-in-esp", "bios-cd"),
    ("plain-cd", "bios-cd"),
])  # fmt: skip
def test_a_copy_boots_in_every_way(copies: dict[str, Path], tmp_path: Path, layout: str, way: str) -> None:
    assert set(ARGUMENTS) <= set(boot(copies[layout], WAYS[way], tmp_path).split())
