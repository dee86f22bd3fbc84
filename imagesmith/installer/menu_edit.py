"""Boot menus that start the installer by themselves, within a second, with our arguments.

The new entry is written in each boot loader's own words, from what was found in the ISO; what else a menu offers stays.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

NAME = "imagesmith"
_ISOLINUX_LINE = 2047
"""Bytes of a line that isolinux takes (Syslinux: com32/elflink/ldlinux/readconfig.c, MAX_LINE)."""


@dataclass(frozen=True)
class Start:
    """What is to be started. Paths are absolute, inside the ISO."""

    kernel: str
    initrds: Sequence[str]
    arguments: Sequence[str]

    def __post_init__(self) -> None:
        for word in (self.kernel, *self.initrds, *self.arguments):
            if re.search(r"[\n\r\0]", word):
                raise ValueError(f"{word!r} cannot stand in a boot menu")


def isolinux(start: Start) -> str:
    """A whole configuration of isolinux's. Raises ValueError for more arguments than it takes."""
    arguments = [f"initrd={','.join(start.initrds)}", *start.arguments]
    line = f"  append {' '.join(arguments)}"
    if len(line.encode()) > _ISOLINUX_LINE:
        raise ValueError(f"isolinux takes no more than {_ISOLINUX_LINE} bytes of arguments")
    return f"default {NAME}\nprompt 0\ntimeout 10\nlabel {NAME}\n  kernel {start.kernel}\n{line}\n"


def grub(before: str, start: Start) -> str:
    """GRUB's configuration ``before`` with an entry at its end, which is the default.

    Whatever the configuration has prepared (modules, fonts, the root device) is in force there. Its own entries say
    what the commands are called: ``linuxefi`` on some older media.
    """
    used = re.search(r"^[ \t]*(linux(?:efi|16)?)[ \t]", before, re.M)
    suffix = (used[1] if used else "linux").removeprefix("linux")
    arguments = " ".join(_grub_quoted(word) for word in start.arguments)
    initrds = " ".join(map(_grub_quoted, start.initrds))
    return (
        f"{before.rstrip()}\n\nset default={NAME}\nset timeout=1\nset timeout_style=menu\n"
        f"menuentry {NAME} --id {NAME} --unrestricted {{\n"
        f"  linux{suffix} {_grub_quoted(start.kernel)} {arguments}\n  initrd{suffix} {initrds}\n}}\n"
    )


def _grub_quoted(word: str) -> str:
    """A word that GRUB takes as it is (GNU GRUB manual, "Quoting")."""
    return word if re.fullmatch(r'[\w/.,:=@%+\-]+|"[^"$\\]*"', word) else "'" + word.replace("'", "'\\''") + "'"


def systemd_boot(menu: str, start: Start) -> dict[str, str]:
    """Files for systemd-boot, whose loader.conf is ``menu`` (Boot Loader Specification, type 1)."""
    initrds = "".join(f"initrd {path}\n" for path in start.initrds)
    entry = f"title {NAME}\nlinux {start.kernel}\n{initrds}options {' '.join(start.arguments)}\n"
    return {menu: f"timeout 1\ndefault {NAME}.conf\n",
            posixpath.join(posixpath.dirname(menu), "entries", f"{NAME}.conf"): entry}  # fmt: skip


def freebsd(before: str, arguments: Sequence[str]) -> str:
    """FreeBSD's loader.conf(5) with variables set: ``name=value`` each. Raises ValueError for other arguments."""
    lines = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[\w.]+", name) or '"' in value:
            raise ValueError(f"FreeBSD's loader takes name=value, not {word!r}")
        lines.append(f'{name}="{value}"\n')
    return before + ("" if before.endswith("\n") or not before else "\n") + 'autoboot_delay="1"\n' + "".join(lines)
