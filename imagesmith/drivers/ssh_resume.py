"""A running guest's state beside its layer: the next session goes on from there instead of booting.

What lets us in again is a shell in the guest's memory, on no disk of it: it listens at the control channel
(machine/shell.py) from the first layer on. When the state is taken up again, it sets the clock, lets go of the file
systems that were held still when the state was taken, and gives the random generator something new (QEMU's vmgenid
does so, too). The next session asks it for everything that needs no SSH.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from imagesmith.disk.attach import LAYER_FILE, layer_files
from imagesmith.drivers.ssh_guest import SshGuest
from imagesmith.errors import BuildError, GuestFailed, ImagesmithError
from imagesmith.host import Host
from imagesmith.interfaces import Log
from imagesmith.machine import checkpoint
from imagesmith.machine.arguments import CONTROL_PORT, MachineSpec
from imagesmith.machine.blocks import Blocks
from imagesmith.machine.memory import unpack
from imagesmith.machine.shell import AGENT, Shell
from imagesmith.machine.ssh_wire import THAW

FOLDER = "checkpoint"
"""In a layer's folder: what checkpoint.py writes, and ``fits``. It may go at any time: the guest is booted then."""
_SUMS = "SHA256SUMS"
"""Is written last, so a checkpoint without it is none; ``cache verify`` reads it (store_care)."""
_PID = "/run/imagesmith-agent"
_SECONDS = 60.0
_NO_PORT, _NO_MEMORY = 3, 4
_START = f"""\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ -c /dev/virtio-ports/{CONTROL_PORT} ] || grep -qx {CONTROL_PORT} /sys/class/virtio-ports/*/name 2>/dev/null ||
    exit {_NO_PORT}
grep -q ' /run tmpfs ' /proc/mounts || exit {_NO_MEMORY}
if read -r old <{_PID}; then kill "$old"; sleep 1; fi 2>/dev/null
run=
if env --default-signal=INT,QUIT true 2>/dev/null; then run="env --default-signal=INT,QUIT"; fi
setsid $run sh -c {shlex.quote(AGENT)} </dev/null >/dev/null 2>&1 &
echo $! >{_PID}
"""
_WAKE = """\
date -s @{now} >/dev/null
{thaw}
echo {noise} >/dev/urandom
"""


class OtherMachine(BuildError):
    """A state that does not fit this machine; it may fit another."""


class Keeper:
    """Keeps the states of one running guest."""

    def __init__(self, guest: SshGuest, spec: MachineSpec, host: Host, *, listening: bool = False) -> None:
        """``listening``: the shell that will let us in again waits in the guest already."""
        self._guest, self._spec, self._host = guest, spec, host
        self._entered, self._refused = guest.entered if listening else -1, -1
        """Which of the guest's entrances the listening shell was started at, or could not be started at."""
        self._packing: threading.Thread | None = None
        self._blocks = Blocks()

    def prepare(self, log: Log) -> bool:
        """See to it that a state could be entered again; False where that cannot be. The guest runs."""
        if self._entered == self._guest.entered and not self._guest.machine.deserted:
            return True
        self._guest.listener = None
        if self._refused == self._guest.entered:
            return False
        self._refused = self._guest.entered
        try:
            checkpoint.check(self._guest.machine)
            return self._listen(log)
        except (BuildError, OSError) as error:
            log(f"no checkpoint is made: {str(error).splitlines()[0]}")
            return False

    def _listen(self, log: Log) -> bool:
        status, said = self._guest.ask(_START, log, within=_SECONDS)
        if status != 0:
            why = {_NO_PORT: "it has no virtio-serial ports", _NO_MEMORY: "/run is on its disk"}.get(status, said)
            log(f"no checkpoint is made: a shell cannot listen in the guest: {why}")
            return False
        shell = Shell(self._guest.machine)
        self._guest.machine.watch(shell.listens, within=_SECONDS, doing="listen at its control channel")
        self._entered, self._guest.listener = self._guest.entered, shell
        return True

    def keep(self, below: Sequence[Path], into: Path, log: Log) -> bool:
        """Begin to keep the state beside the layer in ``into``; the guest is stopped, its file systems are held still.

        ``below`` are the folders of the layers below, which stay where they are.
        ``finish`` must be called before the guest goes on; it may end at any time. False where it failed: the layer is
        a good one all the same, but the guest is not to be used any more.
        """
        begun = time.monotonic()
        try:
            under = layer_files([*below, into])[:-1]
            state = checkpoint.State(self._guest.machine, self._host)
            fits = checkpoint.fit(self._spec, self._guest.machine.qmp.execute("query-version"))
        except (BuildError, OSError) as error:
            log(f"no checkpoint is made: {str(error).splitlines()[0]}")
            return False
        # The layer will be finished, and be called something else, before all is written.
        layer = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = Path(f"/proc/self/fd/{layer}")
        disk = [*under, folder / LAYER_FILE]

        def write() -> None:
            try:
                self._write(state, fits, folder / FOLDER, disk, begun, log)
            finally:
                os.close(layer)

        self._packing = threading.Thread(target=write, name="checkpoint")
        self._packing.start()
        return True

    def _write(
        self, state: checkpoint.State, fits: str, folder: Path, disk: Sequence[Path], begun: float, log: Log
    ) -> None:
        try:
            folder.mkdir(mode=0o700)
            state.write(folder, disk, self._blocks)
            (folder / "fits").write_text(fits)
            sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir()))
            (folder / _SUMS).write_text(sums)
            size = sum(file.stat().st_size for file in folder.iterdir())
            log(f"checkpoint: {size / 2**20:.0f} MiB in {time.monotonic() - begun:.1f} s")
        except (ImagesmithError, OSError) as error:
            log(f"no checkpoint is made: {str(error).partition(chr(10))[0]}")
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self) -> None:
        """Wait until the state is kept, or could not be."""
        if self._packing is not None:
            self._packing.join()
            self._packing = None


def there(layer: Path) -> bool:
    """Whether a state is kept beside a layer."""
    return (layer / FOLDER / _SUMS).is_file()


def forget(layer: Path) -> None:
    """Remove the state beside a layer. What says that there is one goes first: half a state is none."""
    with suppress(OSError):
        (layer / FOLDER / _SUMS).unlink(missing_ok=True)
        shutil.rmtree(layer / FOLDER)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Waking:
    """A state beside a layer, whose memory is being unpacked while its machine starts."""

    def __init__(self, below: Sequence[Path], memory: int, host: Host) -> None:
        """``below`` are the folders of a disk's layers, the state is beside the last; ``memory`` is empty."""
        self._folder, self._host = below[-1] / FOLDER, host
        self._begun = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="waking")
        self._over = threading.Event()
        self._unpacked = self._pool.submit(
            unpack, self._folder, memory, lambda: host.cancelled or self._over.is_set(), disk=layer_files(below)
        )

    def close(self) -> None:
        """Wait until nothing is unpacked any more."""
        self._over.set()
        self._pool.shutdown(wait=True)

    def take_up(self, guest: SshGuest, spec: MachineSpec, log: Log) -> Keeper:
        """Go on from the state, in a machine that waits for it; enter the guest.

        Raises BuildError where the state is of another machine or cannot be taken up.
        """
        machine = guest.machine
        if (self._folder / "fits").read_text() != checkpoint.fit(spec, machine.qmp.execute("query-version")):
            raise OtherMachine("it is of another machine or another QEMU")
        self._unpacked.result()
        checkpoint.restore(machine, self._folder, self._host)
        machine.qmp.execute("cont")
        shell = Shell(machine)
        script = _WAKE.format(now=int(time.time()), noise=secrets.token_hex(64), thaw=THAW)
        status, said = shell.ask(script, within=_SECONDS)
        if status != 0:
            raise GuestFailed(f"the guest did not wake up well: {said}")
        guest.go_on(shell)
        log(f"going on from the checkpoint after {time.monotonic() - self._begun:.1f} s")
        return Keeper(guest, spec, self._host, listening=True)
