"""A copy of an installer's ISO with answer files in it, whose boot menus start the installer by themselves.

pycdlib makes it where the ISO is a CD and nothing else. Where a partition table makes a disk of it as well, xorriso
does, which writes that anew as it was (``-boot_image any replay``): pycdlib damages the GPT, and loses the MBR of ISOs
whose EFI system partition is behind the ISO's own file system (Ubuntu's). xorriso and mtools are GPL: programs only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.errors import BuildError, Refused, ToolFailed
from imagesmith.host import Host
from imagesmith.installer import menu_edit
from imagesmith.installer.eltorito import gpt_end, hybrid, uefi_images
from imagesmith.installer.iso import Iso, relative
from imagesmith.installer.iso_edit import rewrite
from imagesmith.installer.media import Looker, merged
from imagesmith.installer.menus import menus_of, text_of
from imagesmith.interfaces import Medium

_ESP_MENUS = ("EFI/BOOT/grub.cfg", "EFI/fedora/grub.cfg", "EFI/redhat/grub.cfg", "EFI/centos/grub.cfg",
              "EFI/rocky/grub.cfg", "EFI/almalinux/grub.cfg", "boot/grub/grub.cfg")  # fmt: skip
"""GRUB's configuration where it is in the FAT image that UEFI boots from: lorax, efi.tmpl; coreos-assembler."""
_ESP_LOADER = "loader/loader.conf"
_LOADER_CONF = "/boot/loader.conf"
_PROMPTS = ("/efi/microsoft/boot/efisys.bin", "/efi/microsoft/boot/efisys_noprompt.bin")
_WHY = "put files into a copy of an ISO that is a disk as well"
_TIMEOUT = 3600.0
_BLOCK = 64 * 1024
"""xorriso writes whole blocks of 32 or 64 KiB (xorriso(1), -dvd_obs)."""
_MTOOLS = {"MTOOLS_SKIP_CHECK": "1"}  # such images often have a geometry that mtools finds strange


def remaster(source: Path, into: Path, files: Mapping[str, bytes], arguments: Sequence[str], host: Host) -> None:
    """Write a copy of ``source`` to ``into``, a new file (0600), with files added or replaced.

    ``files`` are paths inside the ISO. ``arguments`` are added to the medium's own in all its boot menus (``-name``
    takes one of those away), and what they start is started after a second; FreeBSD's are loader variables. Raises
    BuildError where nothing in the ISO takes arguments, MissingTool, Refused, ToolFailed.
    """
    with Iso(source) as iso:
        medium = Looker(iso).medium()
        try:
            changed = {f"/{relative(name)}": content for name, content in files.items()}
            changed |= _menus(iso, medium, arguments)
            start = _start(medium, arguments)
        except ValueError as error:
            raise BuildError(f"cannot give arguments to {source.name}: {error}") from None
        prompts = _prompts(iso) if medium.family == "windows" else None
        joliet = bool(iso.cd.has_joliet())
    as_disk = bool(changed) and hybrid(source)
    if as_disk:
        host.require("xorriso", _WHY)
    try:
        if not changed:
            _copy(source, into)
        elif as_disk:
            _with_xorriso(source, into, changed, host, joliet)
        else:
            rewrite(source, into, changed)
        _verify(into, changed)
        for offset in uefi_images(into):
            if start is not None:
                _edit_esp(into, offset, start, host)
            elif prompts is not None:
                _without_prompt(into, offset, *prompts)
    except FileExistsError:
        raise
    except BaseException:
        into.unlink(missing_ok=True)
        raise


def _start(medium: Medium, arguments: Sequence[str]) -> menu_edit.Start | None:
    if not medium.kernel:
        return None
    return menu_edit.Start(medium.kernel, medium.initrds, merged(medium.arguments, arguments))


def _menus(iso: Iso, medium: Medium, arguments: Sequence[str]) -> dict[str, bytes]:
    """The boot menus in the ISO's own file system, as they shall be."""
    if medium.family == "freebsd":
        before = text_of(iso, _LOADER_CONF) or ""
        return {_LOADER_CONF: menu_edit.freebsd(before, arguments).encode()}
    start = _start(medium, arguments)
    if start is None:
        if arguments:
            raise BuildError(f"{iso.path} has no boot menu that arguments could be added to",
                             hint="take 'boot' away, or type the arguments ('boot_command')")  # fmt: skip
        return {}
    changed: dict[str, str] = {}
    for menu in menus_of(iso):
        if menu.loader == "isolinux":
            changed[menu.path] = menu_edit.isolinux(start)
        elif menu.loader == "grub":
            changed[menu.path] = menu_edit.grub(text_of(iso, menu.path, 1 << 20) or "", start)
        else:
            changed |= menu_edit.systemd_boot(menu.path, start)
    return {path: text.encode() for path, text in changed.items()}


def _copy(source: Path, into: Path) -> None:
    _make(into)
    shutil.copyfile(source, into)


def _make(into: Path) -> None:
    """Answer files have passwords in them: for our eyes only."""
    os.close(os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _with_xorriso(source: Path, into: Path, files: Mapping[str, bytes], host: Host, joliet: bool) -> None:
    _make(into)
    with tempfile.TemporaryDirectory(prefix="remaster-", dir=into.parent) as name:
        maps: list[str | Path] = []
        for number, (path, content) in enumerate(files.items()):
            file = Path(name) / str(number)
            file.write_bytes(content)
            maps += ["-map", file, path]
        host.run(
            # A partition table that it finds strange makes it SORRY (FreeBSD's GPT has no backup), and no less able.
            ["xorriso", "-abort_on", "FAILURE", "-return_with", "FAILURE", "32", "-indev", f"stdio:{source}",
             "-outdev", f"stdio:{into}", "-joliet", "on" if joliet else "off", "-padding", "included",
             "-boot_image", "any", "replay", *maps],
            purpose=_WHY, timeout=_TIMEOUT,
        )  # fmt: skip
    end = gpt_end(into)
    if end and 0 < into.stat().st_size - end < _BLOCK:  # a disk ends with its backup GPT
        os.truncate(into, end)


def _verify(into: Path, files: Mapping[str, bytes]) -> None:
    with Iso(into) as iso:
        for path, content in files.items():
            if path not in iso or iso.read(path, len(content)) != content:
                raise BuildError(f"{path} did not get into the copy of the ISO as it should be")


# -- the file system that UEFI boots from ----------------------------------------------------------------------------


def _edit_esp(into: Path, offset: int, start: menu_edit.Start, host: Host) -> None:
    """Change the menus in a FAT image, which is a file in the ISO or a partition behind it, where it is."""
    for path in _ESP_MENUS:
        before = _esp_read(into, offset, path, host)
        if before is not None and "menuentry" in before:
            _esp_write(into, offset, path, menu_edit.grub(before, start), host)
    if _esp_read(into, offset, _ESP_LOADER, host) is not None:
        for path, text in menu_edit.systemd_boot(_ESP_LOADER, start).items():
            _esp_write(into, offset, path, text, host)


def _esp_read(image: Path, offset: int, path: str, host: Host) -> str | None:
    try:
        done = host.run(["mcopy", "-i", f"{image}@@{offset}", f"::{path}", "-"], purpose="read an ISO's boot menu",
                        env=_MTOOLS, timeout=60)  # fmt: skip
    except ToolFailed:
        return None  # no such file
    return done.text


def _esp_write(image: Path, offset: int, path: str, text: str, host: Host) -> None:
    host.run(["mcopy", "-o", "-i", f"{image}@@{offset}", "-", f"::{path}"], purpose="change an ISO's boot menu",
             env=_MTOOLS, input=text.encode(), timeout=60)  # fmt: skip


def _prompts(iso: Iso) -> tuple[bytes, bytes] | None:
    """Windows waits for a key before it boots from a CD; beside the image that does so it has one that does not."""
    try:
        with_prompt, without = (iso.read(path, 8 << 20) for path in _PROMPTS)
    except (FileNotFoundError, Refused):
        return None
    return with_prompt, without


def _without_prompt(into: Path, offset: int, with_prompt: bytes, without: bytes) -> None:
    with into.open("r+b") as file:
        file.seek(offset)
        if len(with_prompt) == len(without) and file.read(len(with_prompt)) == with_prompt:
            file.seek(offset)
            file.write(without)
