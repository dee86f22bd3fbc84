"""What the programs that know say of what a recipe holds: answer files, above all. Before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from imagesmith import lint_packages, lint_scripts, lint_secrets
from imagesmith.errors import Complaint
from imagesmith.host import Host
from imagesmith.lint_places import Places
from imagesmith.plan import Node, Plan


def lint(nodes: Iterable[Node], host: Host) -> list[Complaint]:
    """Complaints about bases and steps, each at its line: of the answer file's template, or else of the recipe."""
    found = []
    for node in nodes:
        place = node.place_in_recipe
        if node.kind is None or place is None:
            continue
        for remark in node.kind.lint(host):
            if remark.file is None:
                found.append(replace(place, message=remark.message))
            else:
                found.append(Complaint(remark.file, max(remark.line, 1), 1, "", remark.message))
    return found


def look(plan: Plan, host: Host) -> tuple[list[Complaint], list[Complaint]]:
    """All that can be said of a plan without building: complaints, and warnings, which may be meant so.

    Besides ``lint`` these are shell scripts, names of packages, and secrets in clear.
    """
    places = Places()
    scripts, doubtful = lint_scripts.remarks(plan, host, places)
    secrets, literal = lint_secrets.remarks(plan, places)
    wrong = [*lint(plan.spine, host), *scripts, *lint_packages.remarks(plan, host, places), *secrets]
    return sorted(set(wrong)), sorted({*doubtful, *literal})
