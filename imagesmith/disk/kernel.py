"""Which kernel a root file system boots.

Debian and Ubuntu keep links to the newest kernel (``/vmlinuz``, or ``/boot/vmlinuz``) up to date themselves, so a boot
loader that names the links goes on working when the guest upgrades its kernel. Where there are no links the newest
kernel's own file is named, and the guest's distribution must bring a boot loader configuration of its own.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass

_LINKS = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"))
_PLAIN = re.compile(r"/boot/(?:vmlinuz|vmlinux|Image)-(.+)")
_INITRDS = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/initramfs-{}", "/boot/initrd-{}")


@dataclass(frozen=True)
class Kernel:
    """Absolute names; ``initrd`` is empty where there is none."""

    kernel: str
    initrd: str


def _version(text: str) -> list[tuple[int, int, str]]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text) if part]


def find_kernel(entries: Mapping[str, str]) -> Kernel | None:
    """Choose among the ``entries`` of ``/`` and ``/boot``: absolute names, each with its link target or nothing."""

    def there(name: str, depth: int = 0) -> bool:
        target = entries.get(name)
        if target is None or depth > 8:
            return False
        return not target or there(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)), depth + 1)

    for kernel, initrd in _LINKS:
        if there(kernel):
            return Kernel(kernel, initrd if there(initrd) else "")
    found = [(match.group(1), name) for name in entries if (match := _PLAIN.fullmatch(name)) and there(name)]
    found = [(version, name) for version, name in found if "rescue" not in version] or found
    if not found:
        return None
    version, name = max(found, key=lambda item: (_version(item[0]), item[1]))
    initrd = next((i for i in (pattern.format(version) for pattern in _INITRDS) if there(i)), "")
    return Kernel(name, initrd)
