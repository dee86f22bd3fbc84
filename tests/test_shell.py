"""The shell that waits in a guest's memory, run by this host's shells; a socket stands for the guest's port."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imagesmith.errors import BuildError, GuestFailed, TimedOut
from imagesmith.host import Host
from imagesmith.machine.arguments import CONTROL_PORT
from imagesmith.machine.qemu import Machine
from imagesmith.machine.shell import AGENT, Shell

SHELLS = [[name] for name in ("dash", "bash") if shutil.which(name)]
SHELLS += [["busybox", "sh"]] if shutil.which("busybox") else []


class Standin:
    """What Shell asks of a machine."""

    restarts = 0
    deserted = False
    console = SimpleNamespace(tail=lambda: "")

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    def check(self) -> None: ...

    def watch(self, until: Callable[[], Any], *, within: float, doing: str, wake: object = None) -> Any:
        end = time.monotonic() + within
        while (found := until()) is None:
            if time.monotonic() > end:
                raise TimedOut(doing)
        return found


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    near, far = socket.socketpair()
    script = AGENT.replace(f"/dev/virtio-ports/{CONTROL_PORT}", "/dev/null").replace('3<>"$port"', "3<&0")
    script = script.replace("/run/imagesmith.", f"{tmp_path}/imagesmith.")
    with near, far, Host().start([*request.param, "-c", script], purpose="test", stdin=far.fileno()):
        found = Shell(cast(Machine, Standin(near)))
        end = time.monotonic() + 20
        while not found.listens() and time.monotonic() < end:
            time.sleep(0.01)
        yield found


def ask(shell: Shell, script: str, input: bytes = b"", within: float = 20) -> tuple[int, bytes, str]:
    got: list[bytes] = []
    status, said = shell.ask(script, within=within, input=input, take=got.append)
    return status, b"".join(got), said


def test_a_script_has_its_status_its_output_and_its_stdin(shell: Shell) -> None:
    assert ask(shell, "echo out; echo 'to stderr' >&2; exit 7") == (7, b"out\n", "to stderr")
    assert ask(shell, "true") == (0, b"", "")
    everything = bytes(range(256)) * 300
    assert ask(shell, "cat", everything) == (0, everything, "")
    assert ask(shell, "head -c 3; exit 1", everything) == (1, everything[:3], "")
    assert ask(shell, "printf 'a\\000b'; printf '\\000'") == (0, b"a\0b\0", "")
    assert ask(shell, "echo 'it''s'; echo \"$((1 + 1)) \\\\ é\"\n\necho end")[1] == "its\n2 \\ é\nend\n".encode()
    status, out, _ = ask(shell, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i + 1)); done")
    assert status == 0
    assert out.split() == [b"%d" % number for number in range(20000)]


def test_output_comes_as_it_is_written(shell: Shell) -> None:
    seen: list[float] = []
    shell.ask("echo first; sleep 1; echo second", within=20, take=lambda _: seen.append(time.monotonic()))
    assert seen[-1] - seen[0] > 0.5


def test_what_a_script_leaves_running_does_not_disturb_the_next(shell: Shell) -> None:
    assert ask(shell, "(sleep 3; echo late) & echo now; exit 3") == (3, b"now\n", "")
    assert ask(shell, "sleep 2; echo next") == (0, b"next\n", "")
    assert ask(shell, "echo last") == (0, b"last\n", "")


def test_the_port_and_the_shells_own_files_are_not_the_scripts(shell: Shell) -> None:
    assert ask(shell, "umask; (: >&3) 2>/dev/null && echo open")[1].split() == [b"0022"]


def test_a_script_may_be_interrupted(shell: Shell) -> None:
    assert ask(shell, "sh -c 'kill -INT $$; echo no'")[1] == b""


def test_a_script_that_never_stops_talking_is_heard_and_ended(shell: Shell) -> None:
    heard = 0

    def take(data: bytes) -> None:
        nonlocal heard
        heard += len(data)
        assert len(data) < 8 << 20
        if heard > 32 << 20:
            raise BuildError("enough")

    with pytest.raises(BuildError, match="enough"):
        shell.ask("yes 'a line that is said again and again, as fast as can be'", within=20, take=take)


def test_too_late_and_gone_are_told_apart(shell: Shell) -> None:
    with pytest.raises(TimedOut):
        ask(shell, "sleep 30", within=0.5)
    cast(Standin, shell._machine).deserted = True
    with pytest.raises(GuestFailed, match="has ended"):
        ask(shell, "true")
