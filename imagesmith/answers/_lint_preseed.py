"""What is wrong with a preseed file, as debian-installer reads it and as debconf's own checker says."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagesmith.host import Host
from imagesmith.kinds import Remark, Rendered

_TYPES = frozenset(("select", "boolean", "string", "multiselect", "note", "password", "text", "title", "seen",
                    "error", "entropy", "progress", "info", "linkdisk"))  # fmt: skip
"""Of debconf, and of the installer's cdebconf, which debconf's checker does not know."""
_SPACE = " \t\v\f"
_WORDS = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s*(.*)", re.S | re.A)  # a space that is no ASCII is none to the installer
_CHECKER = "debconf-set-selections"
# debconf.conf(5): databases that are read from nowhere and written nowhere, so that nobody's lock is in the way
_NOWHERE = """\
Config: config
Templates: templates

Name: config
Driver: Pipe
Infd: none
Outfd: none

Name: templates
Driver: Pipe
Infd: none
Outfd: none
"""


@dataclass(frozen=True)
class Answer:
    """One answer, as the installer understands it. ``line`` is where it begins, ``last`` where it ends, from 1."""

    owner: str
    question: str
    type: str
    value: str
    line: int
    last: int


def logical(text: str) -> Iterator[tuple[str, int, int]]:
    r"""Lines as the installer's reader joins them, with the numbers of their first and last line.

    debian-installer, preseed package, debconf-set-selections: comments (``#`` in the first column alone) and blank
    lines go first, so they are no end of a line that ends in ``\``. What that leaves open at the end of the file is
    dropped; it comes with its ``\`` here.
    """
    joined = ""
    first = last = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.replace("\r", "").lstrip(_SPACE)
        if raw.startswith("#") or not line:
            continue
        first, last = first or number, number
        if line.endswith("\\"):
            joined += (" " if joined else "") + line[:-1].rstrip(_SPACE)
            continue
        yield joined + (" " if joined else "") + line, first, last
        joined, first = "", 0
    if joined:
        yield joined + "\\", first, last


def answers(text: str) -> Iterator[Answer | tuple[str, int, int]]:
    """The answers; and for each line that the installer does not take, why, and its first and last line."""
    for line, first, last in logical(text):
        words = _WORDS.match(line)
        if line.endswith("\\"):
            yield "the file ends after '\\': the installer drops this answer", first, last
        elif words is not None:
            yield Answer(words[1], words[2], words[3], words[4], first, last)
        elif line.startswith("#"):
            yield ("a comment must begin in the first column: the installer takes this line for an answer, and refuses "
                   "the whole file"), first, last  # fmt: skip
        else:
            yield (f"'{line[:60]}' is no answer (owner, question, type, value): the installer refuses the whole file",
                   first, last)  # fmt: skip


def lint(rendered: Rendered, host: Host) -> Sequence[Remark]:
    """All that is wrong, by lines."""
    found: dict[int, str] = {}
    given: dict[str, Answer] = {}
    inside: set[int] = set()
    for answer in answers(rendered.text):
        if isinstance(answer, tuple):
            wrong, first, _ = answer
            found.setdefault(first, wrong)
        elif not answer.owner.startswith("#"):  # a comment that is taken for an answer to no question does no harm
            given[answer.question] = answer
            if answer.type not in _TYPES:
                found.setdefault(answer.line, f"'{answer.type}' is no type of an answer; a line is an owner, a "
                                              "question, a type and a value")  # fmt: skip
            elif answer.line < answer.last:
                inside.update(range(answer.line, answer.last + 1))
    for number, wrong in _checked(rendered.text, host):
        if number not in inside:  # to debconf a comment ends an answer of several lines; to the installer it does not
            found.setdefault(number, wrong)
    for number, wrong in _unanswered(given):
        found.setdefault(number, wrong)
    return [rendered.remark(wrong, number) for number, wrong in sorted(found.items())]


def _checked(text: str, host: Host) -> Iterator[tuple[int, str]]:
    """What debconf's own checker says, where it is here: line and words."""
    if host.find(_CHECKER) is None:
        return
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        settings = Path(folder, "debconf.conf")
        settings.write_text(_NOWHERE)
        done = host.run([_CHECKER, "--checkonly"], purpose="check an answer file", ok=range(256),
                        input=text.encode(errors="replace"), env={"DEBCONF_SYSTEMRC": str(settings)})  # fmt: skip
    for said in done.stderr.decode("utf-8", "replace").splitlines():
        match = re.match(r"error: parse error on line (\d+): ", said)
        if match is not None:
            yield int(match[1]), f"{_CHECKER} cannot read this line: it is an owner, a question, a type and a value"
        match = re.match(r"warning: Unknown type (\S+), skipping line (\d+)", said)
        if match is not None and match[1] not in _TYPES:
            yield int(match[2]), f"{_CHECKER} does not know the type '{match[1]}'"


def _unanswered(given: dict[str, Answer]) -> Iterator[tuple[int, str]]:
    """Questions of critical priority that come because of an answer, and that only a person can answer then."""
    if any(question.startswith(("preseed/include", "preseed/run")) for question in given):
        return  # the answers may be elsewhere
    if any("debconf-set" in answer.value for answer in given.values()):
        return  # or be made by a command
    value = {question: answer.value.strip() for question, answer in given.items()}
    locale = given.get("debian-installer/locale")
    if locale and locale.value.strip() in ("C", "POSIX") and not value.get("debian-installer/country"):
        yield locale.line, ("with this locale the installer asks for a country, and waits: add "
                            "'d-i debian-installer/country string US' and 'd-i debian-installer/language string en'")
    for who, unless in (("root", "passwd/root-login"), ("user", "passwd/make-user")):
        name = f"passwd/{who}-password"
        if name not in given or value.get(unless) == "false" or value.get(f"{name}-crypted") or not value[name]:
            continue
        if f"{name}-again" not in given:
            yield given[name].line, f"the installer asks for the password twice, and waits: add {name}-again"
        elif value[f"{name}-again"] != value[name]:
            yield given[f"{name}-again"].line, f"differs from {name}: the installer asks again, and waits"
