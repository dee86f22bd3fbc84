"""OVF descriptors and manifests: one virtual machine with one disk and one network adapter.

Source: DMTF DSP0243 1.1.0 (Open Virtualization Format), DSP8023 1.0 (its schema), and CIM_ResourceAllocationSettingData
and CIM_OperatingSystem for the numbers. A descriptor is a pure function of an :class:`Appliance`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.outputs._common import MIB, sha256
from imagesmith.outputs._text import xml_text
from imagesmith.outputs._vmdk import write_vmdk

Hardware = Literal["generic", "virtualbox", "vmware"]
_NETWORK = "NAT"  # VirtualBox attaches an adapter by this name: Null, NAT, Bridged, Internal or HostOnly
_LINUX_64 = 101  # CIM_OperatingSystem.OSType
_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


@dataclass(frozen=True)
class _Devices:
    """What tells one family of hypervisors' hardware from another's."""

    family: str
    controller: Mapping[str, object]
    """The disk controller's own rasd elements."""
    network: str
    adapter: str
    """The VMDK descriptor's word for the controller."""
    drivers: Mapping[str, str]
    """Kernel modules that the guest must have, and what for."""


_DEVICES: dict[Hardware, _Devices] = {
    # PIIX4 IDE and virtio: what Debian's cloud kernel has drivers for (it has no AHCI, LSI Logic or e1000).
    "generic": _Devices(
        "virtualbox-2.2", {"ResourceType": 5, "ResourceSubType": "PIIX4", "ElementName": "IDE controller"},
        "VirtioNet", "ide", {"ata_piix": "an IDE disk", "virtio_net": "a virtio network adapter"},
    ),
    # what VirtualBox itself gives a new machine with 64-bit Linux
    "virtualbox": _Devices(
        "virtualbox-2.2", {"ResourceType": 20, "ResourceSubType": "AHCI", "ElementName": "SATA controller"},
        "E1000", "ide", {"ahci": "a SATA disk", "e1000": "an Intel network adapter"},
    ),
    # vmx-13 (ESXi 6.5) is the oldest that current vSphere still creates.
    "vmware": _Devices(
        "vmx-13", {"ResourceType": 6, "ResourceSubType": "VirtualSCSI", "ElementName": "SCSI controller"},
        "VmxNet3", "lsilogic", {"vmw_pvscsi": "a PVSCSI disk", "vmxnet3": "a VMXNET3 network adapter"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Appliance:
    """All that a descriptor says."""

    name: str
    version: str
    description: str
    cpus: int
    memory: int
    """Bytes."""
    capacity: int
    """The disk's size as the guest sees it, in bytes."""
    disk_file: str
    disk_size: int
    """The disk file's size in bytes."""
    uefi: bool = False
    """Whether it boots with UEFI only."""
    hardware: Hardware = "generic"


def write_package(
    disk: Disk, maker: Maker, work: Path, host: Host, log: Log, *, hardware: Hardware, descriptor_name: str,
    disk_name: str,
) -> dict[str, str]:  # fmt: skip
    """Write the disk and the descriptor into ``work``; return each file's SHA-256, the descriptor first."""
    demand_pc(maker.arch)
    _check_drivers(disk, hardware, log)
    uefi = "bios" not in disk.firmware
    if uefi and hardware != "vmware":
        log("the disk boots with UEFI only: turn EFI on in the imported machine, VirtualBox takes no hint of it")
    target = work / disk_name
    write_vmdk(disk, target, maker.seed, host, log, adapter=_DEVICES[hardware].adapter)
    appliance = Appliance(
        name=maker.name, version=maker.version, description=maker.description, cpus=maker.cpus, memory=maker.memory,
        capacity=disk.virtual_size, disk_file=disk_name, disk_size=target.stat().st_size, uefi=uefi, hardware=hardware,
    )  # fmt: skip
    (work / descriptor_name).write_text(descriptor(appliance), encoding="utf-8")
    return {name: sha256(work / name) for name in (descriptor_name, disk_name)}


def demand_pc(arch: str) -> None:
    """Raise BuildError where the guest is for another processor than a descriptor's hardware has."""
    if arch != "x86_64":
        raise BuildError(f"an OVF appliance's hardware is a PC's; there is none for {arch}",
                         hint="take the output qcow2 or raw")  # fmt: skip


def _check_drivers(disk: Disk, hardware: Hardware, log: Log) -> None:
    """Refuse hardware that the guest's kernel has no drivers for, as far as these can be seen."""
    found = disk.drivers()
    if found is None:
        log("whether the guest's kernel has drivers for this hardware could not be seen")
        return
    missing = {name: what for name, what in _DEVICES[hardware].drivers.items() if name not in found}
    if missing:
        fitting = [name for name, devices in _DEVICES.items() if not set(devices.drivers) - found]
        raise BuildError(
            f"hardware {hardware} means {' and '.join(missing.values())}, and the image's kernel has no driver for it"
            f" ({', '.join(missing)})",
            hint=(f"take hardware {' or '.join(fitting)}, or " if fitting else "") +
                 "install a kernel with all drivers (Debian: linux-image-amd64 in place of linux-image-cloud-amd64)",
        )  # fmt: skip


def manifest(digests: Mapping[str, str]) -> str:
    """Return a manifest (DSP0243, section 5.1): a line for each file of the package but itself."""
    return "".join(f"SHA256({name})= {digest}\n" for name, digest in digests.items())


def descriptor(appliance: Appliance) -> str:
    """Return the OVF envelope."""
    devices = _DEVICES[appliance.hardware]
    name, href = quoteattr(xml_text(appliance.name)), quoteattr(xml_text(appliance.disk_file))
    firmware = '      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>\n' if appliance.uefi else ""
    system = {
        "ElementName": "Virtual hardware family", "InstanceID": 0, "VirtualSystemIdentifier": appliance.name,
        "VirtualSystemType": devices.family,
    }  # fmt: skip
    product = f"      <Product>{_escaped(appliance.name)}</Product>\n"
    if appliance.version:
        product += f"      <Version>{_escaped(appliance.version)}</Version>\n"
    annotation = ""
    if appliance.description:
        annotation = (
            "    <AnnotationSection>\n"
            "      <Info>What this machine is</Info>\n"
            f"      <Annotation>{_escaped(appliance.description)}</Annotation>\n"
            "    </AnnotationSection>\n"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1"'
        ' xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
        ' xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"'
        ' xmlns:vmw="http://www.vmware.com/schema/ovf"'
        ' xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">\n'
        "  <References>\n"
        f'    <File ovf:href={href} ovf:id="file1" ovf:size="{appliance.disk_size}"/>\n'
        "  </References>\n"
        "  <DiskSection>\n"
        "    <Info>The virtual disks</Info>\n"
        f'    <Disk ovf:capacity="{appliance.capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk1"'
        f' ovf:fileRef="file1" ovf:format="{_FORMAT}"/>\n'
        "  </DiskSection>\n"
        "  <NetworkSection>\n"
        "    <Info>The logical networks</Info>\n"
        f'    <Network ovf:name="{_NETWORK}">\n'
        "      <Description>Where the machine gets its address by DHCP</Description>\n"
        "    </Network>\n"
        "  </NetworkSection>\n"
        f"  <VirtualSystem ovf:id={name}>\n"
        "    <Info>A virtual machine</Info>\n"
        f"    <Name>{_escaped(appliance.name)}</Name>\n"
        f'    <OperatingSystemSection ovf:id="{_LINUX_64}">\n'
        "      <Info>The guest operating system</Info>\n"
        "      <Description>Linux 64-Bit</Description>\n"
        "    </OperatingSystemSection>\n"
        "    <ProductSection>\n"
        "      <Info>What is installed</Info>\n"
        f"{product}"
        "    </ProductSection>\n"
        f"{annotation}"
        "    <VirtualHardwareSection>\n"
        "      <Info>The virtual hardware</Info>\n"
        f"{_element('System', 'vssd', system)}"
        f"{''.join(_element('Item', 'rasd', item) for item in _items(appliance, devices))}"
        f"{firmware}"
        "    </VirtualHardwareSection>\n"
        "  </VirtualSystem>\n"
        "</Envelope>\n"
    )


def _items(appliance: Appliance, devices: _Devices) -> Sequence[Mapping[str, object]]:
    return (
        {"InstanceID": 1, "ResourceType": 3, "ElementName": f"{appliance.cpus} virtual CPU(s)",
         "AllocationUnits": "hertz * 10^6", "VirtualQuantity": appliance.cpus},
        {"InstanceID": 2, "ResourceType": 4, "ElementName": f"{appliance.memory // MIB} MiB of memory",
         "AllocationUnits": "byte * 2^20", "VirtualQuantity": appliance.memory // MIB},
        {"InstanceID": 3, "Address": 0, **devices.controller},
        {"InstanceID": 4, "ResourceType": 17, "ElementName": "Hard disk", "HostResource": "ovf:/disk/vmdisk1",
         "Parent": 3, "AddressOnParent": 0},
        {"InstanceID": 5, "ResourceType": 10, "ResourceSubType": devices.network, "ElementName": "Network adapter",
         "AutomaticAllocation": "true", "Connection": _NETWORK},
    )  # fmt: skip


def _element(tag: str, prefix: str, fields: Mapping[str, object]) -> str:
    """Return an element whose children stand in alphabetical order, as the schema's sequences want them."""
    children = "".join(
        f"        <{prefix}:{key}>{_escaped(str(value))}</{prefix}:{key}>\n" for key, value in sorted(fields.items())
    )
    return f"      <{tag}>\n{children}      </{tag}>\n"


def _escaped(value: str) -> str:
    return escape(xml_text(value))
