"""Answers for Anaconda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from imagesmith.answers._lint_kickstart import lint
from imagesmith.answers._server import Server
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import UNKEYED, Remark


class Kickstart(Server, name="kickstart", version=1):
    """Answers for Anaconda: Fedora, RHEL and its kin (Rocky, AlmaLinux, CentOS Stream, Oracle), from version 7 on.

    With options, it makes a minimal server: one ext4 file system on the whole disk besides what the firmware needs, an
    SSH server, DHCP, a serial console, a boot image that finds its disk on any machine. It switches itself off when it
    is done. Without `user`, `password` and `ssh_keys`, nobody can log in; steps over SSH work all the same. `packages`
    may hold groups (`@^minimal-environment`, `@development`) and exclusions (`-firewalld`). `mirror` is an installable
    tree (`https://download.rockylinux.org/pub/rocky/9/BaseOS/x86_64/os/`); by default packages come from the ISO where
    it has them, else from the distribution's nearest mirror.

    Your own file (`kickstart: ks.cfg`) is a Jinja2 template that sees the recipe's variables: `{{`, `{%` and
    `{#` begin something (`%packages` and `%post` do not). Anaconda runs without any
    interaction, so what the file does not say ends the installation. The installed system should have an SSH server and
    `console=ttyS0` among its kernel's arguments, and the file should say `poweroff` or `reboot`: else Anaconda waits
    for a key at the end. It is not kept in the installed system.

    The file is put into the initial RAM disk (`inst.ks=file:/ks.cfg`); or it is on a second CD called OEMDRV, where
    Anaconda looks by itself; or comes over HTTP; or is on the ISO itself (`medium`). The log comes over a virtio port.

    `validate` asks pykickstart's `ksvalidator` where that is installed. The version of the syntax is the one that
    `syntax` names. Without it, the file is fine if it is for the version that its own `#version=` names, for Fedora's
    newest, or for RHEL 10, 9, 8 or 7; else what is told is the verdict of the one with the fewest complaints. Words
    that are only deprecated are no complaint.
    """

    template = "ks.cfg.j2"
    ends = "poweroff"
    log_ports: ClassVar[tuple[str, ...]] = ("org.fedoraproject.anaconda.log.0",)
    signs = Signs(
        phases=(
            (r"Starting installer, one moment|anaconda \S+ for .* started", "starting the installer"),
            (r"Starting automated install", "reading packages and disks"),
            (r"Setting up the installation environment", "setting up the installation"),
            (r"Configuring storage|Creating disklabel on|Creating \S+ on /dev", "partitioning"),
            (r"Starting package installation process|Downloading (?:packages|\d+ RPMs)", "downloading packages"),
            (r"Preparing transaction from installation source|Installing \S+ \(1/\d+\)", "installing packages"),
            (r"Performing post-installation setup tasks|Configuring \S+\.(?:x86_64|noarch|aarch64)",
             "setting up packages"),
            (r"Installing boot ?loader", "installing the boot loader"),
            (r"Configuring installed system|Writing network configuration|Creating users", "configuring the system"),
            (r"Generating initramfs", "making the boot image"),
            (r"Running post-installation scripts", "running %post"),
            (r"Storing configuration files and kickstarts", "finishing"),
        ),
        fatal=(
            # dracut: before Anaconda itself runs
            (r"failed to fetch kickstart from|Can't get kickstart from|can't find /ks\.cfg|"
             r"Kickstart file \S+ is missing",
             "the kickstart could not be fetched"),
            (r"failed to fetch stage2|Warning: Could not boot|Anaconda installer errors begin",
             "the installer's main image was not found: neither on the ISO nor where inst.stage2 or inst.repo says"),
            (r"Entering emergency mode|Starting Dracut Emergency Shell|^dracut:/#|Press Enter for maintenance",
             "the start of the installer failed, and waits in an emergency shell"),
            # pykickstart
            (r"The following problem occurred on line \d+ of the kickstart file|"
             r"There was a problem reading from line \d+ of the kickstart file",
             "the kickstart has an error: 'imagesmith validate' names it"),
            # Anaconda: pyanaconda/errors.py, exception.py, ui/tui
            (r"There was an error running the kickstart script at line", "a script of the kickstart failed"),
            (r"The installation was stopped due to|Non interactive installation failed|"
             r"Running in cmdline mode, no interactive debugging|kickstart installation stopped for info",
             "something is missing in the kickstart, or wrong"),
            (r"Some packages, groups or modules are (?:broken|missing)|Stream was not specified for a module",
             "packages, groups or modules of the kickstart are not there"),
            (r"Payload setup error|Error setting up (?:base )?repositor|Failed to set up installation source",
             "the installation source cannot be used"),
            (r"storage configuration failed|The following errors? occurred with your partitioning|"
             r"no valid devices were found on which", "the kickstart's partitions do not fit the disk"),
            (r"Not enough space in file systems for the current software selection",
             "the disk is too small for the packages"),
            (r"The following error occurred while installing the boot ?loader",
             "the boot loader could not be installed"),
            (r"Would you like to ignore this and continue with installation\?", "the installer asks whether to go on"),
            (r"installation will be aborted|The installer will now terminate", "Anaconda has given up"),
            # tmux says so at a good end, too: with status 0, or (older) without any
            (r"An unknown error has occured|Pane is dead \((?:status [1-9]|signal)", "Anaconda crashed"),
            (r"Please make (?:a selection|your choice) from (?:the )?above|Please respond 'yes' or 'no'",
             "the installer asks for something that the kickstart does not say"),
            (r"Installation complete\. Press \S+ to quit",
             "it is done, and waits for a key: the kickstart must say 'poweroff' or 'reboot'"),
            (r"reboot: System halted", "it stopped the machine without switching it off: the kickstart must say "
             "'poweroff' or 'reboot', not 'halt'"),
        ),
        read=r"ks\.cfg was read|anaconda: parsing kickstart|Parsing kickstart|Starting automated install",
    )  # fmt: skip

    syntax: Annotated[str, UNKEYED] = Field(
        "", pattern=r"^([A-Z]+[0-9]*)?$", description="The version of the syntax to check against, such as RHEL9 or "
        "F40 (`ksvalidator -l` names them)."
    )  # fmt: skip

    @field_validator("packages")
    @classmethod
    def _packages(cls, value: list[str]) -> list[str]:
        for package in value:
            if package.startswith(("%", "#")):
                raise ValueError(f"'{package}' is no package")
        return value

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """In the initial RAM disk; on a volume that it looks for by itself; over HTTP; on the ISO."""
        self.expect(medium, "anaconda")
        files = {"ks.cfg": self.rendered.text.encode()}
        # Anaconda, docs/boot-options.rst: no question, no tmux between us and its lines, no kickstart left behind; and
        # dracut.cmdline(7): it tells what it does, so that it is seen to find the kickstart.
        always = ("inst.cmdline", "inst.notmux", "inst.nosave=all_ks", "rd.info")
        return [
            Delivery("initrd", files, arguments=("inst.ks=file:/ks.cfg", *always)),
            Delivery("volume", files, arguments=always, label="OEMDRV"),
            Delivery("http", files, arguments=("inst.ks={url}ks.cfg", *always), fetched="ks.cfg"),
            Delivery("medium", files, arguments=("inst.ks=cdrom:/ks.cfg", *always)),
        ]

    def lint(self, host: Host) -> Sequence[Remark]:
        """See Kind."""
        return lint(self.rendered, host, self.syntax)
