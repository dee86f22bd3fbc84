"""Answers for Alpine's setup-alpine."""

from __future__ import annotations

import gzip
from collections.abc import Sequence

from imagesmith.answers._more import Accompanied
from imagesmith.answers._server import Server
from imagesmith.answers._shell import slips, syntax
from imagesmith.answers._words import words
from imagesmith.archive import Archive, archive_of
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

_OVERLAY = "localhost.apkovl.tar.gz"
_VARIABLES = words(
    """KEYMAPOPTS HOSTNAMEOPTS DEVDOPTS INTERFACESOPTS DNSOPTS TIMEZONEOPTS PROXYOPTS APKREPOSOPTS USEROPTS
    USERSSHKEY ROOTSSHKEY SSHDOPTS NTPOPTS DISKOPTS LBUOPTS APKCACHEOPTS XENDOM0OPTS ERASE_DISKS KERNELOPTS
    MIRRORS BOOTLOADER DISKLABEL BOOTFS ROOTFS VARFS BOOT_SIZE SWAP_SIZE ROOT_SIZE USE_EFI SYSROOT
    MKFS_OPTS_BOOT MKFS_OPTS_ROOT MKFS_OPTS_VAR"""
)  # alpine-conf: setup-alpine.in, setup-disk.in, setup-apkrepos.in


class Alpine(Accompanied, Server, name="alpine", version=1):
    """Answers for Alpine's `setup-alpine`.

    The template makes a system of one ext4 root without swap, with DHCP on `eth0`, OpenSSH, chrony and a serial
    console; `mirror` is the folder that holds `v3.20/` and the others. The user, passwords, keys and packages are put
    into the new system after `setup-alpine`, also where the answers are a file of your own.

    Alpine reads no answer file by itself: the file goes in an overlay (`apkovl`) of the live system, with a script
    that runs `setup-alpine -e -f` and switches the machine off. The live system finds an overlay on any volume, in the
    initial RAM disk, or at a URL. `disk` is what is erased: a file of your own must name the same one in `DISKOPTS`.

    Checked are the shell's syntax and slips of the pen in the names of the answers.
    """

    template = "alpine.answers.j2"
    more = {"start": "alpine.start.j2"}
    ends = "poweroff"
    signs = Signs(
        read=r"imagesmith: the answers are there",
        phases=(  # alpine-conf: setup-alpine.in (headings), setup-disk.in; apk-tools
            (r"imagesmith: the answers are there", "the answer file was read"),
            (r"^\s*(?:Interface|Hostname|Keymap)\s*$", "setting up the live system"),
            (r"^\s*APK Mirrors?\s*$", "choosing a mirror"),
            (r"Creating file systems", "making file systems"),
            (r"Installing system on (\S+?):?$", r"installing to \1"),
            (r"Installation is complete", "setup-alpine is done"),
            (r"imagesmith: setting up the new system", "setting up the new system"),
        ),
        fatal=(
            (r"imagesmith: failed: (.*)", r"\1"),
            (r"No disks found\.", "setup-disk finds no disk"),
            (r"(\S+) is not a suitable for partitioning", r"there is no disk \1, or none that can be partitioned"),
            (r"Not a valid install mode: (.*)", r"setup-disk has no mode '\1' (DISKOPTS)"),
            (r"ERROR: unable to select packages", "apk does not find a package"),
        ),
        done=r"imagesmith: the installation is complete",
    )

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """The overlay, where the initial RAM disk's nlplug-findfs looks for it, or named (mkinitfs, initramfs-init)."""
        self.expect(medium, "alpine")
        files = {_OVERLAY: self._overlay()}
        return [
            Delivery("volume", files, label="APKOVL"),
            Delivery("initrd", files, arguments=(f"apkovl=/{_OVERLAY}",)),
            Delivery("http", files, arguments=("ip=dhcp", f"apkovl={{url}}{_OVERLAY}"), fetched=_OVERLAY),
        ]

    def _overlay(self) -> bytes:
        answers, start = self.rendered.text.encode(), self.also()["start"].encode()

        def fill(archive: Archive) -> None:
            # without this file there would be only the services that the overlay names
            archive.data("etc/.default_boot_services", b"")
            archive.data("etc/apk/world", b"alpine-base\n")
            archive.data("etc/imagesmith/answers", answers, mode=0o600)
            archive.data("etc/local.d/imagesmith.start", start, mode=0o700)
            archive.link("etc/runlevels/default/local", "/etc/init.d/local")

        return gzip.compress(archive_of(fill, epoch=0).read(), mtime=0)

    def lint(self, host: Host) -> Sequence[Remark]:
        """It is sourced by a shell."""
        rendered = self.rendered
        return syntax(rendered, rendered.text, host, ash=True) or list(slips(rendered, rendered.text, _VARIABLES))
