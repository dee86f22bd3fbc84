"""From power-on to the installer having read its answer file, against Packer typing bento's boot command.

Both boot the same ISO (Debian's installer, tests/debian_installer) on the same emulated processor, with the same
answer file. The file's first command tells that it was read whole: on the serial console, where imagesmith looks, and
to a web server of ours, where Packer's installer has the file from. Neither installation is seen to its end.

bento's template for Debian 13 is for UEFI and edits GRUB's entry; the one for Debian 12 is for the BIOS and shorter. It
waits ten seconds before it types. Under emulation the firmware may need longer than that; what is typed before the
menu is there is lost, so Packer is given the wait that this installer needs here.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2

from benchmarks._measure import CommandFailed
from benchmarks._packer_iso import BENTO, Template, packer
from benchmarks._site import Site
from benchmarks._table import Row, seconds
from imagesmith.host import Host
from tests.debian_installer import iso

TARGET = 5.0
CPU = "Nehalem,-cx16"
FIXTURE = Path(iso.__file__).parent
SIGN = "preseed.cfg was read"
LONGEST = 900.0
"""Seconds after which nothing is waited for any more."""
RECIPE = """\
name: read
machine: {{cpus: 2, cpu: "{cpu}", memory: 2G, disk: 3G}}
base:
  iso: {{path: "{iso}", answers: {{preseed: preseed.cfg}}, boot: [mitigations=off]}}
outputs: [qcow2]
"""


def run(site: Site) -> list[Row]:
    """Measure ours as often as asked for, and Packer once with each template."""
    made = iso.build(site.folder / "debian-installer", Host())
    ours = [_ours(site, made) for _ in range(site.most)]
    site.say("installer: ours " + ", ".join(f"{taken:.1f}" for taken in ours))
    rows = []
    for template in BENTO:
        theirs = _packer(site, made, template)
        site.say(f"installer: Packer with the template of {template.name} {theirs:.1f}")
        ratio = theirs / sorted(ours)[len(ours) // 2]
        wanted = template is BENTO[0]
        rows.append(Row(f"from power-on to the answer file having been read; {template.name}, after {template.wait} s",
                        seconds(ours), f"{theirs:.1f} s", f"{ratio:.1f}", f">= {TARGET:g}" if wanted else "-",
                        ratio >= TARGET if wanted else None))  # fmt: skip
    return rows


def _answers(port: int) -> str:
    """The fixture's answer file, with a sign to the web server behind the one on the console."""
    text = (FIXTURE / "preseed.cfg.j2").read_text()
    told = f"echo '{SIGN}' > /dev/console"
    assert told in text
    text = text.replace(told, f"{told}; wget -q -O /dev/null http://10.0.2.2:{port}/read")
    template = jinja2.Template(text, keep_trailing_newline=True)
    return str(template.render(port=port, mirror="http://10.0.2.2/debian"))


def _ours(site: Site, made: Path) -> float:
    (site.folder / "preseed.cfg").write_text(_answers(9))  # nobody answers there
    (site.folder / "read.yaml").write_text(RECIPE.format(iso=made, cpu=CPU))
    lines = threading.Event()

    def look(line: str) -> None:
        if line.startswith("{") and "answer file read" in str(json.loads(line)):
            lines.set()

    build = ["build", "read.yaml", "--log-format", "json"]
    argv = [sys.executable, "-c", "from imagesmith.cli import main; main()", *build]
    with _running(argv, site.folder, look, {"IMAGESMITH_CACHE": str(site.folder / "installer-store")}) as process:
        return _seconds(process, lines)


def _packer(site: Site, made: Path, template: Template) -> float:
    asked = threading.Event()
    with _served(asked) as (server, files):
        port = int(server.server_address[1])
        files["/debian/preseed.cfg"] = _answers(port).encode()
        folder = site.folder / "packer-iso"
        argv, env = packer(folder, made, template, f"http://10.0.2.2:{port}/debian/preseed.cfg", CPU)
        with _running(argv, folder, site.say, env) as process:
            return _seconds(process, asked)


@contextmanager
def _served(asked: threading.Event) -> Iterator[tuple[http.server.ThreadingHTTPServer, dict[str, bytes]]]:
    """A web server on loopback that sets ``asked`` once ``/read`` was asked for."""
    files: dict[str, bytes] = {"/read": b""}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/read":
                asked.set()
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, files
        server.shutdown()


@contextmanager
def _running(
    argv: list[str], folder: Path, look: Callable[[str], None], env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a command while ``look`` sees its lines; ask it to end with the block, and make sure."""
    with subprocess.Popen(
        argv, cwd=folder, env={**os.environ, **env}, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        stream = process.stdout

        def read() -> None:
            for line in stream:
                look(line.rstrip())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield process
        finally:
            for number, patience in ((signal.SIGINT, 30.0), (signal.SIGKILL, 10.0)):
                try:
                    os.killpg(process.pid, number)
                    process.wait(patience)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
            reader.join(5)


def _seconds(process: subprocess.Popen[str], sign: threading.Event) -> float:
    """How long from the start of the command's QEMU to the sign."""
    begun, deadline = 0.0, time.monotonic() + LONGEST
    while not sign.wait(0.1):
        begun = begun or _power_on(process.pid)
        if process.poll() is not None or time.monotonic() > deadline:
            raise CommandFailed("the answer file was not read: the command ended, or took too long")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - begun


def _power_on(parent: int) -> float:
    """When a QEMU below the process was started, in seconds on CLOCK_BOOTTIME; 0 while there is none (proc(5))."""
    parents, started = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        fields = rest.split()
        parents[int(stat.parent.name)] = int(fields[1])
        if name.startswith("qemu-system"):
            started[int(stat.parent.name)] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    for pid, at in started.items():
        above = pid
        while above > 1:
            above = parents.get(above, 0)
            if above == parent:
                return at
    return 0.0
