"""Does what is missing: Plan -> nodes -> store. It decides nothing that the plan has not decided.

The spine is run in order, from the highest layer that is there; consecutive steps of one driver share a session, and
each still leaves its own layer. Then outputs and checks run side by side.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

from imagesmith.errors import BuildError, CheckFailed, GuestFailed, ImagesmithError, StepFailed, TimedOut
from imagesmith.events import Event, Listener
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Driver, Files, Guest, Log, Maker, Running, Session
from imagesmith.kinds import Booting, Check, DiskOutput, FilesOutput, Step, secrets_in
from imagesmith.plan import ONLINE, Node, Plan
from imagesmith.recipe import Entry, Recipe
from imagesmith.store import Layer, Slot, Store, Use

DEFAULT_TIMEOUT = 3600.0
"""Seconds that a step may take where the recipe does not say."""


class Workbench(Protocol):
    """The parts that do the work, put together by the caller: the engine knows none of them by name."""

    def driver(self, node: Node) -> Driver:
        """The driver that a step's node names."""
        ...

    def make_base(self, node: Node, into: Path, log: Log) -> Mapping[str, object]:
        """Make the base's layer in the empty folder ``into``; return what is worth noting of it (downloads).

        Where it fails, ``guest/`` in it may hold evidence: a console's log, pictures of a screen.
        """
        ...

    def assemble(self, node: Node, below: Sequence[Path], into: Path, log: Log) -> None:
        """Make a disk of a tree: ``below`` are the folders of its layers, the oldest first."""
        ...

    def disk(self, folder: Path) -> Disk:
        """The disk whose layer is in ``folder``."""
        ...

    def files(self, node: Node, below: Sequence[Path], log: Log) -> AbstractContextManager[Files]:
        """The root file system of a tree or a disk, read-only."""
        ...

    def booted(self, node: Node, disk: Disk, keep: Path, log: Log) -> AbstractContextManager[Guest]:
        """A booted throw-away copy; where it fails, the console log and a screenshot are put into ``keep``."""
        ...


@dataclass
class Outcome:
    """What a build came to."""

    layers: dict[str, Layer] = field(default_factory=dict)
    """Node's name -> its layer, for all nodes that were needed."""
    ran: dict[str, float] = field(default_factory=dict)
    """Node's name -> seconds, for those that ran."""
    seconds: float = 0.0


class Engine:
    """Runs plans on this machine."""

    def __init__(
        self, store: Store, host: Host, bench: Workbench, tell: Listener, *, jobs: int = 2,
        epoch: int = 0, ask: Callable[[Recipe, Collection[str]], Mapping[str, str]], failed: Path | None = None,
        checkpoints: bool = True,
    ) -> None:  # fmt: skip
        self._store, self._host, self._bench, self._tell = store, host, bench, tell
        self._jobs = max(1, jobs)
        self._ask, self._checkpoints = ask, checkpoints
        self._secrets: dict[Path, Mapping[str, str]] = {}
        self._hidden: list[str] = []
        self._epoch = epoch
        self._failed = failed
        self._lock = threading.Lock()

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self, plan: Plan, use: Use, *, fresh: Collection[str] = ()) -> Outcome:
        """Do what is missing. ``fresh`` names nodes that run even though they are there, with all that follow them.

        Raises what a node raised, with the node's name in it; where several failed side by side, a BuildError that
        names them all.
        """
        outcome, start = Outcome(), time.monotonic()
        again = _with_followers(plan, fresh)
        for node in plan.nodes:
            if node.name not in again and (layer := use.find(node.key)) is not None:
                outcome.layers[node.name] = layer
                self._emit("node-cached", node)
        self._ask_for_secrets([node for node in plan.nodes if node.name not in outcome.layers])
        leaves = [node for node in (*plan.checks, *plan.outputs) if node.name not in outcome.layers]
        wanted = {id(node.below) for node in leaves}
        if not plan.checks and not plan.outputs:
            wanted = {id(plan.sealed)}
        for node in plan.spine:
            if id(node) in wanted:
                self._run_chain(node.chain, use, outcome, again)
        self._run_leaves(leaves, use, outcome, again)
        outcome.seconds = time.monotonic() - start
        return outcome

    def _ask_for_secrets(self, nodes: Sequence[Node]) -> None:
        """Have the secrets of what will run, so that none is missed after an hour; a recipe's own are for its nodes."""
        for recipe in {node.recipe.path: node.recipe for node in nodes}.values():
            own = [node for node in nodes if node.recipe is recipe]
            checks = [entry.kind for entry in recipe.checks] if any(node.verb == "check" for node in own) else []
            login = [recipe.login] if any(node.driver in ONLINE for node in own) else []
            names = secrets_in([*(node.kind for node in own), *checks, *login])
            self._secrets[recipe.path] = self._ask(recipe, names)
        values = [value for found in self._secrets.values() for value in found.values()]
        parts = {value for value in values if value} | {p for v in values for p in v.splitlines() if len(p) >= 4}
        self._hidden = sorted(parts, key=lambda part: (-len(part), part))

    # -- the spine -----------------------------------------------------------------------------------------------

    def _run_chain(self, chain: Sequence[Node], use: Use, outcome: Outcome, again: Collection[str]) -> None:
        """Make the last node of a chain, from the highest that is there."""
        position = max((index + 1 for index, node in enumerate(chain) if node.name in outcome.layers), default=0)
        while position < len(chain):
            node = chain[position]
            if node.verb == "step":
                end = position
                while end < len(chain) and (chain[end].verb, chain[end].driver, chain[end].gives) == (
                    "step", node.driver, node.gives):  # fmt: skip
                    if end > position and isinstance(chain[end].kind, Booting):
                        break  # another recipe's guest: its own machine, entered in its own way
                    end += 1
                position += self._run_steps(chain[position:end], use, outcome, again)
            else:
                with self._node(node, use, outcome, again) as work:
                    if work is not None:
                        self._run_single(node, work, outcome)
                position += 1

    def _run_single(self, node: Node, work: _Work, outcome: Outcome) -> None:
        if node.verb == "base":
            try:
                facts = self._bench.make_base(self._revealed(node), work.slot.folder, work.log)
            except BuildError:
                if (work.slot.folder / "guest").exists():  # an installation left its console and pictures
                    self._keep(work.slot.folder / "guest")
                raise
            work.facts.update(cast(Mapping[str, object], self._without_secrets(facts)))
        else:
            assert node.below is not None
            self._bench.assemble(node, self._folders(outcome.layers[node.below.name]), work.slot.folder, work.log)

    def _folders(self, layer: Layer) -> list[Path]:
        chain = self._store.chain(layer)
        return [below.folder for below in chain if below.gives == layer.gives]

    def _run_steps(self, nodes: Sequence[Node], use: Use, outcome: Outcome, again: Collection[str]) -> int:
        """Run consecutive steps in one session; return how many are done (fewer when another build did one)."""
        assert nodes[0].below is not None
        folders = self._folders(outcome.layers[nodes[0].below.name])
        now: list[Log] = []  # the log of the node at work: the session outlives each of them

        def current(line: str) -> None:
            now[0](line)

        with ExitStack() as stack:
            session: Session | None = None
            for count, node in enumerate(nodes):
                entry = node.entry
                assert entry is not None
                for attempt in range(entry.retries, -1, -1):
                    try:
                        with self._node(node, use, outcome, again) as work:
                            if work is None:  # another build made it meanwhile: go on from its layer
                                return count + 1
                            now[:] = [work.log]
                            if session is None:
                                driver = self._bench.driver(self._with_login(node))
                                opening = driver.session(folders, epoch=self._epoch, log=current)
                                session = stack.enter_context(opening)
                            below = self._folders(outcome.layers[node.below.name])[-1] if node.below else folders[-1]
                            timeout = entry.step.timeout or DEFAULT_TIMEOUT
                            with session.layer(work.slot.folder, below=below, log=work.log, timeout=timeout,
                                               resumable=self._checkpoints and node.resumable) as root:  # fmt: skip
                                if entry.step.expect_disconnect:
                                    cast(Running, root).expect_disconnect()
                                seen = cast(Step, self._revealed(node).kind).apply(root)
                                if seen:
                                    work.facts["seen"] = self._without_secrets(seen)
                        break
                    except (StepFailed, TimedOut) as error:
                        if not attempt:
                            raise
                        said = error.message.splitlines()[0]
                        self._emit("note", node, text=f"{said}; trying again ({attempt} left)")
        return len(nodes)

    # -- the leaves ----------------------------------------------------------------------------------------------

    def _run_leaves(self, nodes: Sequence[Node], use: Use, outcome: Outcome, again: Collection[str]) -> None:
        if not nodes:
            return
        failures: list[ImagesmithError] = []
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="leaf")
        try:
            waiting: set[Future[None]] = {pool.submit(self._run_leaf, node, use, outcome, again) for node in nodes}
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        future.result()
                    except ImagesmithError as error:
                        failures.append(error)
        except BaseException:
            self._host.cancel()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        if len(failures) == 1:
            raise failures[0]
        if failures:
            failures.sort(key=lambda error: error.node)
            together = BuildError("\n".join(f"{e.node}: {e.message}" for e in failures))
            together.node, together.kept = ", ".join(e.node for e in failures), self._failed
            raise together from failures[0]

    def _run_leaf(self, node: Node, use: Use, outcome: Outcome, again: Collection[str]) -> None:
        assert node.below is not None
        with self._node(node, use, outcome, again) as work:
            if work is None:
                return
            below = outcome.layers[node.below.name]
            if node.verb == "check":
                work.facts["checks"] = self._check(node, below, work)
            else:
                self._write(node, below, work)

    def _write(self, node: Node, below: Layer, work: _Work) -> None:
        recipe, machine = node.recipe, node.recipe.machine
        maker = Maker(
            name=recipe.name, version=recipe.version, description=recipe.description, arch=recipe.arch,
            epoch=self._epoch, seed=node.key, cpus=machine.cpus, memory=machine.memory, firmware=machine.firmware,
        )  # fmt: skip
        kind = self._revealed(node).kind
        directory = work.slot.folder / "files"
        directory.mkdir()
        if isinstance(kind, DiskOutput):
            disk = self._bench.disk(below.folder)
            made = kind.write(disk, maker, directory, self._host, work.log)
            work.facts["virtual_size"] = disk.virtual_size
        else:
            assert isinstance(kind, FilesOutput)
            with self._bench.files(node, self._folders(below), work.log) as files:
                made = kind.write(files, maker, directory, self._host, work.log)
        work.facts["main"] = made[0].name
        work.facts["format"] = kind.label
        work.facts["files"] = [
            {"name": path.name, "size": path.stat().st_size, "sha256": _sha256(path)} for path in made
        ]

    def _check(self, node: Node, below: Layer, work: _Work) -> list[dict[str, object]]:
        results: list[dict[str, object]] = []
        keep = work.slot.folder / "guest"
        keep.mkdir()
        start, entered = time.monotonic(), False
        try:
            with self._bench.booted(node, self._bench.disk(below.folder), keep, work.log) as guest:
                entered = True
                for entry in node.recipe.checks:
                    results.append(self._one_check(node, entry, guest))
                failed = [r for r in results if not r["passed"]]
                if failed:
                    lines = "\n".join(f"{r['check']}: {r['seen']}" for r in failed)
                    raise CheckFailed(f"{len(failed)} of {len(results)} checks failed under {node.firmware}:\n{lines}")
        except BuildError as error:
            if not entered:
                self._result(node, "the guest", False, error.message, start)
            self._keep(keep)
            raise
        return results

    def _one_check(self, node: Node, entry: Entry[Check], guest: Guest) -> dict[str, object]:
        start, passed, seen = time.monotonic(), False, ""
        for attempt in range(entry.retries + 1):
            try:
                seen, passed = entry.kind.revealed(self._secrets[node.recipe.path]).check(guest), True
                break
            except GuestFailed as error:
                self._result(node, entry.title, False, error.message, start)
                raise
            except (CheckFailed, TimedOut) as error:
                seen = str(error)
                if attempt < entry.retries:
                    time.sleep(1)
        return self._result(node, entry.title, passed, seen, start)

    def _result(self, node: Node, title: str, passed: bool, seen: str, start: float) -> dict[str, object]:
        result: dict[str, object] = {
            "check": title, "firmware": node.firmware, "passed": passed, "seen": self._redacted(seen),
            "seconds": round(time.monotonic() - start, 3),
        }  # fmt: skip
        self._emit("check", node, data=result)
        return result

    # -- one node ------------------------------------------------------------------------------------------------

    @contextmanager
    def _node(self, node: Node, use: Use, outcome: Outcome, again: Collection[str]) -> Iterator[_Work | None]:
        """Make one node's layer, or give None where another build made it while we waited."""
        below = outcome.layers[node.below.name] if node.below else None
        parent = below if below is not None and below.gives == node.gives else None
        waiting = lambda: self._emit("note", node, text="another build is making it; waiting")  # noqa: E731
        with use.making(node.key, gives=node.gives, name=node.full_name, parent=parent, waiting=waiting,
                        fresh=node.name in again) as slot:  # fmt: skip
            if slot.layer is not None:
                outcome.layers[node.name] = slot.layer
                self._emit("node-cached", node)
                yield None
                return
            start = time.monotonic()
            self._emit("node-start", node)
            with (slot.folder / "log").open("w", encoding="utf-8") as stream:
                work = _Work(slot, self._logger(node, stream.write))
                try:
                    yield work
                except (ImagesmithError, OSError) as caught:
                    error = caught if isinstance(caught, ImagesmithError) else BuildError(str(caught))
                    seconds = time.monotonic() - start
                    error.node, error.kept = error.node or node.name, self._failed
                    if node.place_in_recipe is not None:
                        place = node.place_in_recipe
                        error.place = f"{place.file}:{place.line}:{place.column}"
                    error.message, error.hint = self._redacted(error.message), self._redacted(error.hint)
                    stream.flush()
                    self._keep(slot.folder / "log", node.name)
                    tail = (slot.folder / "log").read_text("utf-8").splitlines()[-20:]
                    self._emit("node-failed", node, seconds=seconds, error=error.message, tail=tail)
                    if error is caught:
                        raise
                    raise error from caught
            seconds = time.monotonic() - start
            work.facts.update(seconds=round(seconds, 3), options=node.options, verb=node.verb, place=node.place)
            layer = slot.commit(work.facts)
            with self._lock:
                outcome.layers[node.name] = layer
                outcome.ran[node.name] = seconds
            self._emit("node-done", node, seconds=seconds)
            for file in cast(list[dict[str, object]], work.facts.get("files", [])):
                self._emit("artifact", node, data={**file, "format": work.facts["format"]})

    def _logger(self, node: Node, write: Callable[[str], object]) -> Log:
        def log(line: str) -> None:
            line = self._redacted(line)
            write(line + "\n")
            self._emit("node-log", node, line=line)

        return log

    def _without_secrets(self, value: object) -> object:
        if isinstance(value, str):
            return self._redacted(value)
        if isinstance(value, Mapping):
            return {self._redacted(str(key)): self._without_secrets(item) for key, item in value.items()}
        return [self._without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _redacted(self, text: str) -> str:
        for part in self._hidden:
            text = text.replace(part, "***")
        return text

    def _revealed(self, node: Node) -> Node:
        secrets = self._secrets.get(node.recipe.path)
        return replace(node, kind=node.kind.revealed(secrets)) if secrets and node.kind is not None else node

    def _with_login(self, node: Node) -> Node:
        """A node whose recipe's login has its secrets."""
        secrets, login = self._secrets.get(node.recipe.path), node.recipe.login
        if not secrets or login is None or node.driver not in ONLINE:
            return node
        return replace(node, recipe=replace(node.recipe, login=login.revealed(secrets)))

    def _keep(self, source: Path, name: str = "") -> None:
        """Save what tells of a failure, a log or a folder of evidence, where the user finds it."""
        if self._failed is None:
            return
        with suppress(OSError):  # the failure itself is what must be told
            self._failed.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                shutil.copyfile(source, self._failed / f"{slug(name)}.log")
            else:
                shutil.copytree(source, self._failed, dirs_exist_ok=True, copy_function=self._copy)

    def _copy(self, source: str, target: str) -> None:
        """Copy a file of evidence, without the secrets that a guest may have shown on its console."""
        content = Path(source).read_bytes()
        for part in self._hidden:
            content = content.replace(part.encode(), b"***")
        Path(target).write_bytes(content)

    def _emit(
        self, event: str, node: Node, *, seconds: float | None = None, data: Mapping[str, object] | None = None,
        **more: object,
    ) -> None:  # fmt: skip
        self._tell(Event(event, node.recipe.name, node.name, node.key, seconds, {**(data or {}), **more}))


@dataclass
class _Work:
    slot: Slot
    log: Log
    facts: dict[str, object] = field(default_factory=dict)


def _with_followers(plan: Plan, fresh: Collection[str]) -> set[str]:
    """The names of the nodes in ``fresh``, of steps with ``cache: false``, and of all that follow them."""
    found: set[str] = set()
    for node in plan.nodes:
        own = node.name in fresh or (node.entry is not None and not node.entry.step.cache)
        if own or (node.below is not None and node.below.name in found):
            found.add(node.name)
    return found


def slug(name: str) -> str:
    """A node's name as a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())[:60]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

