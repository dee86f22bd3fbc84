"""What shellcheck says of a recipe's shell scripts, where it is on this host."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagesmith.errors import Complaint, TimedOut, ToolFailed
from imagesmith.host import Host
from imagesmith.kinds import Kind
from imagesmith.lint_places import Places, kind_name, node_place
from imagesmith.plan import Plan

_INLINE = ("shell", "command")
"""The kinds whose option ``run`` is a script for the guest's /bin/sh."""
_SHELLS = re.compile(rb"#! *(?:/\S*/)?(?:env +(?:-S +)?)?(?:/\S*/)?(?:sh|dash|bash|ksh)\b")
_SECRET = re.compile("\ue000[^\ue000\ue001]*\ue001")
_UNASSIGNED, _CD_MAY_FAIL = 2154, 2164
# SC2148: no #! line, which such a text has not. The shell is dash, since it knows `local`, as whatever is /bin/sh does.
_OPTIONS = ("--format=json1", "--severity=warning", "--exclude=SC2148", "--norc")


@dataclass(frozen=True)
class _Text:
    place: Complaint
    kind: Kind
    text: str


def remarks(plan: Plan, host: Host, places: Places) -> tuple[list[Complaint], list[Complaint]]:
    """What no shell can read (SC1…, errors), and all other errors and warnings, which may be meant so.

    Each stands at its line of the recipe, or of the script's file.
    """
    if host.find("shellcheck") is None:
        return [], []
    wrong: list[Complaint] = []
    doubtful: list[Complaint] = []
    for unreadable, complaint in (*_inline(list(_texts(plan)), host, places), *_files(_scripts(plan), host)):
        (wrong if unreadable else doubtful).append(complaint)
    return wrong, doubtful


def _texts(plan: Plan) -> Iterator[_Text]:
    for node in plan.spine:
        place = node_place(node)
        if place is not None and node.kind is not None and kind_name(node) in _INLINE:
            yield _Text(place, node.kind, node.kind.run)  # type: ignore[attr-defined]
    for entry in plan.recipe.checks:
        if type(entry.kind).name in _INLINE and entry.place.file.suffix in (".yaml", ".yml"):
            yield _Text(entry.place, entry.kind, entry.kind.run)  # type: ignore[attr-defined]


def _scripts(plan: Plan) -> list[Path]:
    found = [Path(getattr(node.kind, "path")) for node in plan.spine if kind_name(node) == "script"]  # noqa: B009
    return [path for path in dict.fromkeys(found) if _SHELLS.match(path.read_bytes()[:200])]


def _inline(texts: Sequence[_Text], host: Host, places: Places) -> Iterator[tuple[bool, Complaint]]:
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        files = {str(Path(folder, str(number))): text for number, text in enumerate(texts)}
        for file, text in files.items():
            Path(file).write_text(_SECRET.sub("secret", text.text), encoding="utf-8", errors="replace")
        for said in _ask([*_OPTIONS, "--shell=dash", "--", *files], host) if files else ():
            text = files[str(said["file"])]
            if said["code"] == _CD_MAY_FAIL and type(text.kind).name == "shell":  # it is run by sh -e
                continue
            if said["code"] == _UNASSIGNED and str(said["message"]).split()[0] in getattr(text.kind, "env", {}):
                continue
            place = places.line(text.place, text.kind, "run", int(said["line"]), int(said["column"]))
            yield _unreadable(said), replace(place, message=_message(said))


def _files(scripts: Sequence[Path], host: Host) -> Iterator[tuple[bool, Complaint]]:
    for said in _ask([*_OPTIONS, "--", *map(str, scripts)], host) if scripts else ():
        place = Complaint(Path(said["file"]), int(said["line"]), int(said["column"]), "", _message(said))
        yield _unreadable(said), place


def _unreadable(said: dict[str, Any]) -> bool:
    return bool(said["level"] == "error" and said["code"] < 2000)


def _message(said: dict[str, Any]) -> str:
    return f"SC{said['code']}: {said['message']}"


def _ask(argv: Sequence[str], host: Host) -> list[dict[str, Any]]:
    """Its comments (shellcheck(1), "json1"); none where it is too old. Its exit status is 1 where it has some."""
    try:
        done = host.run(["shellcheck", *argv], purpose="check shell scripts", ok=(0, 1), timeout=120)
        found = json.loads(done.text)["comments"]
    except (ToolFailed, TimedOut, ValueError, KeyError):
        return []
    return [said for said in found if isinstance(said, dict)]
