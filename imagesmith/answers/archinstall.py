"""Answers for archinstall."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from imagesmith.answers._json import JsonAnswer, lines, lint
from imagesmith.answers._more import Accompanied
from imagesmith.answers._server import Server, Word
from imagesmith.answers._words import misspelt, words
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark, Rendered

_CONFIGURATION, _SCRIPT = "user_configuration.json", "install.sh"
_NAMES = words(
    """!encryption-password additional-repositories app_config archinstall-language archinstall_language
    audio_config auth_config bootloader bootloader_config config_version custom-commands custom_commands debug
    disk_config disk_encryption disk_layouts encryption_password gfx_driver harddrive harddrives hostname
    kernels keyboard-language keyboard-layout locale_config mirror-region mirror_config network_config
    no_pkg_lookups ntp offline packages pacman_config parallel_downloads plugin profile profile_config
    root_enc_password save_config script services silent skip_ntp skip_version_check swap sys-encoding
    sys-language timezone uki users version"""
)  # archinstall/lib/args.py, ArchConfig.from_config, and what older versions wrote


class Archinstall(JsonAnswer, Accompanied, Server, name="archinstall", version=1):
    """Answers for Arch Linux's `archinstall`: its configuration in JSON, with the accounts in a file of their own.

    The template makes a server of `base` and `linux` with OpenSSH, GRUB, the network as the ISO has it (DHCP), and a
    serial console. The partitions (a boot partition, an ext4 root) are made by a script beside it, since archinstall
    wants them to the byte; a file of your own says itself what becomes of the disks. `mirror` is as in pacman's
    mirror list, with `$repo` and `$arch`.

    archiso runs a script that its kernel's argument `script=` names; ours fetches the files, runs
    `archinstall --config … --creds … --silent`, puts keys and the serial console into the new system, and switches the
    machine off. So everything goes by HTTP.

    Checked are the JSON, its structure by a schema of ours, and slips of the pen in names.
    """

    template = "archinstall.json.j2"
    more = {"user_credentials.json": "archinstall.creds.j2", _SCRIPT: "archinstall.start.j2"}
    ends = "poweroff"
    signs = Signs(
        read=r"imagesmith: the answers are there",
        phases=(  # archinstall/lib/installer.py, archinstall/scripts/guided.py; pacman
            (r"imagesmith: archinstall", "starting archinstall"),
            (r"imagesmith: (?!failed)(.*)", r"\1"),
            (r"Starting installation\.\.\.", "archinstall begins"),
            (r"Waiting for (?:automatic mirror selection|Arch Linux keyring sync)", "waiting for mirrors and keys"),
            (r"Installing packages: |:: Retrieving packages|^Packages \(\d+\)", "installing packages"),
            (r"Adding bootloader (\S+)", r"installing \1"),
        ),
        fatal=((r"imagesmith: failed: (.*)", r"\1"),),
        done=r"imagesmith: the installation is complete",
    )

    locale: Word = Field("en_US.UTF-8", description="The system's locale.")

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """By HTTP (archiso, .automated_script.sh)."""
        self.expect(medium, "arch")
        texts = {_CONFIGURATION: self.rendered.text, **self.also()}
        files = {name: text.encode() for name, text in texts.items()}
        return [Delivery("http", files, arguments=(f"script={{url}}{_SCRIPT}",), fetched=_CONFIGURATION)]

    def lint(self, host: Host) -> Sequence[Remark]:
        """JSON, our schema of it, slips of the pen in names."""
        rendered = self.rendered
        return lint(rendered, "archinstall.json") or list(_slips(rendered))


def _slips(rendered: Rendered) -> Iterator[Remark]:
    value = json.loads(rendered.text)
    where = lines(rendered.text)
    for name in value if isinstance(value, Mapping) else ():
        if near := misspelt(name, _NAMES):
            yield rendered.remark(f"archinstall does not know '{name}'; did you mean '{near}'?", where.get((name,), 0))
