"""Packages that a recipe names and that its suite does not have, as far as this host's apt knows the suite."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from imagesmith.errors import Complaint, ToolFailed, nearest
from imagesmith.host import Host
from imagesmith.lint_places import Places, kind_name, node_place
from imagesmith.plan import Node, Plan

_FORMAT = "$(FILENAME)|$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(ARCHITECTURE)"
_HELPER = "/usr/lib/apt/apt-helper"
_COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_NOT_A_NAME = re.compile(r"[*?^~@<>]")
_BRINGS = re.compile(r"\bapt\b|\bdpkg\b|sources\.list")


@dataclass(frozen=True)
class _Suite:
    """What a bootstrapped system's packages come from."""

    distribution: str
    name: str
    components: Sequence[str]
    arch: str

    @property
    def pockets(self) -> tuple[str, ...]:
        """The suite, and where its updates are."""
        return self.name, f"{self.name}-updates", f"{self.name}-security"


def remarks(plan: Plan, host: Host, places: Places) -> list[Complaint]:
    """A complaint for each name that is not in the suite, with the nearest that is.

    Nothing is downloaded: what counts are the package lists of this host's apt, where it has all components of the
    suite. Nothing is said of what comes after a step that may bring another repository, or of a recipe with a mirror
    of its own.
    """
    base, *steps = plan.spine
    if kind_name(base) != "bootstrap":
        return []
    nodes = [base, *takewhile(lambda node: not _brings(node), steps)]
    named = [found for node in nodes for found in _named(node, places)]
    suite = _suite(base, host)
    if suite is None or not named:
        return []
    try:
        asked = {name for _, name in named} - _sold(suite, {name for _, name in named}, host)
        known = _names(suite, host) if asked else frozenset()
    except ToolFailed:
        return []
    if not known:
        return []
    wrong = [(place, name) for place, name in named if name in asked and not {name, name.rstrip("+-")} & known]
    return [replace(place, message=f"no package '{name}' in {suite.name}{_near(name, known)}") for place, name in wrong]


def _named(node: Node, places: Places) -> Iterator[tuple[Complaint, str]]:
    """The packages that a node installs, and where each stands (apt-get(8): NAME=VERSION, NAME/SUITE, NAME:ARCH)."""
    place, kind = node_place(node), node.kind
    option = {"bootstrap": "packages", "packages": "install"}.get(kind_name(node), "")
    if place is not None and kind is not None and option:
        for number, word in enumerate(getattr(kind, option)):
            if not _NOT_A_NAME.search(word):
                yield places.option(place, kind, option, number), re.split(r"[=/:]", word)[0]


def _near(name: str, known: frozenset[str]) -> str:
    return nearest(name, [other for other in known if other[0] == name[0] and abs(len(other) - len(name)) <= 3])


def _brings(node: Node) -> bool:
    """Whether packages may come from somewhere else after a step."""
    match kind_name(node):
        case "shell":
            return bool(_BRINGS.search(str(getattr(node.kind, "run", ""))))
        case "copy" | "template":
            to = str(getattr(node.kind, "to", ""))
            return to.startswith("/etc/apt") or to.rstrip("/") in ("", "/etc")
        case "packages" | "user" | "service" | "reboot" | "boot" | "cleanup" | "":
            return False
    return True


def _suite(base: Node, host: Host) -> _Suite | None:
    """The suite, where this host has apt and the recipe names no mirror of its own."""
    kind = base.kind
    if getattr(kind, "mirror", None) is not None or host.find("apt-cache") is None or not Path(_HELPER).is_file():
        return None
    distribution = str(getattr(kind, "distribution", ""))
    components = tuple(getattr(kind, "components", None) or _COMPONENTS.get(distribution, ()))
    return _Suite(distribution, str(getattr(kind, "suite", "")), components, _ARCHES.get(base.recipe.arch, ""))


def _sold(suite: _Suite, names: set[str], host: Host) -> set[str]:
    """Which of these packages the suite has (apt-cache(8), madison): that is all, mostly, and fast."""
    done = host.run(["apt-cache", "madison", *sorted(names)], purpose="look for packages")
    rows = [line.split() for line in done.text.splitlines()]  # NAME | VERSION | URI SUITE/COMPONENT ARCH Packages
    there = {f"{pocket}/{one}" for pocket in suite.pockets for one in suite.components}
    return {row[0] for row in rows if len(row) > 5 and row[5] in there}


def _names(suite: _Suite, host: Host) -> frozenset[str]:
    """All names in the suite, with those of virtual packages; none where not all of its lists are at hand."""
    argv = ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    lines = [line.split("|") for line in host.run(argv, purpose="learn what apt knows").text.splitlines()]
    rows = [row for row in lines if row[1].lower() == suite.distribution and row[4] == suite.arch]
    if not set(suite.components) <= {row[3] for row in rows if row[2] == suite.name}:
        return frozenset()
    found = set[str]()
    for file in (row[0] for row in rows if row[2] in suite.pockets and row[3] in suite.components):
        text = b"\n" + host.run([_HELPER, "cat-file", file], purpose="read apt's package lists").stdout
        found |= set(_fields(text, "Package"))
        for provides in _fields(text, "Provides"):
            found |= {word.split()[0].partition(":")[0] for word in provides.split(",") if word.strip()}
    return frozenset(found)


def _fields(text: bytes, name: str) -> Iterator[str]:
    """The values of a field in all paragraphs (deb822(5)). Splitting is many times faster than an expression."""
    for rest in text.split(f"\n{name}: ".encode())[1:]:
        yield rest[: rest.find(b"\n")].decode("utf-8", "replace")
