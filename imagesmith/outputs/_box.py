"""What stands in a Vagrant box for each provider: metadata, the Vagrantfile's defaults, and the machine's own files.

Sources: vagrant-libvirt 0.11, lib/vagrant-libvirt/action/handle_box_image.rb (box format, version 2 with ``disks``);
Vagrant 2.3, plugins/providers/virtualbox (``box.ovf``), plugins/providers/hyperv/action/import.rb and
scripts/utils/VagrantVM/VagrantVM.psm1 (what is read of a machine's XML); HashiCorp, "Box Format" of the VMware
provider (a .vmx at the root beside its disks).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.outputs._common import GIB, MIB, write_qcow2
from imagesmith.outputs._ovf import write_package
from imagesmith.outputs._vhdx import write_vhdx
from imagesmith.outputs._vmdk import write_sparse_vmdk

_LIBVIRT = """\
  config.vm.provider :libvirt do |libvirt|
    libvirt.cpus = {cpus}
    libvirt.memory = {memory}
{uefi}  end
"""
_LIBVIRT_UEFI = """\
    libvirt.loader = [
      "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    ].find { |path| File.exist?(path) }
"""
_QEMU = """\
  config.vm.provider :qemu do |qemu|
    qemu.arch = "{arch}"
    qemu.machine = "{machine}"
    qemu.cpu = "max"
    qemu.smp = "{cpus}"
    qemu.memory = "{memory}M"
    qemu.net_device = "virtio-net-pci"
  end
"""
_VIRTUALBOX = """\
  config.vm.provider :virtualbox do |virtualbox|
    virtualbox.cpus = {cpus}
    virtualbox.memory = {memory}
    virtualbox.customize ["modifyvm", :id, "--nictype1", "virtio"]
{uefi}  end
"""
_VIRTUALBOX_UEFI = """\
    virtualbox.customize ["modifyvm", :id, "--firmware", "efi"]
"""
_VMWARE = """\
  config.vm.provider :vmware_desktop do |vmware|
    vmware.vmx["numvcpus"] = "{cpus}"
    vmware.vmx["memsize"] = "{memory}"
  end
"""
_HYPERV = """\
  config.vm.provider :hyperv do |hyperv|
    hyperv.cpus = {cpus}
    hyperv.memory = {memory}
  end
"""
_VAGRANTFILE = """\
Vagrant.configure("2") do |config|
  # The image need not hold what shared folders want (NFS, rsync, guest additions).
  config.vm.synced_folder ".", "/vagrant", disabled: true
{provider}end
"""
_QEMU_MACHINES = {"x86_64": "q35", "aarch64": "virt"}


@dataclass(frozen=True)
class Contents:
    """What goes into the box besides its description."""

    metadata: Mapping[str, object]
    members: Mapping[str, Path]
    """Names in the archive, sorted as they are to stand in it, and the files."""


def provider_of(provider: str) -> str:
    """Return what the metadata calls the provider: Vagrant's qemu provider takes libvirt's boxes, and no others."""
    return "libvirt" if provider == "qemu" else provider


def demand_pc(provider: str, arch: str) -> None:
    """Raise BuildError where the provider cannot run guests of this processor."""
    if provider not in ("libvirt", "qemu") and arch != "x86_64":
        raise BuildError(f"a box for {provider} runs on a PC's hardware; there is none for {arch}",
                         hint="take provider libvirt or qemu")  # fmt: skip


def contents(
    provider: str, disk: Disk, maker: Maker, work: Path, host: Host, log: Log, *, extra: Sequence[int] = (),
) -> Contents:  # fmt: skip
    """Write the machine as the provider wants it into ``work``. ``extra`` are the sizes of more disks, empty, in bytes.

    Raises BuildError where the provider cannot run the image, or ToolFailed.
    """
    demand_pc(provider, maker.arch)
    if extra and provider not in ("libvirt", "qemu"):
        raise BuildError(f"a box for {provider} holds one disk", hint="'extra_disks' is for libvirt")
    return _WRITERS[provider](disk, maker, work, host, log, extra)


def _libvirt(disk: Disk, maker: Maker, work: Path, host: Host, log: Log, extra: Sequence[int]) -> Contents:
    write_qcow2(disk, work / "box.img", host, log, compression="zstd")
    metadata: dict[str, object] = {"provider": "libvirt"}
    if not extra:
        metadata |= {"format": "qcow2", "virtual_size": -(-disk.virtual_size // GIB)}
        return Contents(metadata, {"box.img": work / "box.img"})
    names = ["box.img", *(f"box_{number}.img" for number in range(1, len(extra) + 1))]
    for name, size in zip(names[1:], extra, strict=True):
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=1.1", work / name, str(size)],
                 purpose=f"make the empty disk {name}")  # fmt: skip
    metadata |= {"format": "qcow2",
                 "disks": [{"path": name, "name": f"disk{number}"} for number, name in enumerate(names)]}  # fmt: skip
    return Contents(metadata, {name: work / name for name in names})


def _virtualbox(disk: Disk, maker: Maker, work: Path, host: Host, log: Log, extra: Sequence[int]) -> Contents:
    names = write_package(disk, maker, work, host, log, hardware="generic", descriptor_name="box.ovf",
                          disk_name="box-disk1.vmdk")  # fmt: skip
    return Contents({"provider": "virtualbox"}, {name: work / name for name in names})


def _vmware(disk: Disk, maker: Maker, work: Path, host: Host, log: Log, extra: Sequence[int]) -> Contents:
    write_sparse_vmdk(disk, work / "disk.vmdk", maker.seed, host, log)
    (work / "box.vmx").write_text(vmx(maker, uefi="bios" not in disk.firmware), encoding="utf-8")
    return Contents({"provider": "vmware_desktop"}, {name: work / name for name in ("box.vmx", "disk.vmdk")})


def _hyperv(disk: Disk, maker: Maker, work: Path, host: Host, log: Log, extra: Sequence[int]) -> Contents:
    write_vhdx(disk, work / "box.vhdx", maker.seed, host, log)
    (work / "box.xml").write_text(hyperv_xml(maker, uefi="bios" not in disk.firmware), encoding="utf-8")
    return Contents({"provider": "hyperv"}, {"Virtual Hard Disks/box.vhdx": work / "box.vhdx",
                                             "Virtual Machines/box.xml": work / "box.xml"})  # fmt: skip


_WRITERS = {"libvirt": _libvirt, "qemu": _libvirt, "virtualbox": _virtualbox, "vmware_desktop": _vmware,
            "hyperv": _hyperv}  # fmt: skip


def vagrantfile(provider: str, maker: Maker, *, uefi: bool) -> str:
    """Return the defaults that the box brings; the user's own Vagrantfile overrides them."""
    numbers = {"cpus": maker.cpus, "memory": maker.memory // MIB}
    if provider in ("libvirt", "qemu"):  # the same box serves both
        settings = _LIBVIRT.format(**numbers, uefi=_LIBVIRT_UEFI if uefi else "")
        settings += _QEMU.format(**numbers, arch=maker.arch, machine=_QEMU_MACHINES.get(maker.arch, "virt"))
    elif provider == "virtualbox":
        settings = _VIRTUALBOX.format(**numbers, uefi=_VIRTUALBOX_UEFI if uefi else "")
    else:
        settings = (_VMWARE if provider == "vmware_desktop" else _HYPERV).format(**numbers)
    return _VAGRANTFILE.format(provider=settings)


def vmx(maker: Maker, *, uefi: bool) -> str:
    """Return a virtual machine's configuration for VMware Workstation and Fusion, with PVSCSI and VMXNET3.

    Hardware version 13 is that of Workstation 12.5 and ESXi 6.5. The PCI bridges are what VMware's own machines of
    that version have; without one of type pcieRootPort there is no slot for VMXNET3.
    """
    settings = {
        ".encoding": "UTF-8", "config.version": "8", "virtualHW.version": "13", "displayName": _plain(maker.name),
        "annotation": _plain(maker.description), "guestOS": "other4xlinux-64", "numvcpus": str(maker.cpus),
        "memsize": str(maker.memory // MIB), "firmware": "efi" if uefi else "bios", "scsi0.present": "TRUE",
        "scsi0.virtualDev": "pvscsi", "scsi0:0.present": "TRUE", "scsi0:0.fileName": "disk.vmdk",
        "ethernet0.present": "TRUE", "ethernet0.virtualDev": "vmxnet3", "ethernet0.connectionType": "nat",
        "ethernet0.addressType": "generated", "pciBridge0.present": "TRUE", "pciBridge4.present": "TRUE",
        "pciBridge4.virtualDev": "pcieRootPort", "pciBridge4.functions": "8", "floppy0.present": "FALSE",
        "tools.syncTime": "TRUE",
    }  # fmt: skip
    return "".join(f'{name} = "{value}"\n' for name, value in settings.items() if value)


def _plain(value: str) -> str:
    """Leave out what ends a value: VMware's files have no way to write a quotation mark, but ``|22``."""
    return " ".join(value.split()).replace("|", "|7C").replace('"', "|22")


def hyperv_xml(maker: Maker, *, uefi: bool) -> str:
    """Return a machine's description with all that Vagrant's import reads of it, and nothing else.

    ``subtype`` is the generation less one: 0 is a PC with a BIOS and IDE, 1 has UEFI and SCSI. A SCSI controller is
    told by its parent's ChannelInstanceGuid.
    """
    drive = '<drive0><pathname type="string">box.vhdx</pathname><type type="string">VHD</type></drive0>'
    controller = f"<controller0>{drive}</controller0>"
    guid = '<ChannelInstanceGuid type="string">{00000000-0000-0000-0000-000000000000}</ChannelInstanceGuid>'
    bus = f"<scsi>{guid}{controller}</scsi>" if uefi else f"<ide>{controller}</ide>"
    notes = escape(" ".join(maker.description.split()))
    memory = maker.memory // MIB
    return f"""\
<?xml version="1.0" encoding="UTF-8"?>
<configuration>
  <properties>
    <name type="string">{escape(maker.name)}</name>
    <notes type="string">{notes}</notes>
    <subtype type="integer">{int(uefi)}</subtype>
  </properties>
  <settings>
    <processors><count type="integer">{maker.cpus}</count></processors>
    <memory>
      <bank>
        <dynamic_memory_enabled type="bool">False</dynamic_memory_enabled>
        <limit type="integer">{memory}</limit>
        <reservation type="integer">{memory}</reservation>
        <size type="integer">{memory}</size>
      </bank>
    </memory>
  </settings>
  <bios><boot><device0 type="string">HardDrive</device0></boot></bios>
  <secure_boot_enabled type="bool">False</secure_boot_enabled>
  {bus}
</configuration>
"""
