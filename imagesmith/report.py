"""``report.html``: what a build came to, in one page that needs nothing else; and what a failed one failed of.

Everything that a guest or a recipe said is text to the template (render.page escapes it), and the page's own policy
allows no script, no request and no style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagesmith import render
from imagesmith.compare import Difference, FileChange, counted, folded
from imagesmith.errors import ImagesmithError
from imagesmith.failure import cause, headline
from imagesmith.inventory import Inventory
from imagesmith.timeline import Span, Timeline
from imagesmith.treemap import cells
from imagesmith.view_words import amount, clean, duration, printable

FILE = "report.html"
_LOG_LINES, _LOG_BYTES = 400, 48 << 10
"""What is shown of a log: its end. All of it is in ``logs/``."""
_PICTURE = 4 << 20
_FILES = 60
"""Files of each kind of change that are shown."""
_STATES = {"ran": "done", "cached": "from the store", "failed": "failed", "missing": "not begun"}


@dataclass(frozen=True)
class Guest:
    """What a booted copy showed."""

    firmware: str
    console: str
    """Its console, as text."""
    picture: bytes = b""
    """A PNG of its screen."""


@dataclass(frozen=True)
class Before:
    """The build whose place this one takes."""

    manifest: Mapping[str, Any]
    difference: Difference
    when: float
    """Seconds since 1970."""


def built(
    manifest: Mapping[str, Any], timeline: Timeline, *, inventory: Inventory, before: Before | None,
    logs: Sequence[tuple[str, str]], guests: Sequence[Guest],
) -> str:  # fmt: skip
    """The page for a build that went well. ``logs``: nodes' names and what they logged."""
    spans = timeline.spans()
    total = max((span.begin + span.seconds for span in spans), default=0.0)
    checks, firmwares = _checks(manifest["checks"])
    files = [file for artifact in manifest["artifacts"] for file in artifact["files"]]
    saved = sum(float(node["seconds"] or 0) for node in manifest["nodes"] if node["cached"])
    space = _space(inventory)
    return _page(
        "report/built.html", title=f"{manifest['recipe']} {manifest['version']}".strip(),
        manifest=manifest, when=_when(time.time()), seconds=duration(total),
        proof=f"{len(manifest['checks'])} checks passed" if checks else "built, not booted",
        good=bool(checks), checks=checks, firmwares=firmwares,
        tiles=_tiles(manifest, spans, inventory, before, files, saved), timeline=_rows(spans, total, manifest["nodes"]),
        artifacts=_artifacts(manifest, before), changes=_changes(before), space=space,
        space_words=", ".join(f"{row['path']} {row['share']}" for row in space["folders"][:4]),
        inventory=inventory, packages=sorted(inventory.packages.items()), inputs=_inputs(manifest),
        machine=_machine(manifest), logs=[(name, *_end(text)) for name, text in logs],
        guests=[_guest(one) for one in guests], files_size=amount(inventory.size),
    )  # fmt: skip


def failed(
    name: str, version: str, error: ImagesmithError, timeline: Timeline, *, place: Sequence[tuple[int, str, bool]],
    logs: Sequence[tuple[str, str]], guests: Sequence[Guest], private: Sequence[tuple[re.Pattern[str], str]],
) -> str:  # fmt: skip
    """The page for a build that failed.

    ``place`` is where that stands in the recipe: lines with their numbers, and whether it is one of them. ``private``
    finds names of this host's folders, with what is shown in their place.
    """
    spans = timeline.spans()
    total = max((span.begin + span.seconds for span in spans), default=0.0)
    checks, firmwares = _checks(timeline.checks)

    def hidden(text: str) -> str:
        for folder, word in private:
            text = folder.sub(word, text)
        return text

    return _page(
        "report/failed.html", title=f"{name} {version}".strip(), when=_when(time.time()), seconds=duration(total),
        errors=[
            {
                "headline": hidden(headline(one)), "cause": hidden("\n".join(cause(one))), "part": one.part,
                "where": hidden(one.where), "hint": hidden(one.hint), "ways": [hidden(way) for way in one.ways],
            }
            for one in error.several or (error,)
        ],
        place=place, checks=checks, firmwares=firmwares, timeline=_rows(spans, total, ()),
        logs=[(title, *_end(hidden(text))) for title, text in logs], guests=[_guest(one) for one in guests],
    )  # fmt: skip


def _page(template: str, **context: object) -> str:
    style = render.own_template("report/report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return render.page(template, {"style": style, "style_digest": digest, **context})


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _tiles(
    manifest: Mapping[str, Any], spans: Sequence[Span], inventory: Inventory, before: Before | None,
    files: Sequence[Mapping[str, Any]], saved: float,
) -> list[dict[str, str]]:  # fmt: skip
    cached, size = sum(span.state == "cached" for span in spans), sum(int(file["size"]) for file in files)
    found = [{
        "name": "Checks", "value": str(len(manifest["checks"])) if manifest["checks"] else "none",
        "more": "all passed, under " + " and ".join(manifest["machine"]["firmware"]) if manifest["checks"]
                else "the image was not booted",
    }, {
        "name": "Artifacts", "value": str(len(manifest["artifacts"])), "more": f"{amount(size)} in all",
    }, {
        "name": "Nodes run", "value": f"{len(spans) - cached} of {len(spans)}",
        "more": f"{duration(saved)} of work came from the store" if cached else "nothing was in the store",
    }]  # fmt: skip
    packages = {"name": "Packages", "value": f"{len(inventory.packages):,}" if inventory.packages else "unknown",
                "more": inventory.package_format or "no package database that is read"}  # fmt: skip
    installed = {"name": "Installed", "value": amount(inventory.size),
                 "more": f"in {len(inventory.files):,} files and folders"}  # fmt: skip
    if before is not None:
        packages["more"] = counted(before.difference.packages) or "the same as in the previous build"
        old, new = before.difference.sizes
        if old != new:
            installed["more"] = f"{_signed(new - old)} since the previous build"
    return [*found, packages, *([installed] if inventory.files else [])]


def _signed(size: int) -> str:
    return ("+" if size > 0 else "-") + amount(abs(size)) if size else "no change"


def _rows(spans: Sequence[Span], total: float, nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    earlier = {node["name"]: float(node["seconds"] or 0) for node in nodes}
    scale = 100 / total if total else 0.0
    return [
        {
            "name": span.name, "state": span.state, "word": _STATES[span.state],
            "x": round(span.begin * scale, 2), "width": round(max(span.seconds * scale, 0.6), 2),
            "seconds": duration(span.seconds) if span.state in ("ran", "failed") else "",
            "saved": duration(took) if span.state == "cached" and (took := earlier.get(span.name, 0.0)) >= 0.1 else "",
        }
        for span in spans
    ]  # fmt: skip


def _checks(results: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    firmwares: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        firmware = str(result["firmware"])
        if firmware not in firmwares:
            firmwares.append(firmware)
        row = rows.setdefault(str(result["check"]), {"name": str(result["check"]), "passed": {}, "seen": []})
        row["passed"][firmware] = bool(result["passed"])
        seen = "\n".join(clean(line) for line in str(result["seen"]).splitlines())
        if seen and seen not in row["seen"]:
            row["seen"].append(seen)
    return list(rows.values()), firmwares


def _artifacts(manifest: Mapping[str, Any], before: Before | None) -> list[dict[str, str]]:
    last = before.manifest["artifacts"] if before is not None else ()
    old = {file["name"]: file for artifact in last for file in artifact["files"]}
    found = []
    for artifact in manifest["artifacts"]:
        for file in artifact["files"]:
            earlier, change = old.get(file["name"]), ""
            if before is not None and earlier is None:
                change = "new"
            elif earlier is not None and earlier["sha256"] == file["sha256"]:
                change = "the same"
            elif earlier is not None:
                grown = int(file["size"]) - int(earlier["size"])
                change = _signed(grown) if grown else "same size"
            found.append({
                "name": file["name"], "format": artifact["format"], "size": amount(file["size"]),
                "sha256": file["sha256"], "change": change,
                "disk": amount(artifact["virtual_size"]) if artifact["virtual_size"] else "",
            })  # fmt: skip
    return found


def _changes(before: Before | None) -> dict[str, Any] | None:
    if before is None:
        return None
    found = before.difference
    named = [("Packages", found.packages), ("Kernels", found.kernels), ("Services", found.services),
             ("Users", found.users), ("Groups", found.groups), ("System", found.system)]  # fmt: skip
    return {
        "same": found.same, "when": _when(before.when), "version": before.manifest.get("version", ""),
        "groups": [
            {"title": title, "count": counted(changes), "rows": [
                {"sign": c.sign, "name": c.name, "before": c.before or "", "after": c.after or ""} for c in changes]}
            for title, changes in named if changes
        ],
        "files": list(_file_changes(found.files)),
        "size": _signed(found.sizes[1] - found.sizes[0]), "unsure": found.unsure,
    }  # fmt: skip


def _file_changes(changes: Sequence[FileChange]) -> Iterator[dict[str, Any]]:
    """A table each for added, removed and changed files; a folder stands for what came or went with it."""
    access = {"mode", "owner"}
    for title, some in (
        ("added", [c for c in changes if c.sign == "+"]), ("removed", [c for c in changes if c.sign == "-"]),
        ("changed in mode or owner", [c for c in changes if access & set(c.how)]),
        ("changed", [c for c in changes if c.sign == "~" and not access & set(c.how)]),
    ):  # fmt: skip
        if not some:
            continue
        rows = [(c, 0, c.grown) for c in some] if some[0].sign == "~" else folded(some)
        yield {
            "title": title, "count": f"{len(some):,}", "more": max(0, len(rows) - _FILES),
            "rows": [
                {"sign": c.sign, "path": printable(c.path), "grown": _signed(grown) if grown else "",
                 "told": c.told() or (f"and {count:,} in it" if count else "")} for c, count, grown in rows[:_FILES]
            ],
        }  # fmt: skip


def _space(inventory: Inventory) -> dict[str, Any]:
    found, total = cells(inventory.files), inventory.size or 1
    tops = list(dict.fromkeys(cell.top for cell in found))
    rows = [
        {
            "path": printable(cell.path), "rest": cell.rest, "size": amount(cell.size),
            "short": printable("/".join(cell.path.split("/")[-2:])),
            "last": printable(cell.path.rpartition("/")[2] or "/"),
            "share": f"{100 * cell.size / total:.0f} %", "colour": min(tops.index(cell.top), 5),
            "x": cell.x, "y": cell.y, "width": cell.width, "height": cell.height,
            "label": cell.width > 6 and cell.height > 7, "big": cell.width > 12 and cell.height > 14,
        }
        for cell in found
    ]  # fmt: skip
    return {"cells": rows, "folders": rows[:12]}


def _inputs(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    inputs = manifest["inputs"]
    found = [{"node": "the recipe", "name": inputs["recipe"]["name"], "digest": inputs["recipe"]["digest"]}]
    for node, files in inputs["files"].items():
        found += [{"node": node, "name": name, "digest": digest} for name, digest in files]
    for node, downloads in inputs["downloads"].items():
        found += [{"node": node, "name": one["url"], "digest": one["digest"]} for one in downloads]
    return found


def _machine(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = manifest["machine"]
    rows = [
        ("Processor", f"{manifest['arch']}, {machine['cpus']} CPUs"), ("Memory", amount(machine["memory"])),
        ("Disk", amount(machine["disk"]) if machine.get("disk") else ""), ("Firmware", ", ".join(machine["firmware"])),
        *((f"Variable {name}", str(value)) for name, value in manifest["variables"].items()),
        ("Built by", f"imagesmith {manifest['host']['imagesmith']} on {manifest['host']['system']}"),
        *((tool, version) for tool, version in manifest["host"]["tools"].items()),
    ]
    return [(name, value) for name, value in rows if value]


def _end(text: str) -> tuple[str, str]:
    """The end of a log, and what is left out, in words."""
    lines = [clean(line) for line in text[-_LOG_BYTES:].splitlines()]
    cut = len(text) > _LOG_BYTES or len(lines) > _LOG_LINES
    return "\n".join(lines[-_LOG_LINES:]), "its end; the whole is in logs/" if cut else ""


def _guest(guest: Guest) -> dict[str, str]:
    picture = ""
    if guest.picture.startswith(b"\x89PNG") and len(guest.picture) <= _PICTURE:
        picture = "data:image/png;base64," + base64.b64encode(guest.picture).decode()
    text, cut = _end(guest.console)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return {"firmware": guest.firmware, "console": text, "cut": cut, "picture": picture, "last": last[:120]}


def excerpt(path: Path, line: int, around: int = 3) -> list[tuple[int, str, bool]]:
    """Lines of a recipe around one: number, text, and whether it is that one. Nothing where it cannot be read."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return [(number, lines[number - 1], number == line)
            for number in range(max(1, line - around), min(len(lines), line + around) + 1)]  # fmt: skip
