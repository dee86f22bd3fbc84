"""Runs an unattended installation: prepares the machine, boots it, watches it, and sees it to its end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from imagesmith.errors import GuestFailed
from imagesmith.host import Host
from imagesmith.installer.bootplan import BootPlan, Hardware, Servers, make_plan
from imagesmith.installer.ending import nothing_to_boot
from imagesmith.installer.follow import Evidence, Follower, Typing
from imagesmith.installer.server import Server
from imagesmith.installer.signs import Reader
from imagesmith.installer.syslog import Journal, Ports, Syslog
from imagesmith.installer.watch import DID, Limits, Watch
from imagesmith.interfaces import Installation, Log
from imagesmith.machine import firmware as firmwares
from imagesmith.machine.qemu import Machine
from imagesmith.machine.tpm import emulated

__all__ = ["Hardware", "install"]

_RESTARTS = 20
"""How often a guest may restart that does so on its way; SeaBIOS makes two resets of each restart."""


def install(
    installation: Installation, into: Path, hardware: Hardware, host: Host, log: Log, *, keep: Path
) -> None:
    """Install onto the qcow2 ``into``; see interfaces.Workshop.install.

    ``keep`` takes the console's log, the installer's log and pictures of the screen while it runs; they stay there
    when it fails. Raises BuildError, GuestFailed, TimedOut, MissingTool, Interrupted.
    """
    plan = make_plan(installation, hardware)
    log(str(plan))
    keep.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(keep, Journal(keep / "installer.log"))
    with ExitStack() as stack:
        server = stack.enter_context(Server(plan.delivery.files)) if plan.delivery.way == "http" else None
        servers = Servers(url=server.url if server else "")
        if installation.log_arguments and plan.takes_arguments:
            servers = Servers(servers.url, stack.enter_context(Syslog(evidence.journal)).address)
        machine = stack.enter_context(_started(plan, into, servers, evidence, host, log))
        Ports(machine.ports, evidence.journal)
        limits = _limits(installation, restarts=plan.restarts)
        watch = Watch(Reader(installation.signs), limits, wants=plan.delivery.fetched if server else "")
        keys = Typing(machine, plan.keys(servers), log)
        follower = Follower(machine, watch, evidence, host, log, server=server, keys=keys)
        how = follower.follow()
        seconds = follower.now
    if installation.iso is not None and (why := nothing_to_boot(into, hardware.firmware, host)):
        raise GuestFailed(
            f"the installer {DID[how]} after {seconds:.0f} s without having installed a system: {why}{watch.where}",
            artifacts=evidence.files(), hint="the console's log and the installer's log tell what it did",
        )  # fmt: skip
    for line in [*watch.summary(seconds), f"installed in {seconds:.0f} s"]:
        log(line)
    evidence.remove()


@contextmanager
def _started(
    plan: BootPlan, into: Path, servers: Servers, evidence: Evidence, host: Host, log: Log
) -> Iterator[Machine]:
    """Make what the machine needs, and switch it on; what may be secret has no names any more while it runs."""
    hardware = plan.hardware
    if plan.installation.iso is not None:
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", into, str(hardware.disk)], purpose="make a disk")
    with ExitStack() as stack:
        with tempfile.TemporaryDirectory(prefix="install-", dir=into.parent) as name:  # for our eyes only (0700)
            # What the firmware remembers of the installation is a part of its result: it stays beside the disk.
            firmware = firmwares.prepare(hardware.firmware, hardware.arch, into.parent, host)
            spec = plan.spec(into, firmware, servers, Path(name), host)
            if hardware.tpm:
                tpm = stack.enter_context(emulated(host))
                stack.callback(tpm.keep, into.parent)  # when the machine has ended
                spec = replace(spec, tpm=tpm.socket)
            log(f"{spec.firmware.name}, {spec.accelerator}, {spec.cpus} CPUs, {spec.memory >> 20} MiB")
            machine = stack.enter_context(Machine(host, spec, evidence.console_log, purpose="run the installer"))
        yield machine


def _limits(installation: Installation, *, restarts: bool) -> Limits:
    return Limits(installation.within, installation.read_within, installation.stall, _RESTARTS if restarts else 0)
