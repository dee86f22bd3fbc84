"""What checks say when they hold and when they do not. That they see real guests right is for the end-to-end test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from imagesmith.errors import CheckFailed, TimedOut
from imagesmith.interfaces import Guest, Result
from imagesmith.kinds import Check, known


class Answering:
    """A guest that gives one answer to everything, and whose ports lead to a server of the test."""

    firmware = "bios"

    def __init__(self, output: str = "", status: int = 0, *, port: int = 9) -> None:
        self.output, self.status, self.port = output, status, port
        self.scripts: list[str] = []

    def run(self, script: str, *, timeout: float) -> Result:
        self.scripts.append(script)
        return Result(self.status, self.output)

    def wait_booted(self, timeout: float) -> Result:
        return Result(self.status, self.output)

    def forward(self, port: int) -> tuple[str, int]:
        return "127.0.0.1", self.port


def make(name: str, value: object) -> Check:
    kind = known("checks")[name]
    made = kind.model_validate(kind.options_of(value))
    assert isinstance(made, Check)
    return made


def check(name: str, value: object, guest: Guest) -> str:
    return make(name, value).check(guest)


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """Answers every connection and closes it; None: takes it and says nothing."""
    open_ones = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    wire, _ = listener.accept()
                except OSError:
                    return
                if answer is None:
                    open_ones.append(wire)
                    continue
                with wire:
                    if answer:
                        wire.recv(4096)
                        wire.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    for wire in open_ones:
        wire.close()


def tcp(address: str, port: int, state: str = "0A") -> str:
    return f"   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1\n"


def test_every_check_of_the_language_is_there_with_its_short_form() -> None:
    forms = {name: kind.shorthand for name, kind in known("checks").items()}
    assert forms.items() >= {
        "boot": "within", "command": "run", "port": "number", "http": "path", "file": "path", "package": "name",
        "service": "name", "user": "name",
    }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 0), ("port", 70000), ("file", "etc/motd"), ("package", "-rf"), ("service", "a b"), ("user", "a:b"),
     ("http", {"path": "no-slash"}), ("command", {"run": "true", "exit": 300}), ("boot", {"within": "soon"})],
)  # fmt: skip
def test_nonsense_is_refused_in_the_recipe(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        make(name, value)


def test_a_degraded_boot_names_the_units_that_failed_and_their_last_words() -> None:
    said = "degraded\nnginx.service: exit-code\n    bind() to 0.0.0.0:80 failed\nx.mount: timeout"
    with pytest.raises(CheckFailed, match=r"nginx\.service, x\.mount") as caught:
        check("boot", None, Answering(said, 1))
    assert "bind() to 0.0.0.0:80 failed" in caught.value.message
    assert check("boot", "5m", Answering("running")).startswith("running after")


def test_commands_are_judged_by_status_and_output() -> None:
    assert check("command", {"run": "x", "exit": 3}, Answering("", 3)) == "exit status 3"
    with pytest.raises(CheckFailed, match="expected exit status 0, got 2") as caught:
        check("command", "nginx -t", Answering("emerg: no such file", 2))
    assert "emerg: no such file" in caught.value.message
    with pytest.raises(CheckFailed, match="expected 'yes' in its output"):
        check("command", {"run": "x", "contains": "yes"}, Answering("no"))


def test_a_command_that_hangs_fails_with_what_it_said() -> None:
    class Hanging(Answering):
        def run(self, script: str, *, timeout: float) -> Result:
            raise TimedOut("too long", tail="waiting for the database")

    with pytest.raises(CheckFailed, match="within 5 s") as caught:
        check("command", {"run": "x", "within": "5s"}, Hanging())
    assert "waiting for the database" in caught.value.message


def test_ports_that_nobody_outside_can_reach_fail() -> None:
    port = {"number": 80, "within": 0}
    with pytest.raises(CheckFailed, match="there is none"):
        check("port", port, Answering(tcp("00000000", 81)))
    with pytest.raises(CheckFailed, match=r"127\.0\.0\.1 only"):
        check("port", port, Answering(tcp("0100007F", 80)))
    with pytest.raises(CheckFailed, match="::1 only"):
        check("port", port, Answering(tcp("00000000000000000000000001000000", 80)))
    with pytest.raises(CheckFailed, match="cannot be reached"):
        check("port", port, Answering(tcp("00000000", 80), port=1))


def test_a_port_must_take_connections_and_keep_them() -> None:
    port, table = {"number": 80, "within": 0}, tcp("00000000", 80)
    with server(b"") as number, pytest.raises(CheckFailed, match="closed at once"):
        check("port", port, Answering(table, port=number))
    with server(None) as number:
        with pytest.raises(CheckFailed, match="packet filter"):
            check("port", port, Answering(table, port=number))
        both = table + tcp("0F02000A", 80, "01")
        assert check("port", port, Answering(both, port=number)) == "listens on 0.0.0.0 and takes connections"


def test_web_servers_are_judged_by_status_and_content() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nIt works\n") as number:
        guest = Answering(port=number)
        assert check("http", {"path": "/", "contains": "It works"}, guest) == "status 200, 9 characters"
        with pytest.raises(CheckFailed, match="expected status 404, got 200"):
            check("http", {"path": "/x", "status": 404, "within": 0}, guest)
        with pytest.raises(CheckFailed, match="expected 'nginx' in the answer"):
            check("http", {"contains": "nginx", "within": 0}, guest)
    with server(b"SSH-2.0-x\r\n") as number, pytest.raises(CheckFailed, match="expected an answer"):
        check("http", {"within": 0}, Answering(port=number))


def test_files_are_judged_by_mode_owner_and_being_there() -> None:
    guest = Answering("644 root:shadow 0:42 regular file\n")
    assert check("file", {"path": "/a", "mode": "0644", "owner": "root:42"}, guest) == (
        "regular file, mode 0644, root:shadow"
    )
    with pytest.raises(CheckFailed, match="expected mode 0600 of /a, got 0644"):
        check("file", {"path": "/a", "mode": "0600"}, guest)
    with pytest.raises(CheckFailed, match="expected owner root:root of /a, got root:shadow"):
        check("file", {"path": "/a", "owner": "root:root"}, guest)
    with pytest.raises(CheckFailed, match="expected /a not to be there"):
        check("file", {"path": "/a", "exists": False}, guest)
    with pytest.raises(CheckFailed, match="expected /a to be there"):
        check("file", "/a", Answering("", 44))
    assert check("file", {"path": "/a", "exists": False}, Answering("", 44)) == "is not there"


def test_names_from_the_recipe_cannot_break_out_of_the_script() -> None:
    guest = Answering("", 44)
    with pytest.raises(CheckFailed):
        check("file", "/a'; rm -rf /; '", guest)
    assert "'/a'\"'\"'; rm -rf /; '\"'\"''" in guest.scripts[0]


def test_packages_services_and_users_say_what_was_seen() -> None:
    assert check("package", "nginx-light", Answering("1.22.1-9\n")) == "installed: 1.22.1-9"
    with pytest.raises(CheckFailed, match="expected package nginx-light to be installed"):
        check("package", "nginx-light", Answering("no packages found", 1))
    with pytest.raises(CheckFailed, match="none of the package managers"):
        check("package", "nginx-light", Answering("", 70))
    assert check("service", "nginx", Answering("active\nenabled\n")) == "active, enabled"
    with pytest.raises(CheckFailed, match="expected nginx to be active, but it is failed, disabled"):
        check("service", {"name": "nginx", "within": 0}, Answering("failed\ndisabled\n"))
    with pytest.raises(CheckFailed, match="expected nginx to be enabled"):
        check("service", {"name": "nginx", "enabled": True, "within": 0}, Answering("active\ndisabled\n"))
    user = Answering("ops:x:1000:1000::/home/ops:/bin/bash\nops sudo\n")
    assert check("user", {"name": "ops", "groups": ["sudo"]}, user) == "uid 1000, groups ops, sudo, shell /bin/bash"
    with pytest.raises(CheckFailed, match="expected ops in docker"):
        check("user", {"name": "ops", "groups": ["docker", "sudo"]}, user)
    with pytest.raises(CheckFailed, match="expected the shell /bin/zsh of ops, got /bin/bash"):
        check("user", {"name": "ops", "shell": "/bin/zsh"}, user)
    with pytest.raises(CheckFailed, match="expected a user ops, but there is none"):
        check("user", "ops", Answering("", 1))


def test_what_comes_a_little_later_is_waited_for() -> None:
    class Starting(Answering):
        def run(self, script: str, *, timeout: float) -> Result:
            self.scripts.append(script)
            return Result(0, "active\nenabled\n" if len(self.scripts) > 2 else "activating\nenabled\n")

    assert check("service", {"name": "slow", "within": "30s"}, Starting()) == "active, enabled"
