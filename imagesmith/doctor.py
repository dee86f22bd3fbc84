"""What this host can do, what it lacks, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imagesmith.errors import ImagesmithError, MissingTool, ToolFailed
from imagesmith.host import PACKAGES, Host
from imagesmith.kinds import left_out
from imagesmith.machine import firmware
from imagesmith.probe import accelerator, kernels, qemu_version

_GIB = 1 << 30
_DISK_WANTED, _MEMORY_WANTED = 10 * _GIB, 2 * _GIB
"""A build of a small image takes 3 to 5 GiB of disk, and its guest 1 GiB of memory."""
_SUBIDS_WANTED = 65536  # useradd(8) gives each user as many (SUB_UID_COUNT)
_INSTALL = ("sudo apt-get install", "sudo dnf install", "sudo pacman -S")  # in the order of host.PACKAGES


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``ok`` is None where it is no fault, but worth knowing; ``mend`` is a command."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def examine(host: Host, cache: Path) -> list[Finding]:
    """Look at everything that building needs. ``cache`` is the store's folder; it need not be there yet."""
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("qemu", lambda: _qemu(host)),
        ("kvm", lambda: _kvm(host, cache)),
        ("firmware bios", lambda: Finding("firmware bios", True, "SeaBIOS comes with QEMU")),
        ("firmware uefi", lambda: _uefi(secure=False)),
        ("firmware uefi-secure", lambda: _uefi(secure=True)),
        *((tool, lambda tool=tool, use=use: _tool(host, tool, use)) for tool, use in _TOOLS),
        ("swtpm", lambda: _tpm(host)),
        ("user namespaces", lambda: _namespaces(host)),
        ("fuse", _fuse),
        ("guestfs", _guestfs),
        ("disk space", lambda: _disk(cache)),
        ("memory", _memory),
        ("apt mirror", _mirror),
    ]
    plugins = [Finding(f"kinds of {package.name}", False, f"are left out: {package.why}",
                       f"pip install --upgrade {package.name}") for package in left_out()]  # fmt: skip
    return [_safely(name, look) for name, look in looks] + plugins


_TOOLS = (
    ("qemu-img", "make and convert disks"),
    ("qemu-storage-daemon", "open disks"),
    ("mmdebstrap", "bootstrap Debian and Ubuntu"),
    ("mke2fs", "make root file systems"),
    ("debugfs", "write into disks without mounting them"),
    ("sfdisk", "write partition tables"),
    ("mcopy", "fill EFI system partitions"),
    ("mkfs.vfat", "make EFI system partitions"),
    ("grub-mkimage", "make disks bootable"),
    ("zstd", "compress"),
    ("gpgv", "verify signed checksums"),
)


def _safely(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except (ImagesmithError, OSError) as error:
        return Finding(name, False, str(error), getattr(error, "hint", ""))


def _install(tool: str) -> str:
    """The command that installs a tool on this distribution; empty where we do not know."""
    names = PACKAGES.get(tool)
    return f"{_INSTALL[_distribution()]} {names[_distribution()]}" if names else ""


def _distribution() -> int:
    """Which column of host.PACKAGES is this host's (os-release(5), ID and ID_LIKE)."""
    try:
        words = set(re.findall(r"^ID(?:_LIKE)?=(.*)$", Path("/etc/os-release").read_text(), re.M))
    except OSError:
        return 0
    ids = {word for value in words for word in value.strip("\"'").split()}
    return 1 if ids & {"fedora", "rhel", "centos"} else 2 if "arch" in ids else 0


def _tool(host: Host, tool: str, use: str) -> Finding:
    found = host.find(tool)
    if found is None:
        return Finding(tool, False, f"is not installed; it is needed to {use}", _install(tool))
    return Finding(tool, True, found)


def _qemu(host: Host) -> Finding:
    tool = "qemu-system-x86_64"
    try:
        return Finding("qemu", True, f"version {qemu_version(host)}")
    except MissingTool as error:
        return Finding("qemu", False, error.message, _install(tool))


def _kvm(host: Host, cache: Path) -> Finding:
    found = accelerator(host, cache, lambda line: None)
    if found.name == "kvm":
        return Finding("kvm", True, found.reason)
    return Finding("kvm", None, f"guests run under TCG, many times slower: {found.reason}", found.mend)


def _uefi(*, secure: bool) -> Finding:
    name = "firmware uefi-secure" if secure else "firmware uefi"
    try:
        return Finding(name, True, str(firmware.find("x86_64", secure=secure).code))
    except MissingTool as error:
        package = ("ovmf", "edk2-ovmf", "edk2-ovmf")[_distribution()]
        return Finding(name, False, error.message, f"{_INSTALL[_distribution()]} {package}")


def _tpm(host: Host) -> Finding:
    found = host.find("swtpm")
    if found is None:
        return Finding("swtpm", None, "is not installed; recipes with 'tpm: true' need it", _install("swtpm"))
    return Finding("swtpm", True, found)


def _namespaces(host: Host) -> Finding:
    name = "user namespaces"
    try:
        host.run(["unshare", "--user", "--map-root-user", "true"], purpose="try a user namespace", timeout=20)
    except ToolFailed as error:
        if os.geteuid() == 0:
            return Finding(name, None, "none, but root needs none")
        return Finding(name, False, f"the kernel refuses them: {error.tail}", _allow_namespaces())
    if os.geteuid() == 0:
        return Finding(name, True, "there, and root needs no subordinate ids")
    for tool in ("newuidmap", "newgidmap"):
        if host.find(tool) is None:
            return Finding(name, False, f"{tool} is not installed", _install(tool))
    user = host.run(["id", "-un"], purpose="find your name").text.strip()
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        if _subordinate(file, user) < _SUBIDS_WANTED:
            return Finding(name, False, f"{file} gives {user} fewer than {_SUBIDS_WANTED} subordinate ids",
                           f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")  # fmt: skip
    return Finding(name, True, f"there, with subordinate ids for {user}")


def _allow_namespaces() -> str:
    """The command that lifts whichever restriction this kernel has (Debian's old one, or Ubuntu's)."""
    for setting, value in (("apparmor_restrict_unprivileged_userns", 0), ("unprivileged_userns_clone", 1)):
        if Path("/proc/sys/kernel", setting).exists():
            return f"sudo sysctl kernel.{setting}={value}"
    return "sudo sysctl user.max_user_namespaces=10000"


def _subordinate(file: Path, user: str) -> int:
    """How many ids a user has in one range at most (subuid(5): name or uid, first, count)."""
    try:
        rows = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return 0
    return max((int(row[2]) for row in rows if len(row) == 3 and row[0] in {user, str(os.geteuid())}
                and row[2].isdigit()), default=0)  # fmt: skip


def _fuse() -> Finding:
    device = Path("/dev/fuse")
    if not device.exists():
        return Finding("fuse", False, f"there is no {device}; it is needed to open disks", "sudo modprobe fuse")
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("fuse", False, f"you may not open {device}", f"sudo chmod a+rw {device}")
    return Finding("fuse", True, str(device))


def _guestfs() -> Finding:
    name, why = "guestfs", "steps on disks of foreign origin need it"
    if importlib.util.find_spec("guestfs") is None:
        package = ("python3-guestfs", "python3-libguestfs", "libguestfs")[_distribution()]
        return Finding(name, None, f"the Python binding of libguestfs is not there; {why}",
                       f"{_INSTALL[_distribution()]} {package}")  # fmt: skip
    if not kernels() and "SUPERMIN_KERNEL" not in os.environ and "LIBGUESTFS_PATH" not in os.environ:
        return Finding(name, None, f"no kernel in /boot that you may read, so no appliance can be made; {why}",
                       "sudo chmod +r /boot/vmlinuz-*")  # fmt: skip
    return Finding(name, True, "the binding is there, and a kernel for its appliance")


def _disk(cache: Path) -> Finding:
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / _GIB:.1f} GiB free for {cache}"
    if free < _DISK_WANTED:
        return Finding("disk space", False, f"{detail}; {_DISK_WANTED // _GIB} GiB are wanted", "imagesmith cache gc")
    return Finding("disk space", True, detail)


def _memory() -> Finding:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    enough = available >= _MEMORY_WANTED
    return Finding("memory", enough, f"{available / _GIB:.1f} GiB available"
                   + ("" if enough else f"; a guest and its tools take {_MEMORY_WANTED // _GIB} GiB"))  # fmt: skip


def _mirror() -> Finding:
    """The host's own package mirror, which bootstrapping uses unless a recipe names another."""
    urls = [url for file in _sources() for url in re.findall(r"\b(https?://[^\s\]]+)", _uncommented(file))]
    if not urls:
        return Finding("apt mirror", None, "this host has no apt sources; a recipe must name a mirror")
    parts = urlsplit(urls[0])
    if any(name in os.environ for name in ("http_proxy", "https_proxy")):
        return Finding("apt mirror", None, f"{parts.hostname}, through a proxy: not tried")
    try:
        socket.create_connection((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)), 5).close()
    except OSError as error:
        return Finding("apt mirror", False, f"{parts.hostname} cannot be reached: {error.strerror or error}")
    return Finding("apt mirror", True, f"{parts.hostname} can be reached")


def _sources() -> list[Path]:
    folder = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    return [file for file in found if file.is_file() and os.access(file, os.R_OK)]


def _uncommented(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
