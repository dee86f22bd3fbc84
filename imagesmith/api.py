"""Images built from Python::

    import imagesmith

    recipe = imagesmith.load("web.yaml", variables={"greeting": "Hello"})
    plan = imagesmith.make_plan(recipe, only=["qcow2"])
    result = imagesmith.build(plan, "output", listen=lambda event: print(event.event, event.node))
    for artifact in result.artifacts:
        print(artifact.path, artifact.sha256)

What goes wrong is an exception of the tree in ``errors``. The command does the same through the same functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from imagesmith import digests, history
from imagesmith import plan as planning
from imagesmith import recipe as recipes
from imagesmith.errors import BuildError, ImagesmithError, Interrupted, RecipeError
from imagesmith.events import Event, Listener
from imagesmith.plan import DEFAULT_EPOCH, Facts, Plan
from imagesmith.recipe import Overrides, Recipe

if TYPE_CHECKING:
    from imagesmith.engine_node import Enter, Outcome, Ways
    from imagesmith.remote.shared import Shared
    from imagesmith.store import Store

__all__ = [
    "Artifact", "BuildError", "CheckResult", "Event", "ImagesmithError", "Interrupted", "Listener", "Plan", "Recipe",
    "RecipeError", "Result", "build", "load", "load_all", "make_plan",
]  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """A file in the output folder. An output may have several; its main one comes first."""

    path: Path
    format: str
    """The output, as the manifest names it: ``qcow2``, ``libvirt.box`` …"""
    size: int
    """Bytes."""
    sha256: str
    proven: str
    """How it was proven, in words: ``5 checks under bios``, ``not booted``."""
    seconds: float
    """What making it took, when it was made."""


@dataclass(frozen=True)
class CheckResult:
    """A check that holds. (One that does not ends the build with CheckFailed.)"""

    check: str
    firmware: str
    """What the image was booted with: ``bios``, ``uefi`` or ``uefi-secure``."""
    seen: str


@dataclass(frozen=True)
class Result:
    """What a build came to."""

    folder: Path | None
    """The output folder; None where nothing was to be put into one."""
    artifacts: tuple[Artifact, ...]
    checks: tuple[CheckResult, ...]
    ran: tuple[str, ...]
    """The names of the nodes that ran; the others were in the store."""
    changed: bool
    """Whether the output folder was touched; without one, whether any node ran."""
    seconds: float


def load(
    path: str | Path, *, variables: Mapping[str, str] | None = None, variable_files: Sequence[str | Path] = (),
    variant: str = "",
) -> Recipe:  # fmt: skip
    """Read a recipe; of one that has a matrix, the variant of that name.

    ``variables`` are those that ``--var`` sets, and ``variable_files`` those of ``--var-file``; ``IMAGESMITH_VAR_x``
    counts, too, for less. Raises RecipeError with every complaint.
    """
    overrides = Overrides(files=tuple(map(Path, variable_files)), given=dict(variables or {}))
    return recipes.load(Path(path), overrides, variant)


def load_all(
    path: str | Path, *, variables: Mapping[str, str] | None = None, variable_files: Sequence[str | Path] = (),
    only: Sequence[str] | None = None,
) -> list[Recipe]:  # fmt: skip
    """Read all variants of a recipe, or those that ``only`` names; one without a matrix is its only variant.

    Variables and errors as with ``load``.
    """
    overrides = Overrides(files=tuple(map(Path, variable_files)), given=dict(variables or {}))
    return recipes.load_all(Path(path), overrides, only)


def make_plan(recipe: Recipe, *, only: Sequence[str] = (), checks: bool = True, outputs: bool = True) -> Plan:
    """Plan a recipe: name the nodes that its result needs. Nothing is downloaded, looked up in the store, or made.

    ``only`` names the outputs to make, by kind or label; all of them without it. Raises RecipeError.
    """
    from imagesmith.store import Store

    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and not epoch.isdigit():
        raise RecipeError((), f"SOURCE_DATE_EPOCH={epoch} is no number of seconds")
    digests.remember_in(Store.default_root() / "digests.json")
    facts = Facts(root=os.geteuid() == 0, epoch=int(epoch) if epoch else DEFAULT_EPOCH)
    # Variables that are given are for the recipe that is named, not for its bases.
    return planning.make_plan(recipe, facts, recipes.load, only=only, checks=checks, outputs=outputs)


def build(
    plan: Plan,
    output: str | Path = "output",
    *,
    listen: Listener = lambda event: None,
    jobs: int = 0,
    fresh: Sequence[str] = (),
    checkpoints: bool = True,
    publish: bool = True,
    verify_reproducible: bool = False,
    enter: Enter | None = None,
    ways: Ways = lambda node, error: (),
    shared: Shared | None = None,
) -> Result:
    """Do what the store does not have of a plan, and put the artifacts into the folder ``output/NAME``.

    ``listen`` hears what happens, from any thread. ``jobs`` is how many outputs and checks may be made at once (0: one
    a core). ``fresh`` names nodes that run again though they are there. ``checkpoints``: keep the states of running
    guests. Without ``publish`` nothing is put into ``output`` (but what failed leaves its evidence there).
    ``verify_reproducible``: write all artifacts once more, and compare. ``enter`` lets somebody into the guest of what
    failed, and ``ways`` gives the command lines by which one may look around there. ``shared`` are caches to take
    results from and to put them into.

    Raises RecipeError (an answer file that its installer would not take), BuildError and what is below it, each with
    the node that failed, and Interrupted for Ctrl-C. What was finished is kept in every case.
    """
    from imagesmith import evidence, secrets
    from imagesmith.engine import Engine, with_followers
    from imagesmith.host import Host
    from imagesmith.lint import lint
    from imagesmith.publish import check_target, follow_up, table
    from imagesmith.publish import publish as put
    from imagesmith.scratch import scratch
    from imagesmith.timeline import Timeline
    from imagesmith.workbench import Bench, keep_small, open_store

    name, host, target = plan.recipe.name, Host(), Path(output) / plan.recipe.name

    def note(text: str) -> None:
        listen(Event("note", name, data={"text": text}))

    if publish:
        check_target(target)
    store, timeline = open_store(), Timeline()

    def hear(event: Event) -> None:
        timeline(event)
        listen(event)

    hear(Event("plan", name, data={"nodes": [node.name for node in plan.nodes], "tree": _tree(plan, store)}))
    try:
        with scratch(), store.using(cancelled=lambda: host.cancelled) as use:
            for line in shared.taking(plan, use, host, with_followers(plan, fresh)) if shared is not None else ():
                note(line)
            wrong = lint([node for node in plan.spine if node.name in fresh or use.find(node.key) is None], host)
            if wrong:
                raise RecipeError(wrong)
            bench = Bench(store, host, epoch=plan.facts.epoch, note=note)
            engine = Engine(store, host, bench, hear, jobs=jobs or os.cpu_count() or 1, epoch=plan.facts.epoch,
                            ask=lambda recipe, names: secrets.resolve(recipe, host, names), failed=target / "failed",
                            checkpoints=checkpoints, enter=enter, ways=ways)  # fmt: skip
            try:
                outcome = engine.run(plan, use, fresh=fresh)
                for line in shared.giving(plan, use, host, with_followers(plan, ())) if shared is not None else ():
                    note(line)
                if verify_reproducible:
                    engine.verify_reproducible(plan, use, outcome)
            finally:
                for line in keep_small(store, use):
                    note(line)
            changed = bool(outcome.ran)
            if publish:
                changed = put(plan, outcome, target, host, store.root / "locks", timeline)
                for line in follow_up(plan, outcome, target, host):
                    note(line)
    except BuildError as error:
        evidence.report_failure(plan, error, timeline, target / "failed", store.root)
        raise
    except KeyboardInterrupt:
        host.cancel()
        raise Interrupted("interrupted; what was finished is kept") from None
    rows = table(plan, outcome, target) if publish else ()
    data = {"ran": len(outcome.ran), "folder": str(target) if publish else "", "changed": changed}
    listen(Event("summary", name, seconds=outcome.seconds, data=data))
    return Result(target if publish else None, tuple(Artifact(*row) for row in rows), _checks(plan, outcome),
                  tuple(outcome.ran), changed, outcome.seconds)  # fmt: skip


def _tree(wanted: Plan, store: Store) -> list[dict[str, object]]:
    """The nodes as the event ``plan`` has them: on which each stands, and how long it took the last time."""
    found: list[dict[str, object]] = []
    for node in wanted.nodes:
        last = history.recall(store.root, node.place)
        entry: dict[str, object] = {"name": node.name, "verb": node.verb, "seconds": last.seconds if last else 0.0}
        found.append(entry | ({"below": node.below.name} if node.below is not None else {}))
    return found


def _checks(wanted: Plan, outcome: Outcome) -> tuple[CheckResult, ...]:
    found = [result for node in wanted.checks for result in cast(list[Any], outcome.layers[node.name].facts["checks"])]
    return tuple(CheckResult(result["check"], result["firmware"], result["seen"]) for result in found)
