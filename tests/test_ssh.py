"""Steps in a running guest, over SSH: what they see and leave, and what is said when a guest cannot be entered."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagesmith.archive import Archive, archive_of
from imagesmith.disk.attach import exported
from imagesmith.drivers.native_disk import NativeDisk
from imagesmith.drivers.ssh import SshDriver
from imagesmith.errors import BuildError, GuestFailed, StepFailed, TimedOut
from imagesmith.host import Host
from imagesmith.machine.inject import debugfs, places
from imagesmith.machine.qemu import Machine
from imagesmith.machine.ssh import Ssh
from imagesmith.machine.ssh_login import Credentials, make_key

HOST = Host()
EPOCH = 1_700_000_000
SECRET = "tell-nobody-4711"
OWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== somebody\n"


@pytest.fixture
def driver() -> SshDriver:
    return SshDriver(HOST, accelerator="tcg", arch="x86_64", cpu="", cpus=2, memory=1 << 30, firmware="bios")


def first_layers(golden: Any, folder: Path, script: str) -> list[Path]:
    """The shared image as a layer, and one with a change on it."""
    base, changed = folder / "000001", folder / "000002"
    base.mkdir()
    changed.mkdir()
    shutil.copy(golden.folder / "golden.qcow2", base / "disk.qcow2")
    with NativeDisk(HOST).session([base], epoch=EPOCH, log=print) as session, session.layer(changed, log=print) as root:
        root.run(["sh", "-euc", script])
    return [base, changed]


def command_lines() -> str:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(process.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return "\n".join(found)


def children() -> list[str]:
    """The programs that this process has started and that still run."""
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            stats.append(path.read_text())
    found = [stat.rpartition(")")[0].partition("(")[2] for stat in stats
             if stat.rpartition(")")[2].split()[1] == str(os.getpid())]  # fmt: skip
    return [name for name in found if name.startswith(("ssh", "qemu"))]


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def content(disk: Path, path: str) -> bytes:
    """A file on a layer's root file system, read as it lies there: no journal is replayed."""
    with exported(disk, HOST, writable=False) as raw:
        device = f"{raw}?offset={places(raw, HOST)[0].offset}"
        assert "needs_recovery" not in debugfs(device, ["stats"], HOST)
        return HOST.run(["debugfs", "-R", f"cat {path}", device], purpose="look into a layer").stdout


def test_two_steps_in_one_boot(golden: Any, driver: SshDriver, tmp_path: Path) -> None:
    below = first_layers(golden, tmp_path, "rm /etc/ssh/sshd_config.d/hardened.conf; install -d -m 700 /root/.ssh; "
                         f"printf %s '{OWN_KEY}' > /root/.ssh/authorized_keys; chmod 640 /root/.ssh/authorized_keys; "
                         "touch -d @1000000000 /root/.ssh/authorized_keys; ln -s /var/www /srv/web")  # fmt: skip
    lines: list[tuple[float, str]] = []

    def log(line: str) -> None:
        lines.append((time.monotonic(), line))

    def files(archive: Archive) -> None:
        archive.data("/srv/web/a/b.txt", b"hello", mode=0o640)
        archive.data("/etc/mark", b"replaced\n")

    part, done, second = tmp_path / "000003.part", tmp_path / "000003", tmp_path / "000004"
    part.mkdir()
    second.mkdir()
    with driver.session(below, epoch=EPOCH, log=log) as session:
        with session.layer(part, log=log, timeout=300) as root:
            assert root.online
            # What the guest is entered with is taken out again before the first step begins.
            assert root.read("/root/.ssh/authorized_keys") == OWN_KEY.encode()
            assert root.run(["stat", "-c", "%a %u %Y", "/root/.ssh/authorized_keys"]).output == "640 0 1000000000\n"
            # Secrets: in the environment and on stdin, and on no command line of either side.
            seen: list[str] = []
            over = threading.Event()
            watcher = threading.Thread(target=lambda: seen.extend(command_lines() for _ in iter(over.is_set, True)))
            watcher.start()
            secret: dict[str, Any] = {"env": {"TOKEN": SECRET + " 'x' $y"}, "input": f"in: {SECRET}\n".encode()}
            result = root.run(["sh", "-c", 'cat; echo "$TOKEN"; pwd; umask; env | cut -d = -f 1 | xargs'], **secret)
            processes = root.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], **secret).output
            assert "sshd" in processes
            assert SECRET not in processes
            over.set()
            watcher.join()
            assert SECRET not in "\n".join(seen)
            assert "/bin/sh -c" in "\n".join(seen)
            said = result.output.splitlines()
            assert said[:2] == [f"in: {SECRET}", SECRET + " 'x' $y"]
            assert said[2:4] == ["/", "0022"]
            assert {"DEBIAN_FRONTEND", "HOME", "SOURCE_DATE_EPOCH", "TOKEN"} <= set(said[4].split())
            assert not {name for name in said[4].split() if name.startswith(("SSH_", "XDG_", "LC_"))}
            # Exit status, stdout and stderr in order; lines while they come.
            with pytest.raises(StepFailed, match="exit status 7") as failed:
                root.run(["sh", "-c", "echo one; echo two >&2; exit 7"])
            assert failed.value.tail == "one\ntwo"
            assert root.run(["no-such-program"], check=False).status == 127
            root.run(["sh", "-c", "echo early; sleep 3; echo late; sleep 1000 &"])
            early, late = (next(at for at, line in lines if line == word) for word in ("early", "late"))
            assert late - early > 1
            root.unpack(archive_of(files, epoch=EPOCH))
            assert root.read("/var/www/a/b.txt") == b"hello"  # through the guest's own link
            assert root.run(["stat", "-c", "%a %u %Y", "/srv/web/a/b.txt"]).output == f"640 0 {EPOCH}\n"
            root.run(["sh", "-c", "mkdir -p /srv/x; touch /srv/x/1.log '/srv/x/2 3.log' /srv/x/kept"])
            root.remove(["/srv/x/*.log", "/srv/none*"])
            assert root.run(["ls", "/srv/x"]).output == "kept\n"
            with pytest.raises(OSError, match="will not be removed"):
                root.remove(["/pro*"])
            with pytest.raises(FileNotFoundError):
                root.read("/etc/none")
            assert not root.exists("/etc/none")
            assert root.run(["systemctl", "is-active", "nginx"]).output == "active\n"
            other = tmp_path / "k"
            other.mkdir()
            assert session._running is not None
            machine = session._running.guest.machine
            with Ssh(HOST, machine, Credentials(key=make_key(other, HOST)[0]), other) as stranger, pytest.raises(
                GuestFailed, match=r"banner SSH-2.0-OpenSSH.*, key refused: .*Permission denied \(publickey"
            ) as refused:  # fmt: skip
                stranger.connect(120)
            assert "PermitRootLogin" in refused.value.hint
        written = (part / "disk.qcow2").stat().st_mtime_ns
        part.rename(done)
        time.sleep(1)
        assert (done / "disk.qcow2").stat().st_mtime_ns == written
        with session.layer(second, below=done, log=log, timeout=120) as root:
            root.run(["sh", "-c", "echo second >> /etc/mark; cat /proc/sys/kernel/random/boot_id > /etc/boot"])
        with pytest.raises(TimedOut, match="did not end in time"), session.layer(
            new(tmp_path / "000005"), below=second, log=log, timeout=3
        ) as root:  # fmt: skip
            root.run(["sh", "-c", "echo waiting; sleep 1000"])
    for layer, mark in ((done, b"replaced\n"), (second, b"replaced\nsecond\n")):
        HOST.run(["qemu-img", "check", "-q", layer / "disk.qcow2"], purpose="test")
        assert content(layer / "disk.qcow2", "/etc/mark") == mark
        assert content(layer / "disk.qcow2", "/root/.ssh/authorized_keys") == OWN_KEY.encode()
        names = HOST.run(["qemu-img", "info", layer / "disk.qcow2"], purpose="test").text
        assert "backing file: ../00000" in names
    assert not children()


def test_a_guest_without_sshd_is_said_to_be_one(golden: Any, driver: SshDriver, tmp_path: Path) -> None:
    below = first_layers(golden, tmp_path, "rm /usr/sbin/sshd")
    with (
        driver.session(below, epoch=EPOCH, log=print) as session,
        pytest.raises(BuildError, match="no SSH server is installed") as failed,
        session.layer(new(tmp_path / "000003"), log=print),
    ):
        pass
    assert "openssh-server" in failed.value.hint


# -- what is said when nobody answers: no guest is needed ----------------------------------------------------------


class StandIn:
    """What Ssh needs of a machine, before a loopback port that answers with ``says``."""

    restarts = 0
    console = SimpleNamespace(tail=lambda: "the console's end")

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def forward(self, port: int) -> tuple[str, int]:
        assert port == 22
        return self._address

    def check(self, fault: object = None) -> None:
        pass

    watch = Machine.watch


@pytest.fixture
def listener() -> Iterator[Callable[[bytes | None], tuple[str, int]]]:
    """Makes a server that says so much to whoever comes, and then hangs up, or (None) says nothing."""
    servers: list[socket.socket] = []
    kept: list[socket.socket] = []

    def start(says: bytes | None) -> tuple[str, int]:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    wire, _ = server.accept()
                except OSError:
                    return
                if says is None:
                    kept.append(wire)
                else:
                    with wire:
                        wire.sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        address: tuple[str, int] = server.getsockname()
        return address

    yield start
    for one in [*servers, *kept]:
        one.close()


@pytest.mark.parametrize(
    ("says", "seen"),
    [
        (None, "port open, no banner"),
        (b"", "port open, no banner"),
        (b"220 mail ready\r\n", "no SSH server, but: '220 mail ready'"),
        (b"SSH-2.0-Odd_1\r\n", "banner SSH-2.0-Odd_1, .*Connection"),
    ],
)
def test_the_deadline_s_message_says_what_was_seen_last(
    says: bytes | None, seen: str, listener: Callable[[bytes | None], tuple[str, int]], tmp_path: Path
) -> None:
    machine: Any = StandIn(listener(says))
    with Ssh(HOST, machine, Credentials(key=make_key(tmp_path, HOST)[0]), tmp_path) as ssh, pytest.raises(
        TimedOut, match=f"did not answer over SSH within 3 s; seen last: {seen}"
    ) as late:  # fmt: skip
        ssh.connect(3)
    assert late.value.tail == "the console's end"


def test_a_closed_port_is_called_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    machine: Any = StandIn(address)
    key = Credentials(key=make_key(tmp_path, HOST)[0])
    with Ssh(HOST, machine, key, tmp_path) as ssh, pytest.raises(TimedOut, match="port closed"):
        ssh.connect(1)
