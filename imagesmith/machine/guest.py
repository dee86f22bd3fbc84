"""A booted throw-away copy of an image: what checks are made on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from imagesmith.disk.attach import make_overlay
from imagesmith.errors import BuildError, GuestFailed, ImagesmithError, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Log, Result, Terminal
from imagesmith.machine import firmware as firmwares
from imagesmith.machine.arguments import Arch, Drive, MachineSpec
from imagesmith.machine.channel import Channel
from imagesmith.machine.console import boot_fault
from imagesmith.machine.inject import Unpack, inject
from imagesmith.machine.let_in import let_in
from imagesmith.machine.qemu import Machine
from imagesmith.machine.tpm import emulated

_ROUND = 20
"""Seconds that one question to systemd may wait; between two of them the console is looked at."""

# Waits inside the guest, so that a slow guest starts one shell and not one a second. is-system-running says
# "initializing" or "starting" until the queue of jobs is empty (systemctl(1)).
_WAIT = f"""\
left={_ROUND}
while [ "$left" -gt 0 ]; do
    state=$(systemctl is-system-running 2>/dev/null)
    case $state in
        running) echo running; exit 0 ;;
        degraded|maintenance|stopping) break ;;
    esac
    left=$((left - 1))
    sleep 1
done
echo "$state"
case $state in degraded|maintenance|stopping) ;; *) exit 99 ;; esac
for unit in $(systemctl list-units --failed --plain --no-legend --no-pager | cut -d ' ' -f 1); do
    echo "$unit: $(systemctl show --property=Result --value "$unit")"
    journalctl --no-pager --quiet --output=cat --lines=3 --unit="$unit" 2>/dev/null | sed 's/^/    /'
done
exit 1
"""
_START_SECONDS = 600.0
"""How long the first request waits for a guest that nobody has waited for; 60 to 200 s were seen under TCG."""


# Linux: arch/x86/kernel/apic/io_apic.c, check_timer(). It counts timer interrupts for some milliseconds and panics when
# none come: so it is under TCG when a busy host did not let QEMU's other threads run meanwhile. Nothing was written yet
# at that point, and it says nothing about the image (seen once in about ten boots on two busy cores).
LATE_TIMER = "IO-APIC + timer doesn't work"
FRESH_STARTS = 3


class BootedGuest:
    """Implements interfaces.Guest."""

    def __init__(self, machine: Machine, firmware: str, keep: Path, log: Log) -> None:
        self.firmware, self.machine = firmware, machine
        self._log = log
        self._channel = Channel(machine)
        self._keep = keep

    def run(self, script: str, *, timeout: float) -> Result:
        """Run a shell script as root in the guest, as soon as it is there. Raises TimedOut, GuestFailed."""
        if not self._channel.ready:
            self.wait_ready(_START_SECONDS)
        return self._channel.ask(script, timeout=timeout)

    def wait_booted(self, timeout: float) -> Result:
        """Wait until systemd says that start-up is complete.

        ``status`` 0, output ``running``; or 1, and the output's first line is the state (``degraded``), followed by a
        line for each failed unit and the end of what it logged. Raises TimedOut, GuestFailed.
        """
        deadline = time.monotonic() + timeout
        self.wait_ready(timeout)
        while True:
            left = deadline - time.monotonic()  # on a busy host an emulated guest may take a minute for a word
            result = self._channel.ask(_WAIT, timeout=max(_ROUND * 3, left), again=True)
            if result.status in {0, 1}:
                return Result(result.status, result.output.strip())
            self.machine.check(boot_fault)
            if time.monotonic() >= deadline:
                raise self._unfinished(timeout, result)

    def wait_ready(self, timeout: float) -> None:
        """Wait until it takes requests, early in its start-up. Raises TimedOut, GuestFailed."""

        def ready() -> bool | None:
            self._channel.listen()
            return self._channel.ready or None

        deadline, left = time.monotonic() + timeout, FRESH_STARTS
        while True:
            try:
                self.machine.watch(ready, within=deadline - time.monotonic(), doing="finish starting",
                                    fault=boot_fault)  # fmt: skip
                return
            except GuestFailed as error:
                left -= 1
                if LATE_TIMER not in error.message or self.machine.spec.accelerator != "tcg" or left < 0:
                    raise
                self._log("the emulated timer was late, because this host is busy; starting the guest again")
                self.machine.start_again()

    def shell(self, terminal: Terminal) -> None:
        """Let the user in as root (interfaces.Enterable), at a console that is plugged in for it."""
        if not self._channel.ready:
            self.wait_ready(_START_SECONDS)
        let_in(self.machine, self._channel, terminal)

    def forward(self, port: int) -> tuple[str, int]:
        """Return a host address and port that leads to the guest's TCP ``port``."""
        return self.machine.forward(port)

    def console(self, lines: int = 25) -> str:
        """The end of the serial console."""
        return self.machine.console.tail(lines)

    def keep_evidence(self) -> Sequence[Path]:
        """Add a picture of the screen to the console's log in the ``keep`` folder; return the files."""
        found = [self.machine.console.log]
        screen = self._keep / f"{self.firmware}-screen.png"
        with suppress(OSError, ValueError, ImagesmithError):  # QEMU may be gone, and its screen with it
            self.machine.screenshot(screen)
            found.append(screen)
        return found

    def _unfinished(self, timeout: float, last: Result) -> TimedOut:
        jobs = self.run("systemctl list-jobs --no-legend --no-pager --plain | head -n 5", timeout=30)
        waiting = "; ".join(" ".join(line.split()) for line in jobs.output.splitlines())
        return TimedOut(
            f"the guest did not finish starting within {timeout:g} s; systemd says '{last.output.strip()}'"
            + (f", and its jobs are: {waiting}" if waiting else ""),
            tail=self.console(),
        )


@contextmanager
def booted(
    disk: Disk,
    *,
    firmware: Literal["bios", "uefi", "uefi-secure"],
    arch: Arch,
    cpu: str = "",
    cpus: int,
    memory: int,
    host: Host,
    accelerator: Literal["kvm", "tcg"],
    tpm: bool = False,
    log: Log,
    keep: Path,
    scratch: Path | None = None,
    unpack: Unpack | None = None,
    control: bool = True,
) -> Iterator[BootedGuest]:
    """Boot a throw-away copy of ``disk``; it is gone when the block ends.

    ``memory`` is in bytes. Its UEFI variables begin as the disk's; its TPM, if any, is a new one, as on every machine
    that the image will be started on. ``keep`` takes the console's log while the guest runs, and a screenshot when the
    block ends well or with a BuildError (and a GuestFailed names both as its ``artifacts``). ``scratch``
    is where the copy is made, by default the system's folder for temporary files. ``unpack`` puts a tar into images
    that debugfs cannot write (inject.py). Without ``control`` nothing is put into it, and it takes no requests.

    Raises BuildError, MissingTool, GuestFailed, Interrupted.
    """
    keep.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with tempfile.TemporaryDirectory(prefix="imagesmith-", dir=scratch) as name:
            folder = Path(name)
            overlay = folder / "disk.qcow2"
            make_overlay(disk.path, overlay, host)
            if control:
                inject(overlay, host, otherwise=unpack)
            spec = MachineSpec(
                arch=arch, accelerator=accelerator, cpu=cpu, cpus=cpus, memory=memory, reboots=True,
                firmware=firmwares.prepare(firmware, arch, folder, host, kept=disk.variables.get(firmware)),
                drives=(Drive(overlay),), tpm=stack.enter_context(emulated(host)).socket if tpm else None,
            )  # fmt: skip
            log(f"booting a copy: {firmware}, {accelerator}, {cpus} CPUs, {memory >> 20} MiB")
            console_log = keep / f"{firmware}-console.log"
            machine = stack.enter_context(Machine(host, spec, console_log, purpose="boot the image"))
        # QEMU holds its files open, and they have no names any more: whatever ends it frees their space.
        guest = BootedGuest(machine, firmware, keep, log)
        try:
            yield guest
        except BuildError as error:
            evidence = guest.keep_evidence()
            if isinstance(error, GuestFailed):
                error.artifacts = (*error.artifacts, *evidence)
            raise
        guest.keep_evidence()
