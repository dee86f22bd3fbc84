"""A running QEMU: started, watched, asked, ended.

Nothing of it outlives the block that started it, nor this process: its sockets have no names, and it dies with its
parent (Host.start).
"""

from __future__ import annotations

import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self, TypeVar

from imagesmith.errors import GuestFailed, ImagesmithError, Interrupted, TimedOut, ToolFailed
from imagesmith.host import Host, Process, ProcessTimeout
from imagesmith.machine import png
from imagesmith.machine.arguments import MachineSpec, Wires, arguments
from imagesmith.machine.console import Console, panic
from imagesmith.qmp import Qmp, socket_pair

_T = TypeVar("_T")
_POLL = 0.1
_RESTARTS_ALLOWED = 5
"""A guest may restart itself once or twice on its first boot (SELinux relabels so); more is a loop. SeaBIOS makes two
resets of each (its tryReboot())."""
# HMP `info usernet` (QEMU: net/slirp.c): "TCP[HOST_FORWARD]  FD  address  port  guest's address  guest's port …"
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)\s")


class Machine:
    """One QEMU, from the beginning of a ``with`` block to its end."""

    console: Console
    qmp: Qmp
    control: socket.socket
    """Our end of the control channel (see guest.py)."""
    ports: tuple[socket.socket, ...]
    """Our ends of the spec's ``ports``."""
    memory: int
    """The guest's memory, an open file, where the spec has ``memory_file``; else -1."""
    _process: Process
    _stderr: IO[bytes]

    def __init__(
        self, host: Host, spec: MachineSpec, console_log: Path, *, purpose: str = "boot a guest",
        lost: Callable[[], str] = lambda: "", memory: int = -1,
    ) -> None:  # fmt: skip
        """``console_log`` is a file to make: what the guest says, as it says it. ``purpose``: "needed to …".

        ``lost`` says, in words, that something has ended without which the guest cannot go on. ``memory`` is the open
        file for a spec with ``memory_file`` (memory.py).
        """
        self.memory = memory
        self.spec = spec
        self._host = host
        self._console_log = console_log
        self._purpose = purpose
        self._lost = lost
        self._forwards: dict[int, tuple[str, int]] = {}
        self._restarts = 0
        self._reason = ""
        self._deserted = False

    def __enter__(self) -> Self:
        """Start QEMU. Raises MissingTool, GuestFailed (with QEMU's own words when it ends at once), Interrupted."""
        with ExitStack() as stack:
            pairs = [socket_pair() for _ in range(3 + len(self.spec.ports))]
            (monitor, a), (console, b), (self.control, c), *more = pairs
            self.ports = tuple(ours for ours, _ in more)
            for ours, _ in pairs:
                stack.callback(ours.close)
            wires = Wires(monitor=a.fileno(), console=b.fileno(), control=c.fileno(),
                          ports=tuple(end.fileno() for _, end in more),
                          memory=self.memory if self.spec.memory_file else None)  # fmt: skip
            passed = [end.fileno() for _, end in pairs] + ([self.memory] if self.spec.memory_file else [])
            try:
                self._stderr = stack.enter_context(tempfile.TemporaryFile())
                self._process = stack.enter_context(
                    self._host.start(arguments(self.spec, wires), purpose=self._purpose, stderr=self._stderr,
                                     pass_fds=passed)
                )  # fmt: skip
            finally:
                for _, end in pairs:
                    end.close()  # a copy left open here would hide QEMU's death
            self.console = Console(console, self._console_log)
            try:
                self.qmp = Qmp(monitor, alive=self._alive)
            except ToolFailed:
                self._wait_for_exit(5)
                self.check()
                raise
            stack.callback(self.qmp.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(ImagesmithError):
            self.qmp.execute("quit", within=3)
            self._wait_for_exit(3)
        self._stack.close()
        self.console.finish()

    # -- watching ----------------------------------------------------------------------------------------------

    def _alive(self) -> bool:
        return self._process.poll() is None

    @property
    def restarts(self) -> int:
        """How often the guest has restarted itself."""
        self._take_events()
        return self._restarts

    @property
    def deserted(self) -> bool:
        """Whether whoever had the control channel open in the guest has closed it, or ended."""
        self._take_events()
        return self._deserted

    def check(self, fault: Callable[[str], str | None] = lambda text: None) -> None:
        """Raise if there is no use in going on.

        Interrupted: ``Host.cancel`` was called. GuestFailed: the guest's kernel panicked, the guest restarts itself
        again and again, it switched itself off, QEMU died (with its words) or what it needs, or ``fault`` says what is
        wrong when it is shown the console's text.
        """
        if self._host.cancelled:
            raise Interrupted()
        lost = self._lost()
        if lost:
            raise self._failed(lost)
        alive = self._alive()
        if not alive:
            self.console.finish()
        text = self.console.text
        reason = panic(text)
        if reason is not None:
            raise self._failed(f"the guest's kernel panicked: {reason}")
        found = fault(text)
        if found:
            raise self._failed(found)
        if self.restarts > _RESTARTS_ALLOWED:
            raise self._failed(f"the guest restarted itself {self._restarts} times")
        if not alive:
            raise self._failed(self._how_it_ended())

    def watch(
        self, until: Callable[[], _T | None], *, within: float, doing: str,
        fault: Callable[[str], str | None] = lambda text: None, wake: threading.Event | None = None,
    ) -> _T:  # fmt: skip
        """Return the first thing that ``until`` gives; meanwhile ``check``. ``wake`` is set when there may be news.

        Raises what check raises, and TimedOut after ``within`` seconds: "the guest did not {doing} within …".
        """
        deadline, look = time.monotonic() + within, 0.0
        while True:
            found = until()
            if found is not None:
                return found
            if time.monotonic() >= look:  # it reads the whole console: not at every bit of news
                self.check(fault)
                look = time.monotonic() + _POLL
            if time.monotonic() >= deadline:
                raise TimedOut(f"the guest did not {doing} within {within:g} s", tail=self.console.tail())
            if wake is None:
                time.sleep(_POLL)
            else:
                wake.wait(_POLL)

    def _failed(self, what: str) -> GuestFailed:
        return GuestFailed(what, tail=self.console.tail())

    def _take_events(self) -> None:
        for event in self.qmp.events() if hasattr(self, "qmp") else ():
            data = event.get("data", {})
            if event["event"] == "RESET" and data.get("guest"):
                self._restarts += 1
            elif event["event"] == "SHUTDOWN":
                self._reason = data.get("reason", "")
            elif event["event"] == "VSERPORT_CHANGE" and data.get("id") == "control":
                self._deserted = not data["open"]

    @property
    def ended(self) -> str:
        """Nothing while QEMU runs; then ``shutdown`` or ``reset`` where the guest did it, else what QEMU ended with."""
        if self._alive():
            return ""
        said = self._how_it_ended()
        return {"guest-reset": "reset", "guest-shutdown": "shutdown"}.get(self._reason, said)

    def _how_it_ended(self) -> str:
        # ShutdownCause of QEMU's qapi/run-state.json tells the guest's own doing from everything else.
        self._take_events()
        if self._reason == "guest-reset":
            return "the guest restarted itself"
        if self._reason == "guest-shutdown":
            return "the guest switched itself off"
        status = self._process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        self._stderr.seek(0)
        words = self._stderr.read(100_000)[-2000:].decode("utf-8", "replace").strip()
        return f"QEMU {how}" + (f": {words}" if words else "")

    def _wait_for_exit(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except ProcessTimeout:
            return False
        return True

    # -- using -------------------------------------------------------------------------------------------------

    def screenshot(self, path: Path) -> None:
        """Write what the screen shows as PNG. Raises ToolFailed where there is no screen, or no QEMU any more."""
        try:
            self.qmp.execute("screendump", filename=str(path), format="png")
        except ToolFailed:
            picture = path.with_suffix(".ppm")
            self.qmp.execute("screendump", filename=str(picture))
            path.write_bytes(png.from_ppm(picture.read_bytes()))
            picture.unlink()

    def forward(self, port: int, *, at: int = 0) -> tuple[str, int]:
        """Return an address and port on this host's loopback that lead to the guest's TCP ``port``.

        ``at`` is the port on this host. Where it is 0, QEMU's kernel picks one, so nobody can take it between the
        choice and the use. Raises ToolFailed.
        """
        if port not in self._forwards:
            said = self._monitor(f"hostfwd_add net0 tcp:127.0.0.1:{at}-:{port}")
            for address, host_port, guest_port in _FORWARD.findall(self._monitor("info usernet")):
                self._forwards.setdefault(int(guest_port), (address, int(host_port)))
            if port not in self._forwards:
                raise ToolFailed(f"QEMU does not forward the guest's port {port}: {said.strip() or 'no reason given'}")
        return self._forwards[port]

    def _monitor(self, line: str) -> str:
        return str(self.qmp.execute("human-monitor-command", {"command-line": line}))

    def plug_console(self) -> socket.socket:
        """Plug in a virtio console, the guest's /dev/hvc0, and return our end of it. Raises ToolFailed.

        The bus of the control channel takes it while the guest runs.
        """
        ours, theirs = socket_pair()
        self._stack.callback(ours.close)
        with theirs:
            self.qmp.send_file("terminal", theirs.fileno())
            self.qmp.execute("chardev-add", id="terminal", backend={
                "type": "socket", "data": {"addr": {"type": "fd", "data": {"str": "terminal"}}, "server": False}})
            self.qmp.execute("device_add", driver="virtconsole", id="terminal", chardev="terminal")
        return ours

    def start_again(self) -> None:
        """Press the reset button, and forget what the console has said so far (its log keeps it)."""
        if not self.spec.reboots:  # else this reset would end QEMU, too (QEMU: softmmu/runstate.c)
            self.qmp.execute("set-action", reboot="reset")
        self.qmp.execute("system_reset")
        if not self.spec.reboots:
            if self.spec.firmware.name == "bios":  # which makes a second reset of it, as the guest's own
                with suppress(TimedOut):
                    self.qmp.wait_event("RESET", within=10, match=lambda event: bool(event["data"].get("guest")))
            self.qmp.execute("set-action", reboot="shutdown")
        self.console.forget()
        self._take_events()
        self._restarts = 0

    def count_anew(self) -> None:
        """Forget the restarts so far: they were wanted."""
        self._take_events()
        self._restarts = 0

    def power_off(self, within: float = 90) -> bool:
        """Press the power button and wait for the guest to switch itself off; False when it did not, and was ended."""
        with suppress(ToolFailed):
            self.qmp.execute("system_powerdown")
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self._wait_for_exit(_POLL):
                return True
            if self._host.cancelled:
                raise Interrupted()
        with suppress(ImagesmithError):
            self.qmp.execute("quit", within=3)
        self._wait_for_exit(3)
        return False
