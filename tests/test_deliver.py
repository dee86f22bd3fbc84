"""How answer files get to an installer: archives, floppies, the web server, the log's receiver; which way is chosen."""

from __future__ import annotations

import gzip
import io
import os
import socket
import stat
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith import cpio
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.installer import bootplan, peers, server
from imagesmith.installer.bootplan import BootPlan, Hardware, Servers, make_plan
from imagesmith.installer.deliver import choose, deliver
from imagesmith.installer.iso import Iso
from imagesmith.installer.server import Server
from imagesmith.installer.syslog import Journal, Ports, Syslog
from imagesmith.interfaces import Delivery, Installation, Medium
from imagesmith.machine.arguments import Firmware

HARDWARE = Hardware("x86_64", "tcg", "", 1, 256 << 20, 64 << 20, "bios")
MEDIUM = Medium(Path("/a.iso"), "L", "debian-installer", "Debian", "x86_64", "/vmlinuz", ("/initrd.gz",),
                ("vga=788", "file=/x", "---", "quiet"))  # fmt: skip


@pytest.fixture
def host() -> Host:
    return Host()


def waits(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


# -- archives for the initrd -------------------------------------------------------------------------------------

NAMES = st.lists(st.text("abc.", min_size=1, max_size=5).filter(lambda n: n.strip(".")), min_size=1, max_size=3)
FILES = st.dictionaries(NAMES.map("/".join), st.binary(max_size=50), max_size=5).filter(
    lambda files: not any(f"{a}/" in f"{b}/" and a != b for a in files for b in files)
)


def unpack(data: bytes, folder: Path) -> Mapping[str, bytes]:
    """As GNU cpio reads it."""
    folder.mkdir()
    Host().run(["cpio", "-i", "--quiet", "--no-absolute-filenames"], purpose="test", input=data, cwd=folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(FILES)
def test_an_archive_is_one_and_is_always_the_same(files: dict[str, bytes]) -> None:
    made = cpio.archive(files)
    assert made == cpio.archive(dict(reversed(files.items())))
    assert len(made) % 4 == 0
    assert made.endswith(b"TRAILER!!!\0\0\0\0")


def test_an_archive_is_what_cpio_reads_with_folders_before_files(tmp_path: Path, host: Host) -> None:
    files = {"preseed.cfg": b"d-i x\n", "usr/share/keys/a": b"", "usr/b": b"12345"}
    made = cpio.archive(files)
    assert unpack(made, tmp_path / "there") == files
    listing = host.run(["cpio", "-tv", "--quiet"], purpose="test", input=made).text.splitlines()
    names = [line.split()[-1] for line in listing]
    assert names == ["usr", "usr/share", "usr/share/keys", "preseed.cfg", "usr/b", "usr/share/keys/a"]
    assert all(line.startswith(("drwxr-xr-x", "-rw-------")) for line in listing)


def test_archives_behind_each_other_begin_where_the_kernel_looks_for_them(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(gzip.compress(b"x" * 11, mtime=0))
    second.write_bytes(b"123")
    out = io.BytesIO()
    cpio.join([first, second], b"070701", out)
    assert out.getvalue().index(b"123") % 4 == 0
    assert out.getvalue().index(b"070701") % 4 == 0
    assert out.getvalue().startswith(first.read_bytes())


# -- what the machine is given -----------------------------------------------------------------------------------


def private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_initrd_is_the_installers_own_and_then_ours(tmp_path: Path, host: Host) -> None:
    (tmp_path / "theirs").write_bytes(b"1234567")
    made = deliver(Delivery("initrd", {"ks.cfg": b"text"}), tmp_path, host, initrds=[tmp_path / "theirs"]).initrd
    assert made is not None
    assert made.read_bytes() == b"1234567\0" + cpio.archive({"ks.cfg": b"text"})
    assert private(made)


def test_a_volume_has_its_label_and_the_files(tmp_path: Path, host: Host) -> None:
    files = {"user-data": b"#cloud-config\n", "meta-data": b""}
    made = deliver(Delivery("volume", files, label="cidata"), tmp_path, host)
    assert made.volume is not None
    assert private(made.volume)
    with Iso(made.volume) as iso:
        assert iso.label == "cidata"
        assert iso.read("/user-data") == b"#cloud-config\n"


def test_a_floppy_has_its_label_and_the_files(tmp_path: Path, host: Host) -> None:
    files = {"Autounattend.xml": b"<x/>", "$OEM$/a/setup.ps1": b"echo"}
    made = deliver(Delivery("floppy", files, label="ANSWERS"), tmp_path, host).floppy
    assert made is not None
    assert private(made)
    assert made.stat().st_size == 1440 * 1024
    for name, content in files.items():
        assert host.run(["mcopy", "-i", made, f"::{name}", "-"], purpose="test").stdout == content
    assert "ANSWERS" in host.run(["mdir", "-i", made, "::"], purpose="test").text
    with pytest.raises(BuildError, match="do not fit"):
        deliver(Delivery("floppy", {"a": bytes(2 << 20)}), tmp_path, host)


def test_items_of_the_firmwares_configuration_are_named(tmp_path: Path, host: Host) -> None:
    made = deliver(Delivery("fw_cfg", {"opt/com.coreos/config": b"{}"}), tmp_path, host).fw_cfg
    assert [(name, path.read_bytes()) for name, path in made] == [("opt/com.coreos/config", b"{}")]
    assert private(made[0][1])


# -- which way ---------------------------------------------------------------------------------------------------

WAYS = [Delivery("initrd", {"a": b""}), Delivery("http", {"a": b""}, arguments=("url={url}a",), fetched="a"),
        Delivery("volume", {"a": b""}, label="X")]  # fmt: skip


def test_the_first_way_that_nothing_hinders_is_taken() -> None:
    assert choose(WAYS, None, {}).way == "initrd"
    assert choose(WAYS, None, {"initrd": "why"}).way == "http"
    assert choose(WAYS, "volume", {}).way == "volume"


def test_ways_that_cannot_be_had_are_told_with_those_that_can() -> None:
    with pytest.raises(BuildError, match="by 'floppy'") as caught:
        choose(WAYS, "floppy", {"initrd": "why"})
    assert caught.value.hint == "'deliver' may be: auto, http, volume"
    with pytest.raises(BuildError, match="cannot go by 'http' here: no kernel"):
        choose(WAYS, "http", {"http": "no kernel"})
    with pytest.raises(BuildError, match="cannot reach this installer: initrd: no kernel"):
        choose(WAYS[:1], None, {"initrd": "no kernel"})
    with pytest.raises(BuildError, match="nobody knows"):
        choose([], None, {})


@pytest.mark.parametrize(
    ("change", "medium", "boot", "way"),
    [
        ({}, MEDIUM, "kernel", "initrd"),
        ({"way": "http"}, MEDIUM, "kernel", "http"),
        ({"remaster": True}, MEDIUM, "copy", "initrd"),
        ({"boot_command": ("<enter>",)}, MEDIUM, "cd", "volume"),
        ({}, Medium(Path("/w.iso"), family="windows", arch="x86_64"), "cd", "volume"),
        ({"iso": None}, MEDIUM, "disk", "volume"),
        ({"firmware": "uefi-secure"}, MEDIUM, "copy", "initrd"),
        ({"boot_command": ("url={url}",)}, MEDIUM, "cd", "http"),
        ({"firmware": "uefi"}, Medium(Path("/w.iso"), family="windows", arch="x86_64"), "copy", "volume"),
    ],
)
def test_what_is_booted_follows_from_the_medium_and_the_recipe(
    change: dict[str, object], medium: Medium, boot: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootplan, "look", lambda path: medium)
    hardware = replace(HARDWARE, firmware=change.pop("firmware", "bios"))  # type: ignore[arg-type]
    made = make_plan(Installation(**{"iso": Path("/a.iso"), "deliver": lambda m: WAYS, **change}), hardware)  # type: ignore[arg-type]
    assert (made.boot, made.delivery.way) == (boot, way)


def test_arguments_that_nothing_takes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootplan, "look", lambda path: Medium(Path("/x.iso")))
    with pytest.raises(BuildError, match="nothing here takes kernel arguments"):
        make_plan(Installation(Path("/x.iso"), lambda m: WAYS, arguments=("debug",)), HARDWARE)


def test_an_iso_for_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootplan, "look", lambda path: Medium(Path("/arm.iso"), arch="aarch64"))
    with pytest.raises(BuildError, match=r"arm\.iso is for aarch64"):
        make_plan(Installation(Path("/arm.iso"), lambda m: WAYS), HARDWARE)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ((), "vga=788 file=/x url=http://h/t/a log=10.0.2.2:99 console=ttyS0 --- quiet"),
        (("-vga", "-file", "debug"), "url=http://h/t/a log=10.0.2.2:99 console=ttyS0 debug --- quiet"),
        (("console=tty0",), "vga=788 file=/x url=http://h/t/a log=10.0.2.2:99 console=tty0 --- quiet"),
        (("-console", "-log"), "vga=788 file=/x url=http://h/t/a --- quiet"),
        (("---", "panic=5"), "vga=788 file=/x url=http://h/t/a log=10.0.2.2:99 console=ttyS0 --- panic=5 --- quiet"),
    ],
)
def test_the_kernels_arguments(own: tuple[str, ...], expected: str) -> None:
    installation = Installation(
        Path("/a.iso"), lambda m: WAYS, arguments=own, log_arguments=("log={log_host}:{log_port}",)
    )
    plan = BootPlan(installation, HARDWARE, MEDIUM, WAYS[1], "kernel")
    made = plan.arguments(Servers("http://h/t/", ("10.0.2.2", 99)))
    assert " ".join(bootplan.merged(MEDIUM.arguments, made)) == expected


def test_a_seed_is_on_a_disk_whose_driver_the_image_has(tmp_path: Path, host: Host) -> None:
    plan = BootPlan(Installation(None, lambda m: WAYS), HARDWARE, Medium(Path()), WAYS[2], "disk")
    spec = plan.spec(tmp_path / "d.qcow2", Firmware(), Servers(), tmp_path, host)
    assert [(drive.format, drive.read_only) for drive in spec.drives] == [("qcow2", False), ("raw", True)]
    assert spec.cdroms == ()
    assert spec.kernel is None
    assert spec.reboots


# -- the web server ----------------------------------------------------------------------------------------------


def local(served: Server) -> str:
    return served.url.replace(peers.GUESTS_HOST, "127.0.0.1")


def status(url: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_serves_its_files_and_knows_who_asked_for_what() -> None:
    with Server({"user-data": b"#cloud-config\n", "a/b": b"x"}) as served:
        url = local(served)
        assert status(f"{url}user-data", "HEAD") == 200
        assert served.fetched == {}
        with urllib.request.urlopen(f"{url}user-data", timeout=20) as answer:
            assert answer.read() == b"#cloud-config\n"
        assert set(served.fetched) == {"user-data"}
        assert status(f"{url}a/b?x=y") == 200
        assert status(f"{url}vendor-data") == 404
        assert served.unknown == "vendor-data"
        assert served.asked == 4
        assert status(f"{url}user-data", "POST") == 501


def test_the_server_knows_no_other_path() -> None:
    with Server({"user-data": b"secret"}) as served:
        base = local(served).removesuffix(served.path)
        for path in ("/", "/user-data", "/x/user-data", served.path[:-2] + "/user-data", served.path,
                     served.path + "../user-data", "//user-data"):  # fmt: skip
            assert status(base + path) == 404
        assert served.fetched == {}
        assert served._server.server_address[0] == "127.0.0.1"


def test_a_guest_that_goes_away_in_the_middle_is_no_error(capfd: pytest.CaptureFixture[str]) -> None:
    with Server({"large": bytes(8 << 20)}) as served:
        with socket.create_connection(("127.0.0.1", served.address[1])) as guest:
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            guest.sendall(f"GET {served.path}large HTTP/1.0\r\n\r\n".encode())
            guest.recv(10)
        assert status(local(served) + "large") == 200
    assert "Traceback" not in capfd.readouterr().err


def test_another_user_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server({"user-data": b"secret"}) as served:
        monkeypatch.setattr(server, "is_ours", lambda protocol, port: False)
        assert status(local(served) + "user-data") == 404


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_are_told_from_this_one_by_their_sockets() -> None:
    with Server({"user-data": b"secret"}) as served:
        script = f"import urllib.request as u; u.urlopen('{local(served)}user-data')"
        argv = ["/usr/bin/python3", "-c", script]
        done = subprocess.run(argv, user=65534, capture_output=True, text=True, check=False)
        assert "404" in done.stderr
        assert served.fetched == {}


# -- the log -----------------------------------------------------------------------------------------------------


def test_the_log_comes_by_udp_and_through_ports(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    with Syslog(journal) as syslog, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.sendto(b"<13>Nov 27 10:00:00 main-menu[1]: INFO: Menu item\n", ("127.0.0.1", syslog.address[1]))
        assert waits(lambda: "Menu item" in (tmp_path / "log").read_text() if (tmp_path / "log").exists() else False)
    ours, theirs = socket.socketpair()
    Ports((ours,), journal)
    theirs.sendall(b"INFO anaconda: one\nha")
    theirs.sendall(b"lf\nrest")
    theirs.close()
    assert waits(lambda: (tmp_path / "log").read_text().endswith("rest\n"))
    assert journal.take() == ["Nov 27 10:00:00 main-menu[1]: INFO: Menu item", "INFO anaconda: one", "half", "rest"]
    assert journal.take() == []


def test_a_log_cannot_fill_memory_or_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    for _ in range(30):
        journal.add(["x" * 1000] * 1000)
    assert len(journal.take()) == 20_000
    assert (tmp_path / "log").stat().st_size < 18 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_others_send_to_the_log_is_not_taken(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    with Syslog(journal) as syslog:
        script = (f"import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
                  f"s.sendto(b'lie', ('127.0.0.1', {syslog.address[1]})); time.sleep(1)")  # fmt: skip
        subprocess.run(["/usr/bin/python3", "-c", script], user=65534, check=True)
    assert journal.take() == []
