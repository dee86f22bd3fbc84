"""Reads lines of an installer's console and log: what is being done, and what shows that it cannot succeed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from imagesmith.interfaces import Signs
from imagesmith.machine.console import panic

_NO_SYSTEM = "the installer's initial RAM disk does not find its medium or file system"
_COMMON = (
    # dracut: modules.d/98dracut-systemd/dracut-emergency.sh, modules.d/99base/dracut-lib.sh; initramfs-tools:
    # scripts/functions, panic(); casper: scripts/casper; live-boot: components/9990-main.sh
    (r"Entering emergency mode\. Exit the shell to continue|dracut: FATAL", _NO_SYSTEM),
    (r"(?i)dropping to a shell!|unable to find a (?:medium containing a )?live file system", _NO_SYSTEM),
    (r"Cannot open access to console, the root account is locked|Give root password for maintenance",
     "its start-up ended in emergency mode"),
    # glibc: sysdeps/x86/get-isa-level.h, elf/dl-hwcaps.c
    (r"CPU (?:ISA level is lower than required|does not support (x86-64-v\d))",
     "the machine's CPU lacks what this system needs; 'cpu' under 'machine' chooses another"),
    (r"No bootable device", "the firmware found no bootable device (SeaBIOS)"),
    (r"BdsDxe: No bootable option|^Shell>", "the firmware found nothing to boot (UEFI)"),
    (r"grub rescue>", "GRUB does not find its files and dropped to its rescue prompt"),
)  # fmt: skip
_FLUKE = re.compile(
    r"IO-APIC \+ timer doesn't work|Fatal exception|Attempted to kill the idle task|corrupted stack end"
    r"|stack-protector: Kernel stack is corrupted"
)


@dataclass(frozen=True)
class Trouble:
    """A line that shows that there is no use in going on. ``panic``: the kernel's own words."""

    meaning: str
    panic: str = ""

    @property
    def fluke(self) -> bool:
        """Whether a kernel that has just started may panic so for the emulator's sake.

        Linux, arch/x86/kernel/apic/io_apic.c, check_timer(): it counts timer interrupts for some milliseconds, and
        none come where a busy host does not let QEMU's other threads run. And QEMU 7.2's TCG was seen to garble the
        flags at cmpxchg16b, which ends in an exception anywhere.
        """
        return bool(_FLUKE.search(self.panic))


class Reader:
    """An answer kind's signs, and those that all installers share, made ready."""

    def __init__(self, signs: Signs) -> None:
        self._phases = [(re.compile(pattern), name) for pattern, name in signs.phases]
        self._fatal = [(re.compile(pattern), meaning) for pattern, meaning in (*signs.fatal, *_COMMON)]
        self._read = re.compile(signs.read) if signs.read else None
        self._done = re.compile(signs.done) if signs.done else None

    @property
    def tells_reading(self) -> bool:
        """Whether there is a line by which one sees that the answer file was read."""
        return self._read is not None

    @property
    def tells_end(self) -> bool:
        """Whether there is a line that must come before the end."""
        return self._done is not None

    def phase(self, line: str) -> str:
        """What is being done from this line on; nothing where it does not tell."""
        for pattern, name in self._phases:
            if found := pattern.search(line):
                return found.expand(name) if "\\" in name else name
        return ""

    def trouble(self, line: str) -> Trouble | None:
        """What is wrong, as this line shows."""
        if (why := panic(line)) is not None:
            return Trouble(f"the installer's kernel panicked: {why}", why)
        for pattern, meaning in self._fatal:
            if found := pattern.search(line):
                return Trouble(found.expand(meaning) if "\\" in meaning else meaning)
        return None

    def reads(self, line: str) -> bool:
        """Whether this line shows that the answer file was read."""
        return self._read is not None and self._read.search(line) is not None

    def ends(self, line: str) -> bool:
        """Whether this line says that the installer is done."""
        return self._done is not None and self._done.search(line) is not None
