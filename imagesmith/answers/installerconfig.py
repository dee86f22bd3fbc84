"""Answers for FreeBSD's bsdinstall."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from imagesmith.answers._server import Server, Word
from imagesmith.answers._shell import slips, syntax
from imagesmith.answers._words import words
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

_SCRIPT = re.compile(r"^#!.*$", re.M)
_PREAMBLE = re.compile(r"^(?:export )?(PARTITIONS|DISTRIBUTIONS|ZFSBOOT_DISKS|nonInteractive)=", re.M)
_LOADER = b'boot_multicons="YES"\nconsole="vidconsole,comconsole"\nautoboot_delay="1"\n'
_VARIABLES = words(
    """PARTITIONS DISTRIBUTIONS BSDINSTALL_DISTDIR BSDINSTALL_DISTSITE BSDINSTALL_CHROOT BSDINSTALL_LOG
    BSDINSTALL_TMPBOOT BSDINSTALL_TMPETC BSDINSTALL_SKIP_HARDENING BSDINSTALL_SKIP_KEYMAP
    BSDINSTALL_SKIP_HOSTNAME ZFSBOOT_DISKS ZFSBOOT_VDEV_TYPE ZFSBOOT_POOL_NAME ZFSBOOT_POOL_CREATE_OPTIONS
    ZFSBOOT_BEROOT_NAME ZFSBOOT_BOOTFS_NAME ZFSBOOT_FORCE_4K_SECTORS ZFSBOOT_GELI_ENCRYPTION
    ZFSBOOT_GELI_KEY_FILE ZFSBOOT_BOOT_POOL ZFSBOOT_BOOT_POOL_CREATE_OPTIONS ZFSBOOT_BOOT_POOL_NAME
    ZFSBOOT_BOOT_POOL_SIZE ZFSBOOT_BOOT_TYPE ZFSBOOT_SWAP_ENCRYPTION ZFSBOOT_SWAP_MIRROR ZFSBOOT_SWAP_SIZE
    ZFSBOOT_DATASETS ZFSBOOT_DATASET ZFSBOOT_PARTITION_SCHEME ZFSBOOT_MIN_ALIGNMENT ZFSBOOT_CONFIRM_LAYOUT
    nonInteractive WORKAROUND_LENOVO WORKAROUND_GPTACTIVE ROOTPASS_ENC ROOTPASS_PLAIN BSDINSTALL_SKIP_FIRMWARE
    BSDINSTALL_SKIP_MANUAL BSDINSTALL_SKIP_SERVICES BSDINSTALL_SKIP_TIME BSDINSTALL_SKIP_USERS
    BSDINSTALL_SKIP_FINALCONFIG"""
)  # bsdinstall(8), ENVIRONMENT VARIABLES and SCRIPTING; scripts/zfsboot


class Installerconfig(Server, name="installerconfig", version=1):
    """Answers for FreeBSD's `bsdinstall`: a script, `installerconfig`.

    The template installs `base` and `kernel` with bsdinstall's own partitions (what the firmware needs, swap, UFS),
    with DHCP, an SSH server and a serial console beside the screen. `disk` is FreeBSD's name for it. Packages, and
    sudo for a `user`, come from FreeBSD's servers or `mirror`, the address of a package repository.

    `bsdinstall` looks for the file in `/etc` of its own medium, so the ISO is copied with it in there. FreeBSD's loader
    is told to use the serial port beside the screen; bsdinstall's boxes are on the screen, and what the template has
    to tell is on the serial port. At the end bsdinstall restarts the machine. A question of bsdinstall's, or an error,
    is a box that waits: that is seen as a stall.

    Checked are the shell's syntax of both parts, and slips of the pen in the names of bsdinstall's variables.
    """

    template = "installerconfig.j2"
    ends = "reboot"
    signs = Signs(
        phases=(  # release/rc.local and usr.sbin/bsdinstall/startbsdinstall of freebsd-src, where the console is seen
            (r"imagesmith: (?!failed)(.*)", r"\1"),
            (r"Installation of FreeBSD complete! Rebooting", "restarting"),
        ),
        fatal=(
            (r"imagesmith: failed: (.*)", r"\1"),
            (r"Installation Error!", "bsdinstall says that the installation failed"),
            (r"mountroot> ", "the installer does not find its medium"),
            (r"Enter full pathname of shell or RETURN for /bin/sh", "FreeBSD stopped in single-user mode"),
        ),
    )

    disk: Word = Field("vtbd0", description="The disk to install to, which is erased: vtbd0, ada0, nda0.")

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """On its own medium, and nowhere else."""
        self.expect(medium, "freebsd")
        files = {"etc/installerconfig": self.rendered.text.encode(), "boot/loader.conf.local": _LOADER}
        return [Delivery("medium", files)]

    def lint(self, host: Host) -> Sequence[Remark]:
        """Both parts as the shell reads them; the second where a shell is its interpreter."""
        rendered = self.rendered
        script = _SCRIPT.search(rendered.text)
        end = script.start() if script else len(rendered.text)
        preamble, rest = rendered.text[:end], rendered.text[end:]
        found = syntax(rendered, preamble, host)
        if re.match(r"#!\s*(?:/usr)?/bin/sh\b", rest):
            found += syntax(rendered, rest, host, first=preamble.count("\n") + 1)
        if not preamble.strip() and (late := _PREAMBLE.search(rest)):
            line = rendered.text.count("\n", 0, late.start()) + 1
            message = f"{late[1]} must stand before the first line with #!: what follows that runs in the new system"
            found.append(rendered.remark(message, line))
        return found or list(slips(rendered, preamble, _VARIABLES))
