"""A YAML document whose every value knows its place, so that complaints can name line and column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from imagesmith.errors import Complaint, RecipeError

Step = str | int
Where = tuple[Step, ...]
"""The way from the document's top to a value: keys and indexes."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = frozenset(_TAG + word for word in ("str", "int", "float", "bool", "null"))
_TEXT = frozenset(_TAG + word for word in ("timestamp", "value", "merge"))  # 2026-11-01, = and << are text to us
_MOST_LEVELS = 10_000
_MOST_NODES = 100_000  # aliases can multiply a small file into a huge one ("billion laughs")


def spell(where: Where) -> str:
    """Write a place as people do: ``steps[2].copy.from``."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass
class Document:
    """A file's value, and where each part of it stands. Lines and columns count from 1."""

    file: Path
    value: object = None
    _keys: dict[Where, tuple[int, int]] = field(default_factory=dict)
    _values: dict[Where, tuple[int, int]] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    below: tuple[Path, ...] = ()
    """The files that a document was merged of beside its own, the nearest first."""
    _origins: dict[Where, tuple[Document, Where]] = field(default_factory=dict)

    def origin(self, where: Where) -> tuple[Document, Where]:
        """The document in which a value was written, and its place there: another's for what came of merging."""
        for end in range(len(where), 0, -1):
            if (found := self._origins.get(where[:end])) is not None:
                return found[0].origin((*found[1], *where[end:]))
        return self, where

    def merged(self, below: Document, value: object, origins: Mapping[Where, tuple[Document, Where]]) -> Document:
        """This document with another value. ``origins`` tells of places in it that are not its own."""
        return Document(self.file, value, self._keys, self._values, [*below.complaints, *self.complaints],
                        (below.file, *below.below), dict(origins))  # fmt: skip

    def at(self, where: Where) -> object:
        """The value at a place; None where there is none."""
        found = self.value
        for part in where:
            if isinstance(found, Mapping) and part in found:
                found = found[str(part)]
            elif isinstance(found, list) and isinstance(part, int) and part < len(found):
                found = found[part]
            else:
                return None
        return found

    def complain(self, where: Where, message: str, *, key: bool = False) -> None:
        """Note a complaint about a value, or about its key; the nearest known place above is named."""
        self.complaints.append(self.complaint(where, message, key=key))

    def complaint(self, where: Where, message: str, *, key: bool = False) -> Complaint:
        """Make a complaint without noting it."""
        document, where = self.origin(where)
        at: tuple[int, int] | None = None
        for end in range(len(where), -1, -1):
            places = document._keys if key and end == len(where) else document._values
            at = places.get(where[:end]) or document._keys.get(where[:end])
            if at is not None:
                break
        line, column = at or (1, 1)
        return Complaint(document.file, line, column, spell(where), message)


def load(file: Path) -> Document:
    """Read a YAML file. Raises RecipeError where it is missing or no YAML; duplicate keys are complaints."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError([Complaint(file, 1, 1, "", "no such file")]) from None
    except UnicodeDecodeError as error:
        raise RecipeError([Complaint(file, 1, 1, "", f"is not UTF-8 text: {error.reason}")]) from None
    except OSError as error:
        raise RecipeError([Complaint(file, 1, 1, "", f"cannot be read: {error.strerror}")]) from None
    return parse(text, file)


def parse(text: str, file: Path) -> Document:
    """Read YAML that ``file`` is named for in complaints. Raises RecipeError where it is none."""
    document = Document(file)
    with _told(file):
        node = _composed(text)
        if node is not None:
            document.value = _Reader(document).read(node, ())
    return document


def _composed(text: str) -> yaml.Node | None:
    """The text's nodes. By libyaml, which is ten times as fast; what it refuses, PyYAML's own parser tells of.

    Each level of nesting needs one of YAML's indicators (YAML 1.2.2, section 5.3), and libyaml's binding has no limit
    but the stack's.
    """
    if yaml.__with_libyaml__ and sum(map(text.count, "[{-:?")) <= _MOST_LEVELS:
        try:
            return yaml.compose(text, Loader=yaml.CSafeLoader)
        except yaml.YAMLError:
            pass
    return yaml.compose(text, Loader=yaml.SafeLoader)


def foreign(text: str, file: Path) -> Document:
    """Read YAML as most programs do: merge keys, dates and all tags of YAML 1.1 mean something, a key may come twice.

    What JSON does not have becomes text. ``file`` is where the text is from. Raises RecipeError where it is no YAML.
    """
    document = Document(file)
    with _told(file):
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                value = loader.construct_document(node)  # brings merged keys into the nodes, too
                _Places(document).read(node, ())
                document.value = _as_json(value)
        finally:
            loader.dispose()
    return document


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Raise RecipeError for whatever PyYAML says of a file."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = f"is not YAML: {error.problem or error.context}"
        raise RecipeError([Complaint(file, line, column, "", what)]) from None
    except yaml.YAMLError as error:
        raise RecipeError([Complaint(file, 1, 1, "", f"is not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise RecipeError([Complaint(file, 1, 1, "", "is nested too deeply")]) from None
    except (ValueError, ArithmeticError, LookupError, AttributeError) as error:  # PyYAML's constructors trust the text
        raise RecipeError([Complaint(file, 1, 1, "", f"is not YAML: {error}")]) from None


class _Places:
    """Notes where the values of a document stand that was already made."""

    def __init__(self, document: Document) -> None:
        self._document, self._count = document, 0

    def read(self, node: yaml.Node, where: Where) -> None:
        self._count += 1
        if self._count > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES} values")
        self._document._values[where] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*where, str(key.value))
                self._document._keys[here] = (key.start_mark.line + 1, key.start_mark.column + 1)
                self.read(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.read(child, (*where, index))


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _Reader:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0
        self._scalars = yaml.SafeLoader("")

    def read(self, node: yaml.Node, where: Where) -> object:
        document = self._document
        self._count += 1
        if self._count > _MOST_NODES:
            raise yaml.YAMLError(f"more than {_MOST_NODES} values")
        document._values[where] = (node.start_mark.line + 1, node.start_mark.column + 1)
        if isinstance(node, yaml.MappingNode):
            self._known_tag(node, where, {_TAG + "map"})
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            self._known_tag(node, where, {_TAG + "seq"})
            return [self.read(child, (*where, index)) for index, child in enumerate(node.value)]
        if node.tag in _TEXT or not self._known_tag(node, where, _PLAIN):
            return str(node.value)
        try:
            value: object = self._scalars.construct_object(node)
        except (ValueError, ArithmeticError, LookupError):  # PyYAML's own constructors trust the text
            document.complain(where, f"'{node.value[:40]}' is no {node.tag.removeprefix(_TAG)}; put text into quotes")
            return str(node.value)
        if isinstance(value, float) and where == ("version",):
            return str(node.value)  # 2026.10 is not 2026.1
        return value

    def _known_tag(self, node: yaml.Node, where: Where, known: Set[str]) -> bool:
        if node.tag not in known:
            tag = f"!!{node.tag.removeprefix(_TAG)}" if node.tag.startswith(_TAG) else node.tag
            self._document.complain(where, f"the tag {tag} means nothing here; leave it out")
        return node.tag in known

    def _mapping(self, node: yaml.MappingNode, where: Where) -> Mapping[str, object]:
        document, found = self._document, {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                document.complain(where, "a key must be a plain word")
                continue
            name = str(key_node.value)
            here = (*where, name)
            if name in found:
                document._keys[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                document.complain(here, f"'{name}' is there twice", key=True)
                continue
            document._keys[here] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            found[name] = self.read(value_node, here)
        return found
