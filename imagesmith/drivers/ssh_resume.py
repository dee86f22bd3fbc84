"""A running guest's state beside its layer: the next session goes on from there instead of booting.

What lets us in again is a shell in the guest's memory, on no disk of it: it listens at the control channel
(machine/channel.py) from the first layer on. It lets the next session's key in, when the state is taken up again, sets
the clock, lets go of the file systems that were held still when the state was taken, and gives the random generator
something new (QEMU's vmgenid does so, too).
"""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
from contextlib import suppress
from pathlib import Path

from imagesmith.drivers.ssh_guest import SshGuest
from imagesmith.errors import BuildError, GuestFailed
from imagesmith.host import Host
from imagesmith.interfaces import Log
from imagesmith.machine import checkpoint
from imagesmith.machine.arguments import CONTROL_PORT, MachineSpec
from imagesmith.machine.authorize import ADMIT
from imagesmith.machine.channel import SCRIPT, Channel

FOLDER = "checkpoint"
"""In a layer's folder: ``state.zst`` and ``fits``. It may go at any time: the guest is booted then."""
_PID = "/run/imagesmith-agent"
_SECONDS = 60.0
_NO_PORT, _NO_MEMORY = 3, 4
_START = f"""\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
[ -c /dev/virtio-ports/{CONTROL_PORT} ] || grep -qx {CONTROL_PORT} /sys/class/virtio-ports/*/name 2>/dev/null ||
    exit {_NO_PORT}
grep -q ' /run tmpfs ' /proc/mounts || exit {_NO_MEMORY}
if read -r old <{_PID}; then kill "$old"; sleep 1; fi 2>/dev/null
setsid sh -c {shlex.quote(SCRIPT)} </dev/null >/dev/null 2>&1 &
echo $! >{_PID}
"""
# What held the file systems waits at a connection that is gone; it must not let go of them some other time. All of our
# requests have the word in their command line (machine/ssh.py).
_WAKE = """\
date -s @{now} >/dev/null
while read -r device point type rest; do
    case $type in ext[234]|xfs|btrfs) fsfreeze -u "$point" 2>/dev/null ;; esac
done </proc/mounts
for found in $(grep -l imagesmith-status /proc/[0-9]*/cmdline 2>/dev/null); do
    found=${{found#/proc/}}; kill -9 "${{found%/cmdline}}"
done
echo {noise} >/dev/urandom
{admit}
"""


class OtherMachine(BuildError):
    """A state that does not fit this machine; it may fit another."""


class Keeper:
    """Keeps the states of one running guest."""

    def __init__(self, guest: SshGuest, spec: MachineSpec, host: Host) -> None:
        self._guest, self._spec, self._host = guest, spec, host
        self._entered = self._refused = -1
        """Which of the guest's entrances the listening shell was started at, or could not be started at."""

    def prepare(self, log: Log) -> bool:
        """See to it that a state could be entered again; False where that cannot be. The guest runs."""
        if self._entered == self._guest.entered:
            return True
        if self._refused == self._guest.entered:
            return False
        self._refused = self._guest.entered
        try:
            return self._listen(log)
        except (BuildError, OSError) as error:
            log(f"no checkpoint is made: a shell cannot listen in the guest: {str(error).splitlines()[0]}")
            return False

    def _listen(self, log: Log) -> bool:
        status, said = self._guest.ssh.ask(_START, within=_SECONDS)
        if status != 0:
            why = {_NO_PORT: "it has no virtio-serial ports", _NO_MEMORY: "/run is on its disk"}.get(status, said)
            log(f"no checkpoint is made: a shell cannot listen in the guest: {why}")
            return False
        channel = Channel(self._guest.machine)

        def ready() -> bool | None:
            channel.listen()
            return channel.ready or None

        self._guest.machine.watch(ready, within=_SECONDS, doing="listen at its control channel")
        self._entered = self._guest.entered
        return True

    def keep(self, into: Path, log: Log) -> bool:
        """Keep the state beside the layer in ``into``; the guest is stopped, and its file systems are held still.

        False where that failed: the layer is a good one all the same, but the guest is not to be used any more.
        """
        begun = time.monotonic()
        folder = into / FOLDER
        try:
            folder.mkdir(mode=0o700)
            checkpoint.save(self._guest.machine, folder / "state.zst", self._host)
            (folder / "fits").write_text(checkpoint.fit(self._spec, self._host))
        except (BuildError, OSError) as error:
            log(f"no checkpoint is made: {str(error).splitlines()[0]}")
            shutil.rmtree(folder, ignore_errors=True)
            return False
        size = (folder / "state.zst").stat().st_size
        log(f"checkpoint: {size / 2**20:.0f} MiB in {time.monotonic() - begun:.1f} s")
        return True


def there(layer: Path) -> bool:
    """Whether a state is kept beside a layer."""
    return (layer / FOLDER / "fits").is_file()


def forget(layer: Path) -> None:
    """Remove the state beside a layer. What says that there is one goes first: half a state is none."""
    with suppress(OSError):
        (layer / FOLDER / "fits").unlink(missing_ok=True)
        shutil.rmtree(layer / FOLDER)


def take_up(guest: SshGuest, spec: MachineSpec, layer: Path, public_key: str, host: Host, log: Log) -> Keeper:
    """Go on from the state beside ``layer``, in a machine that waits for it; enter the guest.

    ``public_key`` lets the session in; empty where the recipe's login does. Raises BuildError where the state is of
    another machine or cannot be taken up.
    """
    begun = time.monotonic()
    if (layer / FOLDER / "fits").read_text() != checkpoint.fit(spec, host):
        raise OtherMachine("it is of another machine or another QEMU")
    checkpoint.restore(guest.machine, layer / FOLDER / "state.zst", host)
    guest.machine.qmp.execute("cont")
    admit = f"key={shlex.quote(public_key.strip())}\nprintf '%s\\n' \"$key\" | sh -c {shlex.quote(ADMIT)}"
    script = _WAKE.format(now=int(time.time()), noise=secrets.token_hex(64), admit=admit if public_key else "")
    done = Channel(guest.machine).ask(script, timeout=_SECONDS)
    if done.status != 0:
        raise GuestFailed(f"the guest did not wake up well: {done.output.strip()}")
    guest.reenter(log, admitted=bool(public_key))
    keeper = Keeper(guest, spec, host)
    keeper._entered = guest.entered
    log(f"going on from the checkpoint after {time.monotonic() - begun:.1f} s")
    return keeper
