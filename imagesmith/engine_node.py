"""One node's work: its slot in the store, its log, the secrets that it is given and that nobody is shown."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, cast

from imagesmith import history
from imagesmith.advice import advice
from imagesmith.errors import BuildError, ImagesmithError, StepFailed, TimedOut
from imagesmith.events import Event, Listener, Progress
from imagesmith.history import Past
from imagesmith.interfaces import Enterable, Log, Maker, Terminal
from imagesmith.kinds import secrets_in
from imagesmith.plan import ONLINE, Node
from imagesmith.recipe import Recipe
from imagesmith.store import Layer, Slot, Store, Use

Enter = Callable[[Node, ImagesmithError, Callable[[Terminal], None]], None]
"""Lets the user into the guest of a node that failed: the node, what it failed of, and what opens the guest."""
Ask = Callable[[Recipe, Collection[str]], Mapping[str, str]]
"""Gives the values of a recipe's secrets, by their names."""
Ways = Callable[[Node, ImagesmithError], Sequence[str]]
"""Gives the command lines by which the user may look around where a node failed."""
_TAIL = 20
"""Lines of a node's log that are told where it fails."""


@dataclass
class Outcome:
    """What a build came to."""

    layers: dict[str, Layer] = field(default_factory=dict)
    """Node's name -> its layer, for all nodes that were needed."""
    ran: dict[str, float] = field(default_factory=dict)
    """Node's name -> seconds, for those that ran."""
    seconds: float = 0.0


@dataclass
class Work:
    """A node that is being made."""

    slot: Slot
    log: Log
    progress: Callable[[Progress], object] = lambda progress: None
    """Takes word of how far a download is."""
    facts: dict[str, object] = field(default_factory=dict)
    """What is noted beside its layer."""


def maker_of(node: Node, epoch: int) -> Maker:
    """What an output's node is told of the image besides the image itself."""
    recipe, machine = node.recipe, node.recipe.machine
    return Maker(
        name=recipe.name, version=recipe.version, description=recipe.description, arch=recipe.arch, epoch=epoch,
        seed=node.key, cpus=machine.cpus, memory=machine.memory, firmware=machine.firmware,
    )


class Nodes:
    """Opens nodes for the work on them, and tells of it."""

    def __init__(self, tell: Listener, *, ask: Ask, failed: Path | None, enter: Enter | None = None,
                 ways: Ways = lambda node, error: ()) -> None:  # fmt: skip
        self._tell, self._ask, self.failed, self._enter, self._ways = tell, ask, failed, enter, ways
        self._entered: set[str] = set()
        self._evidence: dict[str, list[Path]] = {}
        self._secrets: dict[Path, Mapping[str, str]] = {}
        self._hidden: list[str] = []
        self._lock = threading.Lock()

    def ask_for_secrets(self, nodes: Sequence[Node]) -> None:
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

    @contextmanager
    def node(
        self, node: Node, use: Use, outcome: Outcome, again: Collection[str], *, left: int = 0
    ) -> Iterator[Work | None]:
        """Make one node's layer, or give None where another build made it while we waited.

        ``left``: how often it will be tried again where a program of it fails or is late.
        """
        below = outcome.layers[node.below.name] if node.below else None
        parent = below if below is not None and below.gives == node.gives else None
        waiting = lambda: self.emit("note", node, text="another build is making it; waiting")  # noqa: E731
        with use.making(node.key, gives=node.gives, name=node.full_name, parent=parent, waiting=waiting,
                        fresh=node.name in again) as slot:  # fmt: skip
            if slot.layer is not None:
                outcome.layers[node.name] = slot.layer
                self.cached(use.store, node, slot.layer)
                yield None
                return
            start = time.monotonic()
            self.emit("node-start", node)
            # A line at a time, so that it can be followed where it is written.
            with (slot.folder / "log").open("w", encoding="utf-8", buffering=1) as stream:
                tell = lambda progress: self.emit("progress", node, data=progress.plain())  # noqa: E731
                work = Work(slot, self._logger(node, stream), tell)
                try:
                    yield work
                except (ImagesmithError, OSError) as caught:
                    error = caught if isinstance(caught, ImagesmithError) else BuildError(str(caught))
                    self._failed(node, error, slot.folder / "log", time.monotonic() - start,
                                 left if isinstance(error, StepFailed | TimedOut) else 0)  # fmt: skip
                    if self._enter is not None and node.name not in self._entered:
                        self.emit("note", node, text="no shell is opened: no guest of it is left to be entered")
                    if error is caught:
                        raise
                    raise error from caught
            seconds = time.monotonic() - start
            work.facts.update(seconds=round(seconds, 3), options=node.options, verb=node.verb, place=node.place,
                              world=node.world)  # fmt: skip
            if below is not None:  # should that turn out to be damaged, this is worth nothing (store_care)
                work.facts["made_of"] = [below.id, *cast(list[str], work.facts.get("made_of", []))]
            files = cast(list[dict[str, object]], work.facts.get("files", []))
            layer = slot.commit(work.facts, digests={f"files/{file['name']}": str(file["sha256"]) for file in files})
            self._remember(use.store, node, seconds)
            with self._lock:
                outcome.layers[node.name] = layer
                outcome.ran[node.name] = seconds
            self.emit("node-done", node, seconds=seconds)
            for file in files:
                self.emit("artifact", node, data={**file, "format": work.facts["format"]})

    def _failed(self, node: Node, error: ImagesmithError, log: Path, seconds: float, left: int) -> None:
        """Give an error all that is to be told of it, and tell of it."""
        self.keep(log, node, name=f"{slug(node.name)}.log")
        tail = log.read_text("utf-8").splitlines()[-_TAIL:]
        place, error.node, error.kept = node.place_in_recipe, error.node or node.name, self.failed
        if place is not None and place.path and not error.place:
            error.place, error.part = f"{place.file}:{place.line}:{place.column}", _part(node)
        error.message = self.redacted(error.message)
        if "\n" not in error.message.strip():
            seen = str(getattr(error, "tail", "")).strip("\n").splitlines() or tail
            error.last = tuple(self.redacted(line) for line in seen[-_TAIL:])
        error.hint = self.redacted(error.hint) or advice("\n".join([error.message, *error.last]))
        error.evidence = tuple(self._evidence.get(node.name, ()))
        error.ways = tuple(self.redacted(way) for way in self._ways(node, error))
        more = {"where": error.place, "hint": error.hint, "kept": [str(path) for path in error.evidence],
                "shell": list(error.ways), "left": left}  # fmt: skip
        found = {name: value for name, value in more.items() if value}
        self.emit("node-failed", node, seconds=seconds, data={"error": error.message, "tail": tail, **found})

    def cached(self, store: Store, node: Node, layer: Layer) -> None:
        """Tell that a node is there already."""
        known = history.recall(store.root, node.place)
        if known is None or known.key != node.key:  # another recipe made it, or an earlier state of this one
            self._remember(store, node, float(str(layer.facts.get("seconds", 0))))
        self.emit("node-cached", node)

    def _remember(self, store: Store, node: Node, seconds: float) -> None:
        below, under = (node.below.key, node.below.name) if node.below is not None else ("", "")
        past = Past(node.key, node.name, node.options, node.world, below, under, seconds)
        history.note(store.root, node.place, past)

    def _logger(self, node: Node, stream: TextIO) -> Log:
        def log(line: str) -> None:
            line = self.redacted(line)
            with suppress(ValueError):  # the layer may be finished, and its log closed: it is told all the same
                stream.write(line + "\n")
            self.emit("node-log", node, line=line)

        return log

    def without_secrets(self, value: object) -> object:
        """What is to be noted (text, mappings, lists), with secrets' values starred out."""
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, Mapping):
            return {self.redacted(str(key)): self.without_secrets(item) for key, item in value.items()}
        return [self.without_secrets(item) for item in value] if isinstance(value, (list, tuple)) else value

    def redacted(self, text: str) -> str:
        """A text with secrets' values starred out."""
        for part in self._hidden:
            text = text.replace(part, "***")
        return text

    def secrets(self, recipe: Recipe) -> Mapping[str, str]:
        """The values of a recipe's secrets that its nodes need."""
        return self._secrets[recipe.path]

    def revealed(self, node: Node) -> Node:
        """A node whose options have their secrets."""
        secrets = self._secrets.get(node.recipe.path)
        return replace(node, kind=node.kind.revealed(secrets)) if secrets and node.kind is not None else node

    def with_login(self, node: Node) -> Node:
        """A node whose recipe's login has its secrets."""
        secrets, login = self._secrets.get(node.recipe.path), node.recipe.login
        if not secrets or login is None or node.driver not in ONLINE:
            return node
        return replace(node, recipe=replace(node.recipe, login=login.revealed(secrets)))

    def let_in(self, node: Node, caught: ImagesmithError | OSError, guest: object) -> None:
        """Let the user into what a failing node has open, where the user wants that."""
        if self._enter is None:
            return
        self._entered.add(node.name)
        error = BuildError(self.redacted(str(caught)))
        try:
            self._enter(node, error, cast(Enterable, guest).shell)
        except (BuildError, OSError) as why:
            self.emit("note", node, text=f"no shell could be opened: {self.redacted(str(why))}")

    def keep(self, source: Path, node: Node, *, name: str = "") -> None:
        """Save what tells of a node's failure where the user finds it: a log as ``name``, or a folder of evidence."""
        if self.failed is None:
            return
        with self._lock, suppress(OSError):  # the failure itself is what must be told
            if not self._evidence:  # what an earlier build left tells of another failure
                shutil.rmtree(self.failed, ignore_errors=True)
            found = self._evidence.setdefault(node.name, [])
            self.failed.mkdir(parents=True, exist_ok=True)
            if name:
                shutil.copyfile(source, self.failed / name)
                found.append(self.failed / name)
            else:
                shutil.copytree(source, self.failed, dirs_exist_ok=True, copy_function=self._copy)
                found += sorted(self.failed / path.relative_to(source) for path in source.rglob("*") if path.is_file())
            self._evidence[node.name] = list(dict.fromkeys(found))

    def redact(self, folder: Path) -> None:
        """Take secrets' values out of the files in a folder that is kept."""
        for path in folder.iterdir():
            self._copy(str(path), str(path))

    def _copy(self, source: str, target: str) -> None:
        """Copy a file of evidence, without the secrets that a guest may have shown on its console."""
        content = Path(source).read_bytes()
        for part in self._hidden:
            content = content.replace(part.encode(), b"***")
        Path(target).write_bytes(content)

    def emit(
        self, event: str, node: Node, *, seconds: float | None = None, data: Mapping[str, object] | None = None,
        **more: object,
    ) -> None:  # fmt: skip
        """Tell of a node."""
        self._tell(Event(event, node.recipe.name, node.name, node.key, seconds, {**(data or {}), **more}))


def _part(node: Node) -> str:
    """What a node is of its recipe, for people."""
    return f"step {node.number} of {len(node.recipe.steps)}" if node.number else node.verb


def slug(name: str) -> str:
    """A node's name as a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())[:60]
