"""The command that runs an image as it will run elsewhere: its own users, its ports on this host, its console."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from imagesmith import cli_build as parts
from imagesmith import terminal
from imagesmith.cli_build import VarFiles, Variant, Vars, usage
from imagesmith.cli_image import imported
from imagesmith.errors import GuestFailed, Interrupted

if TYPE_CHECKING:
    from imagesmith.host import Host
    from imagesmith.interfaces import Disk
    from imagesmith.machine.guest import BootedGuest
    from imagesmith.machine.qemu import Machine
    from imagesmith.plan import Node
    from imagesmith.recipe import Overrides
    from imagesmith.workbench import Bench

_FIRMWARE = ("bios", "uefi", "uefi-secure")
_LEAVE = b"\x1d"
"""Ctrl-], as in telnet(1) and virsh(1)."""
_BOOT_SECONDS = 900.0
"""Until the guest lets somebody in; 60 to 200 s were seen under TCG."""
_OFF_SECONDS = 90.0
"""How long a guest may take from its last connection's end to switching itself off."""
_LOST = 255
"""What ssh ends with where the connection did, or the command with the same (ssh(1), "EXIT STATUS")."""


def run(
    target: Annotated[Path, typer.Argument(help="A recipe that is built, or an image in any format.",
                                           metavar="RECIPE|IMAGE")],
    command: Annotated[list[str] | None, typer.Argument(help="After --: what to run in it, as its user, instead of a "
                                                        "session.", metavar="-- COMMAND", show_default=False)] = None,
    console: Annotated[bool, typer.Option("--console", help="Show its serial console; Ctrl-] leaves.")] = False,
    forward: Annotated[list[str], typer.Option(metavar="[PORT:]GUEST", help="Let a port of this host, on its loopback "
                                               "address, lead to one of the guest's; may be given several times.")]
    = [],  # noqa: B006
    user: Annotated[str, typer.Option(help="Who logs in; the guest's first ordinary user without it, or root.")] = "",
    memory: Annotated[str, typer.Option(help="The guest's memory, such as 2G; the recipe's, or 1G, without it.")] = "",
    firmware: Annotated[str, typer.Option(help="bios, uefi or uefi-secure; what the recipe or the image begins with, "
                                          "without it.")] = "",
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
    variant: Variant = "",
) -> int:  # fmt: skip
    """Run an image as it will run elsewhere: a throw-away copy boots, and you are logged in as its own user.

    The machine ends with the session. Without a terminal it runs until it switches itself off, or Ctrl-C or SIGTERM.
    """
    ports = _ports(forward)
    if firmware and firmware not in _FIRMWARE:
        raise usage(f"--firmware {firmware}: must be one of {', '.join(_FIRMWARE)}")
    if console and command:
        raise usage("--console shows what the machine does by itself; leave the command out")
    if console and not terminal.there():
        raise usage("--console: stdin is no terminal")
    from imagesmith.host import Host
    from imagesmith.scratch import scratch

    host, size = Host(), _bytes(memory) if memory else 0
    session = not console and (bool(command) or terminal.there())

    def connect(guest: BootedGuest) -> int:
        if session:
            return _session(guest, host, user, command or [])
        return _console(guest.machine) if console else _wait(guest.machine)

    try:
        with scratch(), _disk(target, host, parts.overrides_of(var, var_file), variant) as (found, disk, bench):
            machine = found.recipe.machine
            if size:
                machine = machine.model_copy(update={"memory": size})
            node = replace(found, recipe=replace(found.recipe, machine=machine), firmware=firmware or found.firmware)
            if not node.firmware:
                raise usage(f"{target} boots with no firmware that is known; name one with --firmware")
            with (
                tempfile.TemporaryDirectory(prefix="imagesmith-") as keep,
                bench.booted(node, disk, Path(keep), _say, control=session) as guest,
            ):
                return _run(cast("BootedGuest", guest), ports, connect)
    except KeyboardInterrupt:
        host.cancel()
        raise Interrupted("interrupted; the machine has ended, and nothing of it is kept") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ports(words: Sequence[str]) -> dict[int, int]:
    """Guest's ports -> this host's; 0 where that is to be picked."""
    found: dict[int, int] = {}
    for word in words:
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", word)
        numbers = [int(part or 0) for part in match.groups()] if match else []
        if not numbers or not all(number < 1 << 16 for number in numbers) or not numbers[1] or numbers[1] in found:
            raise usage(f"--forward {word}: write PORT:GUEST, such as 8080:80, each port of the guest's once")
        found[numbers[1]] = numbers[0]
    return found


def _bytes(word: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from imagesmith.kinds import Size

    try:
        return int(TypeAdapter(Size).validate_python(word))
    except ValidationError:
        raise usage(f"--memory {word}: write a size such as 2G") from None


@contextmanager
def _disk(target: Path, host: Host, overrides: Overrides, variant: str) -> Iterator[tuple[Node, Disk, Bench]]:
    """What to boot: a recipe's disk as it lies in the store, or an image's, imported."""
    from imagesmith.workbench import Bench

    if target.suffix in (".yaml", ".yml"):
        planned = parts.plan_of(target, overrides, variant)
        store, sealed = parts.the_store(), planned.sealed
        if sealed.gives != "disk":
            raise usage(f"{target} makes no disk, so there is no machine to run")
        with store.using(cancelled=lambda: host.cancelled) as use:
            layer = use.find(sealed.key)
            if layer is None:
                raise usage(f"{target} is not built as it stands now; build it first: imagesmith build {target}")
            below = [found.folder for found in use.store.chain(layer) if found.gives == "disk"]
            bench = Bench(store, host, epoch=planned.facts.epoch, note=_say)
            yield replace(sealed, firmware=planned.recipe.machine.firmware[0]), bench.disk(below), bench
        return
    with imported(target, host, _say) as found:
        yield found


def _run(guest: BootedGuest, ports: dict[int, int], connect: Callable[[BootedGuest], int]) -> int:
    """Connect the user; return the exit status."""
    machine = guest.machine
    for port, at in ports.items():
        address, ours = machine.forward(port, at=at)
        print(f"{address}:{ours} leads to the guest's port {port}", flush=True)
    try:
        return connect(guest)
    except GuestFailed:
        if machine.ended != "shutdown":
            raise
        _say("the guest has switched itself off")
        return 0


def _wait(machine: Machine) -> int:
    """Let it run until the user has enough of it. Raises GuestFailed where it ends by itself."""
    _say("stdin is no terminal: the machine runs until it switches itself off, or Ctrl-C")
    try:
        while True:
            machine.check()
            time.sleep(0.25)
    except KeyboardInterrupt:  # that is how it ends
        return 0


def _console(machine: Machine) -> int:
    """The serial console on the user's terminal, until Ctrl-] or the machine's end."""
    _say("the guest's serial console; Ctrl-] leaves, and ends the machine")
    wire, left = machine.console.follow(), False

    def receive() -> bytes | None:
        return None if left else wire.recv(1 << 16) or None

    def send(typed: bytes) -> None:
        nonlocal left
        before, leave, _ = typed.partition(_LEAVE)
        machine.console.type(before)
        left = left or bool(leave)

    def ended() -> bool:
        machine.check()
        return left

    with wire:
        terminal.UserTerminal().relay(wire.fileno(), receive, send, lambda rows, columns: None, ended)
    if not left:
        machine.check()
    return 0


def _session(guest: BootedGuest, host: Host, user: str, command: Sequence[str]) -> int:
    """A shell or a command over SSH; its exit status. Raises GuestFailed where the guest ends."""
    from imagesmith.drivers.ssh_shell import at_terminal
    from imagesmith.host import DEVNULL
    from imagesmith.interfaces import Connection
    from imagesmith.machine.visit import visit

    begun = time.monotonic()
    _say("waiting until it lets you in ('--console' shows its start-up) …")
    with visit(guest, host, user=user, within=_BOOT_SECONDS) as ssh:
        what = "this command" if command else "this session"
        _say(f"logged in as {ssh.user} after {time.monotonic() - begun:.0f} s; the machine ends with {what}")
        if command:
            argv = ["ssh", *ssh.arguments, "-T", f"{ssh.user}@guest", shlex.join(command)]
            # A program in the background of the terminal may write to it, and not read.
            stdin = DEVNULL if os.isatty(0) else 0
            with host.start(argv, purpose="run a command in a guest", stdin=stdin, stdout=1, stderr=2) as client:
                status = client.wait()
        else:
            connection = Connection(
                host=host, log=_say, folder=ssh.folder, user=ssh.user, name="guest", options=ssh.arguments,
                sudo_password="", left=lambda: None, check=ssh.check,
            )  # fmt: skip
            status = at_terminal(connection, terminal.UserTerminal(), [])
        if status == _LOST:
            time.sleep(1)  # the program that holds the connection ends a moment after the one that used it
        if status == _LOST and not ssh.connected:
            deadline = time.monotonic() + _OFF_SECONDS
            while time.monotonic() < deadline and not guest.machine.restarts:
                guest.machine.check()
                time.sleep(0.25)
            _say("the connection to the guest has ended")
        return status
