"""Where in its file a node's option stands, for complaints about what an option says."""

from __future__ import annotations

import re
from pathlib import Path

from imagesmith import document
from imagesmith.document import Document, Where
from imagesmith.errors import Complaint, RecipeError
from imagesmith.kinds import Kind
from imagesmith.plan import Node


class Places:
    """The recipes' documents, each read once. A file that is no YAML (an image's) has no places."""

    def __init__(self) -> None:
        self._documents: dict[Path, Document | None] = {}

    def document(self, file: Path) -> Document | None:
        """A recipe's document."""
        if file not in self._documents:
            try:
                self._documents[file] = document.load(file)
            except RecipeError:
                self._documents[file] = None
        return self._documents[file]

    def option(self, at: Complaint, kind: Kind, *option: str | int) -> Complaint:
        """Where an option of a kind stands, its place being ``at``; of what is not written there, the place above."""
        return self._at(at.file, self._where(at, kind, option)) or at

    def line(self, at: Complaint, kind: Kind, option: str, line: int, column: int) -> Complaint:
        """Where a line of an option's text stands; where that cannot be told (folded, templates), the option's place.

        ``line`` and ``column`` count from 1 in the rendered text.
        """
        where = self._where(at, kind, (option,))
        place, found = self._at(at.file, where) or at, self.document(at.file)
        if found is None:
            return place
        source = at.file.read_text(encoding="utf-8").splitlines()
        head, raw = source[place.line - 1][place.column - 1 :], found.at(where)
        if not head.startswith("|"):
            return place
        body = source[place.line : place.line + len(raw.splitlines()) if isinstance(raw, str) else place.line]
        indent = min((len(row) - len(row.lstrip()) for row in body if row.strip()), default=0)
        rendered = getattr(kind, option)
        if not isinstance(raw, str) or raw.count("\n") != rendered.count("\n"):
            return place
        return Complaint(at.file, place.line + line, indent + column, place.path, "")

    def _at(self, file: Path, where: Where) -> Complaint | None:
        found = self.document(file)
        return None if found is None else found.complaint(where, "")

    def _where(self, at: Complaint, kind: Kind, option: tuple[str | int, ...]) -> Where:
        """The way to an option: spelt out, or by the kind's shorthand."""
        above: list[str | int] = [int(n) if n else word for n, word in re.findall(r"\[(\d+)\]|([^.\[\]]+)", at.path)]
        found = self.document(at.file)
        if not above or above[-1] != type(kind).name:
            above.append(type(kind).name)
        short = isinstance(found.at(tuple(above)), dict) if found is not None else True
        return (*above, *(option if short or option[:1] != (kind.shorthand,) else option[1:]))


def kind_name(node: Node) -> str:
    """The name of a node's kind; empty where it has none."""
    return "" if node.kind is None else type(node.kind).name


def node_place(node: Node) -> Complaint | None:
    """Where a base or step stands that its recipe's text holds; None for what stands in no text."""
    place = node.place_in_recipe
    return None if place is None or node.kind is None or place.file.suffix not in (".yaml", ".yml") else place
