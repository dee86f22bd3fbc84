"""The signed boot loaders that a root file system holds: what firmware with Secure Boot lets start.

Debian and Ubuntu have them in the packages shim-signed and grub-efi-amd64-signed (or -arm64-): shim is signed by
Microsoft, whose keys are in the firmware, and knows the distribution's key, which GRUB and the kernels are signed with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from imagesmith.errors import BuildError
from imagesmith.interfaces import Files

_SUFFIX = {"x86_64": ("x64", "x86_64", "amd64"), "aarch64": ("aa64", "arm64", "arm64")}
# GRUB's prefix, a string of its own in the image (grub-mkimage's --prefix): the folder with its grub.cfg.
_PREFIX = re.compile(rb"\0/(EFI/[A-Za-z0-9_-]+)\0")


@dataclass(frozen=True)
class Signed:
    """Files for the EFI system partition: name there -> contents; and the folder where GRUB looks for a grub.cfg."""

    files: dict[str, bytes]
    folder: str


def packages(arch: str) -> str:
    """The Debian packages that hold them, for people."""
    return f"shim-signed and grub-efi-{_SUFFIX[arch][2]}-signed"


def find_signed(files: Files, arch: str) -> Signed | None:
    """The tree's signed shim and GRUB, or None where it lacks one of them. Raises BuildError for a GRUB unlike others.

    shim starts the GRUB beside it, and MokManager where keys were asked to be enrolled (shim's README.md).
    """
    efi, platform, _ = _SUFFIX[arch]
    shim = _read(files, f"/usr/lib/shim/shim{efi}.efi.signed")
    grub = _read(files, f"/usr/lib/grub/{platform}-efi-signed/grub{efi}.efi.signed")
    if shim is None or grub is None:
        return None
    prefix = _PREFIX.search(grub)
    if prefix is None:
        raise BuildError(f"the root file system's signed GRUB (grub{efi}.efi.signed) does not say where on the EFI "
                         "system partition it looks for its configuration",
                         hint=f"leave the packages {packages(arch)} out, and Secure Boot with them")  # fmt: skip
    found = {f"EFI/BOOT/BOOT{efi.upper()}.EFI": shim, f"EFI/BOOT/grub{efi}.efi": grub}
    manager = _read(files, f"/usr/lib/shim/mm{efi}.efi.signed")
    if manager is not None:
        found[f"EFI/BOOT/mm{efi}.efi"] = manager
    return Signed(found, prefix.group(1).decode())


def _read(files: Files, path: str) -> bytes | None:
    try:
        return files.read(path)
    except FileNotFoundError:
        return None
