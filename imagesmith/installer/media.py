"""Which installer is on an ISO, and how its own boot menu would start it: found by looking into it.

What each distribution lays out where is told at each of the functions below; the boot menus' own words come first.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from imagesmith.installer.iso import Iso
from imagesmith.installer.menus import SEPARATORS, default, for_a_machine, menus_of, text_of
from imagesmith.interfaces import Medium

_ARCHES = {"amd64": "x86_64", "x86_64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64",
           "i386": "i386", "i686": "i386", "x86": "i386"}  # fmt: skip


def look(path: Path) -> Medium:
    """Say what is on an ISO. Raises BuildError, Refused where it is none."""
    with Iso(path) as iso:
        return Looker(iso).medium()


def merged(own: Sequence[str], more: Sequence[str]) -> list[str]:
    """A kernel's arguments: the medium's ``own``, and ``more``, where ``-name`` takes one of the own away.

    What is behind ``---`` is for the installed system (debian-installer, subiquity), so more goes before it.
    """
    gone = {word[1:] for word in more if word.startswith("-") and word not in SEPARATORS}
    kept = [word for word in own if word not in gone and word.split("=", 1)[0] not in gone]
    added = [word for word in more if word in SEPARATORS or not word.startswith("-")]
    at = next((number for number, word in enumerate(kept) if word in SEPARATORS), len(kept))
    return [*kept[:at], *added, *kept[at:]]


class Looker:
    """Looks into one ISO."""

    def __init__(self, iso: Iso) -> None:
        self._iso = iso
        self._menus = menus_of(iso)

    def medium(self) -> Medium:
        """What is there."""
        unknown = Medium(self._iso.path, label=self._iso.label, name=self._iso.label)
        for recognise in (self._windows, self._freebsd, self._coreos, self._arch, self._alpine, self._subiquity,
                          self._suse, self._anaconda, self._debian):  # fmt: skip
            found = recognise(unknown)
            if found is not None:
                return found if found.arch else replace(found, arch=self._arch_of(found))
        booted = self._boot(unknown)
        return replace(booted, arch=self._arch_of(booted)) if booted.kernel else unknown

    # -- one distribution each -----------------------------------------------------------------------------------

    def _windows(self, medium: Medium) -> Medium | None:
        """``sources/boot.wim`` is Windows Setup (Microsoft: "Windows Setup Installation Process"); UDF alone has it."""
        if "/sources/boot.wim" not in self._iso and not self._any("/sources/install.wim", "/sources/install.esd"):
            return None
        arch = "aarch64" if "/efi/boot/bootaa64.efi" in self._iso else "x86_64"
        return replace(medium, family="windows", arch=arch)

    def _freebsd(self, medium: Medium) -> Medium | None:
        """FreeBSD: release/amd64/mkisoimages.sh; the loader passes the kernel what QEMU cannot."""
        if not self._any("/boot/kernel/kernel", "/boot/kernel/kernel.gz"):
            return None
        words = re.findall(r"[a-z0-9]+", medium.label.lower())
        arch = next((_ARCHES[word] for word in words if word in _ARCHES), "")
        return replace(medium, family="freebsd", arch=arch)

    def _coreos(self, medium: Medium) -> Medium | None:
        """Fedora CoreOS and RHEL CoreOS: coreos-assembler, cmd-buildextend-live; fedora-coreos-config, live/."""
        if not self._any("/images/ignition.img", "/coreos/features.json", "/coreos/kargs.json"):
            return None
        booted = self._boot(replace(medium, family="coreos"))
        # An empty place in the ISO, for a configuration to be written to; another one may be delivered instead.
        return booted if booted.kernel else replace(booted, kernel="", initrds=())

    def _arch(self, medium: Medium) -> Medium | None:
        """Arch Linux: archiso, configs/releng (arguments archisobasedir, archisosearchuuid or archisolabel)."""
        if not self._any("/arch/boot/x86_64/vmlinuz-linux", "/arch/boot/x86_64/vmlinuz"):
            return None
        version = (text_of(self._iso, "/arch/version") or "").strip()
        return self._boot(replace(medium, family="arch", arch="x86_64", name=f"Arch Linux {version}".strip()))

    def _alpine(self, medium: Medium) -> Medium | None:
        """Alpine: aports, scripts/mkimg.base.sh; its initrd finds the medium by /apks/.boot_repository."""
        if not self._any("/.alpine-release", "/apks/.boot_repository"):
            return None
        name = next(iter((text_of(self._iso, "/.alpine-release") or "").split()), medium.label)
        return self._boot(replace(medium, family="alpine", name=name, arch=self._one_of("/apks")))

    def _subiquity(self, medium: Medium) -> Medium | None:
        """Ubuntu with casper: livecd-rootfs; hwe-vmlinuz and hwe-initrd are a second choice of its menu."""
        if not self._iso.is_folder("/casper"):
            return None
        info = self._disk_info(medium)
        # Others have taken casper and brought an installer of their own (Linux Mint, Pop!_OS).
        family = "subiquity" if "ubuntu" in f"{info.name} {medium.label}".lower() else ""
        booted = self._boot(replace(medium, family=family, name=info.name, arch=info.arch))
        if not booted.kernel:
            pairs = [("vmlinuz", "initrd"), ("vmlinuz", "initrd.gz"), ("hwe-vmlinuz", "hwe-initrd")]
            booted = self._first(booted, [(f"/casper/{kernel}", f"/casper/{initrd}") for kernel, initrd in pairs])
        return booted

    def _suse(self, medium: Medium) -> Medium | None:
        """SUSE: linuxrc and YaST on media that skelcd makes; Agama on live ISOs that kiwi makes (agama, live/src)."""
        loaders = ("/boot/x86_64/loader", "/boot/i386/loader", "/boot/aarch64")
        loader = next((folder for folder in loaders if f"{folder}/linux" in self._iso), "")
        if not loader:
            return None
        live = "/LiveOS/squashfs.img" in self._iso
        named = " ".join([medium.label, *(entry.title for menu in self._menus for entry in menu.entries)])
        if live and not re.search(r"agama|suse|sles|leap|^Install-", named, re.I):
            return None  # another live system that kiwi has made
        products = (text_of(self._iso, "/media.1/products") or "").split()
        name = products[1] if len(products) > 1 else medium.label
        found = replace(medium, family="agama" if live else "yast", name=name, arch=loader.split("/")[2])
        booted = self._boot(found)
        return booted if booted.kernel else self._first(found, [(f"{loader}/linux", f"{loader}/initrd")])

    def _anaconda(self, medium: Medium) -> Medium | None:
        """Fedora, RHEL and its kin: lorax, share/templates.d/99-generic/; productmd's .treeinfo and .discinfo."""
        tree = self._treeinfo()
        if tree is None and not self._any("/media.repo", "/.discinfo"):
            return None
        kernel = initrd = name = arch = ""
        if tree is not None:
            arch = tree.get("general", "arch", fallback="")
            kernel = tree.get(f"images-{arch}", "kernel", fallback="")
            initrd = tree.get(f"images-{arch}", "initrd", fallback="")
            name = tree.get("general", "name", fallback="")
        if not arch:
            arch = [*(text_of(self._iso, "/.discinfo") or "").splitlines(), "", "", ""][2].strip()
        if not name:
            name = next(iter(re.findall(r"^name=(.+)$", text_of(self._iso, "/media.repo") or "", re.M)), medium.label)
        found = replace(medium, family="anaconda", name=name, arch=_ARCHES.get(arch, arch))
        booted = self._boot(found)
        pairs = [(kernel, initrd), ("/images/pxeboot/vmlinuz", "/images/pxeboot/initrd.img"),
                 ("/isolinux/vmlinuz", "/isolinux/initrd.img")]  # fmt: skip
        found = self._first(booted, [pair for pair in pairs if all(pair)]) if kernel or not booted.kernel else booted
        if found.kernel and not any(word.startswith("inst.stage2=") for word in found.arguments):
            # Its menu is where we do not look, inside the ESP's image. Blanks as lorax writes them (its filter `udev`).
            label = medium.label.replace(" ", r"\x20")
            found = replace(found, arguments=(f"inst.stage2=hd:LABEL={label}", *found.arguments))
        return found

    def _debian(self, medium: Medium) -> Medium | None:
        """debian-installer: debian-cd, tools/boot/; mini.iso of debian-installer, build/config; Ubuntu up to 20.04.

        The menu's default may be the graphical installer, whose initrd is another one: the plain one is taken.
        """
        folders = ("/install.amd", "/install.a64", "/install.386", "/install", "/d-i")
        pairs = [(f"{folder}/{kernel}", f"{folder}/initrd.gz") for folder in folders for kernel in ("vmlinuz", "linux")]
        pairs.append(("/linux", "/initrd.gz"))
        found = self._first(medium, pairs)
        if not found.kernel:
            return None
        info = self._disk_info(medium)
        arch = {"/install.amd": "x86_64", "/install.a64": "aarch64", "/install.386": "i386"}
        entry = next(filter(None, (default(menu.entries, self._there) for menu in self._menus)), None)
        # file= is an answer file of the ISO's own (Ubuntu).
        own = [word for word in (entry.arguments if entry else ()) if not re.match(r"(?:preseed/)?file=", word)]
        return replace(found, family="debian-installer", name=info.name, arguments=for_a_machine(own),
                       arch=arch.get(found.kernel.rpartition("/")[0], info.arch))  # fmt: skip

    # -- what they share -----------------------------------------------------------------------------------------

    def _there(self, path: str) -> bool:
        return path in self._iso and not self._iso.is_folder(path)

    def _any(self, *paths: str) -> bool:
        return any(path in self._iso for path in paths)

    def _boot(self, medium: Medium) -> Medium:
        """As its boot menu starts it."""
        for menu in self._menus:
            entry = default(menu.entries, self._there)
            if entry is not None:
                return replace(medium, kernel=self._iso.real(entry.kernel) or "",
                               initrds=tuple(self._iso.real(path) or "" for path in entry.initrds),
                               arguments=for_a_machine(entry.arguments))  # fmt: skip
        return medium

    def _first(self, medium: Medium, pairs: Iterable[tuple[str, str]]) -> Medium:
        for kernel, initrd in pairs:
            if self._there(kernel) and self._there(initrd):
                return replace(medium, kernel=self._iso.real(kernel) or "", initrds=(self._iso.real(initrd) or "",))
        return medium

    def _disk_info(self, medium: Medium) -> Medium:
        """Name and architecture, out of ``.disk/info``: ``Ubuntu-Server 24.04.1 LTS "Noble" - Release amd64 (…)``."""
        info = (text_of(self._iso, "/.disk/info") or "").strip().splitlines()
        if not info:
            return medium
        name, _, rest = info[0].partition(" - ")
        arch = next((_ARCHES[word] for word in rest.split() if word in _ARCHES), "")
        return replace(medium, name=name.strip(), arch=arch)

    def _treeinfo(self) -> configparser.ConfigParser | None:
        text = text_of(self._iso, "/.treeinfo") or text_of(self._iso, "/treeinfo")
        if text is None:
            return None
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(text)
        except configparser.Error:
            return None
        return parser

    def _one_of(self, folder: str) -> str:
        return next((_ARCHES[name] for name in self._iso.list(folder) if name in _ARCHES), "")

    def _arch_of(self, medium: Medium) -> str:
        """By the programs that UEFI boots (UEFI specification, 3.5.1.1), or by the kernel's own header."""
        names = {name.lower() for name in self._iso.list("/EFI/BOOT")}
        for name, arch in (("bootx64.efi", "x86_64"), ("bootaa64.efi", "aarch64")):
            if name in names:
                return arch
        words = re.findall(r"[a-z0-9_]+", f"{medium.label} {medium.kernel}".lower())
        return next((_ARCHES[word] for word in words if word in _ARCHES), "")
