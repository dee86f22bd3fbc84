"""Vagrant boxes: added by Vagrant itself; in the slow suite started by it, with a libvirt of the test's own."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from imagesmith.host import Host
from imagesmith.interfaces import Disk
from imagesmith.outputs._catalog import Box, add
from imagesmith.outputs.vagrant import Vagrant
from tests.conftest import Golden
from tests.consumers import add_box, ask, image_info, lint_ovf, same_disk, vagrant_env, vagrant_up
from tests.test_outputs import MIB, make_disk, write

GOLDEN = Path(__file__).parent / "golden/outputs"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=64 * MIB)


def unpack(box: Path, into: Path) -> list[str]:
    with tarfile.open(box) as tar:
        names = tar.getnames()
    into.mkdir(parents=True)
    ask("tar", "-xf", box, "-C", into)
    return names


def test_vagrant_adds_the_libvirt_box_and_reads_its_vagrantfile(disk: Disk, tmp_path: Path) -> None:
    (box,) = write("vagrant", {}, disk, tmp_path / "out")
    assert box.name == "web-golden.libvirt.box"
    listed = add_box(box, "golden", tmp_path / "home")
    assert "golden (libvirt, 0)" in listed
    assert "version: 2026.11" in listed
    project = tmp_path / "project"
    project.mkdir()
    (project / "Vagrantfile").write_text('Vagrant.configure("2") { |config| config.vm.box = "golden" }\n')
    env = {**vagrant_env(tmp_path / "home"), "VAGRANT_DEFAULT_PROVIDER": "libvirt"}
    assert "validated successfully" in ask("vagrant", "validate", env=env, cwd=project)


def test_the_libvirt_box_holds_the_disk(disk: Disk, tmp_path: Path) -> None:
    own = tmp_path / "own.rb"
    own.write_text('Vagrant.configure("2") { |config| config.vm.hostname = "own" }\n')
    (box,) = write("vagrant", {"vagrantfile": str(own)}, disk, tmp_path)
    names = unpack(box, tmp_path / "box")
    assert names == ["metadata.json", "info.json", "Vagrantfile", "box.img"]
    metadata = json.loads((tmp_path / "box/metadata.json").read_bytes())
    assert metadata == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}
    same_disk(disk.path, tmp_path / "box/box.img", "qcow2")
    assert image_info(tmp_path / "box/box.img", "qcow2")["format-specific"]["data"]["compat"] == "1.1"
    vagrantfile = (tmp_path / "box/Vagrantfile").read_text()
    assert "libvirt.memory = 1024" in vagrantfile
    assert vagrantfile.endswith(own.read_text())
    assert "Syntax OK" in ask("ruby", "-c", tmp_path / "box/Vagrantfile")


def test_vagrant_adds_the_virtualbox_box_and_its_appliance_has_no_fault(disk: Disk, tmp_path: Path) -> None:
    (box,) = write("vagrant", {"provider": "virtualbox"}, disk, tmp_path / "out")
    assert box.name == "web-golden.virtualbox.box"
    assert "golden (virtualbox, 0)" in add_box(box, "golden", tmp_path / "home")
    names = unpack(box, tmp_path / "box")
    assert names == ["metadata.json", "info.json", "Vagrantfile", "box.ovf", "box-disk1.vmdk"]
    assert not [f for f in lint_ovf(tmp_path / "box/box.ovf") if not f.startswith("the manifest lacks")]
    same_disk(disk.path, tmp_path / "box/box-disk1.vmdk", "vmdk")
    assert "Syntax OK" in ask("ruby", "-c", tmp_path / "box/Vagrantfile")


def test_the_qemu_box_is_one_that_vagrants_qemu_provider_looks_for(disk: Disk, tmp_path: Path) -> None:
    (box,) = write("vagrant", {"provider": "qemu"}, disk, tmp_path / "out")
    assert box.name == "web-golden.qemu.box"
    assert "golden (libvirt, 0)" in add_box(box, "golden", tmp_path / "home")  # it takes no other
    unpack(box, tmp_path / "box")
    assert 'qemu.machine = "q35"' in (tmp_path / "box/Vagrantfile").read_text()
    assert "Syntax OK" in ask("ruby", "-c", tmp_path / "box/Vagrantfile")


def test_the_vmware_box_is_a_machine_with_its_disk(disk: Disk, tmp_path: Path) -> None:
    (box,) = write("vagrant", {"provider": "vmware_desktop"}, disk, tmp_path / "out")
    assert box.name == "web-golden.vmware_desktop.box"
    assert "golden (vmware_desktop, 0)" in add_box(box, "golden", tmp_path / "home")
    names = unpack(box, tmp_path / "box")
    assert names == ["metadata.json", "info.json", "Vagrantfile", "box.vmx", "disk.vmdk"]
    same_disk(disk.path, tmp_path / "box/disk.vmdk", "vmdk")
    about = image_info(tmp_path / "box/disk.vmdk", "vmdk")["format-specific"]["data"]
    assert about["create-type"] == "monolithicSparse"
    assert (tmp_path / "box/box.vmx").read_text() == (GOLDEN / "box.vmx").read_text()
    assert "Syntax OK" in ask("ruby", "-c", tmp_path / "box/Vagrantfile")


@pytest.mark.parametrize(("firmware", "generation"), [(("bios", "uefi"), 1), (("uefi",), 2)])
def test_the_hyperv_box_is_a_machine_as_vagrants_import_reads_it(
    disk: Disk, tmp_path: Path, firmware: tuple[str, ...], generation: int
) -> None:
    (box,) = write("vagrant", {"provider": "hyperv"}, replace(disk, firmware=firmware), tmp_path / "out")
    assert "golden (hyperv, 0)" in add_box(box, "golden", tmp_path / "home")
    names = unpack(box, tmp_path / "box")
    assert names[3:] == ["Virtual Hard Disks/box.vhdx", "Virtual Machines/box.xml"]
    same_disk(disk.path, tmp_path / "box/Virtual Hard Disks/box.vhdx", "vhdx")
    # the paths are those of VagrantVM.psm1, New-VagrantVMXML
    machine = ET.parse(tmp_path / "box/Virtual Machines/box.xml").getroot()
    assert int(machine.findtext("properties/subtype") or -1) + 1 == generation
    assert machine.findtext("properties/name") == "web-golden"
    assert machine.findtext("settings/processors/count") == "2"
    assert machine.findtext(".//memory/bank/size") == "1024"
    assert machine.findtext(".//boot/device0") == "HardDrive"
    (controller,) = machine.findall(".//controller0/..")
    assert (controller.find("ChannelInstanceGuid") is not None) is (generation == 2)
    assert controller.findtext("controller0/drive0/type") == "VHD"
    assert controller.findtext("controller0/drive0/pathname") == "box.vhdx"


def test_a_libvirt_box_may_bring_empty_disks(disk: Disk, tmp_path: Path) -> None:
    (box,) = write("vagrant", {"extra_disks": ["1G", "512M"]}, disk, tmp_path / "out")
    names = unpack(box, tmp_path / "box")
    assert names == ["metadata.json", "info.json", "Vagrantfile", "box.img", "box_1.img", "box_2.img"]
    metadata = json.loads((tmp_path / "box/metadata.json").read_bytes())
    assert [d["path"] for d in metadata["disks"]] == ["box.img", "box_1.img", "box_2.img"]
    assert image_info(tmp_path / "box/box_1.img", "qcow2")["virtual-size"] == 1 << 30
    assert "golden (libvirt, 0)" in add_box(box, "golden", tmp_path / "home")


@pytest.mark.parametrize(("options", "said"), [
    ({"provider": "virtualbox", "extra_disks": ["1G"]}, "holds one disk"),
    ({"provider": "qemu", "catalog": {"box": "acme/web", "folder": "boxes"}}, "libvirt box of a catalog"),
    ({"catalog": {"box": "web", "folder": "boxes"}}, "pattern"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Vagrant.model_validate(options)


@pytest.mark.parametrize(("provider", "word"), [("libvirt", "OVMF_CODE"), ("virtualbox", '"--firmware", "efi"')])
def test_a_disk_that_boots_with_uefi_alone_says_so(disk: Disk, tmp_path: Path, provider: str, word: str) -> None:
    for firmware, said in ((("uefi",), True), (("bios", "uefi"), False)):
        folder = tmp_path / str(said)
        (box,) = write("vagrant", {"provider": provider}, replace(disk, firmware=firmware), folder)
        unpack(box, folder / "box")
        assert (word in (folder / "box/Vagrantfile").read_text()) is said
        assert "Syntax OK" in ask("ruby", "-c", folder / "box/Vagrantfile")


@pytest.mark.slow
def test_vagrant_starts_the_box_of_a_catalog_and_logs_in(golden: Golden) -> None:
    """The golden image has the user vagrant with Vagrant's insecure key and sudo without a password."""
    if os.geteuid() != 0:
        pytest.skip("libvirt's system daemon needs root")
    with tempfile.TemporaryDirectory(prefix="vu-") as folder:
        box = next(golden.folder.glob("*.libvirt.box"))
        catalog = Path(folder, "boxes")
        entry = Box("acme/golden", "1.0", "", "libvirt", box, ask("sha256sum", box).split()[0])
        add(entry, catalog, "", Host())
        said = vagrant_up(catalog / "metadata.json", Path(folder), "id -un; sudo id -u; cat /etc/machine-id")
    user, root, machine = said.splitlines()
    assert (user, root) == ("vagrant", "0")
    assert len(machine) == 32
