"""What a boot menu of an ISO offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Read = Callable[[str], str | None]
"""Gives the text of a file in the ISO, or None where there is no such (small) file."""
Names = Callable[[str], Sequence[str]]
"""Gives the names in a folder of the ISO; none where there is no such folder."""
Loader = Literal["isolinux", "grub", "systemd-boot"]
FILES_READ = 40
"""How many files one menu may be made of; a menu that includes itself ends there."""


@dataclass(frozen=True)
class Entry:
    """One line of a boot menu that starts a Linux kernel. Paths are absolute, inside the ISO."""

    loader: Loader
    menu: str
    """The file that the boot loader reads first."""
    title: str
    kernel: str
    initrds: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    chosen: bool = False
    """It is what the menu boots by itself."""
    text: str = ""
    """GRUB: the commands between the braces, as they are written."""
