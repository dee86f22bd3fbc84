"""Runs one command: how long it took, and how much memory its process (without its children) ever held."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CommandFailed(Exception):
    """A measured command ended badly: which, and its last lines."""


@dataclass(frozen=True)
class Run:
    """What was measured of one command. ``begun`` is in seconds since 1970, ``peak`` in bytes.

    ``processors`` is the seconds of processor time, of the command and of all that it and its children waited for.
    """

    begun: float
    seconds: float
    processors: float
    peak: int
    stdout: str
    stderr: str


def measure(argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end. Raises CommandFailed; when interrupted, ends the command and what it started."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun, start, before = time.time(), time.monotonic(), _processors()
        process = subprocess.Popen(
            [str(word) for word in argv], cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
        peak = _Peak(process.pid)
        try:
            peak.start()
            status = process.wait()
            taken = time.monotonic() - start
        except BaseException:
            _end(process)
            raise
        finally:
            peak.stop()
        out.seek(0)
        err.seek(0)
        stdout, stderr = (stream.read().decode("utf-8", "replace") for stream in (out, err))
    if status != 0:
        tail = "\n".join((stdout + stderr).splitlines()[-30:])
        raise CommandFailed(f"{' '.join(map(str, argv[:3]))} … ended with {status}:\n{tail}")
    return Run(begun, taken, _processors() - before, peak.bytes, stdout, stderr)


def _processors() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask first: packer and virt-customize end their machines themselves. Then make sure."""
    for number, patience in ((signal.SIGINT, 20.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


class _Peak(threading.Thread):
    """Reads VmHWM (proc_pid_status(5)): the most that a process itself ever had in memory; it never falls.

    getrusage(2) and GNU time would tell of the largest child instead, and that is a QEMU or a mke2fs.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status, self._over = Path(f"/proc/{pid}/status"), threading.Event()
        self.bytes = 0

    def run(self) -> None:
        while not self._over.wait(0.02):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("VmHWM:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join()
