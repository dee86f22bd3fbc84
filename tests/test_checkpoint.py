"""A machine's state: taken while it runs, and taken up again by another QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.errors import GuestFailed
from imagesmith.host import Host
from imagesmith.machine import checkpoint
from imagesmith.machine.arguments import Drive, MachineSpec
from imagesmith.machine.qemu import Machine
from imagesmith.probe import kernels

COUNTS = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
i=0
while true; do i=$((i + 1)); echo "count $i." >/dev/ttyS0; /bin/busybox sleep 1; done
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> MachineSpec:
    """A guest that counts the seconds since it was booted."""
    folder, host = tmp_path_factory.mktemp("counter"), Host()
    root = folder / "root"
    for name in ("bin", "dev"):
        (root / name).mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "init").write_text(COUNTS)
    for name in ("bin/busybox", "init"):
        (root / name).chmod(0o755)
    packed = host.run(["cpio", "-o", "-H", "newc", "--quiet"], purpose="test", cwd=root,
                      input=b"bin\nbin/busybox\ndev\ninit\n")  # fmt: skip
    (folder / "initrd").write_bytes(packed.stdout)
    (kernel, *_) = kernels()
    return MachineSpec(kernel=kernel, initrd=folder / "initrd", append="console=ttyS0 quiet no_timer_check")


def test_a_guest_goes_on_where_its_state_was_taken(spec: MachineSpec, tmp_path: Path) -> None:
    host, state = Host(), tmp_path / "state.zst"

    def counted(machine: Machine, number: int) -> None:
        machine.watch(lambda: f"count {number}." in machine.console.text or None, within=120, doing="count")

    with Machine(host, spec, tmp_path / "first.log") as machine:
        counted(machine, 2)
        machine.qmp.execute("stop")
        seen = machine.console.text.count("count")
        checkpoint.save(machine, state, host)
        machine.qmp.execute("cont")
        counted(machine, seen + 2)  # whose state was taken goes on as well
    assert state.stat().st_mode & 0o777 == 0o600
    with Machine(host, replace(spec, incoming=True), tmp_path / "second.log") as machine:
        checkpoint.restore(machine, state, host)
        machine.qmp.execute("cont")
        counted(machine, seen + 2)
        assert "count 1." not in machine.console.text
    broken = state.read_bytes()
    state.write_bytes(broken[: len(broken) // 2])
    with pytest.raises(GuestFailed), Machine(host, replace(spec, incoming=True), tmp_path / "third.log") as machine:
        checkpoint.restore(machine, state, host)


def test_a_state_fits_the_same_machine_wherever_its_files_are(spec: MachineSpec) -> None:
    host = Host()
    here = checkpoint.fit(replace(spec, drives=(Drive(Path("/a/disk.qcow2")),)), host)
    assert here == checkpoint.fit(replace(spec, drives=(Drive(Path("/b/other.qcow2")),), incoming=True), host)
    for other in (replace(spec, memory=spec.memory * 2), replace(spec, cpu="Nehalem"), replace(spec, cpus=2), spec):
        assert checkpoint.fit(other, host) != here
