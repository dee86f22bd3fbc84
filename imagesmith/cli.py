"""The command: with its other modules (``cli_*``) it alone prints results, chooses exit codes, puts the parts together.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from imagesmith import cli_build as parts
from imagesmith import cli_complete as complete
from imagesmith import cli_diff, cli_failure, cli_image, cli_init, cli_run, cli_shell, terminal
from imagesmith.cli_build import (
    CacheFrom,
    CacheKey,
    CacheTo,
    CacheTrust,
    Jobs,
    Junit,
    LogFormat,
    Output,
    Recipes,
    VarFiles,
    Variants,
    Vars,
    usage,
)
from imagesmith.cli_cache import cache_app
from imagesmith.errors import Complaint, ImagesmithError, RecipeError, nearest

if TYPE_CHECKING:
    from imagesmith.why import Verdict

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build tested machine images from recipes: one recipe in, every format out; a rebuild costs what changed.",
    epilog="Exit codes: 0 done; 1 the build, a check or a tool failed; 2 the recipe or the command line is wrong; "
           "130 interrupted.",
)  # fmt: skip
app.add_typer(cache_app, name="cache")
app.command()(cli_init.init)
app.command()(cli_image.inspect)
app.command()(cli_diff.diff)
app.command()(cli_run.run)
app.command()(cli_shell.shell)
app.command()(cli_image.convert)


def main() -> NoReturn:
    """Run the command."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = app(_words(sys.argv[1:]), standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except ImagesmithError as error:
        cli_failure.say(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("imagesmith: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's own complaints
            context = getattr(error, "ctx", None)
            if context is not None and error.format_message():
                print(context.get_usage(), file=sys.stderr)
            print(f"imagesmith: {error.format_message()}", file=sys.stderr)
            sys.exit(int(error.exit_code))
        raise


def _words(given: list[str]) -> list[str]:
    """The command line, as click takes it: --refresh, whose age is optional, gets one where it has none.

    Raises RecipeError where an age follows as a word of its own, which would be taken for a recipe.
    """
    own = given[: given.index("--")] if "--" in given else given
    for word, after in itertools.pairwise(own):
        if word == "--refresh" and re.fullmatch(r"(\d+(\.\d+)?[smhdw]?)+", after) and not Path(after).exists():
            raise usage(f"--refresh {after}: write --refresh={after}; a word of its own is taken for a recipe")
    return ["--refresh=moved" if word == "--refresh" else word for word in own] + given[len(own) :]


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


# -- the commands ------------------------------------------------------------------------------------------------


@app.command()
def validate(
    recipes: Recipes, var: Vars = [], var_file: VarFiles = [], variant: Variants = [],  # noqa: B006
) -> None:  # fmt: skip
    """Tell everything that is wrong with recipes, without building: FILE:LINE:COLUMN: MESSAGE.

    Answer files are read as their installers would, by the programs that know where these are on this host; scripts by
    shellcheck. Packages that the suite does not have and secrets in clear are found. Warnings alone are no failure.
    """
    from imagesmith.host import Host
    from imagesmith.lint import look

    overrides, complaints, host = parts.overrides_of(var, var_file), list[Complaint](), Host()
    for path in parts.wanted(recipes, variant):
        found, warnings = list[Complaint](), list[Complaint]()
        try:
            looks = [look(planned, host) for planned in parts.plans_of([path], overrides, variant)]
            found, warnings = (sorted({one for told in both for one in told}) for both in zip(*looks, strict=True))
        except RecipeError as error:
            if not error.complaints:
                raise
            found = list(error.complaints)
        for warning in warnings:
            print(replace(warning, message=f"warning: {warning.message}"))
        if not found and not warnings:
            print(f"{path}: fine")
        complaints += found
    if complaints:
        for complaint in complaints:
            print(complaint)
        raise RecipeError((), f"{len(complaints)} complaint{'s' if len(complaints) > 1 else ''}")


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.", autocompletion=complete.recipes)],
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
    only: Annotated[list[str], typer.Option(help="Only these outputs.", autocompletion=complete.outputs)] = [],  # noqa: B006
    variant: Variants = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:  # fmt: skip
    """Show the nodes: for each whether it is there (and how old) or will run, why, how long that took last time, and
    how its step reaches the guest. Of a recipe with a matrix, all variants; what several share is told of the first.
    """
    import time

    from imagesmith.why import reasons

    plans = parts.plans_of(parts.wanted([recipe], variant), parts.overrides_of(var, var_file), variant, only=only)
    store, now, shared = parts.the_store(), time.time(), dict[str, str]()
    verdicts = [(planned, list(reasons(planned, store))) for planned in plans]
    if as_json:
        whole = [
            {"recipe": planned.recipe.name, "seconds": round(sum(one.seconds for one in found if one.layer is None), 3),
             "nodes": [one.plain(now) for one in found]} for planned, found in verdicts
        ]  # fmt: skip
        print(json.dumps(whole if plans[0].recipe.axes else whole[0], indent=2))
        return
    for planned, found in verdicts:
        if planned.recipe.axes:
            print(f"{planned.recipe.name}:")
        _show(found, now, shared)
        shared |= {one.node.key: planned.recipe.name for one in found if one.node.key not in shared}


def _show(verdicts: list[Verdict], now: float, shared: Mapping[str, str]) -> None:
    """Print what becomes of a plan's nodes. ``shared``: the recipes that have made some of them, by key."""
    from imagesmith.view import duration

    total = 0.0
    for found in verdicts:
        node = found.node
        via = f"  [{node.driver}: {node.why_driver}]" if node.driver else ""
        if found.layer is not None:
            print(f"there  {node.name}{via}  (made {duration(now - found.layer.made)} ago)")
            continue
        if node.key in shared:
            print(f"shared {node.name}{via}  (with {shared[node.key]})")
            continue
        about = f"; took {duration(found.seconds)} last time" if found.seconds else ""
        print(f"run    {node.name}{via}  ({found.why}{about})")
        total += found.seconds
    if total:
        print(f"about {duration(total)}, outputs and checks one after the other")


@app.command()
def build(
    recipes: Recipes,
    output: Output = Path("output"),
    only: Annotated[list[str], typer.Option(help="Make only this output; may be given several times.",
                                            autocompletion=complete.outputs)] = [],  # noqa: B006
    var: Vars = [], var_file: VarFiles = [],  # noqa: B006
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every node again.")] = False,
    refresh: Annotated[str, typer.Option(metavar="[=AGE]", help="Run again what repositories have moved on from; with "
                                         "an age such as 7d also what is older and depends on servers.")] = "",
    from_step: Annotated[str, typer.Option("--from", help="Run again from this step: its number or name.",
                                              autocompletion=complete.steps)] = "",
    jobs: Jobs = 0,
    no_checkpoints: Annotated[bool, typer.Option("--no-checkpoints", help="Do not keep the states of running guests.")]
    = False,
    no_checks: Annotated[bool, typer.Option("--no-checks", help="Do not boot and check the image.")] = False,
    on_error: Annotated[str, typer.Option(help="What becomes of a guest in which something failed: clean (it goes) or "
                                          "shell (you are let in before it goes).",
                                          autocompletion=complete.on_error)] = "clean",
    variant: Variants = [],  # noqa: B006
    verify_reproducible: Annotated[bool, typer.Option("--verify-reproducible", help="Write all artifacts twice; name "
                                                      "the first difference where there is one.")] = False,
    cache_from: CacheFrom = "",
    cache_to: CacheTo = "",
    cache_key: CacheKey = None,
    cache_trust: CacheTrust = None,
    junit: Junit = None,
    log_format: LogFormat = "text",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show every line that nodes log.")] = False,
) -> None:  # fmt: skip
    """Build recipes, and all variants of each. Only what changed, and what follows it, is done again."""
    parts.look_at(log_format, junit)
    if on_error not in ("clean", "shell"):
        raise usage(f"--on-error {on_error}: must be clean or shell{nearest(on_error, ('clean', 'shell'))}")
    if on_error == "shell" and not terminal.there():
        raise usage("--on-error shell: stdin is no terminal, and a shell needs one")
    shared = parts.shared_caches(cache_from, cache_to, cache_key, cache_trust)
    with cli_failure.annotated(log_format), parts.reported(junit) as results:
        plans = parts.plans_of(parts.wanted(recipes, variant), parts.overrides_of(var, var_file), variant, only=only,
                               checks=not no_checks)  # fmt: skip
        for planned in plans:
            fresh = [*parts.fresh_nodes(planned, no_cache, from_step), *parts.stale_nodes(planned, refresh)]
            parts.run_build(planned, output=output, jobs=jobs, log_format=log_format, verbose=verbose,
                            checkpoints=not no_checkpoints, fresh=fresh, enter=on_error == "shell",
                            twice=verify_reproducible, listen=results[planned.recipe.name].append,
                            options=parts.given(var, var_file), shared=shared)  # fmt: skip


@app.command("test")
def check_image(
    target: Annotated[Path, typer.Argument(help="A recipe, or an image in any format that qemu-img reads.",
                                           metavar="RECIPE|IMAGE")],
    var: Vars = [], var_file: VarFiles = [], variant: Variants = [],  # noqa: B006
    junit: Junit = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where a failed guest's console and screen go.")] = (
        Path("output")
    ),
    log_format: LogFormat = "text",
) -> None:  # fmt: skip
    """Run the checks alone: on a booted throw-away copy of the image; what a recipe lacks is built first."""
    from imagesmith import api
    from imagesmith.recipe import of_image

    parts.look_at(log_format, junit)
    with cli_failure.annotated(log_format), parts.reported(junit) as results:
        if target.suffix in (".yaml", ".yml"):
            plans = parts.plans_of(parts.wanted([target], variant), parts.overrides_of(var, var_file), variant,
                                   outputs=False)  # fmt: skip
            if not all(planned.checks for planned in plans):
                raise usage(f"{target} has no checks")
        else:
            plans = [api.make_plan(of_image(target), outputs=False)]
        for planned in plans:
            parts.run_build(planned, output=output, jobs=1, log_format=log_format, verbose=False, publish_it=False,
                            fresh=[node.name for node in planned.checks], listen=results[planned.recipe.name].append,
                            options=parts.given(var, var_file))  # fmt: skip


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> int:
    """Tell what this host can do, what it lacks, and the command that mends it. Exit code 1: nothing can be built."""
    from imagesmith.workbench import examine

    findings, hopeless = examine()
    if as_json:
        plain = [{"name": f.name, "ok": f.ok, "detail": f.detail, "mend": f.mend} for f in findings]
        print(json.dumps(plain, indent=2))
    else:
        for finding in findings:
            mark = {True: "ok     ", False: "MISSING", None: "note   "}[finding.ok]
            print(f"{mark}  {finding.name}: {finding.detail}" + (f"\n         mend: {finding.mend}" if finding.mend
                                                                 else ""))  # fmt: skip
    if hopeless:
        print(f"imagesmith: nothing can be built here: {hopeless}", file=sys.stderr)
    return 1 if hopeless else 0


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from imagesmith import reference

    print(json.dumps(reference.schema(), indent=2))


@app.command()
def kinds(
    name: Annotated[str, typer.Argument(help="A kind; without it, all are listed.",
                                        autocompletion=complete.kinds)] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole reference.", hidden=True)] = False,
) -> None:
    """Show the reference of every base, step, check and output."""
    from imagesmith import reference
    from imagesmith.kinds import FAMILIES, known, left_out, without

    for package in left_out():
        print(f"imagesmith: {package}", file=sys.stderr)
    if markdown:
        print(reference.whole(), end="")
        return
    if not name:
        print(reference.overview())
        return
    found = [(family, known(family)[name]) for family in FAMILIES if name in known(family)]
    if not found:
        every = [kind for family in FAMILIES for kind in known(family)]
        raise usage(f"there is no kind '{name}'{nearest(name, every)}{without()}")
    for family, kind in found:
        print(f"({family[:-1]})\n{reference.manual(kind)}")


if __name__ == "__main__":
    main()
