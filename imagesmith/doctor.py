"""What this host can do, what it lacks, and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from imagesmith.errors import ImagesmithError, MissingTool, ToolFailed
from imagesmith.host import PACKAGES, Host
from imagesmith.kinds import left_out
from imagesmith.machine import firmware
from imagesmith.probe import accelerator, kernels, qemu_version

_GIB = 1 << 30
_DISK_WANTED, _DISK_LEAST, _MEMORY_WANTED = 10 * _GIB, _GIB, 2 * _GIB
"""A build of a small image takes 3 to 5 GiB of disk, and its guest 1 GiB of memory; a bare root file system 1 GiB."""
_PROC = Path("/proc")
_SUBIDS_WANTED = 65536  # useradd(8) gives each user as many (SUB_UID_COUNT)
_INSTALL = ("sudo apt-get install", "sudo dnf install", "sudo pacman -S")  # in the order of host.PACKAGES


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``ok`` is None where it is no fault, but worth knowing; ``mend`` is a command."""

    name: str
    ok: bool | None
    detail: str
    mend: str = ""


def hopeless(findings: Sequence[Finding]) -> str:
    """What is missing, where nothing at all can be built; empty where something can.

    That is: neither a system of packages, nor anything of a disk image that is there.
    """
    missing = [finding.name for finding in findings if finding.ok is False]
    either = [[name for name in missing if name in (*needs, "disk space")] for needs in _VITAL]
    return ", ".join(dict.fromkeys(name for names in either for name in names)) if all(either) else ""


_VITAL = (("mmdebstrap", "user namespaces"), ("qemu-img", "qemu"))


def examine(host: Host, cache: Path) -> list[Finding]:
    """Look at everything that building needs. ``cache`` is the store's folder; it need not be there yet."""
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("cpu", _cpu),
        ("qemu", lambda: _qemu(host)),
        ("kvm", lambda: _kvm(host, cache)),
        ("firmware bios", lambda: Finding("firmware bios", True, "SeaBIOS comes with QEMU")),
        ("firmware uefi", lambda: _uefi(secure=False)),
        ("firmware uefi-secure", lambda: _uefi(secure=True)),
        *((tool, lambda tool=tool, use=use: _tool(host, tool, use)) for tool, use in _TOOLS),
        ("swtpm", lambda: _optional(host, "swtpm", "recipes with 'tpm: true' need it")),
        ("shellcheck", lambda: _optional(host, "shellcheck", "'imagesmith validate' has it check scripts")),
        ("user namespaces", lambda: _namespaces(host)),
        ("fuse", _fuse),
        ("guestfs", lambda: _guestfs(host)),
        ("disk space", lambda: _disk(cache)),
        ("temporary files", lambda: _temporary(cache)),
        ("memory", _memory),
        ("network", _network),
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
    except (ImagesmithError, OSError, ValueError) as error:
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


def _tool(host: Host, tool: str, use: str, name: str = "") -> Finding:
    found = host.find(tool)
    if found is None:
        missing = f"{tool} is not installed" if name else "is not installed"
        return Finding(name or tool, False, f"{missing}; it is needed to {use}", _install(tool))
    return Finding(tool, True, found)


def _cpu() -> Finding:
    text = (_PROC / "cpuinfo").read_text()
    flags = next((set(words.split()) for words in re.findall(r"^flags\s*:(.*)$", text, re.M)), set[str]())
    model = next(iter(re.findall(r"^model name\s*: (.*)$", text, re.M)), "processor")
    can = "VT-x" if "vmx" in flags else "AMD-V" if "svm" in flags else "no virtualisation"
    machine = platform.machine()
    detail = f"{machine}, {len(os.sched_getaffinity(0))} times {model}; {can}"
    if "hypervisor" in flags:
        detail += "; in a virtual machine"
    if machine != "x86_64":
        return Finding("cpu", None, f"{detail}; images are made and tried on x86_64 alone")
    return Finding("cpu", True, detail)


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


def _optional(host: Host, tool: str, use: str) -> Finding:
    found = host.find(tool)
    if found is None:
        return Finding(tool, None, f"is not installed; {use}", _install(tool))
    return Finding(tool, True, found)


def _namespaces(host: Host) -> Finding:
    name = "user namespaces"
    if host.find("unshare") is None:
        return _tool(host, "unshare", "try a user namespace", name)
    try:
        host.run(["unshare", "--user", "--map-root-user", "true"], purpose="try a user namespace", timeout=20)
    except ToolFailed as error:
        if os.geteuid() == 0:
            return Finding(name, None, "none, but root needs none")
        why, mend = _refused()
        return Finding(name, False, why or f"the kernel refuses them: {error.tail}", mend)
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


def _refused() -> tuple[str, str]:
    """Which setting keeps users from user namespaces, and the command that lifts it."""
    for setting, wrong, right, who in (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0", "AppArmor keeps them from users (Ubuntu)"),
        ("kernel.unprivileged_userns_clone", "0", "1", "the kernel keeps them from users (Debian)"),
        ("user.max_user_namespaces", "0", "10000", "the kernel allows none"),
    ):
        file = _PROC / "sys" / setting.replace(".", "/")
        if file.is_file() and file.read_text().strip() == wrong:
            return f"{who}: {setting} is {wrong}", f"sudo sysctl {setting}={right}"
    return "", ""


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


def _guestfs(host: Host) -> Finding:
    """The binding, and what supermin(1) makes the appliance of. It is not started: that takes up to a minute."""
    name, why = "guestfs", "steps on disks of foreign origin need it"
    if importlib.util.find_spec("guestfs") is None:
        there = next(Path("/usr/lib").glob("python3*/*-packages/guestfs.py"), None)
        if there is not None and sys.prefix != sys.base_prefix:
            return Finding(name, None, f"{there} is hidden from this virtual environment; {why}",
                           f"python3 -m venv --system-site-packages {sys.prefix}")  # fmt: skip
        package = ("python3-guestfs", "python3-libguestfs", "libguestfs")[_distribution()]
        return Finding(name, None, f"the Python binding of libguestfs is not there; {why}",
                       f"{_INSTALL[_distribution()]} {package}")  # fmt: skip
    fixed = [Path(folder) for folder in os.environ.get("LIBGUESTFS_PATH", "").split(":") if folder]
    if any((folder / "root").is_file() for folder in fixed):  # guestfs(3), "FIXED APPLIANCE"
        return Finding(name, True, f"the binding is there, and a fixed appliance in {fixed[0]}")
    if host.find("supermin") is None:
        return Finding(name, None, f"supermin, which makes its appliance, is not there; {why}", _install("supermin"))
    kernel = os.environ.get("SUPERMIN_KERNEL", "")
    if not (os.access(kernel, os.R_OK) if kernel else kernels()):
        if kernel or any(Path("/boot").glob("vmlinuz-*")):
            return Finding(name, None, f"no kernel that you may read, so no appliance can be made; {why}",
                           f"sudo chmod +r {kernel or '/boot/vmlinuz-*'}")  # fmt: skip
        package = ("linux-image-amd64", "kernel-core", "linux")[_distribution()]
        return Finding(name, None, f"there is no kernel in /boot, so no appliance can be made; {why}",
                       f"{_INSTALL[_distribution()]} {package}")  # fmt: skip
    made = Path(os.environ.get("LIBGUESTFS_CACHEDIR", "/var/tmp"), f".guestfs-{os.geteuid()}", "appliance.d", "root")
    return Finding(name, True, "the binding is there, and " + ("an appliance that was made already" if made.is_file()
                   else "a kernel and supermin for an appliance") + "; 'libguestfs-test-tool' starts it")  # fmt: skip


def _disk(cache: Path) -> Finding:
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / _GIB:.1f} GiB free for {cache}"
    if free < _DISK_LEAST:
        return Finding("disk space", False, f"{detail}; that is too little for any image", "imagesmith cache clear")
    if free < _DISK_WANTED:
        return Finding("disk space", None, f"{detail}; {_DISK_WANTED // _GIB} GiB are wanted", "imagesmith cache gc")
    return Finding("disk space", True, detail)


def _temporary(cache: Path) -> Finding:
    """Booted copies of disks and what tools put down in between."""
    place = Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    enough = free >= _DISK_WANTED // 2
    return Finding("temporary files", enough or None, f"{free / _GIB:.1f} GiB free in {place}"
                   + ("" if enough else f"; {_DISK_WANTED // 2 // _GIB} GiB are wanted"),
                   "" if enough else f"export TMPDIR={cache.parent}")  # fmt: skip


def _memory() -> Finding:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    enough = available >= _MEMORY_WANTED
    return Finding("memory", enough or None, f"{available / _GIB:.1f} GiB available"
                   + ("" if enough else f"; a guest and its tools take {_MEMORY_WANTED // _GIB} GiB"))  # fmt: skip


def _network() -> Finding:
    """A way out of this machine (proc(5): net/route, net/ipv6_route), or a proxy."""
    proxies = [name for name in ("http_proxy", "https_proxy") if os.environ.get(name)]
    if proxies:
        return Finding("network", True, f"through the proxy that {proxies[0]} names")
    out = [row[0] for row in _rows("route") if row[1] == "00000000"]
    out += [row[-1] for row in _rows("ipv6_route") if row[0] == "0" * 32 and row[1] == "00" and row[-1] != "lo"]
    if out:
        return Finding("network", True, f"a default route through {out[0]}")
    return Finding("network", None, "no default route: only what this machine has can be built with",
                   "export http_proxy=http://PROXY:PORT https_proxy=http://PROXY:PORT")  # fmt: skip


def _rows(table: str) -> list[list[str]]:
    file = _PROC / "net" / table
    return [line.split() for line in file.read_text().splitlines()] if file.is_file() else []


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
        return Finding("apt mirror", False, f"{parts.hostname} cannot be reached: {error.strerror or error}",
                       "sudo apt-get update")  # fmt: skip
    return Finding("apt mirror", True, f"{parts.hostname} can be reached")


def _sources() -> list[Path]:
    folder = Path("/etc/apt/sources.list.d")
    found = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))]
    return [file for file in found if file.is_file() and os.access(file, os.R_OK)]


def _uncommented(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))
