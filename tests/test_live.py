"""Live systems: over the network into memory, and from an ISO; what is in them, and that they boot to a login."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from imagesmith import cpio
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.kinds import known
from imagesmith.machine.firmware import find
from imagesmith.outputs import _elf
from imagesmith.outputs.iso import label
from tests.conftest import Command
from tests.consumers import ask
from tests.machines import MODULES, RELEASE, MachineRoot, console_of, initrd, write_files

GOLDEN = Path(__file__).parent / "golden/outputs"
RECIPE = Path(__file__).parent / "recipes/diskless.yaml"
OVMF = Path("/usr/share/ovmf/OVMF.fd")  # Debian: ovmf


@pytest.fixture(scope="module")
def netboot(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Each file, by how its name ends."""
    found = write_files("netboot", tmp_path_factory.mktemp("netboot"))
    assert [path.name for path in found] == [f"web-golden.netboot.{end}" for end in ("ipxe", "vmlinuz", "initrd")]
    return {path.suffix.strip("."): path for path in found}


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write_files("iso", tmp_path_factory.mktemp("iso"))
    assert path.name == "web-golden.iso"
    return path


def unpacked(path: Path, folder: Path) -> Path:
    """What the archive behind the image's own initial RAM disk holds, as GNU cpio reads it."""
    own = initrd()
    data = path.read_bytes()
    assert data.startswith(own), "the image's own initial RAM disk comes first"
    folder.mkdir()
    start = len(own) + -len(own) % 4 + 512
    assert not any(data[len(own) : start]), "zeros, where the kernel cannot tell the end of what is compressed"
    more = data[start:]
    Host().run(["cpio", "-i", "--quiet", "--no-absolute-filenames"], purpose="test", input=more, cwd=folder)
    return folder


def test_the_ipxe_script_finds_kernel_and_ram_disk_beside_itself_or_where_it_is_told(
    netboot: Mapping[str, Path], tmp_path: Path
) -> None:
    assert netboot["ipxe"].read_text() == (GOLDEN / "netboot.ipxe").read_text()
    script = write_files("netboot", tmp_path, url="http://10.0.0.1/images/")[0].read_text()
    names = re.findall("^(?:kernel|initrd) (\\S+)", script, re.M)
    assert names == [f"http://10.0.0.1/images/web-golden.netboot.{end}" for end in ("vmlinuz", "initrd")]


@pytest.mark.parametrize("url", ["10.0.0.1", "http://a b", "http://a\nboot"])
def test_an_address_that_would_spoil_the_script_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        known("outputs")["netboot"].model_validate({"url": url})


def test_the_ram_disk_brings_all_that_a_live_system_needs(netboot: Mapping[str, Path], tmp_path: Path) -> None:
    folder = unpacked(netboot["initrd"], tmp_path / "more")
    ours = folder / "imagesmith"
    ask("busybox", "sh", "-n", folder / "scripts/imagesmith")
    order = (ours / "modules.order").read_text().split()
    assert set(order) == {"loop.ko", "squashfs.ko", "overlay.ko", "isofs.ko", "cdrom.ko"}
    assert order.index("cdrom.ko") < order.index("isofs.ko")
    assert (ours / "modules/cdrom.ko").read_bytes() == b"cdrom's module"
    assert set(order) == {path.name for path in (ours / "modules").iterdir()}
    # losetup runs with nothing but what is beside it
    alone = ["unshare", "--map-root-user", "--root", ours]
    said = ask(*alone, "/lib/loader", "--library-path", "/lib", "/losetup", "--version")
    assert said.startswith("losetup from util-linux")
    assert not (ours / "medium").exists()


def test_the_root_file_system_is_a_squashfs_without_what_is_outside_of_it(
    netboot: Mapping[str, Path], tmp_path: Path
) -> None:
    image = unpacked(netboot["initrd"], tmp_path / "more") / "imagesmith/root.squashfs"
    listing = ask("unsquashfs", "-lln", image)
    names = set(re.findall(r"squashfs-root/(\S[^\n]*)", listing))
    assert not [name for name in names if name.startswith(("boot/", "dev/", "tmp/", "run/")) or "vmlinuz" in name]
    assert f"{MODULES}/kernel/fs/squashfs/squashfs.ko" in names
    assert ask("unsquashfs", "-cat", image, "etc/fstab") == ""
    assert ask("unsquashfs", "-cat", image, "etc/os-release") == "ID=small\n"
    assert "etc/systemd/system/systemd-repart.service" not in names
    assert re.search(r"33/33 .* squashfs-root/var/web\n", listing)
    assert re.search(r"-rwsr-xr-x .* squashfs-root/bin/ping\n", listing)


def test_a_live_system_grows_no_partition(tmp_path: Path) -> None:
    root = MachineRoot({"lib/systemd/system/systemd-repart.service": b"[Unit]\n", "etc/systemd/system/a.mount": b""})
    made = write_files("netboot", tmp_path / "made", root)
    image = unpacked(made[2], tmp_path / "more") / "imagesmith/root.squashfs"
    assert "systemd/system/systemd-repart.service -> /dev/null" in ask("unsquashfs", "-ll", image)


def _xorriso(iso: Path, *commands: str) -> str:
    return ask("xorriso", "-indev", iso, *commands)


def _on_esp(iso: Path, name: str, folder: Path) -> bytes:
    """A file of the EFI system partition that sfdisk finds."""
    place = re.findall(r"start= *(\d+), size= *\d+, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
                       ask("sfdisk", "-d", iso))  # fmt: skip
    ask("mcopy", "-n", "-o", "-i", f"{iso}@@{int(place[0]) * 512}", f"::/{name}", folder / "from-esp",
        env={"MTOOLSRC": "/dev/null"})  # fmt: skip
    return (folder / "from-esp").read_bytes()


def test_the_iso_boots_by_bios_and_uefi_as_a_cd_and_as_a_disk(iso: Path, tmp_path: Path) -> None:
    said = _xorriso(iso, "-report_el_torito", "plain", "-report_system_area", "plain")
    entries = re.findall(r"El Torito boot img : +(\d) +(\S+) +y +none", said)
    assert entries == [("1", "BIOS"), ("2", "UEFI")]
    assert re.search("System area summary: MBR .*grub2-mbr.* GPT", said)
    assert _on_esp(iso, "EFI/BOOT/BOOTX64.EFI", tmp_path).startswith(b"MZ")


def test_what_is_on_the_iso_has_names_times_and_rights_of_its_own(iso: Path, tmp_path: Path) -> None:
    listing = _xorriso(iso, "-find", "/", "-exec", "lsdl")
    lines = re.findall(r"^(\S+) +1 (\d+) +(\d+) +(\d+) (\w+ +\d+ +\S+) '(.*)'$", listing, re.M)
    assert {line[4] for line in lines} == {"Nov 14  2023"}
    assert {(line[1], line[2]) for line in lines} == {("0", "0")}
    assert {line[0] for line in lines} == {"dr-xr-xr-x", "-r--r--r--", "er--r--r--"}
    names = {line[5] for line in lines}
    (image,) = {name for name in names if name.endswith(".squashfs")}
    assert names == {"/", "/boot", "/boot/grub", "/boot/grub/bios.img", "/boot.catalog", "/live", image,
                     "/live/vmlinuz", "/live/initrd"}  # fmt: skip
    assert "Volume Id    : WEB_GOLDEN\n" in _xorriso(iso, "-pvd_info")
    _xorriso(iso, "-osirrox", "on", "-extract", "/live/initrd", str(tmp_path / "initrd"))
    ours = unpacked(tmp_path / "initrd", tmp_path / "more") / "imagesmith"
    assert (ours / "medium").read_text() == image.strip("/") + "\n"
    assert not (ours / "root.squashfs").exists()


def test_the_boot_menu_is_what_it_was(iso: Path, tmp_path: Path) -> None:
    # GRUB for UEFI has its memory disk, a tar, uncompressed inside
    loader = _on_esp(iso, "EFI/BOOT/BOOTX64.EFI", tmp_path)
    start = loader.index(b"# Inside GRUB's core image on a live medium")
    assert loader[start : loader.index(b"\0", start)].decode() == (GOLDEN / "live.cfg").read_text()


def test_the_images_signed_boot_loaders_are_on_the_iso_with_a_menu_where_they_look(iso: Path, tmp_path: Path) -> None:
    root = MachineRoot({
        "usr/lib/shim/shimx64.efi.signed": b"shim", "usr/lib/shim/mmx64.efi.signed": b"manager",
        "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": b"grub\0/EFI/debian\0",
    })  # fmt: skip
    (path,) = write_files("iso", tmp_path / "signed", root)
    menu = (GOLDEN / "live.cfg").read_bytes()
    assert _on_esp(path, "EFI/BOOT/BOOTX64.EFI", tmp_path) == b"shim"
    assert _on_esp(path, "EFI/BOOT/grubx64.efi", tmp_path) == b"grub\0/EFI/debian\0"
    assert _on_esp(path, "EFI/BOOT/mmx64.efi", tmp_path) == b"manager"
    assert _on_esp(path, "EFI/debian/grub.cfg", tmp_path) == menu
    _xorriso(path, "-osirrox", "on", "-extract", "/EFI/debian/grub.cfg", str(tmp_path / "grub.cfg"))
    assert (tmp_path / "grub.cfg").read_bytes() == menu


@pytest.mark.parametrize(("name", "expected"), [
    ("web-golden", "WEB_GOLDEN"), ("a.b c", "A_B_C"), ("x" * 40, "X" * 32), ("ä", "_")])  # fmt: skip
def test_names_are_made_to_fit_a_volume(name: str, expected: str) -> None:
    assert label(name) == expected


def test_written_twice_they_are_the_same(netboot: Mapping[str, Path], iso: Path, tmp_path: Path) -> None:
    again = write_files("netboot", tmp_path / "one")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in netboot.values()]
    (path,) = write_files("iso", tmp_path / "another folder")
    assert path.read_bytes() == iso.read_bytes()


def test_a_kernel_for_virtual_machines_alone_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    write_files("iso", tmp_path / "cloud", log=said.append)
    assert any("no drivers for SATA and USB" in line for line in said)
    said.clear()
    built_in = b"kernel/drivers/ata/ahci.ko\nkernel/drivers/usb/storage/usb-storage.ko\n"
    write_files("iso", tmp_path / "real", MachineRoot({f"{MODULES}/modules.builtin": built_in}), log=said.append)
    assert not any("no drivers" in line for line in said)


@pytest.mark.parametrize(("more", "words", "hint"), [
    ({f"boot/initrd.img-{RELEASE}": initrd(("usr/lib/dracut/build-parameter.txt",))}, "is one of dracut",
     "initramfs-tools"),
    ({f"boot/initrd.img-{RELEASE}": initrd(("init",))}, "is of another kind", "initramfs-tools"),
    ({"initrd.img": None}, "the image's kernel has none", "initramfs-tools"),
    ({f"{MODULES}/modules.dep": b"kernel/drivers/block/loop.ko:\n"}, "needs squashfs, overlay, isofs, which the",
     "linux-image-amd64"),
    ({"sbin/losetup": None}, "needs losetup", "packages: [mount]"),
    ({"lib/x86_64-linux-gnu/libsmartcols.so.1": None}, "losetup of the image needs libsmartcols.so.1", ""),
    ({"sbin/init": None}, "the image has none", "systemd-sysv"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["netboot", "iso"])
def test_an_image_that_cannot_be_live_is_refused(
    tmp_path: Path, name: str, more: Mapping[str, bytes | None], words: str, hint: str
) -> None:
    with pytest.raises(BuildError, match=words) as caught:
        write_files(name, tmp_path, MachineRoot(more))
    assert hint in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01" + bytes(10), b"\x7fELF\x01\x01" + bytes(90),
                                  Path("/sbin/losetup").read_bytes()[:900]])  # fmt: skip
def test_a_damaged_program_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        _elf.look(data, "losetup")


def test_names_in_archives_behind_each_other_are_found() -> None:
    first, second = cpio.archive({"a/b": b"1", "c": b"22"}), cpio.archive({"d": b"333"})
    names, rest = cpio.names(first + bytes(512) + second + bytes(4) + b"\x28\xb5more")
    assert (names, rest) == (["a", "a/b", "c", "d"], b"\x28\xb5more")
    with pytest.raises(ValueError, match="no cpio header at byte"):
        cpio.names(first[:-200])
    with pytest.raises(ValueError, match="makes no sense"):
        cpio.names(first[:54] + b"-0000200" + first[62:])


# -- booted -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(command: Command) -> Path:
    """A bootstrapped Debian as both, made by the command."""
    command("build", RECIPE, "--only", "netboot", "--only", "iso")
    return command.output / "diskless"


def live(said: str) -> None:
    """Hold a console against what a live system must say."""
    assert "FAILED" not in said, said[-3000:]
    assert "panic" not in said


@pytest.mark.slow
def test_kernel_and_ram_disk_boot_to_a_login_without_any_disk(built: Path, tmp_path: Path) -> None:
    base = built / "diskless.netboot"
    live(console_of(
        ["qemu-system-x86_64", "-M", "q35", "-smp", "2", "-m", "768", "-kernel", f"{base}.vmlinuz",
         "-initrd", f"{base}.initrd", "-append", "boot=imagesmith console=ttyS0"],
        tmp_path / "console.log", "debian login:",
    ))  # fmt: skip


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A web server on the loopback address; the folder's address as a guest on QEMU's user network sees it."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://10.0.2.2:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "tftp"])
def test_a_network_card_boots_it_to_a_login(built: Path, tmp_path: Path, protocol: str) -> None:
    """iPXE in the card's ROM (of QEMU's own choice: it makes it fit the card) gets the script's name by DHCP."""
    for end in ("ipxe", "vmlinuz", "initrd"):
        shutil.copyfile(built / f"diskless.netboot.{end}", tmp_path / f"diskless.netboot.{end}")
    with served(tmp_path) as address:
        script = f"{address}/diskless.netboot.ipxe" if protocol == "http" else "diskless.netboot.ipxe"
        tftp = f",tftp={tmp_path}" if protocol == "tftp" else ""
        live(console_of(
            ["qemu-system-x86_64", "-M", "q35,graphics=off", "-smp", "2", "-m", "1024", "-boot", "n",
             "-netdev", f"user,id=net,bootfile={script}{tftp}",
             "-device", "virtio-net-pci,netdev=net"],
            tmp_path / "console.log", "debian login:",
        ))  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("firmware", "medium", "until"), [
    ("bios", "cd", "debian login:"), ("uefi", "disk", "debian login:"),
    ("uefi", "cd", "Linux version"), ("bios", "disk", "Linux version"),
])  # fmt: skip
def test_the_iso_boots_to_a_login(built: Path, tmp_path: Path, firmware: str, medium: str, until: str) -> None:
    """As a CD at an IDE controller, and as it is on a virtio disk."""
    how = "ide,media=cdrom" if medium == "cd" else "virtio"
    drive = f"file={built / 'diskless.iso'},format=raw,readonly=on,if={how}"
    live(console_of(
        ["qemu-system-x86_64", "-M", "pc,graphics=off", "-smp", "2", "-m", "768", "-drive", drive,
         *(["-bios", OVMF] if firmware == "uefi" else [])],
        tmp_path / "console.log", until,
    ))  # fmt: skip


@pytest.mark.slow
def test_an_iso_with_signed_boot_loaders_boots_under_secure_boot(command: Command, tmp_path: Path) -> None:
    """As a CD, at virtio-scsi: Debian's cloud kernel has no driver for the SATA of the machine that has Secure Boot."""
    command("build", RECIPE, "--only", "iso", "--var", "more=shim-signed grub-efi-amd64-signed")
    firmware = find("x86_64", secure=True)
    shutil.copyfile(firmware.template, tmp_path / "variables")
    flash = "if=pflash,format=raw"
    live(console_of(
        ["qemu-system-x86_64", "-M", "q35,smm=on", "-smp", "2", "-m", "1024",
         "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
         "-drive", f"{flash},unit=0,readonly=on,file={firmware.code}",
         "-drive", f"{flash},unit=1,file={tmp_path / 'variables'}", "-device", "virtio-scsi-pci",
         "-drive", f"file={command.output / 'diskless/diskless.iso'},format=raw,if=none,id=cd,readonly=on",
         "-device", "scsi-cd,drive=cd"],
        tmp_path / "console.log", "debian login:",
    ))  # fmt: skip
