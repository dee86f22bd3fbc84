"""OVA and OVF: virt-v2v reads them, and a lint of our own finds what it does not see."""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.archive import Archive
from imagesmith.errors import BuildError, ToolFailed
from imagesmith.interfaces import Disk
from imagesmith.outputs._ovf import Appliance, descriptor
from tests.conftest import Command, Golden
from tests.consumers import NO_KVM, ask, boot_ova, image_info, lint_ovf, same_disk, v2v_print_source
from tests.test_outputs import MAKER, MIB, make_disk, write

GOLDEN = Path(__file__).parent / "golden/outputs"
APPLIANCE = Appliance(
    name="web-golden", version="2026.11", description='A web server\'s <golden> "image" & more', cpus=2,
    memory=1 << 30, capacity=8 << 30, disk_file="web-golden-disk1.vmdk", disk_size=123456789,
)  # fmt: skip


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=64 * MIB)


@pytest.fixture(scope="module")
def ova(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write("ova", {}, disk, tmp_path_factory.mktemp("ova"))
    return path


@pytest.mark.parametrize(
    ("name", "appliance"),
    [
        ("generic", APPLIANCE),
        ("vmware-uefi", replace(APPLIANCE, hardware="vmware", uefi=True)),
        ("virtualbox", replace(APPLIANCE, hardware="virtualbox")),
        ("bare", replace(APPLIANCE, version="", description="")),
    ],
)
def test_descriptor_is_the_golden_one(name: str, appliance: Appliance) -> None:
    assert descriptor(appliance) == (GOLDEN / f"{name}.ovf").read_text()


def test_hardware_without_drivers_in_the_image_is_refused_with_the_way_out(golden: Golden, command: Command) -> None:
    """Debian's cloud kernel has no AHCI and no e1000."""
    image = next(golden.folder.glob("*.qcow2"))
    said = command("convert", image, "--to", "ova: virtualbox", "--name", "vb", expect=1).err
    assert "no driver for it (ahci, e1000)" in said
    assert "take hardware generic or vmware" in said


def test_drivers_that_are_there_are_not_asked_for_again(disk: Disk, tmp_path: Path) -> None:
    able = replace(disk, drivers=lambda: frozenset({"ahci", "e1000"}))
    (path,) = write("ova", {"hardware": "virtualbox"}, able, tmp_path)
    assert re.search(r"0 \[sata\]", v2v_print_source(path))
    with pytest.raises(BuildError, match="a PVSCSI disk and a VMXNET3 network adapter"):
        write("ova", {"hardware": "vmware"}, able, tmp_path / "no")


def key_and_certificate(folder: Path) -> tuple[str, Path]:
    ask("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Acme", "-days", "30",
        "-keyout", folder / "key.pem", "-out", folder / "cert.pem")  # fmt: skip
    return (folder / "key.pem").read_text(), folder / "cert.pem"


def test_a_signed_appliance_is_vouched_for(disk: Disk, tmp_path: Path) -> None:
    key, cert = key_and_certificate(tmp_path)
    options = {"sign": {"certificate": str(cert), "key": key}}
    (path,) = write("ova", options, disk, tmp_path / "out")
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names == ["web-golden.ovf", "web-golden.mf", "web-golden.cert", "web-golden-disk1.vmdk"]
    v2v_print_source(path)
    ask("tar", "-xf", path, "-C", tmp_path, *names[:3])
    head, text = (tmp_path / "web-golden.cert").read_text().split("\n", 1)
    found = re.fullmatch(r"SHA256\(web-golden\.mf\)= ([0-9a-f]+)", head)
    assert found is not None
    (tmp_path / "signature").write_bytes(bytes.fromhex(found[1]))
    assert text == cert.read_text()
    ask("openssl", "x509", "-in", cert, "-noout", "-pubkey", "-out", tmp_path / "public.pem")
    assert "Verified OK" in ask("openssl", "dgst", "-sha256", "-verify", tmp_path / "public.pem", "-signature",
                                tmp_path / "signature", tmp_path / "web-golden.mf")  # fmt: skip
    (again,) = write("ova", options, disk, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


def test_a_key_of_somebody_else_signs_nothing(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    key, _ = key_and_certificate(tmp_path)
    _, cert = key_and_certificate(tmp_path / "other")
    for given, said in ((key, "does not belong to the certificate"), ("no key", "cannot be signed")):
        with pytest.raises(BuildError, match=said) as caught:
            write("ovf", {"sign": {"certificate": str(cert), "key": given}}, disk, tmp_path / "out")
        assert "PRIVATE KEY" not in str(caught.value)


def test_descriptor_leaves_out_what_xml_cannot_hold() -> None:
    assert "bell" in descriptor(replace(APPLIANCE, description="be\x07l\ufffel"))


def test_virt_v2v_reads_the_ova(ova: Path) -> None:
    said = v2v_print_source(ova)
    assert re.search(r"source name: web-golden$", said, re.M)
    assert re.search(r"memory: 1073741824 ", said)
    assert re.search(r"nr vCPUs: 2$", said, re.M)
    assert re.search(r"0 \[ide\]", said)
    assert 'Bridge "NAT"' in said


def test_virt_v2v_reads_the_ovf_of_vmware_hardware(disk: Disk, tmp_path: Path) -> None:
    files = write("ovf", {"hardware": "vmware"}, disk, tmp_path)
    assert [f.name for f in files] == ["web-golden.ovf", "web-golden-disk1.vmdk", "web-golden.mf"]
    assert not lint_ovf(files[0])
    said = v2v_print_source(tmp_path)
    assert "0 [scsi]" in said
    assert "[vmxnet3]" in said


def test_virt_v2v_refuses_another_digest(ova: Path, tmp_path: Path) -> None:
    broken = rebuilt(ova, tmp_path, lambda text: text, manifest=lambda text: re.sub("= ....", "= 0000", text))
    with pytest.raises(ToolFailed, match=r"(?i)checksum"):
        v2v_print_source(broken)


def test_the_package_has_no_fault(ova: Path) -> None:
    assert not lint_ovf(ova)
    with tarfile.open(ova) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["web-golden.ovf", "web-golden.mf", "web-golden-disk1.vmdk"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in members} == {(0, 0, "", "", MAKER.epoch, 0o644)}


def test_the_disk_holds_the_same_bytes_and_a_name(disk: Disk, ova: Path, tmp_path: Path) -> None:
    ask("tar", "-xf", ova, "-C", tmp_path, "web-golden-disk1.vmdk")
    image = tmp_path / "web-golden-disk1.vmdk"
    same_disk(disk.path, image, "vmdk")
    about = image_info(image, "vmdk")["format-specific"]["data"]
    assert about["create-type"] == "streamOptimized"
    (other,) = write("ova", {}, disk, tmp_path, replace(MAKER, seed="0ddb" * 16))
    names = [re.findall(rb'ddb\.uuid\.image = "([0-9a-f-]{36})"', p.read_bytes()) for p in (ova, other)]
    assert len(names[0]) == len(names[1]) == 1
    assert names[0] != names[1], "two images have the same UUID: VirtualBox takes only one of them"


def test_an_arm_disk_has_no_appliance(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="aarch64"):
        write("ova", {}, disk, tmp_path, replace(MAKER, arch="aarch64"))



def rebuilt(ova: Path, folder: Path, change, manifest=lambda text: text, extra=(), drop=(), first=None) -> Path:  # type: ignore[no-untyped-def]
    """The package again with a changed descriptor and a manifest that fits it."""
    with tarfile.open(ova) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    files["web-golden.ovf"] = change(files["web-golden.ovf"].decode()).encode()
    files.update(extra)
    lines = [f"SHA256({n})= {hashlib.sha256(c).hexdigest()}" for n, c in files.items()
             if not n.endswith(".mf") and n not in drop]  # fmt: skip
    files["web-golden.mf"] = manifest("".join(f"{line}\n" for line in lines)).encode()
    path = folder / "broken.ova"
    with path.open("wb") as out, Archive(out, epoch=0, ustar=True) as archive:
        for name in sorted(files, key=lambda n: n != first if first else 0):
            archive.data(name, files[name])
    return path


def swap(old: str, new: str):  # type: ignore[no-untyped-def]
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.slow
def test_the_appliance_boots_on_the_hardware_that_its_descriptor_asks_for(golden: Golden, tmp_path: Path) -> None:
    """It takes the guest's drivers, an address from DHCP and a started SSH server."""
    assert boot_ova(next(golden.folder.glob("*.ova")), tmp_path).startswith("SSH-2.0-")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (swap('capacity="67108864"', 'capacity="64"'), "the capacity of web-golden-disk1.vmdk is 67108864 bytes"),
        (swap('Units="byte"', 'Units="bytes"'), "'bytes' is no programmatic unit"),
        (swap("byte * 2^20", "MegaBytes"), "'MegaBytes' is no programmatic unit"),
        (swap("<rasd:Parent>3<", "<rasd:Parent>9<"), "the Parent of Hard disk, 9, is no controller"),
        (swap("<rasd:Parent>3<", "<rasd:Parent>5<"), "the Parent of Hard disk, 5, is no controller"),
        (swap("        <rasd:Parent>3</rasd:Parent>\n", ""), "Hard disk has no Parent"),
        (swap("InstanceID>5<", "InstanceID>4<"), "the InstanceID 4 is there twice"),
        (swap("<rasd:Connection>NAT", "<rasd:Connection>LAN"), "on the network LAN, which is not declared"),
        (swap("/disk/vmdisk1", "/disk/vmdisk2"), "the HostResource of Hard disk, ovf:/disk/vmdisk2, is no disk"),
        (swap('fileRef="file1"', 'fileRef="file2"'), "fileRef file2 is no file"),
        (swap("      <Info>The virtual hardware</Info>\n", ""), "VirtualHardwareSection does not begin with Info"),
        (lambda text: re.sub(r'ovf:size="\d+"', 'ovf:size="1"', text), "the size of web-golden-disk1.vmdk is"),
        (lambda text: re.sub(r"( *<rasd:Addr.*\n)( *<rasd:El.*\n)", r"\2\1", text), "not in alphabetical order"),
        (swap("</Envelope>", ""), "not XML"),
    ],
)
def test_lint_finds(ova: Path, tmp_path: Path, change, fault: str) -> None:  # type: ignore[no-untyped-def]
    faults = lint_ovf(rebuilt(ova, tmp_path, change))
    assert any(fault in found for found in faults), faults


def test_lint_finds_faults_of_the_archive(ova: Path, tmp_path: Path) -> None:
    same = lambda text: text  # noqa: E731
    faults = lint_ovf(rebuilt(ova, tmp_path, same, drop=["web-golden-disk1.vmdk"], first="web-golden.mf"))
    assert "the manifest lacks web-golden-disk1.vmdk" in faults
    assert "the first member is web-golden.mf, not the descriptor" in faults
    faults = lint_ovf(rebuilt(ova, tmp_path, same, extra={"stray.iso": b"x", "web-golden-disk1.vmdk": b"QFI\xfb"}))
    assert "stray.iso is in the package, but not in References" in faults
    assert "web-golden-disk1.vmdk is no VMDK" in faults
    faults = lint_ovf(rebuilt(ova, tmp_path, same, extra={"sub/x": b"x"}, manifest=lambda text: text + "SHA1(a)= b\n"))
    assert "not a flat name: sub/x" in faults
    assert "a line of the manifest is not SHA256(name)= hex" in faults


MOVING = """\
name: moving
machine: {memory: 1G, disk: 3G, firmware: [bios, uefi]}
base: {recipe: %s}
steps:
  - packages: [grub2-common]
outputs: [ova]
"""
"""virt-v2v converts no guest that starts by GRUB and has no grub-mkconfig."""


@pytest.mark.slow
def test_virt_v2v_converts_the_appliance_and_what_it_makes_boots(
    golden: Golden, command: Command, tmp_path: Path
) -> None:
    """The whole way of somebody who moves an appliance to KVM: more than ten minutes without it."""
    (tmp_path / "moving.yaml").write_text(MOVING % golden.recipe)
    command("build", tmp_path / "moving.yaml")
    with tempfile.TemporaryDirectory(prefix="v2v-", dir="/var/tmp") as folder:
        ask("virt-v2v", "-i", "ova", command.output / "moving/moving.ova", "-o", "local", "-os", folder, "-of", "qcow2",
            "-on", "moved", env=NO_KVM, timeout=2400)  # fmt: skip
        domain = ET.parse(Path(folder, "moved.xml")).getroot()
        assert domain.findtext("name") == "moved"
        command("test", Path(folder, "moved-sda"))
