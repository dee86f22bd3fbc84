"""The ssh driver: steps in a running guest, over its own sshd.

One boot serves a run of consecutive steps. The layers are opened by QEMU's storage daemon, and QEMU reaches them over
NBD: so a layer is closed as in the guestfs driver, by a live snapshot in the daemon. Meanwhile the guest's file systems
are frozen and its processors stopped, so nothing is written to a finished layer. The key that opens the guest is put
in before it boots and taken out as soon as it has served: no layer holds it.

A running system changes its own disk: identifiers, host keys, logs and caches that it makes while it starts are in the
first layer of the run. ``cleanup`` is there for that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagesmith.disk.attach import LAYER_FILE, Attached, attached, layer_files, make_overlay
from imagesmith.drivers.ssh_root import SshRoot
from imagesmith.errors import BuildError, GuestFailed, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Log, Root
from imagesmith.machine import firmware as firmwares
from imagesmith.machine.arguments import Arch, Drive, MachineSpec
from imagesmith.machine.authorize import RESTORE, authorize
from imagesmith.machine.guest import FRESH_STARTS, LATE_TIMER
from imagesmith.machine.qemu import Machine
from imagesmith.machine.ssh import Held, Ssh, make_key

BOOT_SECONDS = 600.0
"""Until sshd answers, and again until start-up is complete; 15 to 200 s were seen under TCG."""
_STARTED = """\
command -v systemctl >/dev/null || exit 0
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
systemctl is-system-running --wait
"""


@dataclass(frozen=True)
class SshDriver:
    """The driver (interfaces.Driver). ``memory`` is in bytes; ``accelerator`` is the host's verdict."""

    host: Host
    accelerator: Literal["kvm", "tcg"]
    arch: Arch
    cpus: int
    memory: int
    firmware: Literal["bios", "uefi", "uefi-secure"]
    name: str = "ssh"

    @contextmanager
    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> Iterator[SshSession]:
        """Open a session; the guest is booted for its first layer. Raises MissingTool."""
        for tool in ("ssh", "ssh-keygen", "debugfs"):
            self.host.require(tool, "run steps in a guest over SSH")
        session = SshSession(self, below, epoch=epoch)
        try:
            yield session
        finally:
            session.close()


@dataclass(frozen=True)
class _Running:
    """What a booted guest consists of."""

    disk: Attached
    machine: Machine
    ssh: Ssh


class SshSession:
    """A run of steps in one guest (interfaces.Session)."""

    def __init__(self, driver: SshDriver, below: Sequence[Path], *, epoch: int) -> None:
        self._driver, self._epoch = driver, epoch
        self._below = list(below)
        self._stack = ExitStack()
        self._guest: _Running | None = None
        self._held: Held | None = None

    @contextmanager
    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None
    ) -> Iterator[Root]:
        """Open the next layer for one step (interfaces.Session). Booting counts in no step's ``timeout``.

        Raises BuildError where the guest cannot be entered, GuestFailed, TimedOut, Interrupted.
        """
        self._below[-1] = below or self._below[-1]
        try:
            guest = self._open(into, log)
            deadline = None if timeout is None else time.monotonic() + timeout
            yield SshRoot(self._driver.host, guest.ssh, epoch=self._epoch, log=log, deadline=deadline)
            self._finish(guest, log)
        except BaseException:
            # Whatever the guest is doing now, and the layer at work, are worth nothing: the next layer boots anew.
            self._drop()
            raise
        self._below.append(into)

    def close(self) -> None:
        """End the guest: the layers are complete."""
        self._guest = self._held = None
        self._stack.close()

    def _finish(self, guest: _Running, log: Log) -> None:
        self._held = guest.ssh.hold()
        if not self._held.frozen:
            log("the guest has no fsfreeze: this layer's file systems are as after a loss of power, to be replayed")
        guest.machine.qmp.execute("stop")
        guest.disk.flush()

    def _open(self, into: Path, log: Log) -> _Running:
        file = into / LAYER_FILE
        if self._guest is None or self._held is None:
            self._guest = self._boot(file, log)
            return self._guest
        self._guest.disk.advance(file, below=self._below[-1] / LAYER_FILE)
        self._guest.machine.qmp.execute("cont")
        self._held.release()
        return self._guest

    def _drop(self) -> None:
        stack, self._stack = self._stack, ExitStack()
        self._guest = self._held = None
        error = BuildError("the layer at work is given up")
        stack.__exit__(type(error), error, None)

    # -- booting -----------------------------------------------------------------------------------------------

    def _boot(self, file: Path, log: Log) -> _Running:
        driver, host = self._driver, self._driver.host
        files = layer_files(self._below)
        make_overlay(files[-1], file, host)
        # A folder of its own, in the system's: its name must be short, for the sockets.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="imagesmith-")))
        key = make_key(folder, host)
        authorize(file, key.with_suffix(".pub").read_text(), host)
        disk = self._stack.enter_context(attached([*files, file], host, writable=True, nbd=True))
        spec = MachineSpec(
            arch=driver.arch, accelerator=driver.accelerator, cpus=driver.cpus, memory=driver.memory, reboots=True,
            firmware=firmwares.prepare(driver.firmware, driver.arch, folder), drives=(Drive(disk.socket, "nbd"),),
        )  # fmt: skip
        log(f"booting the guest: {spec.firmware.name}, {spec.accelerator}, {spec.cpus} CPUs, {spec.memory >> 20} MiB")
        machine = self._stack.enter_context(Machine(host, spec, folder / "console", purpose="run steps over SSH"))
        ssh = self._stack.enter_context(Ssh(host, machine, key, folder))
        self._connect(machine, ssh, log)
        # None of these is opened by its name again; after kill -9 there is an empty folder left, with a dead socket.
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        status, said = ssh.ask(RESTORE, within=BOOT_SECONDS)
        if status != 0:
            raise GuestFailed(f"cannot take the session's key out of the guest again: {said}")
        state: list[bytes] = []
        status, _ = ssh.ask(_STARTED, within=BOOT_SECONDS, take=state.append)
        if status != 0:
            said = b"".join(state).decode("utf-8", "replace").strip()
            log(f"the guest's start-up did not go well; systemd calls it '{said}'")
        return _Running(disk, machine, ssh)

    def _connect(self, machine: Machine, ssh: Ssh, log: Log) -> None:
        log("waiting for the guest's sshd")
        begun = time.monotonic()
        for left in range(FRESH_STARTS, -1, -1):
            try:
                ssh.connect(BOOT_SECONDS)
                break
            except (GuestFailed, TimedOut) as error:
                if LATE_TIMER not in error.message or self._driver.accelerator != "tcg" or not left:
                    raise
                log("the emulated timer was late, because this host is busy; starting the guest again")
                machine.start_again()
        log(f"connected after {time.monotonic() - begun:.0f} s")
