"""A running machine's state, memory and devices, in a file; and a machine that goes on from there.

The stream is QEMU's migration stream (QEMU's documentation, "Migration framework"), compressed by zstd(1). It holds
everything that was in the guest's memory, its secrets included: the file is 0600. The disks are not in it: they must
be, on the other side, as they were when the state was taken. QEMU takes a stream only into the very same machine, so
whoever keeps one keeps ``fit`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from imagesmith.errors import GuestFailed, Interrupted, ToolFailed
from imagesmith.host import Host
from imagesmith.machine.arguments import PROGRAMS, MachineSpec, Wires, arguments
from imagesmith.machine.qemu import Machine

_SECONDS = 600.0
_POLL = 0.02
_PURPOSE = "keep a running guest's state"
_PLACES = re.compile(r'("filename":|"path":|file=|path=|fd=)("[^"]*"|[^,"]*)')


def fit(spec: MachineSpec, host: Host) -> str:
    """What a state depends on, as a digest: QEMU's version, the hardware, and under KVM the host's processor."""
    wires = Wires(0, 0, 0, (0,) * len(spec.ports))
    words = [_PLACES.sub(r"\1", word) for word in arguments(replace(spec, incoming=False), wires)]
    version = host.run([PROGRAMS[spec.arch], "--version"], purpose=_PURPOSE).text.splitlines()[0]
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if spec.accelerator == "kvm" else ""
    model = [line for line in processor.splitlines() if line.startswith(("vendor_id", "model name", "flags"))]
    return hashlib.sha256(json.dumps([version, words, model]).encode()).hexdigest()


def save(machine: Machine, file: Path, host: Host) -> None:
    """Write the state of ``machine`` to ``file`` (to be made); the guest is stopped then, as after QMP's ``stop``.

    Raises MissingTool, ToolFailed, GuestFailed, Interrupted; the guest may be continued then, too.
    """
    host.require("zstd", _PURPOSE)
    reader, writer = os.pipe()
    packed = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with host.start(["zstd", "-1", "-T0", "-q", "-c"], purpose=_PURPOSE, stdin=reader, stdout=packed) as packer:
            os.close(reader)
            try:
                machine.qmp.send_file("state", writer)
            finally:
                os.close(writer)
            # Nobody else waits for the wire or the disk: all at once, not 128 MiB/s (QAPI: MigrationParameters).
            machine.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            machine.qmp.execute("migrate", uri="fd:state")
            _wait(machine, host, "completed")
            if packer.wait(_SECONDS) != 0:
                raise ToolFailed(f"zstd failed (exit status {packer.returncode}) to {_PURPOSE}")
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(packed)


def restore(machine: Machine, file: Path, host: Host) -> None:
    """Put the state in ``file`` into ``machine``, which was started with ``MachineSpec.incoming`` and waits for it.

    The guest does not run yet: QMP's ``cont`` lets it. Raises MissingTool, ToolFailed, GuestFailed, Interrupted.
    """
    host.require("zstd", _PURPOSE)
    reader, writer = os.pipe()
    with host.start(["zstd", "-d", "-q", "-c", file], purpose=_PURPOSE, stdout=writer) as unpacker:
        os.close(writer)
        try:
            machine.qmp.send_file("state", reader)
        finally:
            os.close(reader)
        machine.qmp.execute("migrate-incoming", uri="fd:state")
        try:
            _wait(machine, host, "completed")
        except ToolFailed as error:  # what it cannot take ends it
            raise GuestFailed(f"QEMU did not take the state: {error.message}") from error
        if unpacker.wait(_SECONDS) != 0:  # its checksum is at the end
            raise GuestFailed("the state is damaged")


def _wait(machine: Machine, host: Host, wanted: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        if host.cancelled:
            raise Interrupted()
        found = machine.qmp.execute("query-migrate")
        status = found.get("status", "")
        if status == wanted:
            return
        if status in {"failed", "cancelled"}:
            raise GuestFailed(f"QEMU could not move the machine's state: {found.get('error-desc', status)}")
        if time.monotonic() > deadline:
            raise GuestFailed(f"QEMU did not move the machine's state within {_SECONDS:g} s")
        time.sleep(_POLL)
