"""XML answer files: read with expat, which knows lines, and never past the file: no entities, nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self
from xml.parsers import expat
from xml.sax.saxutils import escape

from imagesmith.errors import BuildError
from imagesmith.kinds import Answer

_DEEPEST = 256  # libxml2, xmlParserMaxDepth
_WHERE = re.compile(r": line \d+, column \d+$")
_SECRET = re.compile("\ue000([^\ue000\ue001]*)\ue001")
_CDATA = re.compile(r"(<!\[CDATA\[.*?\]\]>)", re.S)


class Malformed(ValueError):
    """What is no XML, and the line (from 1) where that shows."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


@dataclass
class Element:
    """An element. Its name is without prefix; an attribute with one, ``prefix:name``, has become ``namespace name``."""

    name: str
    namespace: str
    line: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: list[Element] = field(default_factory=list)
    text: str = ""
    """What stands directly in it, in one piece."""
    cdata: bool = False
    """Whether it has a CDATA section."""

    def walk(self) -> Iterator[Element]:
        """It, and all below it, in the file's order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, name: str) -> Element | None:
        """The first child of a name."""
        return next((child for child in self.children if child.name == name), None)


def parse(text: str) -> Element:
    """Read a document. Raises Malformed for what no XML parser takes, and for entities of its own."""
    parser = expat.ParserCreate("utf-8" if text.startswith("\ufeff") else None, namespace_separator=" ")
    parser.buffer_text = True
    open_elements: list[Element] = []
    found: list[Element] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(open_elements) >= _DEEPEST:
            raise Malformed(f"elements are nested deeper than {_DEEPEST}", parser.CurrentLineNumber)
        namespace, _, local = name.rpartition(" ")
        element = Element(local, namespace, parser.CurrentLineNumber, attributes)
        (open_elements[-1].children if open_elements else found).append(element)
        open_elements.append(element)

    def characters(data: str) -> None:
        if open_elements:
            open_elements[-1].text += data

    def cdata() -> None:
        if open_elements:
            open_elements[-1].cdata = True

    def entity(name: str, *_: object) -> None:
        # installers do not need any, and they are how a small file becomes a huge one or reads another
        raise Malformed(f"declares an entity, '{name}'; write what it stands for", parser.CurrentLineNumber)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: open_elements.pop() and None
    parser.CharacterDataHandler = characters
    parser.StartCdataSectionHandler = cdata
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise Malformed(_WHERE.sub("", str(error)), error.lineno) from None
    except (ValueError, LookupError) as error:  # an encoding that Python does not know
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"is not read: {error}", 1) from None
    return found[0]


def escaped(value: str) -> str:
    """A value as it may stand in an element or an attribute."""
    return escape(value, {'"': "&quot;", "'": "&apos;", "\r": "&#13;"})


def reveal(text: str, secrets: Mapping[str, str]) -> str:
    """A document with secrets in place of their place-holders, each escaped as where it stands wants it."""

    def plain(match: re.Match[str]) -> str:
        return escaped(secrets[match[1]])

    def in_cdata(match: re.Match[str]) -> str:
        return secrets[match[1]].replace("]]>", "]]]]><![CDATA[>")

    parts = _CDATA.split(text)  # odd ones are CDATA sections
    return "".join(_SECRET.sub(in_cdata if number % 2 else plain, part) for number, part in enumerate(parts))


class XmlAnswer(Answer):
    """An answer file in XML: secrets are escaped where they stand, in the user's own file, too."""

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """See Answer."""
        copy = super().revealed(secrets)
        if self._theirs is not None:
            copy._theirs = replace(self._theirs, text=reveal(self._theirs.text, secrets))
        return copy

    def checked(self) -> bytes:
        """The file, read once more with all secrets in it. Raises BuildError where they break it."""
        text = self.rendered.text
        try:
            parse(text)
        except Malformed as error:
            raise BuildError(
                f"the answer file is no XML any more, with the secrets in it (line {error.line}): {error.message}",
                hint="XML has no way to write control characters; a secret must not hold any",
            ) from None
        return text.encode()

