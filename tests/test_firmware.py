"""UEFI variables, Secure Boot and TPM: what a guest's firmware remembers, and what it lets start."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from imagesmith.disk.assemble import DiskSpec, assemble
from imagesmith.disk.attach import make_overlay, newest
from imagesmith.disk.signed import find_signed
from imagesmith.errors import BuildError, GuestFailed, MissingTool
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.machine import firmware
from imagesmith.machine.arguments import MachineSpec
from imagesmith.machine.console import boot_fault
from imagesmith.machine.qemu import Machine
from imagesmith.machine.tpm import KEPT, emulated
from imagesmith.outputs.qcow2 import Qcow2
from imagesmith.outputs.raw import Raw
from imagesmith.store_files import layer_digests
from imagesmith.workbench import Bench
from tests.conftest import Command

HOST = Host()
MIB = 1 << 20
SPEC = DiskSpec(size=160 * MIB, arch="x86_64", seed="cd" * 32, epoch=1_700_000_000)
MAKER = Maker("web", "1", "", "x86_64", 1_700_000_000, "ab" * 32, 1, 1 << 30, ("bios", "uefi"))


def quiet(_: str) -> None:
    pass


def test_firmware_with_secure_boot_of_aarch64_needs_no_system_management_mode(tmp_path: Path) -> None:
    for name in ("code", "variables"):
        (tmp_path / name).touch()
    described = {
        "interface-types": ["uefi"], "features": ["enrolled-keys", "secure-boot"],
        "mapping": {"device": "flash", "executable": {"filename": str(tmp_path / "code"), "format": "raw"},
                    "nvram-template": {"filename": str(tmp_path / "variables"), "format": "raw"}},
        "targets": [{"architecture": arch, "machines": ["virt-*", "pc-q35-*"]} for arch in ("aarch64", "x86_64")],
    }  # fmt: skip
    (tmp_path / "40.json").write_text(json.dumps(described))
    assert firmware.find("aarch64", secure=True, where=[tmp_path]).code == tmp_path / "code"
    for arch, secure in (("aarch64", False), ("x86_64", True), ("x86_64", False)):
        with pytest.raises(MissingTool):
            firmware.find(arch, secure=secure, where=[tmp_path])  # type: ignore[arg-type]


# -- the variable store ------------------------------------------------------------------------------------------


def test_a_machine_begins_with_a_copy_of_the_variables_that_were_kept(tmp_path: Path) -> None:
    first, second, layer = tmp_path / "first", tmp_path / "second", tmp_path / "layer"
    for folder in (first, second, layer):
        folder.mkdir()
    made = firmware.prepare("uefi", "x86_64", first, HOST)
    assert made.variables is not None
    with made.variables.open("r+b") as guest, made.variables.open("rb") as store:
        made.variables.unlink()  # as the ssh driver does
        guest.seek(4096)
        guest.write(b"BootOrder")
        guest.flush()
        firmware.keep(store, "uefi", layer)
    again = firmware.prepare("uefi", "x86_64", second, HOST, kept=layer / "variables-uefi.fd")
    assert again.variables is not None
    assert again.variables.read_bytes()[4096:].startswith(b"BootOrder")
    assert (again.variables.parent, again.variables.stat().st_mode & 0o777) == (second, 0o600)


def test_a_template_of_another_format_becomes_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Fedora's edk2-ovmf has it: the layer's file is always the same kind, whatever host made it."""
    real = firmware.find("x86_64", secure=False)
    packed = tmp_path / "vars.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", real.template, packed], check=True)
    found = firmware.Found(real.descriptor, real.code, real.code_format, packed, "qcow2")
    monkeypatch.setattr(firmware, "find", lambda arch, *, secure: found)
    made = firmware.prepare("uefi", "x86_64", tmp_path, HOST)
    assert made.variables is not None
    assert made.variables_format == "raw"
    assert made.variables.read_bytes() == real.template.read_bytes()


def test_variables_of_another_build_of_the_firmware_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(128 << 10))
    with pytest.raises(BuildError, match=r"131072 bytes.*do not go with this host's firmware") as caught:
        firmware.prepare("uefi", "x86_64", tmp_path, HOST, kept=tmp_path / "old")
    assert "--from" in caught.value.hint


def layers(folder: Path, count: int) -> list[Path]:
    """A chain of empty disk layers."""
    found = [folder / f"{number:06}" for number in range(count)]
    for number, layer in enumerate(found):
        layer.mkdir()
        if number:
            make_overlay(found[number - 1] / "disk.qcow2", layer / "disk.qcow2", HOST)
        else:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", layer / "disk.qcow2", "8M"], check=True)
    return found


def test_the_newest_store_of_each_firmware_counts(tmp_path: Path) -> None:
    one, two, three = layers(tmp_path, 3)
    (one / "variables-uefi.fd").write_bytes(b"old")
    (one / "variables-uefi-secure.fd").write_bytes(b"secure")
    (two / "variables-uefi.fd").write_bytes(b"new")
    disk = Bench(None, HOST, epoch=0, note=quiet).disk([one, two, three])  # type: ignore[arg-type]
    assert {name: path.read_bytes() for name, path in disk.variables.items()} == {
        "uefi": b"new", "uefi-secure": b"secure",
    }  # fmt: skip
    assert newest([one, two, three], "variables-bios.fd") is None
    assert Bench(None, HOST, epoch=0, note=quiet).disk([one]).virtual_size == 8 * MIB  # type: ignore[arg-type]


def test_a_layers_store_is_verified_like_its_disk(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    (layer / "variables-uefi.fd").write_bytes(b"one")
    before = layer_digests("disk", layer, lambda _: "")
    assert sorted(before) == ["disk.qcow2", "variables-uefi.fd"]
    (layer / "variables-uefi.fd").write_bytes(b"two")
    assert layer_digests("disk", layer, lambda _: "") != before


@pytest.mark.parametrize("output", [Qcow2(), Raw()])
def test_outputs_carry_the_variables_of_the_images_firmware(tmp_path: Path, output: DiskOutput) -> None:
    (layer,) = layers(tmp_path, 1)
    (layer / "variables-uefi.fd").write_bytes(b"entries")
    disk = Bench(None, HOST, epoch=0, note=quiet).disk([layer])  # type: ignore[arg-type]
    into = tmp_path / "into"
    into.mkdir()
    image, variables = output.write(disk, MAKER, into, HOST, quiet)
    assert image.name.startswith("web.")
    assert (variables.name, variables.read_bytes()) == ("web.variables.fd", b"entries")
    assert len(output.write(Disk(disk.path, disk.virtual_size), MAKER, into, HOST, quiet)) == 1


# -- Secure Boot -------------------------------------------------------------------------------------------------


class Tree:
    """A plain folder as a finished root file system, without namespaces."""

    def __init__(self, folder: Path) -> None:
        self.mountpoint = folder

    def inside(
        self, argv: Sequence[str | Path], *, purpose: str, env: Mapping[str, str] | None = None, log: Log | None = None
    ) -> None:
        HOST.run(argv, purpose=purpose, env=env, log=log)

    def read(self, path: str) -> bytes:
        return (self.mountpoint / path.lstrip("/")).read_bytes()

    def pack(self, out: object, *, exclude: Sequence[str] = ()) -> None:
        raise NotImplementedError


SHIM, GRUB = "usr/lib/shim/shimx64.efi.signed", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A root file system with boot loaders that look like signed ones."""
    files = {SHIM: b"MZ shim", GRUB: b"MZ grub\0/EFI/debian\0", "boot/vmlinuz-1": b"kernel", "etc/hostname": b"x\n"}
    for name, content in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    for folder in [tmp_path / "root", *(tmp_path / "root").rglob("*")]:
        if folder.is_dir():
            os.utime(folder, (1_600_000_000, 1_600_000_000))
    return Tree(tmp_path / "root")


def test_the_trees_own_signed_loaders_boot_an_assembled_disk(tree: Tree, tmp_path: Path) -> None:
    assemble(tree, tmp_path / "disk.qcow2", SPEC, HOST, quiet)
    assemble(tree, tmp_path / "again.qcow2", SPEC, HOST, quiet)
    assert (tmp_path / "disk.qcow2").read_bytes() == (tmp_path / "again.qcow2").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.qcow2", "disk.qcow2", "root"]
    subprocess.run(["qemu-img", "convert", "-O", "raw", tmp_path / "disk.qcow2", tmp_path / "raw"], check=True)
    esp = f"{tmp_path / 'raw'}@@{2 * MIB}"
    listed = HOST.run(["mdir", "-i", esp, "-b", "-/", "::"], purpose="test").text.split()
    assert [name for name in listed if not name.endswith("/")] == [
        "::/EFI/BOOT/BOOTX64.EFI", "::/EFI/BOOT/grubx64.efi", "::/EFI/debian/grub.cfg",
    ]  # fmt: skip
    assert HOST.run(["mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI"], purpose="test").stdout == b"MZ shim"
    config = HOST.run(["mtype", "-i", esp, "::/EFI/debian/grub.cfg"], purpose="test").text
    assert "search --no-floppy --fs-uuid --set=root" in config
    assert "configfile $prefix/grub.cfg" in config


def test_a_tree_without_signed_loaders_is_refused_before_it_is_booted(tree: Tree, tmp_path: Path) -> None:
    (tree.mountpoint / GRUB).unlink()
    spec = DiskSpec(size=SPEC.size, arch="x86_64", seed=SPEC.seed, epoch=SPEC.epoch, secure=True)
    with pytest.raises(BuildError, match="holds no signed boot loaders") as caught:
        assemble(tree, tmp_path / "disk.qcow2", spec, HOST, quiet)
    assert "shim-signed and grub-efi-amd64-signed" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_a_signed_grub_that_does_not_say_where_it_looks_is_refused(tree: Tree) -> None:
    (tree.mountpoint / GRUB).write_bytes(b"MZ")
    with pytest.raises(BuildError, match="does not say where"):
        find_signed(tree, "x86_64")  # type: ignore[arg-type]


def test_a_boot_that_secure_boot_refused_is_told_as_such() -> None:
    said = """BdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x5,0x0): Access Denied
BdsDxe: loading Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1)"""
    assert boot_fault(said) is None
    assert "firmware refused" in (boot_fault(said + "\nBdsDxe: No bootable option or device was found.") or "")
    assert "shim refused" in (boot_fault("ERROR\nVerification failed: (0x1A) Security Violation") or "")
    said = "  Booting `Linux'\nerror: bad shim signature.\nerror: you need to load the kernel first."
    assert "GRUB refused the kernel" in (boot_fault(said) or "")


# -- TPM ---------------------------------------------------------------------------------------------------------


def test_a_machine_has_a_tpm_whose_state_can_be_kept(tmp_path: Path) -> None:
    with emulated(HOST) as tpm:
        spec = MachineSpec(tpm=tpm.socket, network=False, screen=False)
        with Machine(HOST, spec, tmp_path / "console") as machine:
            (found,) = machine.qmp.execute("query-tpm")
            assert found["model"] == "tpm-crb"
            machine.qmp.execute("stop")
            tpm.keep(tmp_path)
        folder = tpm.socket.parent
    assert not folder.exists()
    state = (tmp_path / KEPT).read_bytes()
    assert state
    assert (tmp_path / KEPT).stat().st_mode & 0o777 == 0o600
    (tmp_path / "next").mkdir()
    with emulated(HOST, kept=tmp_path / KEPT) as tpm:
        spec = MachineSpec(tpm=tpm.socket, network=False, screen=False)
        with Machine(HOST, spec, tmp_path / "console"):
            tpm.keep(tmp_path / "next")
    assert (tmp_path / "next" / KEPT).read_bytes()[:64] == state[:64]


def test_without_swtpm_the_message_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(Host, "path", property(lambda self: "/nowhere"))
    with pytest.raises(MissingTool, match=r"'swtpm' is not installed.*TPM") as caught, emulated(Host()):
        pass
    assert "swtpm" in caught.value.hint


def test_a_state_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / KEPT).write_bytes(b"junk")
    with emulated(HOST, kept=tmp_path / KEPT) as tpm:
        machine = Machine(HOST, MachineSpec(tpm=tpm.socket, network=False, screen=False), tmp_path / "console")
        with pytest.raises(GuestFailed, match="tpm-emulator"), machine:
            pass


# -- all of it, in a guest -----------------------------------------------------------------------------------------

RECIPE = Path(__file__).parent / "recipes" / "secure.yaml"
NEXT = """
name: secure-next
machine: {memory: 1G, firmware: [uefi-secure, uefi], tpm: true}
base: {recipe: %s}
steps:
  - name: what was kept
    via: ssh
    shell: |
      tpm-index there
      efibootmgr | grep remembered
checks:
  - boot: {within: 10m}
  - command: tpm-index gone
  - command: test "$(efibootmgr | grep -c remembered)" = "$(mokutil --sb-state | grep -c enabled)"
"""


def test_a_guest_under_secure_boot_with_a_tpm_is_provisioned(command: Command) -> None:
    """Booted once, and gone on with from its state: the TPM and the variables are then as they were."""
    command("build", RECIPE)
    again = command("build", RECIPE, "--from", "provision", "-v").err
    assert "going on from the checkpoint" in again
    output = command.output / "secure"
    assert "remembered".encode("utf-16-le") in (output / "secure.variables.fd").read_bytes()
    assert sorted(p.name for p in output.iterdir() if p.is_file()) == [
        "SHA256SUMS", "inventory.json", "manifest.json", "report.html", "secure.raw", "secure.variables.fd",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in (command.store / "layers").glob(f"*/{KEPT}")} == {0o600}


@pytest.mark.slow
def test_the_next_boots_find_what_the_firmware_remembers(command: Command, tmp_path: Path) -> None:
    """The TPM of the checks is a new one, and each firmware has its own store."""
    command("build", RECIPE)
    recipe = tmp_path / "next.yaml"
    recipe.write_text(NEXT % RECIPE)
    command("build", recipe)
    manifest = json.loads((command.output / "secure-next" / "manifest.json").read_text())
    assert [(check["firmware"], check["passed"]) for check in manifest["checks"]] == [
        *[("uefi-secure", True)] * 3, *[("uefi", True)] * 3,
    ]  # fmt: skip
