"""An image that runs as it will run elsewhere: its console, its own users, its ports on this host."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import cast

import pytest

from imagesmith.archive import archive_of
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Result
from imagesmith.machine.guest import BootedGuest
from imagesmith.machine.visit import ADMIT, NO_SERVER, NO_USER, visit
from tests.conftest import Command, Golden
from tests.terminals import Terminal, works_as_a_terminal
from tests.trees import Shop, tiny

# 16-bit code at 0x7c00: shows its text (int 0x10, function 0x0e), then whatever is typed (int 0x16, function 0).
ECHO = bytes.fromhex("31c0 8ed8 be1c7c ac 84c0 7406 b40e cd10 ebf5 30e4 cd16 b40e cd10 ebf6") + b"type: \0"


def children() -> set[str]:
    """The command lines of QEMU that are there."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-system-x86_64"):
            found.add(process.parent.name)
    return found


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A disk whose boot sector is all that is on it."""
    image = tmp_path / "echo.img"
    image.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image


def test_the_console_is_the_users_terminal_until_he_leaves(echo: Path, command: Command) -> None:
    user = Terminal(command.argv("run", echo, "--console", "--firmware", "bios", "--forward", "80"),
                    command.environment())  # fmt: skip
    user.expect("leads to the guest's port 80")
    user.expect("Ctrl-] leaves")
    user.expect("type: ")
    user.type("hello")
    user.expect("hello")
    user.type("\x1d")
    assert user.end() == 0


def test_without_a_terminal_it_runs_until_it_is_told_to_end(echo: Path, command: Command) -> None:
    running = command.start("run", echo, "--firmware", "bios", "--forward", "22", "--memory", "64M")
    assert running.stdout is not None
    assert re.fullmatch(r"127\.0\.0\.1:\d+ leads to the guest's port 22\n", running.stdout.readline())
    mine = {pid for pid in children() if Path(f"/proc/{pid}/stat").read_text().split()[3] == str(running.pid)}
    assert len(mine) == 1
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0
    assert not mine & children()


def test_what_cannot_run_is_told_before_anything_boots(echo: Path, command: Command, tmp_path: Path) -> None:
    for words, said in (
        ([echo, "--forward", "80:"], "--forward 80:: write PORT:GUEST"),
        ([echo, "--forward", "1:80", "--forward", "2:80"], "each port of the guest's once"),
        ([echo, "--firmware", "efi"], "must be one of bios, uefi, uefi-secure"),
        ([echo, "--memory", "much"], "write a size such as 2G"),
        ([echo, "--console"], "stdin is no terminal"),
        ([tmp_path / "none.img"], "no such recipe or image"),
    ):
        assert said in command("run", *words, expect=2).err
    (tmp_path / "new.yaml").write_text("base: {disk: {path: echo.img}}\nsteps: [{cleanup: false}]\noutputs: [raw]\n")
    assert "is not built as it stands now; build it first" in command("run", tmp_path / "new.yaml", expect=2).err


PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/usr/sbin/nologin
service:x:1000:1000::/srv:/usr/sbin/nologin
ops:x:1001:1002::/home/ops:/bin/sh
other:x:1002:1002::/home/other:/bin/sh
nobody:x:65534:65534::/:/bin/sh
"""


@pytest.mark.parametrize(
    ("wanted", "passwd", "who", "home", "owner"),
    [("", PASSWD, "ops", "home/ops", "1001:1002"), ("other", PASSWD, "other", "home/other", "1002:1002"),
     ("", PASSWD.splitlines(keepends=True)[0], "root", "root", "0:0")],
)  # fmt: skip
def test_the_key_goes_to_the_first_ordinary_user(
    tmp_path: Path, wanted: str, passwd: str, who: str, home: str, owner: str
) -> None:
    tiny(tmp_path)
    system = tmp_path / "system"
    system.mkdir(mode=0o755)
    with tarfile.open(tmp_path / "tiny.tar") as archive:
        archive.extractall(system)
    (system / "etc/passwd").write_text(passwd)
    (system / "home").mkdir()
    with Shop().tree(system) as root:

        def admit(wanted: str) -> Result:
            script = ADMIT.format(user=shlex.quote(wanted), key=shlex.quote("ssh-ed25519 AAAA it's mine"))
            return root.run(["sh", "-c", script], check=False)

        assert admit(wanted).status == NO_SERVER
        root.unpack(archive_of(lambda archive: archive.data("/usr/sbin/sshd", b"", mode=0o755), epoch=0))
        done = admit(wanted)
        assert (done.status, done.output.split()[-1]) == (0, who)
        assert root.read(f"/{home}/.ssh/authorized_keys") == b"ssh-ed25519 AAAA it's mine\n"
        seen = root.run(["stat", "-c", "%u:%g %a", f"/{home}/.ssh", f"/{home}/.ssh/authorized_keys"]).output
        assert seen.split() == [owner, "700", owner, "600"]
        assert admit("nobody-here").status == NO_USER


@pytest.mark.parametrize("said", ["", "-oProxyCommand=touch${IFS}x;", "a\nro%ot"])
def test_a_guest_that_names_an_option_for_a_user_is_not_entered(said: str) -> None:
    class Evil:
        def wait_ready(self, timeout: float) -> None:
            pass

        def run(self, script: str, *, timeout: float) -> Result:
            return Result(0, said)

    with pytest.raises(BuildError, match="which is no name"), visit(
        cast(BootedGuest, Evil()), Host(), user="", within=1
    ):
        raise AssertionError


@pytest.mark.slow
def test_a_recipe_runs_and_its_own_user_is_let_in(golden: Golden, command: Command) -> None:
    user = Terminal(command.argv("run", golden.recipe, "--forward", "80"), command.environment())
    address = re.search(r"127\.0\.0\.1:\d+", user.expect(" leads to the guest's port 80"))
    assert address is not None
    user.expect("logged in as ")
    name = user.expect(" after ")
    works_as_a_terminal(user, "id -un", name, prompt="$ ")
    user.expect("$ ")
    with urllib.request.urlopen(f"http://{address[0]}/", timeout=60) as page:
        assert page.status == 200
    user.type("sudo poweroff\n")
    assert user.end() == 0
    assert "the guest has switched itself off" in user.seen


@pytest.mark.slow
def test_an_appliance_runs_a_command_under_uefi(golden: Golden, command: Command, tmp_path: Path) -> None:
    image = tmp_path / "golden.ova"
    shutil.copy(golden.folder / "golden.ova", image)
    ran = command("run", image, "--firmware", "uefi", "--", "sh", "-c", "id -un; ls /sys/firmware; "
                  "exit 255", expect=255)  # fmt: skip
    assert ran.out.split()[0] == "vagrant"
    assert "efi" in ran.out.split()
    assert "logged in as vagrant" in ran.err
    assert "the connection to the guest has ended" not in ran.err
    assert "the guest has no user 'nobody-here'" in command("run", image, "--user", "nobody-here", "--", "true",
                                                            expect=1).err  # fmt: skip


@pytest.mark.slow
def test_a_program_of_this_host_uses_its_ports(golden: Golden, command: Command) -> None:
    running = command.start("run", golden.folder / "golden.qcow2", "--forward", "80")
    assert running.stdout is not None
    address, deadline = running.stdout.readline().split()[0], time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(f"http://{address}/", timeout=10) as page:
                assert page.status == 200
            break
        except (urllib.error.URLError, OSError):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(1)
    os.kill(running.pid, signal.SIGINT)
    assert running.wait(60) == 0
