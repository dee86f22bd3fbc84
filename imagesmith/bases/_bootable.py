"""What a Debian or Ubuntu system needs besides its packages to boot on any disk that is made of it.

DHCP on every Ethernet card, a root that grows with the disk, SSH host keys made at first boot.
"""

from __future__ import annotations

from imagesmith.archive import Archive, guest_file
from imagesmith.interfaces import Root

KERNELS = {"debian": "linux-image-cloud-{arch}", "ubuntu": "linux-image-virtual"}
PACKAGES = ("systemd", "systemd-sysv", "udev", "dbus", "initramfs-tools", "zstd", "e2fsprogs", "kmod", "linux-base")
"""What a system needs besides its kernel to boot, be reached and shut down."""
SEPARATE = ("?exact-name(systemd-repart)", "?exact-name(systemd-resolved)")
"""Packages of newer suites; older ones have them inside of systemd, and then these apt patterns match nothing."""
_UNITS = "etc/systemd/system"
_KEYS = "imagesmith-ssh-host-keys.service"


def before(archive: Archive) -> None:
    """Add what packages' own scripts look at while they are installed."""
    archive.data("etc/fstab", guest_file("fstab"))
    archive.data("etc/kernel-img.conf", guest_file("kernel-img.conf"))
    archive.data("etc/initramfs-tools/conf.d/resume", b"RESUME=none\n")  # not this host's swap
    archive.directory("boot/efi")


def names(archive: Archive, host: str) -> None:
    """Add the host's name."""
    archive.data("etc/hostname", f"{host}\n".encode())
    hosts = f"127.0.0.1\tlocalhost\n127.0.1.1\t{host}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    archive.data("etc/hosts", hosts.encode())


def after(archive: Archive, *, resolved: bool) -> None:
    """Add its configuration; ``resolved``: it has systemd-resolved."""
    archive.data("etc/machine-id", b"", mode=0o444)
    archive.data("etc/default/locale", b"LANG=C.UTF-8\n")
    archive.data("etc/repart.d/50-root.conf", guest_file("50-root.conf"))
    archive.data("etc/systemd/network/80-dhcp.network", guest_file("80-dhcp.network"))
    archive.data(f"{_UNITS}/systemd-networkd-wait-online.service.d/any.conf", guest_file("wait-online-any.conf"))
    archive.data(f"{_UNITS}/{_KEYS}", guest_file("ssh-host-keys.service"))
    archive.link(f"{_UNITS}/multi-user.target.wants/{_KEYS}", f"/{_UNITS}/{_KEYS}")
    if resolved:
        archive.link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")


def has_resolved(root: Root) -> bool:
    """Whether it has systemd-resolved."""
    return root.exists("/lib/systemd/systemd-resolved")


def own_state(root: Root) -> None:
    """Remove what must be each machine's own."""
    root.remove(["/etc/hostname", "/etc/resolv.conf", "/etc/.resolv.conf.systemd-resolved.bak",
                 "/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub"])  # fmt: skip


def enable(root: Root, *, resolved: bool) -> None:
    """Have the network come up at boot."""
    root.run(["systemctl", "enable", "systemd-networkd.service", *(["systemd-resolved.service"] * resolved)],
             env={"SYSTEMD_OFFLINE": "1"})  # fmt: skip
