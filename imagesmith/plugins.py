"""Kinds of other packages: each is imported whole, or left out with the reason, and breaks nothing that is not its own.

A package names modules under the entry point group ``imagesmith.kinds`` (Python packaging user guide, "Entry points
specification"), and says in its requirements which versions of imagesmith it fits.
"""

from __future__ import annotations

import importlib
import traceback
from collections import defaultdict
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from imagesmith import __version__

GROUP = "imagesmith.kinds"


@dataclass(frozen=True)
class LeftOut:
    """A package whose kinds are not there."""

    name: str
    version: str
    why: str
    modules: frozenset[str]
    """The packages and modules, by the first part of their names, that it would have brought."""

    def __str__(self) -> str:
        return f"the kinds of {self.name} {self.version} are left out: {self.why}"


def load() -> tuple[LeftOut, ...]:
    """Import the modules that other packages name; return what could not be. The order is that of the names."""
    found: dict[str, list[EntryPoint]] = defaultdict(list)
    packages: dict[str, Distribution] = {}
    for entry in entry_points(group=GROUP):
        if entry.dist is not None:
            found[entry.dist.name].append(entry)
            packages[entry.dist.name] = entry.dist
    left_out = []
    for name, package in sorted(packages.items()):
        modules = [entry.module for entry in sorted(found[name], key=lambda entry: entry.name)]
        why = _unfit(package)
        for module in () if why else modules:
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as error:  # whatever somebody else's module does
                why = why or _told(error, module)
        if why:
            tops = frozenset(module.partition(".")[0] for module in modules)
            left_out.append(LeftOut(name, package.version, why, tops))
    return tuple(left_out)


def _unfit(package: Distribution) -> str:
    """Why its requirements leave this version of imagesmith out; pip holds them only where it is let."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    for line in package.requires or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        holds = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if not holds or canonicalize_name(wanted.name) != "imagesmith":
            continue
        if not wanted.specifier.contains(__version__, prereleases=True):
            return f"it needs imagesmith {wanted.specifier}, and this is {__version__}"
    return ""


def _told(error: BaseException, module: str) -> str:
    """What went wrong, and in which line of that module (or of its package)."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if module.partition(".")[0] in Path(frame.filename).with_suffix("").parts]  # fmt: skip
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
