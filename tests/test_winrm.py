"""WinRM, against a small server that speaks as much of [MS-WSMV] as pywinrm asks for. No Windows was seen."""

from __future__ import annotations

import base64
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from imagesmith.drivers.winrm import WinRm
from imagesmith.drivers.winrm_root import WinRmGuest, WinRmRoot
from imagesmith.errors import BuildError, GuestFailed, StepFailed, TimedOut
from imagesmith.machine.guest_agent import PORT
from tests.test_ssh import HOST, StandIn
from tests.trees import make

USER, PASSWORD, SECRET = "Administrator", "right-one", "tell-nobody-4711"
_HEAD = ('<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" '
         'xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" '
         'xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd" '
         'xmlns:rsp="http://schemas.microsoft.com/wbem/wsman/1/windows/shell">')  # fmt: skip
_NOTHING_YET = ('<s:Fault><s:Code><s:Value>s:Receiver</s:Value></s:Code><s:Reason><s:Text>timed out</s:Text></s:Reason>'
                '<s:Detail><f:WSManFault xmlns:f="http://schemas.microsoft.com/wbem/wsman/1/wsmanfault" '
                'Code="2150858793"/></s:Detail></s:Fault>')  # fmt: skip


class Windows(BaseHTTPRequestHandler):
    """What a guest would say: a program prints its environment and its stdin; `exit N` in it is its exit code."""

    commands: ClassVar[list[str]] = []
    environment: ClassVar[str] = ""
    stdin: ClassVar[bytes] = b""
    asked: ClassVar[int] = 0

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != expected:
            self.answer(401, "", [("WWW-Authenticate", 'Basic realm="WSMAN"')])
            return
        cls = type(self)
        action = re.search(r"<a:Action[^>]*>[^<]*/(\w+)</a:Action>", body)
        message = re.search(r"<a:MessageID>(.*?)</a:MessageID>", body)
        assert action is not None
        assert message is not None
        text = ""
        match action[1]:
            case "Create":
                cls.environment = " ".join("=".join(found) for found in
                                           re.findall(r'<rsp:Variable Name="(\w+)">(.*?)</rsp:Variable>', body))
                text = '<w:Selector Name="ShellId">11111111-1111-1111-1111-111111111111</w:Selector>'
            case "Command":
                found = re.search(r"<rsp:Command>(.*?)</rsp:Command><rsp:Arguments>(.*?)</rsp:Arguments>", body)
                assert found is not None
                cls.commands.append(f"{found[1]} {found[2]}")
                cls.stdin, cls.asked = b"", 0
                text = f"<rsp:CommandId>{uuid.uuid4()}</rsp:CommandId>"
            case "Send":
                data = re.search(r"<rsp:Stream[^>]*>(.*?)</rsp:Stream>", body)
                cls.stdin += base64.b64decode(data[1]) if data else b""
            case "Receive":
                cls.asked += 1
                if cls.asked == 1:
                    self.answer(500, f"{_HEAD}<s:Body>{_NOTHING_YET}</s:Body></s:Envelope>")
                    return
                text = self.output()
        head = f"<s:Header><a:RelatesTo>{message[1]}</a:RelatesTo></s:Header>"
        self.answer(200, f"{_HEAD}{head}<s:Body>{text}</s:Body></s:Envelope>")

    def output(self) -> str:
        script = self.stdin.decode()
        code = re.search(r"exit (\d+)", script)
        if "sleep" in script:
            return '<rsp:CommandState State="http://x/CommandState/Running"/>'
        said = base64.b64encode(f"env {self.environment}\r\n{script}\r\n".encode()).decode()
        return (f'<rsp:Stream Name="stdout">{said}</rsp:Stream><rsp:CommandState State="http://x/CommandState/Done">'
                f"<rsp:ExitCode>{code[1] if code else 0}</rsp:ExitCode></rsp:CommandState>")  # fmt: skip

    def answer(self, status: int, text: str, headers: Any = ()) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in [*headers, ("Content-Type", "application/soap+xml"), ("Content-Length", str(len(data)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Machine(StandIn):
    """What WinRm needs of a machine."""

    spec = SimpleNamespace(ports=(PORT,))
    ports = (None,)

    def forward(self, port: int) -> tuple[str, int]:
        assert port in {5985, 5986}
        return self._address


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Windows)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Machine(("127.0.0.1", server.server_address[1]))
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def machine() -> Iterator[Any]:
    with serving() as found:
        yield found


def enter(machine: Any, *, password: str = PASSWORD, port: int = 5985) -> WinRm:
    wire = WinRm(machine, user=USER, password=password, port=port)
    wire.connect(20)
    return wire


def test_a_powershell_step(machine: Any) -> None:
    lines: list[str] = []
    root = WinRmRoot(WinRmGuest(machine, enter(machine)), epoch=0, log=lines.append, deadline=None)
    make("steps", "powershell", {"run": f"Write-Output '{SECRET} ü'", "env": {"TOKEN": SECRET}}).apply(root)
    assert lines == [f"env TOKEN={SECRET}", f"Write-Output '{SECRET} ü'"]
    assert Windows.commands[-1].startswith("powershell -NoProfile -NonInteractive ")
    assert not any(SECRET in command for command in Windows.commands)
    with pytest.raises(StepFailed, match=r"the commands failed \(exit code 3\):"):
        make("steps", "powershell", "exit 3").apply(root)
    with pytest.raises(BuildError, match="cannot put files into it"):
        root.unpack(None)  # type: ignore[arg-type]
    hurried = WinRmRoot(WinRmGuest(machine, enter(machine)), epoch=0, log=lines.append, deadline=0.0)
    with pytest.raises(TimedOut, match="the step did not end in time"):
        make("steps", "powershell", "sleep 600").apply(hurried)


def test_what_is_said_of_a_guest_that_lets_nobody_in(machine: Any) -> None:
    with pytest.raises(GuestFailed, match="does not let Administrator in: password refused") as refused:
        enter(machine, password="wrong")
    assert "login.password" in refused.value.hint
    closed: Any = Machine(("127.0.0.1", 9))
    with pytest.raises(TimedOut, match=r"did not answer over WinRM within 1 s; seen last: .*no WinRM .*refused"):
        WinRm(closed, user=USER, password=PASSWORD, port=5985).connect(1)


def test_a_certificate_that_the_guest_made_itself_will_do(tmp_path: Path) -> None:
    file = tmp_path / "both.pem"
    HOST.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=guest",
              "-keyout", file, "-out", tmp_path / "certificate"], purpose="test")  # fmt: skip
    file.write_bytes(file.read_bytes() + (tmp_path / "certificate").read_bytes())
    with serving(file) as machine:
        assert enter(machine, port=5986).ask(["powershell", "x"], within=60, input=b"exit 4") == 4


@pytest.mark.parametrize("wrong", [{}, {"run": "x", "path": "y"}])
def test_a_step_has_one_script(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"either `run` or `path`|no such file"):
        make("steps", "powershell", wrong)
