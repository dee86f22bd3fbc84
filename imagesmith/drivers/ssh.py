"""The ssh driver: steps in a running guest, over its own sshd.

One boot serves a run of consecutive steps. The layers are opened by QEMU's storage daemon, and QEMU reaches them over
NBD: so a layer is closed as in the guestfs driver, by a live snapshot in the daemon. Meanwhile the guest's file systems
are frozen and its processors stopped, so nothing is written to a finished layer. Where the recipe has no ``login``, a
key that opens the guest is put in before it boots and taken out as soon as it has served: no layer holds it.

A running system changes its own disk: identifiers, host keys, logs and caches that it makes while it starts are in the
first layer of the run. ``cleanup`` is there for that.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from imagesmith.disk.attach import LAYER_FILE, Attached, attached, layer_files, newest
from imagesmith.disk.flatten import make_layer
from imagesmith.drivers.guestfs import Guestfs
from imagesmith.drivers.ssh_guest import SshGuest
from imagesmith.drivers.ssh_resume import Keeper, OtherMachine, Waking, forget, there
from imagesmith.drivers.ssh_root import SshRoot
from imagesmith.drivers.winrm import WinRm, library
from imagesmith.drivers.winrm_root import WinRmGuest, WinRmRoot
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Log, Root
from imagesmith.machine import firmware as firmwares
from imagesmith.machine import memory as memories
from imagesmith.machine.arguments import Arch, Drive, MachineSpec
from imagesmith.machine.authorize import Unwritable, authorize, authorize_in
from imagesmith.machine.guest_agent import PORT
from imagesmith.machine.qemu import Machine
from imagesmith.machine.ssh import Ssh
from imagesmith.machine.ssh_login import Credentials, make_key
from imagesmith.machine.tpm import KEPT, Tpm, emulated

_MIB = 1 << 20


@dataclass(frozen=True)
class SshDriver:
    """The driver (interfaces.Driver). ``memory`` is in bytes; ``accelerator`` is the host's verdict."""

    host: Host
    accelerator: Literal["kvm", "tcg"]
    arch: Arch
    cpu: str
    cpus: int
    memory: int
    firmware: Literal["bios", "uefi", "uefi-secure"]
    login: Credentials | None = None
    """How the recipe says that the guest is entered; without it, as root with a key made for the session."""
    tpm: bool = False
    name: str = "ssh"

    @contextmanager
    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> Iterator[SshSession]:
        """Open a session; the guest is booted for its first layer. Raises MissingTool."""
        if self.login is not None and self.login.winrm:
            library()
        else:
            for tool in ("ssh", "ssh-keygen", *(() if self.login else ("debugfs",))):
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
    guest: SshGuest | WinRmGuest
    variables: BinaryIO | None
    """The UEFI variable store, open: it has no name any more."""
    tpm: Tpm | None
    keeper: Keeper | None
    """Keeps states to go on from; over WinRM there are none."""


class SshSession:
    """A run of steps in one guest (interfaces.Session)."""

    def __init__(self, driver: SshDriver, below: Sequence[Path], *, epoch: int) -> None:
        self._driver, self._epoch = driver, epoch
        self._below = list(below)
        self._stack = ExitStack()
        self._running: _Running | None = None
        self._held = False

    @contextmanager
    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None, resumable: bool = False
    ) -> Iterator[Root]:
        """Open the next layer for one step (interfaces.Session). Booting counts in no step's ``timeout``.

        Raises BuildError where the guest cannot be entered, GuestFailed, TimedOut, Interrupted.
        """
        self._below[-1] = below or self._below[-1]
        try:
            running = self._open(into, log)
            deadline = None if timeout is None else time.monotonic() + timeout
            root = self._root(running.guest, log, deadline)
            yield root
            root.finish()
            self._finish(running, into, log, resumable=resumable)
        except BaseException:
            # Whatever the guest is doing now, and the layer at work, are worth nothing: the next layer boots anew.
            self._drop()
            raise
        self._below.append(into)

    def close(self) -> None:
        """End the guest: the layers are complete. What is kept of its state is written when this is done."""
        running, self._running, self._held = self._running, None, False
        self._stack.close()
        if running is not None and running.keeper is not None:
            running.keeper.finish()

    def _finish(self, running: _Running, into: Path, log: Log, *, resumable: bool) -> None:
        keeper = running.keeper if resumable and running.keeper is not None and running.keeper.prepare(log) else None
        if not running.guest.hold():
            log("the guest cannot freeze its file systems: this layer's are as after a loss of power, to be replayed")
        self._held = True
        running.guest.machine.qmp.execute("stop")
        running.disk.flush()
        if running.variables is not None:
            firmwares.keep(running.variables, self._driver.firmware, into)
        if running.tpm is not None:
            running.tpm.keep(into)
        if keeper is not None and not keeper.keep(self._below, into, log):
            self.close()  # the layer is complete; the guest may be in any state, so the next step boots

    def _open(self, into: Path, log: Log) -> _Running:
        file = into / LAYER_FILE
        if self._running is None or not self._held:
            self._running = self._begin(file, log)
            return self._running
        if self._running.keeper is not None:
            self._running.keeper.finish()
        make_layer(self._below, into, self._driver.host)
        self._running.disk.advance(file, below=self._below[-1] / LAYER_FILE)
        self._running.guest.machine.qmp.execute("cont")
        self._running.guest.release()
        self._held = False
        return self._running

    def _root(self, guest: SshGuest | WinRmGuest, log: Log, deadline: float | None) -> SshRoot | WinRmRoot:
        if isinstance(guest, WinRmGuest):
            return WinRmRoot(guest, epoch=self._epoch, log=log, deadline=deadline)
        return SshRoot(self._driver.host, guest, epoch=self._epoch, log=log, deadline=deadline)

    def _drop(self) -> None:
        stack, self._stack = self._stack, ExitStack()
        if self._running is not None and self._running.keeper is not None:
            self._running.keeper.finish()
        self._running, self._held = None, False
        error = BuildError("the layer at work is given up")
        stack.__exit__(type(error), error, None)

    # -- booting -----------------------------------------------------------------------------------------------

    def _begin(self, file: Path, log: Log) -> _Running:
        """Go on from the state beside the layer below, or boot from its disk."""
        if there(self._below[-1]):
            try:
                return self._start(file, log, going_on=True)
            except (BuildError, OSError) as error:
                log(f"the checkpoint cannot be used: {str(error).splitlines()[0]}; booting from the disk")
                self._drop()
                file.unlink(missing_ok=True)
                if not isinstance(error, OtherMachine):  # it will not be of use another time, either
                    forget(self._below[-1])
        return self._start(file, log, going_on=False)

    def _start(self, file: Path, log: Log, *, going_on: bool) -> _Running:
        driver, host = self._driver, self._driver.host
        # A folder of its own, in the system's: its name must be short, for the sockets.
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="imagesmith-")))
        over_ssh = driver.login is None or not driver.login.winrm
        memory, waking = -1, None
        if over_ssh:
            memory = memories.make(-(-driver.memory // _MIB) * _MIB)
            self._stack.callback(os.close, memory)
        if going_on:
            waking = Waking(self._below, memory, host)
            self._stack.callback(waking.close)
        credentials, public_key = self._enable_login(file, folder, log, running=going_on)
        files = layer_files([*self._below, file.parent])
        disk = self._stack.enter_context(attached(files, host, writable=True, nbd=True))
        kept = newest(self._below, firmwares.store_name(driver.firmware))
        firmware = firmwares.prepare(driver.firmware, driver.arch, folder, host, kept=kept)
        variables = self._stack.enter_context(firmware.variables.open("rb")) if firmware.variables else None
        tpm = self._stack.enter_context(emulated(host, kept=newest(self._below, KEPT))) if driver.tpm else None
        spec = MachineSpec(
            arch=driver.arch, accelerator=driver.accelerator, cpu=driver.cpu, cpus=driver.cpus, memory=driver.memory,
            memory_file=over_ssh,
            reboots=True, firmware=firmware, drives=(Drive(disk.socket, "nbd"),), tpm=tpm.socket if tpm else None,
            generation=True, incoming=going_on, ports=(PORT,) if credentials.winrm else (),
        )  # fmt: skip
        doing = "waking" if going_on else "booting"
        log(f"{doing} the guest: {spec.firmware.name}, {spec.accelerator}, {spec.cpus} CPUs, {spec.memory >> 20} MiB")
        machine = self._stack.enter_context(
            Machine(host, spec, folder / "console", purpose="run steps over SSH", lost=disk.lost, memory=memory)
        )
        guest: SshGuest | WinRmGuest
        keeper = None
        if credentials.winrm:
            guest = WinRmGuest(machine, WinRm(machine, user=credentials.user, password=credentials.password,
                                              port=credentials.port))  # fmt: skip
            guest.enter(log)
        else:
            ssh = self._stack.enter_context(Ssh(host, machine, credentials, folder))
            guest = SshGuest(machine, ssh, public_key=public_key)
            if waking is not None:
                keeper = waking.take_up(guest, spec, log)
            else:
                guest.enter(log)
                keeper = Keeper(guest, spec, host)
        # None of these is opened by its name again; after kill -9 there is an empty folder left, with a dead socket.
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        return _Running(disk, guest, variables, tpm, keeper)

    def _enable_login(
        self, file: Path, folder: Path, log: Log, *, running: bool
    ) -> tuple[Credentials, str]:
        """Make the layer's ``file``; say what opens the guest on it, and what public key is to be let in, if any.

        It is put into the guest's disk, unless the guest is ``running`` already.
        """
        driver, host = self._driver, self._driver.host
        make_layer(self._below, file.parent, host)
        if driver.login is not None:
            driver.login.check(folder, host)
            return driver.login, ""
        key, public_key = make_key(folder, host)
        if running:
            return Credentials(key=key), public_key
        try:
            authorize(file, public_key, host)
        except Unwritable as why:
            log(f"debugfs cannot put the key into this disk, because {why.message}; starting the libguestfs appliance")
            file.unlink()
            appliance = Guestfs(host, accelerator=driver.accelerator)
            with (
                appliance.session(self._below, epoch=self._epoch, log=log) as session,
                session.layer(file.parent, log=log) as root,
            ):
                authorize_in(root, public_key)
        return Credentials(key=key), public_key
