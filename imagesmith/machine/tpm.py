"""A TPM 2.0 for a guest: the emulator swtpm, which QEMU reaches through a socket.

swtpm(8); QEMU's documentation, docs/specs/tpm.rst, "The QEMU TPM emulator device". A TPM that has never been used makes
its seeds when it is first started: it needs no preparation, and has no manufacturer's certificate.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagesmith.errors import BuildError
from imagesmith.host import Host, Process

KEPT = "tpm2.state"
"""What a layer calls the state of the TPM that its guest had."""
_STATE = "tpm2-00.permall"
"""What swtpm calls it: all that outlives a restart (swtpm: src/swtpm/swtpm_nvstore.h, TPM_PERMANENT_ALL_NAME)."""
_PURPOSE = "give the guest a TPM ('tpm: true' under 'machine')"
_START_SECONDS = 10.0


@dataclass(frozen=True)
class Tpm:
    """A TPM that runs. ``socket`` is where QEMU finds it (MachineSpec.tpm)."""

    socket: Path
    _state: Path

    def keep(self, into: Path) -> None:
        """Put its state into a layer's folder, for its owner's eyes only. The guest should be at rest."""
        if self._state.exists():
            (into / KEPT).touch(mode=0o600)
            shutil.copyfile(self._state, into / KEPT)


@contextmanager
def emulated(host: Host, *, kept: Path | None = None) -> Iterator[Tpm]:
    """Run a TPM for one machine, which must end before the block does.

    It goes on from the state ``kept`` (Tpm.keep), or is a new one. Raises MissingTool, BuildError.
    """
    host.require("swtpm", _PURPOSE)
    # In the system's folder: a socket's name must be short, and AppArmor lets swtpm work there.
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as name, tempfile.TemporaryFile() as said:
        tpm = Tpm(Path(name, "tpm.socket"), Path(name, _STATE))
        if kept is not None:
            tpm._state.touch(mode=0o600)
            shutil.copyfile(kept, tpm._state)
        argv = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={name},mode=0600",
                "--ctrl", f"type=unixio,path={tpm.socket},mode=0600", "--terminate"]  # fmt: skip
        with host.start(argv, purpose=_PURPOSE, stdout=said, stderr=said) as process:
            if not _listens(process, tpm.socket):
                said.seek(0)
                words = said.read().decode("utf-8", "replace").strip()
                raise BuildError(f"the TPM emulator does not start: {words or 'swtpm gives no reason'}")
            yield tpm


def _listens(process: Process, socket: Path) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if socket.exists():
            return True
        time.sleep(0.01)
    return False
