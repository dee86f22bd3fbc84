"""A running machine's state, memory and devices, in files; and a machine that goes on from there.

The devices are QEMU's migration stream (QEMU's documentation, "Migration framework") with the capability
``x-ignore-shared``: what is in a shared file, as the guest's memory is (MachineSpec.memory_file), is not in the stream.
So the stream is there in a moment; the memory can be packed when that QEMU has ended, and be unpacked while the next
one starts. The files hold everything that was in the guest's memory, its secrets included: they are 0600. The disks
are not in them: they must be, on the other side, as they were when the state was taken. QEMU takes a stream only into
the very same machine, so whoever keeps one keeps ``fit`` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imagesmith.errors import GuestFailed, Interrupted, ToolFailed
from imagesmith.host import Host
from imagesmith.machine import memory
from imagesmith.machine.arguments import MachineSpec, Wires, arguments
from imagesmith.machine.blocks import Blocks
from imagesmith.machine.qemu import Machine

_SECONDS = 600.0
_POLL = 0.005
_DEVICES = "devices.zst"
_PLACES = re.compile(r'("filename":|"path":|file=|path=|fd=|/fd/)("[^"]*"|[^,"]*)')
_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}


def fit(spec: MachineSpec, version: object) -> str:
    """What a state depends on, as a digest: QEMU's version, the hardware, and under KVM the host's processor.

    ``version`` is what QEMU says of itself (QMP: ``query-version``).
    """
    wires = Wires(0, 0, 0, (0,) * len(spec.ports), 0)
    words = [_PLACES.sub(r"\1", word) for word in arguments(replace(spec, incoming=False), wires)]
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if spec.accelerator == "kvm" else ""
    model = [line for line in processor.splitlines() if line.startswith(("vendor_id", "model name", "flags"))]
    return hashlib.sha256(json.dumps([version, words, model]).encode()).hexdigest()


def check(machine: Machine) -> None:
    """Raise ToolFailed where this QEMU cannot leave the memory out of a state."""
    machine.qmp.execute("migrate-set-capabilities", _SHARED)


class State:
    """The state of a machine that has stopped, on its way into files."""

    def __init__(self, machine: Machine, host: Host) -> None:
        """Take the devices' state; the guest is stopped, as after QMP's ``stop``, and its memory is a file.

        The memory is still the machine's: it must not go on before ``write`` is done, but it may end. Raises
        ToolFailed, GuestFailed, Interrupted.
        """
        self._host = host
        stream = os.memfd_create("devices", os.MFD_CLOEXEC)
        try:
            check(machine)
            # Nobody else waits for the wire or the disk: all at once, not 128 MiB/s (QAPI: MigrationParameters).
            machine.qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            machine.qmp.send_file("state", stream)
            machine.qmp.execute("migrate", uri="fd:state")
            _wait(machine, host, "completed")
            self._devices = os.pread(stream, os.fstat(stream).st_size, 0)
        finally:
            os.close(stream)
        self._memory = os.dup(machine.memory)

    def write(self, folder: Path, disk: Sequence[Path] = (), blocks: Blocks | None = None) -> None:
        """Write it into files of ``folder``, and let go of the memory.

        What is in ``disk`` as well, the files that the guest's disk consists of, is not written (memory.pack). Raises
        OSError, Interrupted.
        """
        try:
            memory.write(folder / _DEVICES, self._devices)
            memory.pack(self._memory, folder, lambda: self._host.cancelled, disk=disk, blocks=blocks)
        finally:
            os.close(self._memory)


def restore(machine: Machine, folder: Path, host: Host) -> None:
    """Put the devices' state in ``folder`` into ``machine``, which was started with ``MachineSpec.incoming``.

    Its memory must be unpacked. The guest does not run yet: QMP's ``cont`` lets it. Raises GuestFailed, ToolFailed,
    OSError, Interrupted.
    """
    devices = memory.read(folder / _DEVICES)
    stream = os.memfd_create("devices", os.MFD_CLOEXEC)
    try:
        os.pwrite(stream, devices, 0)
        check(machine)
        machine.qmp.send_file("state", stream)
    finally:
        os.close(stream)
    machine.qmp.execute("migrate-incoming", uri="fd:state")
    try:
        _wait(machine, host, "completed")
    except ToolFailed as error:  # what it cannot take ends it
        raise GuestFailed(f"QEMU did not take the state: {error.message}") from error


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
