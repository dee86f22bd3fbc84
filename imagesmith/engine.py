"""Does what is missing: Plan -> nodes -> store. It decides nothing that the plan has not decided.

The spine is run in order, from the highest layer that is there; consecutive steps of one driver share a session, and
each still leaves its own layer. Then outputs and checks run side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, Self, cast

from imagesmith.engine_leaves import LeafBench, Leaves
from imagesmith.engine_node import Ask, Enter, Nodes, Outcome, Ways, Work
from imagesmith.errors import BuildError, StepFailed, TimedOut
from imagesmith.events import Listener, Progress
from imagesmith.host import Host
from imagesmith.interfaces import Driver, Log, Root, Running, Session
from imagesmith.kinds import Booting, Seen, Step
from imagesmith.plan import ONLINE, Node, Plan
from imagesmith.store import Layer, Store, Use

DEFAULT_TIMEOUT = 3600.0
"""Seconds that a step may take where the recipe does not say."""


class Workbench(LeafBench, Protocol):
    """The parts that do the work, put together by the caller: the engine knows none of them by name."""

    def driver(self, node: Node) -> Driver:
        """The driver that a step's node names."""
        ...

    def make_base(
        self, node: Node, into: Path, log: Log, progress: Callable[[Progress], object]
    ) -> Mapping[str, object]:
        """Make the base's layer in the empty folder ``into``; return what is worth noting of it (downloads).

        ``progress`` is told several times a second how far a download is. Where it fails, ``guest/`` in ``into`` may
        hold evidence: a console's log, pictures of a screen.
        """
        ...

    def assemble(self, node: Node, below: Sequence[Path], into: Path, log: Log) -> None:
        """Make a disk of a tree: ``below`` are the folders of its layers, the oldest first."""
        ...


class Engine:
    """Runs plans on this machine."""

    def __init__(
        self, store: Store, host: Host, bench: Workbench, tell: Listener, *, jobs: int = 2,
        epoch: int = 0, ask: Ask, failed: Path | None = None, checkpoints: bool = True, enter: Enter | None = None,
        ways: Ways = lambda node, error: (),
    ) -> None:  # fmt: skip
        self._store, self._bench, self._epoch, self._checkpoints = store, bench, epoch, checkpoints
        self._nodes = Nodes(tell, ask=ask, failed=failed, enter=enter, ways=ways)
        self._closing: Closing
        self._leaves = Leaves(host, bench, self._nodes, folders=self._folders, jobs=max(1, jobs), epoch=epoch)

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self, plan: Plan, use: Use, *, fresh: Collection[str] = ()) -> Outcome:
        """Do what is missing. ``fresh`` names nodes that run even though they are there, with all that follow them.

        Raises what a node raised, with the node's name in it; where several failed side by side, a BuildError that
        names them all.
        """
        outcome, start = Outcome(), time.monotonic()
        again = with_followers(plan, fresh)
        for node in plan.nodes:
            if node.name not in again and (layer := use.find(node.key)) is not None:
                outcome.layers[node.name] = layer
                self._nodes.cached(self._store, node, layer)
        self._nodes.ask_for_secrets([node for node in plan.nodes if node.name not in outcome.layers])
        last = () if plan.inventory is None else (plan.inventory,)
        leaves = [node for node in (*plan.checks, *plan.outputs, *last) if node.name not in outcome.layers]
        wanted = {id(node.below) for node in leaves}
        if not plan.checks and not plan.outputs:
            wanted = {id(plan.sealed)}
        with Closing(use) as self._closing:
            for node in plan.spine:
                if id(node) in wanted:
                    self._run_chain(node.chain, use, outcome, again)
            self._leaves.run(leaves, use, outcome, again)
        outcome.seconds = time.monotonic() - start
        return outcome

    def verify_reproducible(self, plan: Plan, use: Use, outcome: Outcome) -> None:
        """Write all artifacts once more. Raises BuildError that names the first difference in each that has one."""
        found = self._leaves.again(plan.outputs, use, outcome)
        if found:
            raise BuildError("written twice, these are not the same:\n" + "\n".join(found),
                             hint="please report it, with the recipe and the manifest")  # fmt: skip

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
                with self._nodes.node(node, use, outcome, again) as work:
                    if work is not None:
                        self._run_single(node, work, outcome)
                position += 1

    def _run_single(self, node: Node, work: Work, outcome: Outcome) -> None:
        if node.verb == "base":
            try:
                facts = self._bench.make_base(self._nodes.revealed(node), work.slot.folder, work.log, work.progress)
            except BuildError:
                if (work.slot.folder / "guest").exists():  # an installation left its console and pictures
                    self._nodes.keep(work.slot.folder / "guest", node)
                raise
            work.facts.update(cast(Mapping[str, object], self._nodes.without_secrets(facts)))
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

        with self._closing.session() as stack:
            session: Session | None = None
            for count, node in enumerate(nodes):
                entry = node.entry
                assert entry is not None
                for attempt in range(entry.retries, -1, -1):
                    try:
                        with self._nodes.node(node, use, outcome, again, left=attempt) as work:
                            if work is None:  # another build made it meanwhile: go on from its layer
                                return count + 1
                            now[:] = [work.log]
                            if session is None:
                                driver = self._bench.driver(self._nodes.with_login(node))
                                opening = driver.session(folders, epoch=self._epoch, log=current)
                                session = stack.enter_context(opening)
                            below = self._folders(outcome.layers[node.below.name])[-1] if node.below else folders[-1]
                            timeout = entry.step.timeout or DEFAULT_TIMEOUT
                            with session.layer(work.slot.folder, below=below, log=work.log, timeout=timeout,
                                               resumable=self._checkpoints and node.resumable) as root:  # fmt: skip
                                try:
                                    seen = self._apply(node, root)
                                except (BuildError, OSError) as error:
                                    if not (attempt and isinstance(error, StepFailed | TimedOut)):
                                        self._nodes.let_in(node, error, root)
                                    raise
                                if seen:
                                    work.facts["seen"] = self._nodes.without_secrets(seen)
                        if node.driver in ONLINE:
                            self._closing.made(outcome.layers[node.name])
                        break
                    except (StepFailed, TimedOut) as error:
                        if not attempt:
                            raise
                        said = error.message.splitlines()[0].rstrip(":")
                        self._nodes.emit("note", node, text=f"{said}; trying again ({attempt} left)")
        return len(nodes)

    def _apply(self, node: Node, root: Root) -> Seen | None:
        if node.entry is not None and node.entry.step.expect_disconnect:
            cast(Running, root).expect_disconnect()
        return cast(Step, self._nodes.revealed(node).kind).apply(root)


class Closing:
    """Sessions whose layers are finished, ended while the build goes on: a guest's state takes its time to be kept."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self._pool = ThreadPoolExecutor(thread_name_prefix="closing")
        self._ends: list[Future[None]] = []
        self._layers: list[Layer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait for all. Raises what went wrong at their ends, unless something else has."""
        self._pool.shutdown()
        if self._layers:
            store = self._use.store
            with store.index.change():
                for layer in self._layers:
                    store.index.resize(layer, store.measure(layer.folder))
        for end in self._ends:
            if exc[0] is None:
                end.result()

    def made(self, layer: Layer) -> None:
        """Note a layer that a session made: what is beside it may grow until the session has ended."""
        self._layers.append(layer)

    @contextmanager
    def session(self) -> Iterator[ExitStack]:
        """What is to be left when the session ends: aside where it ended well, at once where it failed."""
        with ExitStack() as stack:
            yield stack
            self._ends.append(self._pool.submit(stack.pop_all().close))


def with_followers(plan: Plan, fresh: Collection[str]) -> set[str]:
    """The names of the nodes in ``fresh``, of steps with ``cache: false``, and of all that follow them."""
    found: set[str] = set()
    for node in plan.nodes:
        own = node.name in fresh or (node.entry is not None and not node.entry.step.cache)
        if own or (node.below is not None and node.below.name in found):
            found.add(node.name)
    return found
