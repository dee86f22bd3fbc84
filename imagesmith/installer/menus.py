"""Boot menus of ISOs: what they offer, and which of it is booted when nobody touches a key.

Nothing here fails: what is not understood is passed over.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from imagesmith.errors import ImagesmithError
from imagesmith.installer import menu_grub, menu_syslinux
from imagesmith.installer.iso import Iso
from imagesmith.installer.menu_entry import FILES_READ, Entry, Loader, Names, Read

_MENU_LIMIT = 256 * 1024
_ISOLINUX = ("/isolinux/isolinux.cfg", "/boot/isolinux/isolinux.cfg", "/boot/syslinux/isolinux.cfg",
             "/boot/syslinux/syslinux.cfg", "/syslinux/isolinux.cfg", "/syslinux/syslinux.cfg", "/isolinux.cfg",
             "/syslinux.cfg", "/boot/x86_64/loader/isolinux.cfg", "/boot/i386/loader/isolinux.cfg",
             "/arch/boot/syslinux/syslinux.cfg")  # fmt: skip
"""Where isolinux looks for its menu: doc/isolinux.txt of Syslinux; then where distributions have put it."""
_GRUB = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/EFI/BOOT/grub.cfg", "/EFI/fedora/grub.cfg",
         "/EFI/debian/grub.cfg", "/EFI/ubuntu/grub.cfg", "/EFI/redhat/grub.cfg", "/EFI/centos/grub.cfg",
         "/grub/grub.cfg")  # fmt: skip
_LOADER = ("/loader/loader.conf",)

# For a person at a screen; or checks of the medium, whose checksum is known and which a remastered copy fails.
_FOR_A_PERSON = re.compile(
    r"quiet|splash(=.*)?|rhgb|vga=.*|showopts|rd\.live\.check|mediacheck=.*|theme=.*|plymouth\.enable=.*|BOOT_IMAGE=.*"
    r"|desktop=.*|maybe-ubiquity|loglevel=\d"
)
_NOT_INSTALLING = re.compile(
    r"memtest|rescue|hdt\b|media ?check|test this|check (?:the )?(?:disc|media)|hard ?disk|local|failsafe|safe graphics"
    r"|speech|accessib|expert|help", re.I,
)  # fmt: skip
SEPARATORS = ("---", "--")
"""What is behind one of them is for the installed system (debian-installer, subiquity)."""


@dataclass(frozen=True)
class Menu:
    """A boot menu's file that was found, and what it offers."""

    path: str
    loader: Loader
    entries: tuple[Entry, ...]


def menus_of(iso: Iso) -> list[Menu]:
    """The boot menus on an ISO, in the order in which they are trusted."""
    found = []
    seen = set()
    places: list[tuple[tuple[str, ...], Loader]] = [(_GRUB, "grub"), (_ISOLINUX, "isolinux"), (_LOADER, "systemd-boot")]
    for paths, loader in places:
        for path in paths:
            real = iso.real(path)
            if real is None or real in seen:
                continue
            seen.add(real)
            offered = entries_of(real, loader, lambda name: text_of(iso, name, _MENU_LIMIT), iso.list)
            found.append(Menu(real, loader, tuple(offered)))
    return found


def default(entries: Iterable[Entry], there: Callable[[str], bool]) -> Entry | None:
    """What a menu boots by itself, if that starts a system; otherwise the first that does."""
    bootable = [entry for entry in entries if there(entry.kernel) and all(map(there, entry.initrds))
                and entry.initrds]  # fmt: skip
    chosen = [entry for entry in bootable if entry.chosen]
    sensible = [entry for entry in bootable if not _NOT_INSTALLING.search(entry.title)]
    return next(iter([*chosen, *sensible, *bootable]), None)


def for_a_machine(arguments: Iterable[str]) -> tuple[str, ...]:
    """Arguments without those that are for a person at a screen, and without a separator that separates nothing."""
    kept = [word for word in arguments if not _FOR_A_PERSON.fullmatch(word)]
    while kept and kept[-1] in SEPARATORS:
        kept.pop()
    return tuple(kept)


def text_of(iso: Iso, path: str, limit: int = 64 * 1024) -> str | None:
    """A small file's text; None where there is none, or where it cannot be read."""
    try:
        return iso.read(path, limit).decode("utf-8", "replace")
    except (ImagesmithError, FileNotFoundError):
        return None



def entries_of(menu: str, loader: Loader, read: Read, names: Names) -> list[Entry]:
    """What a menu offers, in its order; nothing where there is no such file."""
    if loader == "isolinux":
        return menu_syslinux.entries(menu, read)
    if loader == "grub":
        return menu_grub.entries(menu, read)
    return _loader_entries(menu, read, names)


def _loader_entries(menu: str, read: Read, names: Names) -> list[Entry]:
    """Boot Loader Specification, type 1: ``menu`` is loader.conf, the entries are in ``entries`` beside it."""
    settings = _keys(read(menu) or "")
    default = settings.get("default", [""])[0]
    folder = posixpath.join(posixpath.dirname(menu), "entries")
    found = []
    for name in sorted(names(folder))[:FILES_READ]:
        keys = _keys(read(posixpath.join(folder, name)) or "")
        if not name.endswith(".conf") or "linux" not in keys:
            continue
        initrds = [menu_grub.inside(path) for line in keys.get("initrd", []) for path in line.split()]
        arguments = [word for line in keys.get("options", []) for word in line.split()]
        found.append(Entry(
            "systemd-boot", menu, keys.get("title", [name])[0], menu_grub.inside(keys["linux"][0]), tuple(initrds),
            tuple(arguments), bool(default) and (fnmatch.fnmatch(name, default) or name == default + ".conf"),
        ))  # fmt: skip
    return found


def _keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            found.setdefault(words[0].lower(), []).append(words[1].strip())
    return found
