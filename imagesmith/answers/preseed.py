"""Answers for debian-installer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from pydantic import field_validator

from imagesmith.answers._lint_preseed import lint
from imagesmith.answers._server import Server
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark, secrets_in

_STEPS = (
    ("localechooser|console-setup-udeb", "language and keyboard"),
    ("cdrom-detect|load-cdrom", "reading the medium"),
    ("ethdetect|netcfg", "setting up the network"),
    ("file-preseed|network-preseed", "fetching the answer file"),
    ("choose-mirror", "choosing a mirror"),
    ("download-installer", "loading the installer's components"),
    ("user-setup-udeb", "setting up accounts"),
    ("clock-setup", "setting up the clock"),
    ("disk-detect", "looking for disks"),
    ("partman-base", "partitioning"),
    ("bootstrap-base|live-installer", "installing the base system"),
    ("apt-setup-udeb", "setting up apt"),
    ("pkgsel", "installing packages"),
    ("grub-installer|lilo-installer|nobootloader|systemd-boot-installer", "installing the boot loader"),
    ("finish-install", "finishing"),
)
"""Items of main-menu, by the names of the installer's components, as it logs them."""


class Preseed(Server, name="preseed", version=1):
    """Answers for debian-installer: Debian and its kin, and Ubuntu up to 20.04 (its "legacy" server ISO).

    With options, it makes a minimal server: one ext4 file system on the whole disk (and the firmware's own under
    UEFI), an SSH server, DHCP on the first network card, a serial console, all updates of the day. It switches itself
    off when it is done. Without `user`, `password` and `ssh_keys`, nobody can log in; steps over SSH work all the same.
    `mirror` is the archive's address (`http://MIRROR/debian`); for Ubuntu it must be given.

    Your own file (`preseed: my.cfg`) is the installer's own format, see its manual's appendix B, and a Jinja2 template
    that sees the recipe's variables: `{{`, `{%` and `{#` begin something. The installed system
    should have an SSH server and `console=ttyS0` among its kernel's arguments. End with
    `d-i debian-installer/exit/poweroff boolean true` or a restart.

    The file is put into the installer's initial RAM disk, where it looks first; or comes over HTTP; or from the ISO's
    own file system (`medium`). Questions of lower priority than critical take their defaults. The installer's log is
    followed, so phases are shown, and a build ends as soon as the installer asks a question.

    `validate` reads the file as debian-installer's own reader would, asks `debconf-set-selections --checkonly` where
    that is installed, and looks for what leaves the installer waiting for an answer: a password that is not repeated,
    the locale `C` without a country.
    """

    template = "preseed.cfg.j2"
    ends = "poweroff"
    log_arguments: ClassVar[tuple[str, ...]] = ("log_host={log_host}", "log_port={log_port}")
    signs = Signs(
        phases=(
            *((rf"Menu item '(?:{item})' selected", doing) for item, doing in _STEPS),
            (r"debootstrap: I: Unpacking the base system", "unpacking the base system"),
            (r"debootstrap: I: Configuring the base system", "configuring the base system"),
            (r"base-installer: info: Installing kernel|Setting up linux-image", "installing the kernel"),
        ),
        fatal=(
            # what each prompt is about, where a line before the prompt itself says it
            (r"Failed to retrieve the preconfiguration file", "the answer file could not be fetched"),
            (r"Failed to process the preconfiguration file|preseed: Error parsing preconfiguration",
             "the answer file has an error: 'imagesmith validate' names it"),
            (r"Failed to run preseeded command", "a command of the answer file failed"),
            (r"anna(?:\[\d+\])?: .*package retrieval failed|Downloading a file failed|"
             r"Failed to load installer component",
             "a component of the installer could not be loaded: the mirror does not have it, or has another kernel's"),
            (r"No kernel modules were found", "the mirror's kernel is not that of this ISO: it is too old, or too new"),
            (r"Bad archive mirror", "the mirror cannot be used"),
            (r"No network interfaces detected", "it sees no network card"),
            (r"Network autoconfiguration failed", "no address came over DHCP"),
            (r"Malformed IP address|Unreachable gateway", "the network's addresses in the answer file are wrong"),
            (r"No root file system is defined", "the answer file's partitions have no root"),
            (r"Failed to partition the selected disk|too small to be automatically partitioned",
             "the answer file's partitions do not fit the disk"),
            (r"base-installer: error: exiting on error|Base system installation error|Debootstrap Error",
             "the base system could not be installed"),
            (r"Unable to install the selected kernel|No installable kernel was found", "no kernel could be installed"),
            (r"GRUB installation failed|Unable to install GRUB", "the boot loader could not be installed"),
            (r"Menu item '[^']+' failed", "a step of the installation failed"),
            (r"Installation step failed", "a step of the installation failed"),
            (r"Insufficient memory", "the machine has too little memory for this installer"),
            # cdebconf's text frontend, its newt frontend
            (r"^!! ERROR: ", "the installer shows an error, and waits"),
            (r"^Prompt: .*> ?$|^\[Press enter to continue\]|<Go Back>",
             "the installer asks a question that the answer file does not answer"),
            (r"reboot: System halted", "the installer stopped the machine without switching it off: answer "
             "debian-installer/exit/poweroff with true, not debian-installer/exit/halt"),
        ),
        read=r"preseed\.cfg was read|successfully loaded preseed file|"
             r"Menu item '(?:choose-mirror|download-installer|disk-detect|partman-base|bootstrap-base)' selected",
        done=r"Menu item 'finish-install' selected|Finishing the installation|Installation complete",
    )  # fmt: skip

    @field_validator("mirror")
    @classmethod
    def _mirror(cls, value: str) -> str:
        if value and not secrets_in(value) and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must begin with http:// or https://, such as http://MIRROR/debian")
        return value

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """In the initial RAM disk, where it looks first; over HTTP; on the ISO."""
        self.expect(medium, "debian-installer")
        files = {"preseed.cfg": self.rendered.text.encode()}
        # cdebconf's text frontend writes lines that can be followed, and on a dumb terminal no screen(1) is between us
        # and it, which would draw a clock for ever. ``auto``: language and keyboard are asked for after the file came
        # over the network; the host's name is wanted before that.
        always = ("priority=critical", "DEBIAN_FRONTEND=text", "TERM=dumb")
        name = () if self.file is not None else (f"hostname={self.hostname}",)
        return [
            Delivery("initrd", files, arguments=always),
            Delivery("http", files, arguments=("auto=true", *always, *name, "preseed/url={url}preseed.cfg"),
                     fetched="preseed.cfg"),
            Delivery("medium", files, arguments=("auto=true", *always, *name, "preseed/file=/cdrom/preseed.cfg")),
        ]  # fmt: skip

    def lint(self, host: Host) -> Sequence[Remark]:
        """See Kind."""
        return lint(self.rendered, host)
