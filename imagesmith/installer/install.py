"""Runs an unattended installation: prepares the machine, boots it, watches it, and sees it to its end."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from imagesmith.errors import BuildError, GuestFailed
from imagesmith.host import Host
from imagesmith.installer.deliver import Given, arguments, choose, deliver, words
from imagesmith.installer.ending import nothing_to_boot
from imagesmith.installer.follow import Evidence, Follower
from imagesmith.installer.iso import Iso
from imagesmith.installer.media import look, merged
from imagesmith.installer.server import Server
from imagesmith.installer.signs import Reader
from imagesmith.installer.syslog import Journal, Ports, Syslog
from imagesmith.installer.watch import Limits, Watch
from imagesmith.interfaces import Delivery, Installation, Log, Medium, Way
from imagesmith.machine import firmware as firmwares
from imagesmith.machine.arguments import Arch, Drive, Firmware, MachineSpec
from imagesmith.machine.qemu import Machine

_CONSOLE = {"x86_64": "console=ttyS0", "aarch64": "console=ttyAMA0"}
_RESTARTS = 5
"""How often a disk that sets itself up may restart; SeaBIOS makes two resets of each restart."""


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


def install(
    installation: Installation, into: Path, hardware: Hardware, host: Host, log: Log, *, keep: Path
) -> None:
    """Install onto the qcow2 ``into``; see interfaces.Workshop.install.

    ``keep`` takes the console's log, the installer's log and pictures of the screen while it runs; they stay there
    when it fails. Raises BuildError, GuestFailed, TimedOut, MissingTool, Interrupted.
    """
    medium = Medium(Path()) if installation.iso is None else look(installation.iso)
    _check_arch(medium, hardware)
    delivery = choose(installation.deliver(medium), installation.way, _hindrances(installation, medium, hardware))
    log(f"{_name(medium)}: {words(delivery)}")
    keep.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(keep, Journal(keep / "installer.log"))
    with ExitStack() as stack:
        server = stack.enter_context(Server(delivery.files)) if delivery.way == "http" else None
        syslog = stack.enter_context(Syslog(evidence.journal)) if _can_log(installation, medium) else None
        if installation.iso is not None:
            host.run(["qemu-img", "create", "-q", "-f", "qcow2", into, str(hardware.disk)], purpose="make a disk")
        with tempfile.TemporaryDirectory(prefix="install-", dir=into.parent) as name:  # for our eyes only (0700)
            given = deliver(delivery, Path(name), host, initrds=_initrds(medium, Path(name)))
            # What the firmware remembers of the installation is a part of its result: it stays beside the disk.
            firmware = firmwares.prepare(hardware.firmware, hardware.arch, into.parent, host)
            spec = _spec(installation, medium, delivery, given, into, hardware, firmware, server, syslog, Path(name))
            watch = Watch(Reader(installation.signs), _limits(installation), wants=delivery.fetched if server else "")
            log(_boots(spec))
            machine = stack.enter_context(
                Machine(host, spec, evidence.console_log, purpose="run the installer")
            )  # QEMU has its files open: they need no names any more
        Ports(machine.ports, evidence.journal)
        follower = Follower(machine, watch, evidence, host, log, server=server, wants=delivery.fetched)
        how = follower.follow()
        seconds = follower.now
        stack.close()
        if installation.iso is not None and (why := nothing_to_boot(into, hardware.firmware, host)):
            did = "switched the machine off" if how == "shutdown" else "restarted the machine"
            raise GuestFailed(
                f"the installer {did} after {seconds:.0f} s without having installed a system: {why}{watch.where}",
                artifacts=evidence.files(), hint="the console's log and the installer's log tell what it did",
            )
    for line in [*watch.summary(seconds), f"installed in {seconds:.0f} s"]:
        log(line)
    evidence.remove()


def _name(medium: Medium) -> str:
    return medium.name or medium.family or ("an unknown ISO" if medium.path != Path() else "the disk")


def _check_arch(medium: Medium, hardware: Hardware) -> None:
    if medium.arch and medium.arch != hardware.arch:
        raise BuildError(f"{medium.path} is for {medium.arch}, and the machine is {hardware.arch}",
                         hint="correct 'arch', or take another ISO")  # fmt: skip


def _can_log(installation: Installation, medium: Medium) -> bool:
    return bool(installation.log_arguments and medium.kernel)


def _hindrances(installation: Installation, medium: Medium, hardware: Hardware) -> dict[Way, str]:
    found: dict[Way, str] = {}
    if installation.iso is None:
        why = "the disk itself is booted"
        found |= {"initrd": why, "http": why, "medium": why}
    elif not medium.kernel:
        why = "no kernel was found in this ISO that can be booted directly"
        found |= {"initrd": why, "http": why}
    if hardware.arch != "x86_64":
        found["floppy"] = f"a machine of {hardware.arch} has no floppy disk"
    return found


def _limits(installation: Installation) -> Limits:
    restarts = _RESTARTS if installation.iso is None else 0
    return Limits(installation.within, installation.read_within, installation.stall, restarts)


def _initrds(medium: Medium, folder: Path) -> list[Path]:
    """The installer's initrds, read out of the ISO."""
    if not medium.kernel:
        return []
    found = []
    with Iso(medium.path) as iso:
        for number, inside in enumerate(medium.initrds):
            iso.extract(inside, folder / f"initrd{number}")
            found.append(folder / f"initrd{number}")
        iso.extract(medium.kernel, folder / "kernel")
    return found


def _spec(
    installation: Installation, medium: Medium, delivery: Delivery, given: Given, into: Path, hardware: Hardware,
    firmware: Firmware, server: Server | None, syslog: Syslog | None, folder: Path,
) -> MachineSpec:  # fmt: skip
    drives = [Drive(into)]
    cdroms = [] if installation.iso is None else [installation.iso]
    if given.volume is not None and installation.iso is None:
        # The image's kernel has the driver of the disk that it is on; one for a CD drive it may not have.
        drives.append(Drive(given.volume, "raw", read_only=True))
    elif given.volume is not None:
        cdroms.append(given.volume)
    spec = MachineSpec(
        arch=hardware.arch, accelerator=hardware.accelerator, cpu=hardware.cpu, cpus=hardware.cpus,
        memory=hardware.memory, firmware=firmware,
        drives=tuple(drives), cdroms=(*cdroms, *installation.media), floppy=given.floppy, fw_cfg=given.fw_cfg,
        ports=installation.log_ports, reboots=installation.iso is None,
    )  # fmt: skip
    if not medium.kernel:
        return spec
    append = command_line(installation, medium, delivery, hardware.arch, url=server.url if server else "",
                          log=syslog.address if syslog else ("", 0))  # fmt: skip
    return replace(spec, kernel=folder / "kernel", initrd=given.initrd, append=append)


def command_line(
    installation: Installation, medium: Medium, delivery: Delivery, arch: Arch, *, url: str, log: tuple[str, int]
) -> str:
    """The installer's kernel's: the medium's own arguments, the delivery's, the log's, the console, the user's.

    ``-name`` among the user's takes away every argument ``name`` and ``name=…`` of the others (media.merged).
    """
    ours = [*arguments(delivery, url)]
    if log[1]:
        ours += [one.replace("{log_host}", log[0]).replace("{log_port}", str(log[1]))
                 for one in installation.log_arguments]  # fmt: skip
    if not any(one.startswith("console=") for one in (*medium.arguments, *installation.arguments)):
        ours.append(_CONSOLE[arch])
    return " ".join(merged(merged(medium.arguments, ours), installation.arguments))


def _boots(spec: MachineSpec) -> str:
    what = "the installer's kernel" if spec.kernel else "the CD" if spec.cdroms else "the disk"
    return f"booting {what}: {spec.firmware.name}, {spec.accelerator}, {spec.cpus} CPUs, {spec.memory >> 20} MiB"
