"""The command that opens a guest as it was after a step: in a copy that is thrown away."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from imagesmith import cli_build as parts
from imagesmith import cli_complete as complete
from imagesmith import terminal
from imagesmith.cli_build import VarFiles, Variant, Vars, usage
from imagesmith.cli_image import imported
from imagesmith.errors import Interrupted

if TYPE_CHECKING:
    from imagesmith.host import Host
    from imagesmith.interfaces import Enterable, Guest, Root
    from imagesmith.plan import Node, Plan
    from imagesmith.store import Layer, Use
    from imagesmith.workbench import Bench

_LONG = 7 * 24 * 3600.0
"""Seconds that a command may take in a booted copy."""


def shell(
    target: Annotated[Path, typer.Argument(help="A recipe, or an image in any format.",
                                           metavar="RECIPE|IMAGE")],
    command: Annotated[list[str] | None, typer.Argument(help="After --: what to run instead of a shell.",
                                                        metavar="-- COMMAND", show_default=False)] = None,
    after: Annotated[str, typer.Option(help="As it was after this step: its number or name; the last one that is "
                                       "there, without it.", show_default=False, autocompletion=complete.steps)] = "",
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
    variant: Variant = "",
) -> int:  # fmt: skip
    """Open a shell in a copy of a guest as it was after a step; what is changed there is thrown away.

    A tree is entered as it lies in the store. A disk is booted, or goes on from the checkpoint of a step in the running
    guest. With a command, its output goes to stdout, and its exit status is this one's.
    """
    if not command and not terminal.there():
        raise usage("shell: stdin is no terminal, and a shell needs one; 'imagesmith shell RECIPE -- COMMAND' runs a "
                    "command")  # fmt: skip
    from imagesmith.host import Host
    from imagesmith.scratch import scratch
    from imagesmith.workbench import Bench

    host, said = Host(), _Said()
    try:
        if target.suffix not in (".yaml", ".yml"):
            if after:
                raise usage("--after: an image has no steps")
            with scratch(), _image(target, host, said) as guest:
                return _let_in(guest, command or [], said)
        planned = parts.plan_of(target, parts.overrides_of(var, var_file), variant)
        store = parts.the_store()
        bench = Bench(store, host, epoch=planned.facts.epoch, note=said)
        with scratch(), store.using(cancelled=lambda: host.cancelled) as use:
            node, layer = _found(planned, use, after)
            with _opened(planned, node, layer, use, bench, host, said) as guest:
                return _let_in(guest, command or [], said)
    except KeyboardInterrupt:
        host.cancel()
        raise Interrupted() from None


class _Said:
    """A log: what is told on the way goes to stderr, and what a command writes to stdout."""

    def __init__(self) -> None:
        self.running = False

    def __call__(self, line: str) -> None:
        if self.running:
            print(line, flush=True)
        else:
            print(f"  | {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Open:
    """A guest that was opened: a root file system at rest or running, or a booted copy."""

    what: str
    seconds: float
    root: Root | None = None
    booted: Guest | None = None


def _let_in(guest: _Open, command: Sequence[str], said: _Said) -> int:
    print(f"{guest.what}, opened in {guest.seconds:.1f} s; what is changed in it is thrown away", file=sys.stderr)
    if not command:
        cast("Enterable", guest.root or guest.booted).shell(terminal.UserTerminal())
        return 0
    if guest.root is not None:
        said.running = True
        try:
            status = guest.root.run(command, check=False).status
        finally:
            said.running = False
    else:
        assert guest.booted is not None
        done = guest.booted.run(f"cd /root || cd /; {shlex.join(command)}", timeout=_LONG)
        print(done.output, end="", flush=True)
        status = done.status
    return 128 - status if status < 0 else status


def _found(planned: Plan, use: Use, after: str) -> tuple[Node, Layer]:
    """The node that the user means, and its layer."""
    there = [(node, layer) for node in planned.spine if (layer := use.find(node.key)) is not None]
    last = f"the last that is there is '{there[-1][0].name}'" if there else "build it first"
    if after:
        wanted = parts.step_named(planned, after, "--after")
        found = [(node, layer) for node, layer in there if node is wanted]
        if not found:
            raise usage(f"--after {after}: '{wanted.name}' is not built as the recipe stands now; {last}")
        return found[0]
    if not there:
        raise usage(f"nothing of {planned.recipe.name} is built as the recipe stands now; {last}")
    return there[-1]


@contextmanager
def _opened(
    planned: Plan, node: Node, layer: Layer, use: Use, bench: Bench, host: Host, said: _Said
) -> Iterator[_Open]:
    """Open a throw-away copy of a layer, the quickest way that there is."""
    what, begun = f"{planned.recipe.name} after '{node.name}'", time.monotonic()
    way = _way(planned, node, host)
    below = [found.folder for found in use.store.chain(layer) if found.gives == layer.gives]
    if way is None:
        with tempfile.TemporaryDirectory(prefix="imagesmith-") as keep:
            boots = replace(node, firmware=node.recipe.machine.firmware[0])
            with bench.booted(boots, bench.disk(below), Path(keep), said) as guest:
                guest.run("true", timeout=_LONG)
                yield _Open(f"{what}: a copy of its disk, booted", time.monotonic() - begun, booted=guest)
        return
    # A layer that is never finished: it goes with this process, however that ends.
    name = f"shell {use.lease}"
    with use.making(name, gives=layer.gives, name=name, parent=layer) as slot, suppress(_Over):
        driver = bench.driver(way)
        with (
            driver.session(below, epoch=planned.facts.epoch, log=said) as session,
            session.layer(slot.folder, below=below[-1], log=said) as root,
        ):
            kind = "its files" if layer.gives == "tree" else f"the running guest ({driver.name})"
            yield _Open(f"{what}: a copy of {kind}", time.monotonic() - begun, root=root)
            raise _Over  # so that nothing is kept


class _Over(Exception):
    """The user is done."""


def _way(planned: Plan, node: Node, host: Host) -> Node | None:
    """The node whose driver reaches into this one's layer; None where only its console does, once it is booted."""
    from imagesmith import secrets
    from imagesmith.kinds import Step, secrets_in
    from imagesmith.plan import ONLINE

    if node.gives == "tree":
        return replace(node, driver="native")
    login = node.recipe.login
    sealed = isinstance(node.kind, Step) and node.kind.automatic  # it has no host keys any more
    running = [other for other in planned.spine if other.driver in ONLINE and other.recipe is node.recipe]
    if sealed and (login is None or login.type != "winrm"):
        return None
    if login is None:
        return replace(node, driver=running[0].driver) if running else None
    values = secrets.resolve(node.recipe, host, secrets_in([login]))
    return replace(node, driver=login.type, recipe=replace(node.recipe, login=login.revealed(values)))


@contextmanager
def _image(path: Path, host: Host, said: Callable[[str], None]) -> Iterator[_Open]:
    """Boot a copy of an image's file."""
    begun = time.monotonic()
    with imported(path, host, said) as (found, disk, bench), tempfile.TemporaryDirectory(prefix="imagesmith-") as keep:
        node = replace(found, firmware=found.firmware or "bios")
        with bench.booted(node, disk, Path(keep), said) as guest:
            guest.run("true", timeout=_LONG)
            yield _Open(f"a copy of {path}, booted", time.monotonic() - begun, booted=guest)
