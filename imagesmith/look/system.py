"""What system a root file system holds: distribution, kernels and their drivers, init, packages.

Sources: os-release(5); depmod(8) and kbuild (``modules.dep``, ``modules.builtin``); deb(5) and dpkg's ``status`` file;
apk's ``installed`` file (apk-tools, APKv2 installed database); pacman's ``desc`` files.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from imagesmith.look.reader import Reader

DRIVERS: Mapping[str, tuple[str, ...]] = {
    "virtio block": ("virtio_blk",), "virtio SCSI": ("virtio_scsi",), "virtio network": ("virtio_net",),
    "virtio PCI": ("virtio_pci",), "virtio MMIO (Firecracker, microvm)": ("virtio_mmio",), "NVMe": ("nvme",),
    "AHCI (SATA)": ("ahci",), "PIIX IDE": ("ata_piix",), "LSI Logic SCSI": ("mptspi",), "LSI Logic SAS": ("mptsas",),
    "VMware PVSCSI": ("vmw_pvscsi",), "VMware VMXNET3": ("vmxnet3",), "Intel e1000": ("e1000",),
    "Intel e1000e": ("e1000e",), "AMD PCnet": ("pcnet32",), "Hyper-V storage": ("hv_storvsc",),
    "Hyper-V network": ("hv_netvsc",), "Xen block": ("xen_blkfront",), "Xen network": ("xen_netfront",),
    "AWS ENA": ("ena",), "Google gVNIC": ("gve",),
}  # fmt: skip
"""What hypervisors' virtual hardware needs: its name, and the kernel modules that drive it."""
INITS = {
    "systemd": ("/usr/lib/systemd/systemd", "/lib/systemd/systemd"), "OpenRC": ("/sbin/openrc", "/usr/sbin/openrc"),
    "sysvinit": ("/sbin/telinit", "/usr/sbin/telinit"), "runit": ("/sbin/runit", "/usr/bin/runit"),
}  # fmt: skip
"""Init systems, and programs by which they are told."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of the system."""

    release: str
    """As ``uname -r`` says it."""
    modules: frozenset[str]
    """All drivers that it has, built in or as a module, with underscores."""

    def drives(self, hardware: str) -> bool:
        """Whether it has a driver for one of DRIVERS."""
        return any(name in self.modules for name in DRIVERS[hardware])


@dataclass(frozen=True)
class System:
    """What was found."""

    name: str = ""
    """For people: ``Debian GNU/Linux 12 (bookworm)``."""
    id: str = ""
    """os-release's ID: ``debian``."""
    version: str = ""
    """os-release's VERSION_ID."""
    init: str = ""
    hostname: str = ""
    kernels: Sequence[Kernel] = ()
    """The newest first."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Name -> version."""
    package_format: str = ""
    """deb, apk, pacman; rpm where there is a database that was not read; empty where none is known."""


def look(reader: Reader) -> System:
    """Look at a root file system. What it does not have is empty."""
    about = _os_release(reader)
    kind, packages = _packages(reader)
    return System(
        name=about.get("PRETTY_NAME") or about.get("NAME", ""), id=about.get("ID", ""),
        version=about.get("VERSION_ID", ""), init=_init(reader), hostname=_text(reader, "/etc/hostname").strip(),
        kernels=kernels(reader), packages=packages, package_format=kind,
    )  # fmt: skip


def kernels(reader: Reader) -> list[Kernel]:
    """The kernels that have modules, the newest first."""
    found = []
    for release in reader.names("/lib/modules"):
        listed = _text(reader, f"/lib/modules/{release}/modules.dep")
        built_in = _text(reader, f"/lib/modules/{release}/modules.builtin")
        paths = [line.partition(":")[0] for line in listed.splitlines()] + built_in.splitlines()
        names = frozenset(posixpath.basename(path).partition(".ko")[0].replace("-", "_") for path in paths if path)
        if names:
            found.append(Kernel(release, names))
    return sorted(found, key=lambda kernel: _order(kernel.release), reverse=True)


def _order(version: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", version) if part]


def _text(reader: Reader, path: str) -> str:
    try:
        return reader.read(path).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _os_release(reader: Reader) -> dict[str, str]:
    found = {}
    for line in (_text(reader, "/etc/os-release") or _text(reader, "/usr/lib/os-release")).splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            try:
                found[name] = " ".join(shlex.split(value))
            except ValueError:
                found[name] = value
    return found


def _init(reader: Reader) -> str:
    for name, paths in INITS.items():
        for path in paths:
            folder, file = posixpath.split(path)
            if file in reader.names(folder):
                return name
    return ""


def _packages(reader: Reader) -> tuple[str, dict[str, str]]:
    status = _text(reader, "/var/lib/dpkg/status")
    for name in reader.names("/var/lib/dpkg/status.d"):  # as distroless images have it
        status += "\n\n" + _text(reader, f"/var/lib/dpkg/status.d/{name}")
    if status.strip():
        return "deb", _deb(status)
    installed = _text(reader, "/lib/apk/db/installed")
    if installed:
        return "apk", _apk(installed)
    local = [name for name in reader.names("/var/lib/pacman/local") if name.count("-") >= 2]
    if local:
        split = [name.rsplit("-", 2) for name in local]
        return "pacman", {name: f"{version}-{release}" for name, version, release in split}
    rpm = [f for f in ("/var/lib/rpm", "/usr/lib/sysimage/rpm") if {"rpmdb.sqlite", "Packages", "Packages.db"}
           & set(reader.names(f))]  # fmt: skip
    return ("rpm", {}) if rpm else ("", {})


def _deb(status: str) -> dict[str, str]:
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Version|Status|Architecture): (.*)$", paragraph))
        if fields.get("Status", "install ok installed").endswith(" installed") and "Package" in fields:
            found[fields["Package"]] = fields.get("Version", "")
    return dict(sorted(found.items()))


def _apk(installed: str) -> dict[str, str]:
    found = {}
    for paragraph in installed.split("\n\n"):
        fields = dict(re.findall(r"(?m)^([PV]):(.*)$", paragraph))
        if "P" in fields:
            found[fields["P"]] = fields.get("V", "")
    return dict(sorted(found.items()))
