"""UEFI firmware on this host, found through QEMU's firmware descriptors.

The format, the folders and their precedence are QEMU's docs/interop/firmware.json: the same file name in a folder
that comes earlier hides the later one, an empty file hides all, and what is left is taken in the order of the names.

What a guest writes into its variables (boot entries, keys of Secure Boot) belongs to its disk: a disk's layer holds the
store beside it, raw, whatever format the firmware's template has. There is one for each firmware that the disk was
booted with, because a store made without Secure Boot has no keys, and would turn it off.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from imagesmith.errors import BuildError, MissingTool
from imagesmith.host import Host
from imagesmith.machine.arguments import Arch, Firmware

# A machine type that the descriptors' patterns (pc-q35-*, virt-*) can be held against.
_MACHINES = {"x86_64": "pc-q35-7.2", "aarch64": "virt-7.2"}
_PACKAGES = {
    "x86_64": "Debian/Ubuntu ovmf, Fedora edk2-ovmf, Arch edk2-ovmf",
    "aarch64": "Debian/Ubuntu qemu-efi-aarch64, Fedora edk2-aarch64, Arch edk2-aarch64",
}


@dataclass(frozen=True)
class Found:
    """One firmware: the code, and the variable store that a new machine starts with."""

    descriptor: Path
    code: Path
    code_format: str
    template: Path
    template_format: str


def folders() -> list[Path]:
    """Where descriptors are, the strongest first: the user's, the administrator's, the distribution's."""
    user = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return [Path(user).expanduser() / "qemu/firmware", Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware")]


def find(arch: Arch, *, secure: bool, where: Sequence[Path] | None = None) -> Found:
    """Return the first UEFI firmware for ``arch``; ``secure``: with Secure Boot on and its usual keys enrolled.

    Raises MissingTool with the packages that hold one.
    """
    seen: dict[str, Path] = {}
    for folder in folders() if where is None else where:
        for file in folder.glob("*.json") if folder.is_dir() else ():
            seen.setdefault(file.name, file)
    for _, file in sorted(seen.items()):
        found = _suits(file, arch, secure)
        if found is not None:
            return found
    what = "UEFI firmware with Secure Boot" if secure else "UEFI firmware"
    raise MissingTool(
        f"no {what} for {arch} is on this host; it is needed to boot a guest with 'firmware: "
        f"{'uefi-secure' if secure else 'uefi'}'",
        hint=f"install it: {_PACKAGES[arch]}",
    )


def store_name(firmware: str) -> str:
    """What the variable store of a firmware is called in a layer's folder."""
    return f"variables-{firmware}.fd"


def prepare(
    name: Literal["bios", "uefi", "uefi-secure"], arch: Arch, folder: Path, host: Host, *, kept: Path | None = None
) -> Firmware:
    """Return firmware for one machine; its own variable store is put into ``folder``, under ``store_name``.

    It begins as a copy of ``kept``, the store that the disk's layers hold, or of the firmware's template. Raises
    MissingTool, and BuildError where ``kept`` is of another build of the firmware.
    """
    if name == "bios":
        return Firmware()
    found = find(arch, secure=name == "uefi-secure")
    variables = folder / store_name(name)
    variables.touch(mode=0o600)
    if found.template_format == "raw":
        shutil.copyfile(found.template, variables)
    else:
        host.run(["qemu-img", "convert", "-f", found.template_format, "-O", "raw", found.template, variables],
                 purpose="give the guest UEFI variables")  # fmt: skip
    if kept is not None:
        # Flash has a size of its own in each build of the firmware (OVMF: 2 MiB or 4 MiB, OvmfPkg/VarStore.fdf.inc).
        sizes = kept.stat().st_size, variables.stat().st_size
        if sizes[0] != sizes[1]:
            raise BuildError(f"the UEFI variables of the disk ({sizes[0]} bytes) do not go with this host's firmware "
                             f"{found.code} ({sizes[1]} bytes): they were made with another build of it",
                             hint="build anew what booted the disk: --from names the first such node")  # fmt: skip
        shutil.copyfile(kept, variables)
    return Firmware(name, found.code, found.code_format, variables)


def keep(store: BinaryIO, name: str, into: Path) -> None:
    """Put what a machine's variable store, open for reading, holds now into a layer's folder."""
    store.seek(0)
    with (into / store_name(name)).open("wb") as out:
        shutil.copyfileobj(store, out)


def _suits(file: Path, arch: Arch, secure: bool) -> Found | None:
    """Read one descriptor; None where it is for something else, hidden, broken, or names files that are not there."""
    try:
        described: dict[str, Any] = json.loads(file.read_bytes() or b"{}")
        features = set(described.get("features", ()))
        mapping = described.get("mapping", {})
        targets = described.get("targets", ())
        if "uefi" not in described.get("interface-types", ()) or mapping.get("device") != "flash":
            return None
        if mapping.get("mode", "split") != "split":
            return None
        if not any(t["architecture"] == arch and _machine(arch, t["machines"]) for t in targets):
            return None
        # System management mode, which protects the variables from the guest's kernel, is x86's.
        if secure != ("enrolled-keys" in features) or (secure and arch == "x86_64") != ("requires-smm" in features):
            return None
        code, template = mapping["executable"], mapping["nvram-template"]
        found = Found(file, Path(code["filename"]), code["format"], Path(template["filename"]), template["format"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.code.is_file() and found.template.is_file() else None


def _machine(arch: Arch, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(_MACHINES[arch], pattern) for pattern in patterns)
