"""The running machine: what QEMU is told, and what is said of guests that do not come up (real ones)."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagesmith.errors import BuildError, CheckFailed, GuestFailed, Interrupted, MissingTool, TimedOut, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Disk
from imagesmith.machine import console, firmware, inject, png
from imagesmith.machine.arguments import Drive, Firmware, MachineSpec, Wires, arguments
from imagesmith.machine.guest import booted
from imagesmith.machine.qemu import Machine
from imagesmith.probe import kernels
from imagesmith.qmp import Qmp

PIPE = -1  # subprocess.PIPE, which only host.py may import

GOLDEN = Path(__file__).parent / "golden" / "machine"
WIRES = Wires(monitor=11, console=12, control=13)
UEFI = Firmware("uefi", Path("/fw/code.fd"), "raw", Path("/run/vars.fd"), "raw")
SECURE = Firmware("uefi-secure", Path("/fw/code.ms.qcow2"), "qcow2", Path("/run/vars.ms.qcow2"), "qcow2")
SPECS: dict[str, tuple[MachineSpec, Wires]] = {
    "plain": (MachineSpec(), Wires(monitor=11, console=12)),
    "bios": (
        MachineSpec(cpus=2, memory=1 << 30, memory_file=True, drives=(Drive(Path("/run/a,b.qcow2")),), reboots=True),
        Wires(monitor=11, console=12, control=13, memory=15),
    ),
    "kvm": (MachineSpec(accelerator="kvm", drives=(Drive(Path("/d.raw"), "raw", False, True),), network=False), WIRES),
    "uefi": (MachineSpec(firmware=UEFI, drives=(Drive(Path("/d.qcow2")),), cdroms=(Path("/cd.iso"),)), WIRES),
    "secure": (MachineSpec(firmware=SECURE, cpu="Nehalem,-cx16", screen=False), WIRES),
    "aarch64": (MachineSpec(arch="aarch64", firmware=UEFI, cdroms=(Path("/cd.iso"),)), WIRES),
    "aarch64-secure": (MachineSpec(arch="aarch64", firmware=SECURE, tpm=Path("/tpm")), WIRES),
    "installer": (
        MachineSpec(cdroms=(Path("/a.iso"), Path("/b.iso")), floppy=Path("/f.img"), tpm=Path("/tpm"),
                    fw_cfg=(("opt/com.coreos/config", Path("/c.ign")),), ports=("org.example.log",),
                    incoming=True, generation=True),
        Wires(monitor=11, console=12, control=13, ports=(14,)),
    ),
    "kernel": (MachineSpec(kernel=Path("/k"), initrd=Path("/i"), append="console=ttyS0 quiet"), WIRES),
}


@pytest.mark.parametrize("name", SPECS)
def test_the_command_line_is_as_agreed(name: str) -> None:
    file = GOLDEN / f"{name}.txt"
    text = "".join(f"{word}\n" for word in arguments(*SPECS[name]))
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("kind", [MachineSpec, Drive, Firmware, Wires])
def test_every_property_of_a_machine_is_held_by_a_golden_file(kind: type) -> None:
    specs = [spec for spec, _ in SPECS.values()]
    all_of = {
        MachineSpec: specs, Firmware: [s.firmware for s in specs], Wires: [w for _, w in SPECS.values()],
        Drive: [d for s in specs for d in s.drives],
    }  # fmt: skip
    for field in dataclasses.fields(kind):
        values = {repr(getattr(thing, field.name)) for thing in all_of[kind]}
        assert len(values) > 1 or field.default is dataclasses.MISSING, f"no golden file shows {kind}.{field.name}"


def test_hardware_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BuildError, match="has no BIOS"):
        arguments(MachineSpec(arch="aarch64"), WIRES)
    with pytest.raises(BuildError, match="comma"):
        arguments(MachineSpec(kernel=Path("/a,b")), WIRES)


# -- firmware ----------------------------------------------------------------------------------------------------


def describe(folder: Path, name: str, features: list[str], machines: str = "pc-q35-*", **change: object) -> None:
    folder.mkdir(exist_ok=True)
    code, variables = folder / f"{name}.code", folder / f"{name}.vars"
    code.write_bytes(b"c")
    variables.write_bytes(b"v")
    described = {
        "interface-types": ["uefi"], "features": features,
        "mapping": {"device": "flash", "executable": {"filename": str(code), "format": "raw"},
                    "nvram-template": {"filename": str(variables), "format": "raw"}},
        "targets": [{"architecture": "x86_64", "machines": [machines]}], **change,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(described))


def test_firmware_is_chosen_by_what_it_can_do_and_by_precedence(tmp_path: Path) -> None:
    user, system = tmp_path / "user", tmp_path / "system"
    describe(system, "40-secure", ["enrolled-keys", "requires-smm", "secure-boot"])
    describe(system, "45-other-machine", [], machines="pc-i440fx-*")
    describe(system, "46-memory", [], mapping={"device": "memory", "filename": "/x"})
    describe(system, "60-plain", [])
    describe(system, "70-later", [])
    assert firmware.find("x86_64", secure=True, where=[user, system]).code.name == "40-secure.code"
    assert firmware.find("x86_64", secure=False, where=[user, system]).code.name == "60-plain.code"
    user.mkdir()
    (user / "60-plain.json").write_text("")  # hides it
    assert firmware.find("x86_64", secure=False, where=[user, system]).code.name == "70-later.code"
    describe(user, "10-mine", [])
    assert firmware.find("x86_64", secure=False, where=[user, system]).code.name == "10-mine.code"


def test_missing_firmware_names_the_packages_that_hold_it(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="UEFI") as caught:
        firmware.find("x86_64", secure=False, where=[tmp_path])
    assert "ovmf" in caught.value.hint
    assert "edk2-ovmf" in caught.value.hint


def test_each_machine_gets_its_own_variable_store(tmp_path: Path) -> None:
    made = firmware.prepare("uefi", "x86_64", tmp_path, Host())
    assert made.variables is not None
    assert made.variables.parent == tmp_path
    assert made.variables.stat().st_mode & 0o777 == 0o600


# -- console and screen ------------------------------------------------------------------------------------------


def test_a_console_becomes_plain_text() -> None:
    raw = b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS\r\n\x1b[01;01HGRUB\x1b[5;3Hmenu\x1b]0;title\x07\x08!\r\n\r\n\xff[ OK ]"
    assert console.plain(raw) == "SeaBIOS\nGRUB\nmenu!\n\ufffd[ OK ]"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("[ 1.4] Kernel panic - not syncing: VFS: Unable to mount root fs", "panicked: VFS: Unable to mount root fs"),
        ("No bootable device.", "no bootable device"),
        ("BdsDxe: No bootable option or device was found.", "nothing to boot"),
        ("GNU GRUB  version 2.06\n   Minimal BASH-like line editing is sup\nported. For", "shows its prompt"),
        ("error: no such partition.\nEntering rescue mode...\ngrub rescue>", "rescue prompt"),
        ("ALERT!  LABEL=root does not exist.  Dropping to a shell!", "initial RAM disk"),
        ("You are in emergency mode. After logging in, type", "emergency mode"),
        ("systemd[1]: Freezing execution.", "froze"),
        ("Reached target Multi-User System.\nlogin:", None),
    ],
)
def test_signs_of_a_failed_boot_are_understood(said: str, meant: str | None) -> None:
    found = console.boot_fault(said)
    assert found is None if meant is None else meant in (found or "")


def test_ppm_pictures_become_png() -> None:
    pixels = bytes(range(2 * 3 * 3))
    picture = png.from_ppm(b"P6\n2 3\n255\n" + pixels)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (2, 3)
    at = picture.index(b"IDAT")
    length = struct.unpack(">I", picture[at - 4 : at])[0]
    rows = zlib.decompress(picture[at + 4 : at + 4 + length])
    assert rows == b"".join(b"\0" + pixels[y * 6 : y * 6 + 6] for y in range(3))
    with pytest.raises(ValueError, match="cut off"):
        png.from_ppm(b"P6\n2 3\n255\n12")


# -- machines that run -------------------------------------------------------------------------------------------


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def empty(tmp_path: Path, host: Host) -> Path:
    disk = tmp_path / "empty.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "8M"], purpose="test")
    return disk


def children() -> set[str]:
    """The programs that this process has started and that still run."""
    me, found = str(os.getpid()), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[1] == me and fields[0] != "Z":
                    found.add((entry / "comm").read_text().strip())
            except OSError:
                continue
    return found


def forever() -> None:
    return None


def test_a_disk_that_cannot_boot_is_noticed_at_once_and_photographed(host: Host, empty: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    with pytest.raises(GuestFailed) as caught:
        _boot_empty(host, empty, keep, lambda line: None)
    assert "no bootable device" in caught.value.message
    assert "No bootable device" in caught.value.tail
    names = {path.name for path in caught.value.artifacts}
    assert names == {"bios-console.log", "bios-screen.png"}
    assert (keep / "bios-screen.png").read_bytes().startswith(b"\x89PNG")
    assert b"SeaBIOS" in (keep / "bios-console.log").read_bytes()
    assert not any("qemu" in name for name in children())


def _boot_empty(host: Host, disk: Path, keep: Path, log: Callable[[str], None]) -> None:
    # Nothing can be put into a disk without a file system, so the other way of doing it "succeeds".
    with booted(Disk(disk, 8 << 20), firmware="bios", arch="x86_64", cpus=1, memory=128 << 20, host=host,
                accelerator="tcg", log=log, keep=keep, unpack=lambda overlay, archive: None) as guest:  # fmt: skip
        guest.wait_booted(60)


def test_a_disk_without_a_file_system_is_refused_before_it_boots(host: Host, empty: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no ext4 file system"):
        inject.inject(empty, host)


def test_a_failed_check_keeps_the_evidence_too(host: Host, empty: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep"

    def body() -> None:
        with booted(Disk(empty, 8 << 20), firmware="bios", arch="x86_64", cpus=1, memory=128 << 20, host=host,
                    accelerator="tcg", log=lambda line: None, keep=keep,
                    unpack=lambda overlay, archive: None):  # fmt: skip
            raise CheckFailed("no")

    with pytest.raises(CheckFailed):
        body()
    assert (keep / "bios-console.log").exists()


@pytest.fixture
def kernel() -> Path:
    found = kernels()
    if not found:
        pytest.skip("no kernel in /boot that we may read")
    return found[0]


def test_a_kernel_panic_is_told_with_its_reason(host: Host, kernel: Path, tmp_path: Path) -> None:
    spec = MachineSpec(kernel=kernel, append="console=ttyS0 panic=-1 no_timer_check", network=False)
    with pytest.raises(GuestFailed, match="panicked: VFS: Unable to mount root fs") as caught, \
            Machine(host, spec, tmp_path / "console.log") as machine:  # fmt: skip
        machine.watch(forever, within=120, doing="boot")
    assert "Kernel panic" in caught.value.tail


def test_a_guest_that_only_hangs_is_given_up_at_the_deadline(host: Host, empty: Path, tmp_path: Path) -> None:
    with pytest.raises(TimedOut, match="did not finish starting within 1 s") as caught, \
            Machine(host, MachineSpec(drives=(Drive(empty),)), tmp_path / "console.log") as machine:  # fmt: skip
        machine.watch(forever, within=1, doing="finish starting")
    assert "SeaBIOS" in caught.value.tail


def test_qemu_that_refuses_its_arguments_is_quoted(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match="unable to find CPU model 'nonsense'"), \
            Machine(host, MachineSpec(cpu="nonsense"), tmp_path / "console.log"):  # fmt: skip
        pass


def test_qemu_that_is_killed_is_noticed_at_once(host: Host, tmp_path: Path) -> None:
    with Machine(host, MachineSpec(), tmp_path / "console.log") as machine:
        machine._process.kill()
        with pytest.raises(GuestFailed, match="killed by SIGKILL"):
            machine.watch(forever, within=60, doing="boot")


def test_an_interrupt_from_another_thread_ends_everything(host: Host, tmp_path: Path) -> None:
    with Machine(host, MachineSpec(), tmp_path / "console.log") as machine:
        threading.Timer(0.2, host.cancel).start()
        with pytest.raises(Interrupted):
            machine.watch(forever, within=60, doing="boot")
    assert not any("qemu" in name for name in children())


def test_an_exception_in_the_block_ends_the_machine(host: Host, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Machine(host, MachineSpec(), tmp_path / "console.log"):
        raise KeyboardInterrupt
    assert not any("qemu" in name for name in children())


def test_forwarded_ports_are_picked_without_a_race_and_differ(host: Host, tmp_path: Path) -> None:
    with Machine(host, MachineSpec(), tmp_path / "console.log") as machine:
        first, second = machine.forward(22), machine.forward(80)
        assert machine.forward(22) == first
        assert first != second
        assert first[0] == "127.0.0.1"


def test_a_guest_that_ignores_the_power_button_is_ended(host: Host, empty: Path, tmp_path: Path) -> None:
    with Machine(host, MachineSpec(drives=(Drive(empty),)), tmp_path / "console.log") as machine:
        assert machine.power_off(within=1) is False
    assert not any("qemu" in name for name in children())


# Real-mode code that sends what follows it, up to a zero byte, to the first serial port, and then halts; or that
# pulls the reset line of the keyboard's controller.
SAY = bytes.fromhex("31c0 8ed8 be157c baf803 ac 84c0 7403 ee ebf8 f4 ebfd")
RESET = bytes.fromhex("b0fe e664 ebfe")


def boot_sector(path: Path, code: bytes) -> Path:
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return path


def wait_for(host: Host, disk: Path, code: bytes, folder: Path, log: Callable[[str], None]) -> None:
    raw = boot_sector(folder / "disk.raw", code)
    host.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], purpose="test")
    _boot_empty(host, disk, folder / "keep", log)


def test_a_timer_that_a_busy_host_made_late_is_not_held_against_the_image(host: Host, tmp_path: Path) -> None:
    lines: list[str] = []
    code = SAY + b"[ 0.0] Kernel panic - not syncing: IO-APIC + timer doesn't work!\r\n"
    with pytest.raises(GuestFailed, match="panicked: IO-APIC"):
        wait_for(host, tmp_path / "disk.qcow2", code, tmp_path, lines.append)
    assert sum("starting the guest again" in line for line in lines) == 3


def test_a_guest_that_restarts_for_ever_is_given_up(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestFailed, match="restarted itself"):
        wait_for(host, tmp_path / "disk.qcow2", RESET, tmp_path, lambda line: None)


def test_a_restart_that_is_not_allowed_is_told_from_a_crash(host: Host, tmp_path: Path) -> None:
    drive = Drive(boot_sector(tmp_path / "disk.raw", RESET), "raw")
    with pytest.raises(GuestFailed, match="the guest restarted itself"), \
            Machine(host, MachineSpec(drives=(drive,)), tmp_path / "console.log") as machine:  # fmt: skip
        machine.watch(forever, within=60, doing="boot")


KILLED = """
import sys
from pathlib import Path
from imagesmith.host import Host
from imagesmith.interfaces import Disk
from imagesmith.machine.guest import booted

disk, scratch = Path(sys.argv[1]), Path(sys.argv[2])
with booted(Disk(disk, 8 << 20), firmware="bios", arch="x86_64", cpus=1, memory=128 << 20, host=Host(),
            accelerator="tcg", log=print, keep=scratch.parent / "keep", scratch=scratch,
            unpack=lambda overlay, archive: None):
    print("started", flush=True)
    sys.stdin.read()
"""


def test_kill_9_leaves_no_program_and_no_file_of_the_copy(host: Host, empty: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with host.start([sys.executable, "-c", KILLED, empty, scratch], purpose="test", cwd=tmp_path, stdin=PIPE,
                    stdout=PIPE, env={"PYTHONPATH": str(Path(__file__).parent.parent)}) as process:  # fmt: skip
        assert process.stdout is not None
        assert any(line == b"started\n" for line in process.stdout)
        assert len(at_work_in(tmp_path)) == 2  # it, and QEMU
        assert list(scratch.iterdir()) == []
        process.kill()
        for _ in range(100):
            if not at_work_in(tmp_path):
                break
            time.sleep(0.1)
        assert at_work_in(tmp_path) == []


def at_work_in(folder: Path) -> list[str]:
    """The processes that have ``folder`` as their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append((entry / "comm").read_text())
        except OSError:
            continue
    return found


# -- the control connection --------------------------------------------------------------------------------------


@pytest.fixture
def machine(host: Host, tmp_path: Path) -> Iterator[Machine]:
    with Machine(host, MachineSpec(), tmp_path / "console.log") as made:
        yield made


def test_commands_events_and_refusals_of_qemu(machine: Machine) -> None:
    qmp = machine.qmp
    assert qmp.execute("query-version")["qemu"]["major"] >= 5
    qmp.execute("stop")
    assert qmp.wait_event("STOP", within=30)["event"] == "STOP"
    with pytest.raises(TimedOut, match="STOP"):
        qmp.wait_event("STOP", within=0.1)
    with pytest.raises(ToolFailed, match="refused 'eject'"):
        qmp.execute("eject", id="nothing")


def test_waiting_ends_when_qemu_does(machine: Machine) -> None:
    threading.Timer(0.2, machine._process.kill).start()
    with pytest.raises(ToolFailed, match="ended"):
        machine.qmp.wait_event("NEVER", within=60)
    assert machine.qmp.closed


def test_a_control_socket_by_name_is_waited_for(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    socket = tmp_path_factory.mktemp("s") / "q"
    with host.start(["sh", "-c", 'sleep 0.3; exec qemu-storage-daemon --chardev "$1" --monitor chardev=m', "sh",
                     f"socket,id=m,path={socket},server=on,wait=off"], purpose="test") as daemon:  # fmt: skip
        with Qmp(socket, name="the daemon", alive=lambda: daemon.poll() is None) as qmp:
            assert qmp.execute("query-version")
            qmp.execute("quit")
        for _ in range(100):
            if daemon.poll() is not None:
                break
            time.sleep(0.05)
        assert daemon.poll() == 0


def test_a_program_that_never_opens_its_socket_is_no_hang(host: Host, tmp_path: Path) -> None:
    with host.start(["false"], purpose="test") as process, pytest.raises(ToolFailed, match="ended"):
        Qmp(tmp_path / "q", name="false", alive=lambda: process.poll() is None)
