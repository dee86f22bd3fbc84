"""What the programs that know say of what a recipe holds: answer files, above all. Before anything is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from imagesmith.errors import Complaint
from imagesmith.host import Host
from imagesmith.plan import Node


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
