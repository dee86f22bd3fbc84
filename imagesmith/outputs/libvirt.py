"""The libvirt output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Maker
from imagesmith.kinds import DiskOutput
from imagesmith.outputs._common import MIB, copy_variables, finish, qcow2_sameness, workspace, write_qcow2
from imagesmith.outputs._fit import demand_drivers, starts_with
from imagesmith.outputs._text import xml_text

_MACHINES = {"x86_64": "q35", "aarch64": "virt"}


class Libvirt(DiskOutput, name="libvirt", version=1):
    """A qcow2 and the libvirt domain that runs it: put the image into ``folder``, then ``virsh define`` the XML.

    The domain has virtio disk and network (the network ``default``), a serial console and the channel of QEMU's guest
    agent, and no screen. Where the disk has UEFI variables, they are written beside it, for ``folder``, too, and the
    domain uses that file: it goes with the build of the firmware that made it.
    """

    folder: str = Field(
        "/var/lib/libvirt/images", pattern="^/", description="Where the image will be on the host that runs it"
    )
    type: Literal["kvm", "qemu"] = Field("kvm", description="qemu is for hosts without KVM")

    @property
    def sameness(self) -> str:
        """See Output."""
        return qcow2_sameness("zstd")

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the image, its variables and the domain."""
        demand_drivers(disk, [("virtio_blk", "virtio_net")], "a libvirt domain with virtio", log)
        image, domain = f"{maker.name}.libvirt.qcow2", f"{maker.name}.libvirt.xml"
        with workspace(directory, image) as work:
            write_qcow2(disk, work / image, host, log, compression="zstd")
            stored = [(work / name).rename(work / f"{maker.name}.libvirt.variables.fd").name
                      for name in copy_variables(disk, maker, work)]  # fmt: skip
            text = self.domain(maker, starts_with(disk, maker), image, "".join(stored))
            (work / domain).write_text(text, encoding="utf-8")
            return finish(work, directory, [image, domain, *stored])

    def domain(self, maker: Maker, firmware: str, image: str, variables: str = "") -> str:
        """Return the domain (libvirt.org, formatdomain). ``variables`` names its UEFI variable store."""
        folder = escape(xml_text(self.folder.rstrip("/")), {"'": "&apos;"})
        about = escape(xml_text(maker.description))
        described = f"  <description>{about}</description>\n" if about else ""
        apic = "    <apic/>\n" if maker.arch == "x86_64" else "    <gic/>\n"
        smm = "    <smm state='on'/>\n" if firmware == "uefi-secure" else ""
        cpu = "host-passthrough" if self.type == "kvm" else "maximum"
        return (
            f"<domain type='{self.type}'>\n"
            f"  <name>{maker.name}</name>\n"
            f"{described}"
            f"  <memory unit='MiB'>{maker.memory // MIB}</memory>\n"
            f"  <vcpu>{maker.cpus}</vcpu>\n"
            f"{_boot(maker.arch, firmware, f'{folder}/{variables}' if variables else '')}"
            "  <features>\n"
            "    <acpi/>\n"
            f"{apic}{smm}"
            "  </features>\n"
            f"  <cpu mode='{cpu}'/>\n"
            "  <clock offset='utc'/>\n"
            "  <devices>\n"
            "    <disk type='file' device='disk'>\n"
            "      <driver name='qemu' type='qcow2' discard='unmap'/>\n"
            f"      <source file='{folder}/{image}'/>\n"
            "      <target dev='vda' bus='virtio'/>\n"
            "    </disk>\n"
            "    <interface type='network'>\n"
            "      <source network='default'/>\n"
            "      <model type='virtio'/>\n"
            "    </interface>\n"
            "    <serial type='pty'/>\n"
            "    <console type='pty'/>\n"
            "    <channel type='unix'>\n"
            "      <target type='virtio' name='org.qemu.guest_agent.0'/>\n"
            "    </channel>\n"
            "    <rng model='virtio'>\n"
            "      <backend model='random'>/dev/urandom</backend>\n"
            "    </rng>\n"
            "  </devices>\n"
            "</domain>\n"
        )


def _boot(arch: str, firmware: str, variables: str) -> str:
    """Return the <os> element: what firmware there is, and that the disk is booted.

    libvirt picks a UEFI build of the host's by what it must be able to do; one whose keys are enrolled would start
    nothing that is not signed.
    """
    kind, features, store = "", "", ""
    if firmware != "bios":
        secure = "yes" if firmware == "uefi-secure" else "no"
        kind = " firmware='efi'"
        features = (
            "    <firmware>\n"
            f"      <feature enabled='{secure}' name='enrolled-keys'/>\n"
            f"      <feature enabled='{secure}' name='secure-boot'/>\n"
            "    </firmware>\n"
        )
        store = f"    <nvram>{variables}</nvram>\n" if variables else ""
    return (
        f"  <os{kind}>\n"
        f"    <type arch='{arch}' machine='{_MACHINES[arch]}'>hvm</type>\n"
        f"{features}{store}"
        "    <boot dev='hd'/>\n"
        "  </os>\n"
    )
