"""libvirt, bhyve, Quickemu and Xen: an image and the text that runs it, read by those who will."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Maker
from imagesmith.outputs import bhyve, quickemu
from imagesmith.outputs._vmlinux import vmlinux
from imagesmith.outputs.libvirt import Libvirt
from imagesmith.outputs.xen import Xen
from tests.conftest import Golden
from tests.consumers import ask, same_disk
from tests.test_outputs import MAKER, MIB, make_disk, write

GOLDEN = Path(__file__).parent / "golden/outputs"
START = Path(__file__).parent / "libvirt_start.sh"
PYGRUB, READNOTES = "/usr/lib/xen-4.17/bin/pygrub", "/usr/lib/xen-4.17/bin/readnotes"
GIB = 1 << 30
LOGIN = "debian ttyS0"
"""What getty says on the serial console before it asks for a name."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=64 * MIB)


def sealed(golden: Golden) -> Disk:
    """The disk of the shared image."""
    return Disk(golden.folder / "golden.qcow2", 3 * GIB)


@pytest.mark.parametrize(("name", "image", "format", "text"), [
    ("libvirt", "web-golden.libvirt.qcow2", "qcow2", ["web-golden.libvirt.xml"]),
    ("quickemu", "web-golden.quickemu.qcow2", "qcow2", ["web-golden.quickemu.conf"]),
    ("bhyve", "web-golden.bhyve.raw", "raw", ["web-golden.bhyve.conf"]),
    ("xen", "web-golden.xen.raw", "raw", ["web-golden.xen.hvm.cfg", "web-golden.xen.pv.cfg"]),
])  # fmt: skip
def test_the_image_holds_the_same_disk_and_the_text_names_it(
    disk: Disk, tmp_path: Path, name: str, image: str, format: str, text: list[str]
) -> None:
    disk = replace(disk, firmware=("bios", "uefi"))
    first, *texts = write(name, {}, disk, tmp_path)
    assert (first.name, [path.name for path in texts]) == (image, text)
    same_disk(disk.path, first, format)
    for path in texts:
        assert image in path.read_text()


@pytest.mark.parametrize(("name", "arch", "firmware", "says", "way_out"), [
    ("bhyve", "x86_64", ("bios",), "bhyve boots by UEFI", "grub2-bhyve"),
    ("bhyve", "aarch64", ("uefi",), "runs x86_64 guests", "take raw"),
    ("quickemu", "aarch64", ("uefi",), "runs x86_64 guests", "take qcow2"),
    ("xen", "aarch64", ("uefi",), "runs x86_64 guests", "take raw"),
])  # fmt: skip
def test_a_guest_that_cannot_run_there_is_refused_before_a_byte_is_written(
    disk: Disk, tmp_path: Path, name: str, arch: str, firmware: tuple[str, ...], says: str, way_out: str
) -> None:
    with pytest.raises(BuildError, match=says) as caught:
        write(name, {}, replace(disk, firmware=firmware), tmp_path, replace(MAKER, arch=arch))
    assert way_out in caught.value.hint
    assert not list(tmp_path.iterdir())


# -- libvirt -------------------------------------------------------------------------------------------------------

ARM = replace(MAKER, arch="aarch64", description="")
ODD = {"type": "qemu", "folder": "/srv/o'brien/<images>/"}
DOMAINS: list[tuple[str, Mapping[str, object], Maker, str, str]] = [
    ("bios", {}, MAKER, "bios", ""),
    ("uefi-secure", {}, MAKER, "uefi-secure", "web-golden.libvirt.variables.fd"),
    ("aarch64", ODD, ARM, "uefi", ""),
]


@pytest.mark.parametrize(("name", "options", "maker", "firmware", "variables"), DOMAINS)
def test_the_domain_is_the_golden_one(
    name: str, options: Mapping[str, object], maker: Maker, firmware: str, variables: str
) -> None:
    made = Libvirt.model_validate(options).domain(maker, firmware, "web-golden.libvirt.qcow2", variables)
    assert made == (GOLDEN / f"libvirt-{name}.xml").read_text()


@pytest.mark.parametrize("name", [name for name, *_ in DOMAINS])
def test_the_domain_is_valid(name: str) -> None:
    ask("virt-xml-validate", GOLDEN / f"libvirt-{name}.xml", "domain")


@pytest.mark.parametrize(("asked", "can", "firmware"), [
    (("bios",), ("bios", "uefi"), ""), (("uefi",), ("bios", "uefi"), "efi"), (("bios",), ("uefi",), "efi"),
    (("uefi-secure", "bios"), ("bios", "uefi"), "efi"), (("uefi", "bios"), ("bios",), ""),
])  # fmt: skip
def test_the_firmware_is_the_recipes_first_that_the_disk_boots_with(
    disk: Disk, tmp_path: Path, asked: tuple[str, ...], can: tuple[str, ...], firmware: str
) -> None:
    _, domain = write("libvirt", {}, replace(disk, firmware=can), tmp_path, replace(MAKER, firmware=asked))
    found = re.search("<os(?: firmware='(.*)')?>", domain.read_text())
    assert found is not None
    assert (found[1] or "") == firmware


def test_the_variables_go_with_the_domain(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"variables")
    booted = replace(disk, firmware=("uefi",), variables={"uefi": tmp_path / "store"})
    _, domain, store = write("libvirt", {}, booted, tmp_path / "out", replace(MAKER, firmware=("uefi",)))
    assert store.read_bytes() == b"variables"
    assert f"<nvram>/var/lib/libvirt/images/{store.name}</nvram>" in domain.read_text()


def in_libvirt(domain: Path, folder: Path, words: str = "", seconds: int = 0) -> str:
    return ask("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", START, folder,
               domain, words, str(seconds), timeout=seconds + 180)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("firmware", "variables"), [
    ("bios", ""), ("uefi", ""), ("uefi-secure", ""), ("uefi-secure", "some.fd")
])  # fmt: skip
def test_libvirt_takes_the_domain(firmware: str, variables: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lv-") as short:
        domain = Path(short) / "domain.xml"
        domain.write_text(Libvirt(type="qemu").domain(MAKER, firmware, "web-golden.libvirt.qcow2", variables))
        assert "Domain 'web-golden' defined" in in_libvirt(domain, Path(short))


@pytest.mark.slow
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_libvirt_starts_the_domain_and_it_boots(golden: Golden, firmware: str) -> None:
    with tempfile.TemporaryDirectory(prefix="lv-") as short:
        maker = replace(MAKER, firmware=(firmware,))
        _, domain = write("libvirt", {"type": "qemu"}, sealed(golden), Path(short) / "images", maker)
        said = in_libvirt(domain, Path(short), LOGIN, 900)
    assert "Domain 'web-golden' started" in said
    assert LOGIN in said


# -- bhyve and Quickemu --------------------------------------------------------------------------------------------


def test_the_configuration_of_bhyve_is_the_golden_one() -> None:
    assert bhyve.configuration(MAKER, "web-golden.bhyve.raw") == (GOLDEN / "bhyve.conf").read_text()


def test_vm_bhyve_finds_its_settings() -> None:
    """Read as lib/vm-config (config::load) reads it: with grep, awk, sed and tr."""
    script = """grep '^[a-z]' "$0" | awk -F# '{print $1}' | sed -e 's@ *$@@' | tr -d '"'"""
    found = dict(line.split("=", 1) for line in ask("sh", "-c", script, GOLDEN / "bhyve.conf").splitlines())
    assert found["loader"] == "uefi"
    assert (found["cpu"], found["memory"]) == ("2", "1024M")
    assert (found["disk0_name"], found["disk0_type"]) == ("web-golden.bhyve.raw", "virtio-blk")


def test_the_configuration_of_quickemu_is_the_golden_one() -> None:
    made = quickemu.configuration(MAKER, "uefi", "web-golden.quickemu.qcow2")
    assert made == (GOLDEN / "quickemu.conf").read_text()


@pytest.mark.parametrize(("firmware", "boot", "secure"), [
    ("bios", "legacy", "off"), ("uefi", "efi", "off"), ("uefi-secure", "efi", "on")
])  # fmt: skip
def test_quickemu_finds_its_settings(tmp_path: Path, firmware: str, boot: str, secure: str) -> None:
    (tmp_path / "x.conf").write_text(quickemu.configuration(MAKER, firmware, "disk.qcow2"))
    script = 'source "$0"; printf "%s|" "$guest_os" "$boot" "$secureboot" "$disk_img" "$cpu_cores" "$ram"'
    said = ask("bash", "-eu", "-c", script, tmp_path / "x.conf")
    assert said == f"linux|{boot}|{secure}|disk.qcow2|2|1024M|"


# -- Xen -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["pv", "hvm"])
def test_the_configuration_of_xen_is_the_golden_one(type: str) -> None:
    made = Xen().configuration(MAKER, "web-golden.xen.raw", type, bios=False)  # type: ignore[arg-type]
    assert made == (GOLDEN / f"xen.{type}.cfg").read_text()


class XlConfig:
    """A configuration, read by the library that xl reads it with (libxlutil.h); it needs no hypervisor."""

    def __init__(self, path: Path) -> None:
        self.lib = ctypes.CDLL(ctypes.util.find_library("xlutil"))
        self.lib.xlu_cfg_init.restype = ctypes.c_void_p
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        self.config = ctypes.c_void_p(self.lib.xlu_cfg_init(ctypes.c_void_p(libc.fdopen(2, b"w")), b"test"))
        text = path.read_bytes()
        assert self.lib.xlu_cfg_readdata(self.config, text, len(text)) == 0

    def text(self, name: str) -> str:
        found = ctypes.c_char_p()
        assert self.lib.xlu_cfg_get_string(self.config, name.encode(), ctypes.byref(found), 0) == 0
        return (found.value or b"").decode()

    def number(self, name: str) -> int:
        found = ctypes.c_long()
        assert self.lib.xlu_cfg_get_long(self.config, name.encode(), ctypes.byref(found), 0) == 0
        return found.value

    def disk(self) -> tuple[str, str, int]:
        """Its file, its name in the guest and its format (libxl.h, libxl_device_disk; raw is 4, by libxl_types.idl)."""
        items = ctypes.c_void_p()
        assert self.lib.xlu_cfg_get_list(self.config, b"disk", ctypes.byref(items), None, 0) == 0
        self.lib.xlu_cfg_get_listitem.restype = ctypes.c_char_p
        spec = (ctypes.c_char_p * 1)(self.lib.xlu_cfg_get_listitem(items, 0))
        parsed = ctypes.create_string_buffer(4096)
        assert self.lib.xlu_disk_parse(self.config, 1, spec, parsed) == 0
        path, device, _, format = struct.unpack_from("@NNii", parsed, 16)
        return ctypes.string_at(path).decode(), ctypes.string_at(device).decode(), format


@pytest.mark.parametrize(("type", "device"), [("pv", "xvda"), ("hvm", "hda")])
def test_xls_own_reader_takes_the_configuration(type: str, device: str) -> None:
    found = XlConfig(GOLDEN / f"xen.{type}.cfg")
    assert (found.text("name"), found.text("type")) == ("web-golden", type)
    assert (found.number("memory"), found.number("vcpus")) == (1024, 2)
    assert found.disk() == ("/var/lib/xen/images/web-golden.xen.raw", device, 4)
    assert found.text("bootloader" if type == "pv" else "firmware") == ("pygrub" if type == "pv" else "ovmf")


def test_pygrub_finds_the_kernel_in_the_disk(golden: Golden, tmp_path: Path) -> None:
    image, *_ = write("xen", {}, sealed(golden), tmp_path)
    listed = ask(PYGRUB, "--list-entries", image)
    assert "kernel: /vmlinuz" in listed
    assert "initrd: /initrd.img" in listed
    started = ask(PYGRUB, "--quiet", "--output-format=simple", f"--output-directory={tmp_path}", "--args=console=hvc0",
                  image)  # fmt: skip
    found = dict(line.split(" ", 1) for line in started.splitlines() if line)
    assert Path(found["kernel"]).stat().st_size > MIB
    assert Path(found["ramdisk"]).stat().st_size > MIB
    (tmp_path / "kernel").write_bytes(vmlinux(Path(found["kernel"]).read_bytes(), "x86_64", Host()))
    notes = ask(READNOTES, tmp_path / "kernel")
    assert re.search("^ENTRY: ", notes, re.M), "the kernel can be started as a PV guest"
    assert re.match(r"root=UUID=\S+ .*console=hvc0$", found["args"])
