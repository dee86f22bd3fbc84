"""Packer's qemu builder at an installer's ISO, with bento's boot commands (https://github.com/chef/bento)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")


@dataclass(frozen=True)
class Template:
    """What is typed, and ``wait``: how many seconds after power-on. ``{url}`` is the answer file's address."""

    name: str
    uefi: bool
    wait: int
    keys: str


BENTO = (
    # os_pkrvars/debian/debian-13-x86_64.pkrvars.hcl; there one <right> less, which here ends before the blank
    Template("bento's Debian 13", True, 10,
             f"<wait>e<wait>{'<down>' * 3}{'<right>' * 34}<wait>install <wait> preseed/url={{url}} " + "".join(
                 f"<wait>{argument} " for argument in (
                     "debian-installer=en_US.UTF-8", "auto", "locale=en_US.UTF-8", "kbd-chooser/method=us",
                     "keyboard-configuration/xkb-keymap=us", "netcfg/get_hostname={{ .Name }}",
                     "netcfg/get_domain=vagrantup.com", "fb=false", "debconf/frontend=noninteractive",
                     "console-setup/ask_detect=false", "console-keymaps-at/keymap=us",
                     "grub-installer/bootdev=default")) + "<wait><f10><wait>"),
    # os_pkrvars/debian/debian-12-x86_64.pkrvars.hcl
    Template("bento's Debian 12", False, 10,
             "<wait><esc><wait>auto preseed/url={url} netcfg/get_hostname={{ .Name }}<enter>"),
)  # fmt: skip
"""The wait is that of packer_templates/pkr-sources.pkr.hcl."""


def packer(folder: Path, iso: Path, template: Template, url: str, cpu: str) -> tuple[list[str], dict[str, str]]:
    """Write a template into a fresh folder; return the command to run there, and its environment."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    firmware = [["-bios", str(FIRMWARE)]] if template.uefi else []
    builder = {
        "type": "qemu", "accelerator": "tcg", "headless": True, "iso_url": str(iso), "iso_checksum": "none",
        "format": "qcow2", "disk_size": "3072M", "disk_interface": "virtio", "disk_cache": "unsafe",
        "net_device": "virtio-net", "memory": 2048, "vm_name": "packer", "machine_type": "q35",
        "qemuargs": [["-cpu", cpu], ["-smp", "2"], *firmware], "output_directory": str(folder / "output"),
        "ssh_username": "root", "ssh_password": "none", "ssh_timeout": "1h", "shutdown_command": "poweroff",
        "boot_wait": f"{template.wait}s", "boot_command": [template.keys.replace("{url}", url)],
    }  # fmt: skip
    (folder / "packer.json").write_text(json.dumps({"builders": [builder]}, indent=2))
    env = {"CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(folder / "cache"), "PACKER_CONFIG_DIR": str(folder)}
    return ["packer", "build", "-color=false", "packer.json"], env
