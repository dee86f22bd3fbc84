"""Outputs and checks, side by side."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Protocol, cast

from imagesmith import room
from imagesmith.engine_node import Nodes, Outcome, Work, maker_of
from imagesmith.errors import BuildError, CheckFailed, GuestFailed, ImagesmithError, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Earlier, Guest, Layered, Log
from imagesmith.kinds import Check, DiskOutput, FilesOutput, Output, digest
from imagesmith.plan import Node
from imagesmith.recipe import Entry
from imagesmith.reproduce import difference
from imagesmith.store import Layer, Use


class LeafBench(Protocol):
    """The parts that outputs and checks need."""

    def disk(self, below: Sequence[Path]) -> Disk:
        """The disk whose layers are in these folders, the oldest first."""
        ...

    def files(self, node: Node, below: Sequence[Path], log: Log) -> AbstractContextManager[Layered]:
        """The root file system of a tree or a disk, read-only."""
        ...

    def booted(self, node: Node, disk: Disk, keep: Path, log: Log) -> AbstractContextManager[Guest]:
        """A booted throw-away copy; its console's log and a screenshot are put into ``keep``."""
        ...

    def inventory(self, node: Node, below: Sequence[Path], into: Path, log: Log) -> None:
        """Put the inventory of a tree or a disk into the folder ``into``."""
        ...


class Leaves:
    """Makes what hangs on the spine's end."""

    def __init__(self, host: Host, bench: LeafBench, nodes: Nodes, *, folders: Callable[[Layer], list[Path]],
                 jobs: int, epoch: int) -> None:  # fmt: skip
        self._host, self._bench, self._nodes, self._folders = host, bench, nodes, folders
        self._jobs, self._epoch = jobs, epoch
        self._turns: dict[tuple[str, str], Lock] = {}

    def run(self, nodes: Sequence[Node], use: Use, outcome: Outcome, again: Collection[str]) -> None:
        """Make all that are given. Raises what one raised, or a BuildError that names several."""
        if not nodes:
            return
        self._check_room([node for node in nodes if node.verb == "output"], use, outcome)
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
            together.node, together.kept = ", ".join(e.node for e in failures), self._nodes.failed
            together.several = tuple(failures)
            raise together from failures[0]

    def _check_room(self, outputs: Sequence[Node], use: Use, outcome: Outcome) -> None:
        """Raises StoreError where the outputs may need more room than there is."""
        if not outputs:
            return
        held, root = dict[str, int](), os.geteuid() == 0
        packed = set[str]()  # by the appliance, for outputs of files: the whole, and what it was before the steps
        for node in outputs:
            assert node.below is not None
            below = outcome.layers[node.below.name]
            held[below.id] = sum(layer.size for layer in use.store.chain(below) if layer.gives == below.gives)
            if isinstance(node.kind, FilesOutput) and below.gives == "disk" and not (node.below.trusted and root):
                packed.add(below.id)
        last = {layer.name: layer.size for layer in use.store.layers() if layer.gives == "files"}
        failed = self._nodes.failed
        room.check([node.full_name for node in outputs], max(held.values()), last, self._jobs, use.store.root,
                   None if failed is None else failed.parent, packed=2 * sum(held[id] for id in packed))  # fmt: skip

    def again(self, nodes: Sequence[Node], use: Use, outcome: Outcome) -> list[str]:
        """Write outputs once more, using nothing of what was written before; say how each differs from the first."""
        found = []
        for node in nodes:
            assert node.below is not None
            first, below = outcome.layers[node.name].folder / "files", outcome.layers[node.below.name]
            name = f"{node.full_name} once more"
            with use.making(digest(["again", node.key]), gives="files", name=name, fresh=True) as slot:
                self._nodes.emit("note", node, text="written once more, to be compared")
                made = self._written(node, below, slot.folder, lambda line: None, None)
                for path in made:
                    if differs := difference(first / path.name, path):
                        found.append(f"{path.name}: {differs}")
        return found

    def _run_leaf(self, node: Node, use: Use, outcome: Outcome, again: Collection[str]) -> None:
        assert node.below is not None
        below = outcome.layers[node.below.name]
        with self._turn(node, below), self._nodes.node(node, use, outcome, again) as work:
            if work is None:
                return
            if node.verb == "check":
                work.facts["checks"] = self._check(node, below, work)
                self._nodes.redact(work.slot.folder / "guest")
            elif node.verb == "inventory":
                self._bench.inventory(node, self._folders(below), work.slot.folder, work.log)
            else:
                self._write(node, below, work, use)

    def _turn(self, node: Node, below: Layer) -> AbstractContextManager[object]:
        """Let outputs that can use each other's parts come one after the other."""
        sameness = node.kind.sameness if isinstance(node.kind, DiskOutput) else ""
        return self._turns.setdefault((sameness, below.id), Lock()) if sameness else nullcontext()

    def _write(self, node: Node, below: Layer, work: Work, use: Use) -> None:
        kind, earlier = cast(Output, node.kind), None
        if isinstance(kind, DiskOutput):
            if kind.sameness:
                work.facts.update(sameness=kind.sameness, disk=below.id, recipe=node.recipe.name)
                earlier = self._earlier(node, below, kind.sameness, use, work)
            work.facts["virtual_size"] = self._bench.disk(self._folders(below)).virtual_size
        made = self._written(node, below, work.slot.folder, work.log, earlier)
        work.facts["main"] = made[0].name
        work.facts["format"] = kind.label
        work.facts["files"] = [
            {"name": path.name, "size": path.stat().st_size, "sha256": _sha256(path)} for path in made
        ]

    def _written(
        self, node: Node, below: Layer, folder: Path, log: Log, earlier: Earlier | None
    ) -> Sequence[Path]:
        kind, maker, directory = self._nodes.revealed(node).kind, maker_of(node, self._epoch), folder / "files"
        directory.mkdir()
        if isinstance(kind, DiskOutput):
            disk = replace(self._bench.disk(self._folders(below)), earlier=earlier)
            return kind.write(disk, maker, directory, self._host, log)
        assert isinstance(kind, FilesOutput)
        with self._bench.files(node, self._folders(below), log) as files:
            return kind.write(files, maker, directory, self._host, log)

    def _earlier(self, node: Node, below: Layer, sameness: str, use: Use, work: Work) -> Earlier | None:
        """The artifact with this sameness whose disk has most layers in common with ours, or is of the same recipe."""
        layers = {layer.id: layer for layer in use.store.layers()}
        ours = set(_chain(below.id, layers))
        found = [
            (len(ours.intersection(_chain(str(layer.facts["disk"]), layers))), layer.made, layer)
            for layer in layers.values()
            if layer.gives == "files" and layer.facts.get("sameness") == sameness
        ]
        shared = [(common, made, layer) for common, made, layer in found
                  if common or layer.facts["recipe"] == node.recipe.name]  # fmt: skip
        if not shared:
            return None
        _, _, best = max(shared, key=lambda one: one[:2])
        if not use.keep(best):
            return None
        work.facts["made_of"] = [best.id]
        disk = layers.get(str(best.facts["disk"]))
        there = disk is not None and use.keep(disk)
        made = cast(list[dict[str, str]], best.facts["files"])
        return Earlier([best.folder / "files" / file["name"] for file in made],
                       self._bench.disk(self._folders(disk)).path if disk is not None and there else None)  # fmt: skip

    def _check(self, node: Node, below: Layer, work: Work) -> list[dict[str, object]]:
        results: list[dict[str, object]] = []
        keep = work.slot.folder / "guest"
        keep.mkdir()
        start, entered = time.monotonic(), False
        try:
            with self._bench.booted(node, self._bench.disk(self._folders(below)), keep, work.log) as guest:
                entered = True
                for entry in node.recipe.checks:
                    results.append(self._one_check(node, entry, guest))
                failed = [(r, e) for r, e in zip(results, node.recipe.checks, strict=True) if not r["passed"]]
                if failed:
                    lines = "\n".join(f"{_where(e).rpartition(':')[0]}: {r['check']}: {r['seen']}" for r, e in failed)
                    found = CheckFailed(
                        f"{len(failed)} of {len(results)} checks failed under {node.firmware}:\n{lines}"
                    )
                    found.place, found.part = _where(failed[0][1]), "check"
                    self._nodes.let_in(node, found, guest)
                    raise found
        except BuildError as error:
            if not entered:
                self._result(node, None, False, error.message, start)
            self._nodes.keep(keep, node)
            raise
        return results

    def _one_check(self, node: Node, entry: Entry[Check], guest: Guest) -> dict[str, object]:
        start, passed, seen = time.monotonic(), False, ""
        for attempt in range(entry.retries + 1):
            try:
                seen, passed = entry.kind.revealed(self._nodes.secrets(node.recipe)).check(guest), True
                break
            except GuestFailed as error:
                self._result(node, entry, False, error.message, start)
                error.place, error.part = _where(entry), "check"
                raise
            except (CheckFailed, TimedOut) as error:
                seen = str(error)
                if attempt < entry.retries:
                    time.sleep(1)
        return self._result(node, entry, passed, seen, start)

    def _result(
        self, node: Node, entry: Entry[Check] | None, passed: bool, seen: str, start: float
    ) -> dict[str, object]:
        """Tell of a check, or (without one) of a guest that did not come up; return what is kept of it."""
        result: dict[str, object] = {
            "check": entry.title if entry is not None else "the guest", "firmware": node.firmware, "passed": passed,
            "seen": self._nodes.redacted(seen), "seconds": round(time.monotonic() - start, 3),
        }  # fmt: skip
        self._nodes.emit("check", node, data=result | ({"where": _where(entry)} if entry is not None else {}))
        return result


def _where(entry: Entry[Check]) -> str:
    """File, line and column of a check."""
    return f"{entry.place.file}:{entry.place.line}:{entry.place.column}"


def _chain(top: str, layers: Mapping[str, Layer]) -> Iterator[str]:
    """The ids of a layer and of all below it, as far as they are there."""
    at: str | None = top
    while at is not None and at in layers:
        yield at
        at = layers[at].parent


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
