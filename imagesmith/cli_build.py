"""What several commands share: their options, and the putting together of recipes, plans, the store and the engine."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagesmith import cli_complete as complete
from imagesmith import cli_failure
from imagesmith.errors import Complaint, ImagesmithError, RecipeError, nearest

if TYPE_CHECKING:
    from imagesmith.api import Artifact
    from imagesmith.engine_node import Enter
    from imagesmith.events import Event
    from imagesmith.interfaces import Terminal
    from imagesmith.plan import Node, Plan
    from imagesmith.recipe import Overrides
    from imagesmith.remote.shared import Shared
    from imagesmith.store import Store
    from imagesmith.view import Shown

Recipes = Annotated[list[Path], typer.Argument(help="Recipe files.", metavar="RECIPE...", show_default=False,
                                                autocompletion=complete.recipes)]
Vars = Annotated[list[str], typer.Option("--var", help="Set a variable: NAME=VALUE. Beats --var-file.")]
VarFiles = Annotated[list[Path], typer.Option("--var-file", help="A YAML file of variables.")]
Variants = Annotated[list[str], typer.Option("--variant", help="Of recipes with a matrix, this variant alone; may be "
                                             "given several times.", autocompletion=complete.variants)]
Variant = Annotated[str, typer.Option(help="Which variant, of a recipe with a matrix.", show_default=False,
                                      autocompletion=complete.variants)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where the images go: DIR/<recipe's name>/.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=0, help="How many outputs and checks at once (0: one a core).")]
Junit = Annotated[Path | None, typer.Option(help="Write the checks' results to this file as JUnit XML.")]
CacheFrom = Annotated[str, typer.Option("--cache-from", envvar="IMAGESMITH_CACHE_FROM", show_envvar=False,
                                        metavar="URL", help="Take what is missing from this shared cache: a folder, "
                                                            "s3://, gs://, https://.")]  # fmt: skip
CacheTo = Annotated[str, typer.Option("--cache-to", envvar="IMAGESMITH_CACHE_TO", show_envvar=False, metavar="URL",
                                      help="Put what was made into this shared cache.")]  # fmt: skip
CacheKey = Annotated[Path | None, typer.Option("--cache-key", envvar="IMAGESMITH_CACHE_KEY", show_envvar=False,
                                               help="The private key that signs what is put there.")]  # fmt: skip
CacheTrust = Annotated[Path | None, typer.Option("--cache-trust", envvar="IMAGESMITH_CACHE_TRUST", show_envvar=False,
                                                 help="The public keys of those whose results are taken.")]  # fmt: skip
LogFormat = Annotated[str, typer.Option(help="How progress is shown on stderr: text, json or github (for the log "
                                             "of GitHub Actions).",
                                        autocompletion=complete.log_formats)]


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


def plan_of(path: Path, overrides: Overrides, variant: str = "") -> Plan:
    """Read a recipe, of one with a matrix the named variant, and plan it. Raises RecipeError."""
    from imagesmith import api

    return api.make_plan(api.load(path, variables=overrides.given, variable_files=overrides.files, variant=variant))


def wanted(paths: Sequence[Path], variants: Sequence[str]) -> list[Path]:
    """The recipes that have one of the named variants; without names, all. Raises RecipeError for an unknown name."""
    from imagesmith import recipe

    known: dict[Path, list[str]] = {}
    for path in paths if variants else ():
        with suppress(RecipeError):  # told when it is planned
            known[path] = recipe.names(path)
    there = [name for names in known.values() for name in names]
    for word in variants:
        if word not in there and len(known) == len(set(paths)):
            raise usage(f"--variant {word}: there is none of that name{nearest(word, there)}")
    return [path for path in paths if path not in known or set(variants) & set(known[path])]


def plans_of(paths: Sequence[Path], overrides: Overrides, variants: Sequence[str] = (), *, only: Sequence[str] = (),
             checks: bool = True, outputs: bool = True) -> list[Plan]:  # fmt: skip
    """Read recipes and plan all their variants, or the named ones. Raises RecipeError with what is wrong in any."""
    from imagesmith import api

    plans: list[Plan] = []
    complaints: list[Complaint] = []
    for path in paths:
        try:
            found = api.load_all(path, variables=overrides.given, variable_files=overrides.files, only=variants or None)
            plans += [api.make_plan(one, only=only, checks=checks, outputs=outputs) for one in found]
        except RecipeError as error:
            if not error.complaints:
                raise
            complaints += error.complaints
    if complaints:
        raise RecipeError(complaints)
    places: dict[str, Path] = {}
    for plan in plans:
        if (other := places.setdefault(plan.recipe.name, plan.recipe.path)) != plan.recipe.path:
            raise usage(f"{other} and {plan.recipe.path} make images of the same name, {plan.recipe.name}")
    return plans


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
              listen: Callable[[dict[str, object]], object] = lambda check: None,
              options: Sequence[str] = (), shared: Shared | None = None) -> None:  # fmt: skip
    """Do what a plan lacks, show how that goes, and put the results into ``output``. ``listen`` hears of checks.

    ``enter``: let the user into the guest of what fails. ``twice``: write all artifacts once more and compare.
    ``options``: those of variables, as they were given. ``shared``: the shared caches.
    """
    from imagesmith import api
    from imagesmith.view import duration, shown

    checks: list[dict[str, object]] = []
    try:
        with shown(log_format, verbose=verbose) as tell:

            def hear(event: Event) -> None:
                if event.event == "check":
                    checks.append(dict(event.data))
                tell(event)

            result = api.build(
                plan, output, listen=hear, jobs=jobs, fresh=fresh, checkpoints=checkpoints, publish=publish_it,
                verify_reproducible=twice, enter=entering(tell) if enter else None,
                ways=cli_failure.ways(plan, options, entered=enter), shared=shared,
            )  # fmt: skip
            made = {check["firmware"] for check in checks}
            checks += [{"check": one.check, "firmware": one.firmware, "passed": True, "seen": one.seen, "seconds": 0.0}
                       for one in result.checks if one.firmware not in made]  # fmt: skip
    except ImagesmithError as error:
        if log_format == "github":
            cli_failure.summarize(plan, "failed", None, checks, error)
        raise
    finally:
        for check in checks:
            listen(check)
    state = f"built in {duration(result.seconds)}" if result.ran or result.changed else "up to date"
    if log_format == "github":
        cli_failure.summarize(plan, state, result, checks)
    if result.artifacts:
        _table(result.artifacts)
    print(f"{plan.recipe.name}: {state}" + (f", in {result.folder}" if result.folder else ""))


def given(var: Sequence[str], var_file: Sequence[Path]) -> list[str]:
    """The options of variables, as words of a command line."""
    return [word for one in var for word in ("--var", one)] + [
        word for one in var_file for word in ("--var-file", str(one))
    ]


def shared_caches(source: str, target: str, key: Path | None, trust: Path | None) -> Shared | None:
    """The shared caches that --cache-from and --cache-to name. Raises RecipeError."""
    if not source and not target:
        return None
    from imagesmith.remote.shared import shared

    return shared(source, target, key, trust)


def look_at(log_format: str, junit: Path | None) -> None:
    """Raises RecipeError for what --log-format and --junit cannot be."""
    from imagesmith.view import STYLES

    if log_format not in STYLES:
        raise usage(f"--log-format {log_format}: must be {' or '.join(STYLES)}{nearest(log_format, STYLES)}")
    if junit is not None and not junit.absolute().parent.is_dir():
        raise usage(f"--junit {junit}: there is no folder {junit.parent}")
    if junit is not None and junit.is_dir():
        raise usage(f"--junit {junit}: this is a folder; name a file")


@contextmanager
def reported(junit: Path | None) -> Iterator[defaultdict[str, list[dict[str, object]]]]:
    """Gather the results of checks, by recipe; they are written as JUnit XML however the block ends."""
    from imagesmith import junit as report

    results: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
    try:
        yield results
    finally:
        if junit is not None:
            junit.write_bytes(report.junit(results))


def entering(show: Shown) -> Enter:
    """Lets the user into the guest of what failed, while nothing else is shown."""

    def enter(node: Node, error: ImagesmithError, shell: Callable[[Terminal], None]) -> None:
        from imagesmith.failure import cause, headline
        from imagesmith.terminal import UserTerminal

        with show.aside():
            terminal = UserTerminal()
            for line in ["", f"{node.name}: {headline(error)}", *(f"  | {line}" for line in cause(error))]:
                terminal.say(line)
            terminal.say("you are let into the guest as it was left; 'exit' ends that, and your changes go")
            shell(terminal)
            terminal.say(f"{node.name}: the shell has ended; the build ends as failed")

    return enter


def _table(artifacts: Sequence[Artifact]) -> None:
    from imagesmith.view import duration

    cells = [("artifact", "size", "sha256", "proven by", "made in")]
    for made in artifacts:
        cells.append((str(made.path), f"{made.size / 2**20:,.1f} MiB", made.sha256[:16] + "…", made.proven,
                      duration(made.seconds)))  # fmt: skip
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
