"""How an installer is started: what of it is booted, how its answer file reaches it, and with which arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from imagesmith import cpio
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.installer.deliver import Given, arguments, choose, deliver, words
from imagesmith.installer.iso import Iso
from imagesmith.installer.media import look, merged
from imagesmith.installer.menus import SEPARATORS
from imagesmith.installer.remaster import remaster
from imagesmith.interfaces import Delivery, Installation, Medium, Way
from imagesmith.keys import Action, parse
from imagesmith.machine.arguments import Arch, Drive, Firmware, MachineSpec

Boot = Literal["kernel", "copy", "cd", "disk"]
"""The installer's own kernel, read out of the ISO; a copy of the ISO; the ISO as it is; the disk (there is no ISO)."""
_URL = "{url}"
_CONSOLE = {"x86_64": "console=ttyS0", "aarch64": "console=ttyAMA0"}
_BOOTS: dict[Boot, str] = {
    "kernel": "the installer's kernel", "copy": "a copy of the ISO", "cd": "the ISO", "disk": "the disk",
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """The machine that the installation runs on. Sizes in bytes."""

    arch: Arch
    accelerator: Literal["kvm", "tcg"]
    cpu: str
    cpus: int
    memory: int
    disk: int
    firmware: Literal["bios", "uefi", "uefi-secure"]
    tpm: bool = False


@dataclass(frozen=True)
class Servers:
    """Where the guest finds what this host offers it while it runs."""

    url: str = ""
    """The folder with the answer files; nothing where they are not served."""
    log: tuple[str, int] = ("", 0)
    """Address and port that take its log; port 0 where there is none."""


@dataclass(frozen=True)
class BootPlan:
    """How it is started."""

    installation: Installation
    hardware: Hardware
    medium: Medium
    delivery: Delivery
    boot: Boot

    @property
    def takes_arguments(self) -> bool:
        """Whether there is a Linux kernel that our arguments reach."""
        return bool(self.medium.kernel) and self.boot in ("kernel", "copy")

    @property
    def restarts(self) -> bool:
        """Whether the guest restarts on its way: an image that sets itself up may, Windows always does."""
        if self.boot == "disk":
            return self.installation.ends != "reboot"
        return self.medium.family == "windows"

    def __str__(self) -> str:
        name = self.medium.name or self.medium.family or "the disk"
        return f"{name}: {words(self.delivery)}; booting {_BOOTS[self.boot]}"

    def arguments(self, servers: Servers) -> list[str]:
        """What is added to the medium's own: the delivery's arguments, the log's, the console, the user's.

        ``-name`` among the user's takes away every argument ``name`` and ``name=…`` of the others (media.merged).
        """
        own = list(self.installation.arguments)
        ours = list(arguments(self.delivery, servers.url))
        if self.takes_arguments:
            if servers.log[1]:
                ours += [one.replace("{log_host}", servers.log[0]).replace("{log_port}", str(servers.log[1]))
                         for one in self.installation.log_arguments]  # fmt: skip
            if not any(one.startswith("console=") for one in (*self.medium.arguments, *own)):
                ours.append(_CONSOLE[self.hardware.arch])
        gone = [one for one in own if one.startswith("-") and one not in SEPARATORS]
        return [*merged(ours, gone), *own]

    def keys(self, servers: Servers) -> list[Action]:
        """What is typed. Raises BuildError for what no keyboard has."""
        return parse([part.replace(_URL, servers.url) for part in self.installation.boot_command])

    def spec(self, disk: Path, firmware: Firmware, servers: Servers, folder: Path, host: Host) -> MachineSpec:
        """The machine. What it needs besides the disk and the ISO is made in the private ``folder``."""
        wanted, hardware = self.arguments(servers), self.hardware
        kernel, initrds = self._kernel(folder) if self.boot == "kernel" else (None, [])
        given = deliver(self.delivery, folder, host, initrds=initrds) if self._beside else Given()
        drives, cdroms = [Drive(disk)], []
        if self.boot == "copy":
            cdroms.append(self._copy(wanted, folder, host))
        elif self.installation.iso is not None:
            cdroms.append(self.installation.iso)
        if given.volume is not None and self.boot == "disk":
            # The image's kernel has the driver of the disk that it is on; one for a CD drive it may not have.
            drives.append(Drive(given.volume, "raw", read_only=True))
        elif given.volume is not None:
            cdroms.append(given.volume)
        spec = MachineSpec(
            arch=hardware.arch, accelerator=hardware.accelerator, cpu=hardware.cpu, cpus=hardware.cpus,
            memory=hardware.memory, firmware=firmware, drives=tuple(drives),
            cdroms=(*cdroms, *self.installation.media), floppy=given.floppy, fw_cfg=given.fw_cfg,
            ports=self.installation.log_ports, reboots=self.restarts,
        )  # fmt: skip
        if kernel is None:
            return spec
        return replace(spec, kernel=kernel, initrd=given.initrd, append=" ".join(merged(self.medium.arguments, wanted)))

    # -- inside ------------------------------------------------------------------------------------------------

    @property
    def _beside(self) -> bool:
        """Whether the answer files are not in the copy of the ISO."""
        return self.boot != "copy" or self.delivery.way not in ("initrd", "medium")

    def _kernel(self, folder: Path) -> tuple[Path, list[Path]]:
        """The installer's kernel and initrds, read out of the ISO."""
        initrds = []
        with Iso(self.medium.path) as iso:
            iso.extract(self.medium.kernel, folder / "kernel")
            for number, inside in enumerate(self.medium.initrds):
                iso.extract(inside, folder / f"initrd{number}")
                initrds.append(folder / f"initrd{number}")
        return folder / "kernel", initrds

    def _copy(self, wanted: Sequence[str], folder: Path, host: Host) -> Path:
        files = dict(self.delivery.files) if self.delivery.way == "medium" else {}
        if self.delivery.way == "initrd":
            # The first of them alone: a menu loads them one behind the other.
            with Iso(self.medium.path) as iso:
                iso.extract(self.medium.initrds[0], folder / "initrd0")
            with (folder / "joined").open("w+b") as out:
                cpio.join([folder / "initrd0"], cpio.archive(self.delivery.files), out)
            files[self.medium.initrds[0]] = (folder / "joined").read_bytes()
        into = folder / "copy.iso"
        remaster(self.medium.path, into, files, wanted, host)
        return into


def make_plan(installation: Installation, hardware: Hardware) -> BootPlan:
    """Look at the ISO, and choose. Raises BuildError where the answer file cannot reach the installer."""
    medium = Medium(Path()) if installation.iso is None else look(installation.iso)
    if medium.arch and medium.arch != hardware.arch:
        raise BuildError(f"{medium.path.name} is for {medium.arch}, and the machine is {hardware.arch}",
                         hint="correct 'arch', or take another ISO")  # fmt: skip
    parse(installation.boot_command)  # before anything is made
    hindrances = _hindrances(installation, medium, hardware)
    delivery = choose(installation.deliver(medium), installation.way, hindrances)
    boot = _boot(installation, medium, delivery, hardware)
    if installation.arguments and boot in ("cd", "disk"):
        raise BuildError("nothing here takes kernel arguments ('boot')", hint="type them, in 'boot_command', or leave "
                         "them out")  # fmt: skip
    return BootPlan(installation, hardware, medium, delivery, boot)


def _boot(installation: Installation, medium: Medium, delivery: Delivery, hardware: Hardware) -> Boot:
    if installation.iso is None:
        return "disk"
    if installation.remaster or delivery.way == "medium":
        return "copy"
    if installation.boot_command:
        return "cd"
    if medium.kernel:
        # Secure Boot lets no kernel start that is not signed by somebody whom the firmware knows; the ISO's own boot
        # loader knows more of them (OVMF verifies what -kernel gives it as any other program).
        return "copy" if hardware.firmware == "uefi-secure" else "kernel"
    # Under UEFI Windows waits for a key before it boots from a CD; a copy need not.
    return "copy" if medium.family == "windows" and hardware.firmware != "bios" else "cd"


def _hindrances(installation: Installation, medium: Medium, hardware: Hardware) -> dict[Way, str]:
    found: dict[Way, str] = {}
    if installation.iso is None:
        why = "the disk itself is booted"
        found |= {"initrd": why, "http": why, "medium": why}
    elif installation.boot_command and not installation.remaster:
        found["initrd"] = "the ISO itself is booted, with keys typed"
        if not any(_URL in part for part in installation.boot_command):
            found["http"] = f"'boot_command' does not type where it is ({_URL})"
    elif not medium.kernel:
        why = "no kernel was found in this ISO that arguments can be given to"
        found |= {"initrd": why, "http": why}
    if hardware.arch != "x86_64":
        found["floppy"] = f"a machine of {hardware.arch} has no floppy disk"
    return found
