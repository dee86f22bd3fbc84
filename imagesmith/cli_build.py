"""What several commands share: their options, and the putting together of recipes, plans, the store and the engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith.errors import ImagesmithError, Interrupted, RecipeError, nearest

if TYPE_CHECKING:
    from imagesmith.engine_node import Enter
    from imagesmith.interfaces import Terminal
    from imagesmith.plan import Facts, Node, Plan
    from imagesmith.recipe import Overrides, Recipe
    from imagesmith.store import Store
    from imagesmith.view import Shown

Recipes = Annotated[list[Path], typer.Argument(help="Recipe files.", metavar="RECIPE...", show_default=False)]
Vars = Annotated[list[str], typer.Option("--var", help="Set a variable: NAME=VALUE. Beats --var-file.")]
VarFiles = Annotated[list[Path], typer.Option("--var-file", help="A YAML file of variables.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the images go: DIR/<recipe's name>/.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="How many outputs and checks at once (0: one a core).")]
LogFormat = Annotated[str, typer.Option(help="How progress is shown on stderr: text or json.")]


def usage(message: str) -> RecipeError:
    """The complaint about a command line."""
    return RecipeError((), message)


def overrides_of(var: Sequence[str] = (), var_file: Sequence[Path] = ()) -> Overrides:
    """The values of variables that --var and --var-file give."""
    from imagesmith.recipe import Overrides

    given = {}
    for item in var:
        name, equals, value = item.partition("=")
        if not equals:
            raise usage(f"--var {item}: write NAME=VALUE")
        given[name] = value
    return Overrides(files=tuple(var_file), given=given)


def loader(overrides: Overrides) -> Callable[[Path], Recipe]:
    """Read recipes; the variables given from outside are for the one that is named, not for its bases."""
    from imagesmith import recipe

    return lambda path: recipe.load(path, recipe.Overrides(environment=overrides.environment))


def facts() -> Facts:
    """What planning must know of the world."""
    from imagesmith.plan import DEFAULT_EPOCH, Facts

    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and not epoch.isdigit():
        raise usage(f"SOURCE_DATE_EPOCH={epoch} is no number of seconds")
    return Facts(root=os.geteuid() == 0, epoch=int(epoch) if epoch else DEFAULT_EPOCH)


def plan_of(path: Path, overrides: Overrides, *, only: Sequence[str] = (), checks: bool = True,
            outputs: bool = True) -> Plan:  # fmt: skip
    """Read a recipe and plan it. Raises RecipeError."""
    from imagesmith import digests, recipe
    from imagesmith.plan import make_plan
    from imagesmith.store import Store

    digests.remember_in(Store.default_root() / "digests.json")
    return make_plan(
        recipe.load(path, overrides), facts(), loader(overrides), only=only, checks=checks, outputs=outputs
    )


def the_store() -> Store:
    """This user's store."""
    from imagesmith.workbench import open_store

    return open_store()


def fresh_nodes(plan: Plan, no_cache: bool, from_step: str) -> list[str]:
    """The nodes that run again at the user's word."""
    if no_cache:
        return [node.name for node in plan.nodes]
    if not from_step:
        return []
    return [step_named(plan, from_step, "--from").name]


def step_named(plan: Plan, word: str, option: str) -> Node:
    """The node of the spine that the user names, by its number or name. Raises RecipeError with the nearest."""
    names: dict[str, Node] = {}
    for node in plan.spine:
        names[node.name] = node
    for node in plan.spine:
        number, _, title = node.name.partition(" ")
        names.setdefault(number, node)
        names.setdefault(title, node)
    if word in names:
        return names[word]
    last = max((node.number for node in plan.spine if node.recipe is plan.recipe), default=0)
    if word.isdigit():
        raise usage(f"{option} {word}: the recipe has {last} steps")
    hint = nearest(word, names) or "; there are " + ", ".join(f"'{node.name}'" for node in plan.spine)
    raise usage(f"{option} {word}: the plan has no such step{hint}")


def run_build(plan: Plan, *, output: Path, jobs: int, log_format: str, verbose: bool, fresh: Sequence[str],
              checkpoints: bool = True, publish_it: bool = True, enter: bool = False, twice: bool = False,
              listen: Callable[[dict[str, object]], None] | None = None) -> None:  # fmt: skip
    """Do what a plan lacks, show how that goes, and put the results into ``output``. ``listen`` hears of checks.

    ``enter``: let the user into the guest of what fails. ``twice``: write all artifacts once more and compare.
    """
    from imagesmith import secrets
    from imagesmith.engine import Engine
    from imagesmith.events import Event
    from imagesmith.host import Host
    from imagesmith.lint import lint
    from imagesmith.publish import check_target, follow_up, publish, table
    from imagesmith.scratch import scratch
    from imagesmith.view import duration, shown
    from imagesmith.workbench import Bench, keep_small

    recipe, host = plan.recipe, Host()
    target = output / recipe.name
    if publish_it:
        check_target(target)
    with shown(log_format, verbose=verbose) as tell:

        def hear(event: Event) -> None:
            if listen is not None and event.event == "check":
                listen(dict(event.data))
            tell(event)

        hear(Event("plan", recipe.name, data={"nodes": [node.name for node in plan.nodes]}))
        store = the_store()
        try:
            with scratch(), store.using(cancelled=lambda: host.cancelled) as use:
                wrong = lint([node for node in plan.spine if node.name in fresh or use.find(node.key) is None], host)
                if wrong:
                    raise RecipeError(wrong)
                bench = Bench(store, host, epoch=plan.facts.epoch,
                              note=lambda text: hear(Event("note", recipe.name, data={"text": text})))  # fmt: skip
                engine = Engine(store, host, bench, hear, jobs=jobs or os.cpu_count() or 1, epoch=plan.facts.epoch,
                                ask=lambda recipe, names: secrets.resolve(recipe, host, names),
                                failed=target / "failed", checkpoints=checkpoints,
                                enter=entering(tell) if enter else None)  # fmt: skip
                try:
                    outcome = engine.run(plan, use, fresh=fresh)
                    if twice:
                        engine.verify_reproducible(plan, use, outcome)
                finally:
                    for line in keep_small(store, use):
                        hear(Event("note", recipe.name, data={"text": line}))
                changed = bool(outcome.ran)
                if publish_it:
                    changed = publish(plan, outcome, target, host, store.root / "locks")
                    for line in follow_up(plan, outcome, target, host):
                        hear(Event("note", recipe.name, data={"text": line}))
        except KeyboardInterrupt:
            host.cancel()
            raise Interrupted("interrupted; what was finished is kept") from None
        data = {"ran": len(outcome.ran), "folder": str(target) if publish_it else "", "changed": changed}
        hear(Event("summary", recipe.name, seconds=outcome.seconds, data=data))
    if publish_it and plan.outputs:
        _table(table(plan, outcome, target))
    state = f"built in {duration(outcome.seconds)}" if outcome.ran or changed else "up to date"
    print(f"{recipe.name}: {state}" + (f", in {target}" if publish_it else ""))


def entering(show: Shown) -> Enter:
    """Lets the user into the guest of what failed, while nothing else is shown."""

    def enter(node: Node, error: ImagesmithError, shell: Callable[[Terminal], None]) -> None:
        from imagesmith.terminal import UserTerminal

        with show.aside():
            terminal = UserTerminal()
            terminal.say(f"\n{node.name}: {error.message}")
            terminal.say("you are let into the guest as it was left; 'exit' ends that, and your changes go")
            shell(terminal)
            terminal.say(f"{node.name}: the shell has ended; the build ends as failed")

    return enter


def _table(rows: Sequence[tuple[Path, int, str, str, float]]) -> None:
    from imagesmith.view import duration

    cells = [("artifact", "size", "sha256", "proven by", "made in")]
    for path, size, sha256, proof, seconds in rows:
        cells.append((str(path), f"{size / 2**20:,.1f} MiB", sha256[:16] + "…", proof, duration(seconds)))
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def stale_nodes(plan: Plan, refresh: str) -> list[str]:
    """The nodes that --refresh runs again; each is told with its reason."""
    if not refresh:
        return []
    import time

    from pydantic import TypeAdapter, ValidationError

    from imagesmith import stale
    from imagesmith.host import Host
    from imagesmith.kinds import Duration
    from imagesmith.workbench import moved

    try:
        older_than = None if refresh == "moved" else TypeAdapter(Duration).validate_python(refresh)
    except ValidationError:
        raise usage(f"--refresh={refresh}: write an age such as 12h or 7d") from None
    store = the_store()

    def note(line: str) -> None:
        print(f"{plan.recipe.name}: {line}", file=sys.stderr)

    found = stale.stale(plan, store, moved(store, Host(), note), older_than=older_than, now=time.time())
    for name, why in found.items():
        note(f"{name} runs again: {why}")
    return list(found)
