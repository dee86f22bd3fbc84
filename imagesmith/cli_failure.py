"""How the command tells of failures: the message, ways into the guest, and what GitHub's log and summary get."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imagesmith.errors import CheckFailed, ImagesmithError, Interrupted, RecipeError
from imagesmith.failure import cause, headline, told

if TYPE_CHECKING:
    from imagesmith.api import Result
    from imagesmith.engine_node import Ways
    from imagesmith.plan import Node, Plan

_REPORTS = ("--log-format", "--junit")
"""Options with a value."""


def say(error: ImagesmithError) -> None:
    """Print a failure's message."""
    lines = told(error)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from imagesmith.view_github import harmless

        lines = [harmless(line) for line in lines]
    for line in lines:
        print(line, file=sys.stderr)


def ways(plan: Plan, options: Sequence[str], *, entered: bool) -> Ways:
    """Gives command lines that let the user look around where a node of this plan failed.

    ``options``: those of variables, as they were given. ``entered``: the user has been let in where it failed.
    """
    own, again = sys.argv[1:2], ["imagesmith", *_without_reports(sys.argv[1:]), "--on-error", "shell"]

    def found(node: Node, error: ImagesmithError) -> list[str]:
        shell = ["imagesmith", "shell", str(plan.recipe.path), *options]
        shell += ["--variant", plan.recipe.name] if plan.recipe.axes else []
        booted = isinstance(error, CheckFailed)
        if not plan.recipe.path.suffix.startswith(".y"):
            return [shlex.join(shell)] if own == ["test"] and node.verb == "check" and booted else []
        lines = []
        if node.verb == "step" or (node.verb == "check" and booted):
            lines += [shlex.join(again)] if own == ["build"] and not entered else []
        before = node.below
        while node.verb == "check" and not booted and before is not None and before.gives != "tree":
            before = before.below  # what does not boot can be looked at as files
        if before is not None and node.verb != "output":
            lines.append(shlex.join([*shell, "--after", _word(plan, before)]))
        return lines

    return found


def _without_reports(words: Sequence[str]) -> list[str]:
    """A command line without what only says how to tell of the build, and without what makes it begin anew."""
    found, skip = list[str](), False
    for word in words:
        if not skip and word.partition("=")[0] not in (*_REPORTS, "--no-cache"):
            found.append(word)
        skip = not skip and word in _REPORTS
    return found


def _word(plan: Plan, node: Node) -> str:
    """What --after takes for a node: short for the base and the steps of this recipe."""
    if node.recipe is plan.recipe and (node.number or node is plan.spine[0]):
        return str(node.number or node.verb)
    return node.name


# -- GitHub Actions ----------------------------------------------------------------------------------------------


@contextmanager
def annotated(log_format: str) -> Iterator[None]:
    """Annotate what goes wrong in the block, where the log is GitHub's."""
    try:
        yield
    except ImagesmithError as error:
        if log_format == "github" and not isinstance(error, Interrupted):
            for line in _annotations(error):
                print(line, file=sys.stderr)
        raise


def _annotations(error: ImagesmithError) -> list[str]:
    from imagesmith.view_github import command

    if error.several:
        return [line for one in error.several for line in _annotations(one)]
    if isinstance(error, RecipeError) and error.complaints:
        return [command("error", f"{one.path}: {one.message}" if one.path else one.message, title="recipe",
                        place=f"{one.file}:{one.line}:{one.column}") for one in error.complaints]  # fmt: skip
    first = headline(error).removeprefix(f"{error.node}: ")
    message = "\n".join([first, *cause(error)[-8:], *error.hint.splitlines()])
    return [command("error", message, title=error.node or "imagesmith", place=error.place)]


def summarize(plan: Plan, state: str, result: Result | None, checks: Sequence[dict[str, object]],
              error: ImagesmithError | None = None) -> None:  # fmt: skip
    """Add a recipe's result to the job's summary. ``checks`` are those that were made just now."""
    from imagesmith import view_github

    view_github.summarize(
        f"{plan.recipe.name}: {state}",
        [(made.path.name, made.size, made.sha256) for made in result.artifacts] if result is not None else [],
        [(str(one["check"]), str(one["firmware"]), bool(one["passed"]), str(one["seen"])) for one in checks],
        told(error) if error is not None else (),
    )
