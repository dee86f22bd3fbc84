"""Events for the log of GitHub Actions: a fold for each node, annotations for failures, tables in the job's summary.

The format: GitHub's documentation, "Workflow commands for GitHub Actions" (Grouping log lines, Setting an error
message, Adding a job summary); how values are escaped: actions/toolkit, packages/core/src/command.ts; what is taken for
a command: actions/runner, src/Runner.Common/ActionCommand.cs (``::`` at a line's beginning, ``##[`` anywhere in it).
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from imagesmith.events import Event
from imagesmith.view_plain import SPINE, Pace, headline
from imagesmith.view_words import amount, check, clean, how_far

_LONGEST = 1 << 20
"""Bytes that one step's summary may have (Workflow commands, Step isolation and limits)."""


class GitHub:
    """Writes events as lines that GitHub's runner reads.

    Nodes of the spine are written as they go on, inside their fold. Outputs and checks are made side by side: what
    they log is held back until they end, so that each fold has one node's lines.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        """``write`` takes a line without its end."""
        self._write = write
        self._leaves: set[str] = set()
        self._held: dict[str, list[str]] = {}
        self._open = ""
        self._pace = Pace()

    def __call__(self, event: Event) -> None:
        """Write what is to be said of an event."""
        name = event.node
        match event.event:
            case "plan":
                tree = cast(Sequence[Mapping[str, object]], event.data.get("tree", ()))
                self._leaves = {str(node["name"]) for node in tree if node["verb"] not in SPINE}
            case "node-start" if name in self._leaves:
                self._held[name] = []
            case "node-start":
                self._close()
                self._open = name
                self._write(f"::group::{_data(clean(name))}")
            case "node-log":
                self._say(name, harmless(f"| {clean(str(event.data['line']))}"))
            case "progress" if self._pace.due(event):
                self._say(name, harmless(f"| {how_far(event.data)}"))
            case "check":
                self._say(name, harmless(f"{'pass' if event.data['passed'] else 'FAIL'} {check(event.data)}"))
            case "node-done" | "node-failed":
                self._end(event)
            case "node-cached":
                self._close()
                self._write(harmless(headline(event)))
            case "note":
                self._write(command("notice", str(event.data["text"]), title=name or event.recipe))

    def _say(self, name: str, line: str) -> None:
        if name in self._held:
            self._held[name].append(line)
        else:  # a session that is being closed may speak while the next node is at work
            self._write(line if name in ("", self._open) else harmless(f"{clean(name)} {line}"))

    def _end(self, event: Event) -> None:
        if event.node == self._open:
            self._close()
        else:
            self._let_go(event.node)
        self._write(harmless(headline(event)))
        if event.event == "node-failed" and event.data.get("left"):
            self._write(command("warning", f"{event.data['error']}\ntried again", title=event.node,
                                place=str(event.data.get("where", ""))))  # fmt: skip

    def _let_go(self, name: str) -> None:
        """Write what was held back of a node."""
        if lines := self._held.pop(name, []):
            self._write(f"::group::{_data(clean(name))}")
            for line in lines:
                self._write(line)
            self._write("::endgroup::")

    def _close(self) -> None:
        if self._open:
            self._write("::endgroup::")
            self._open = ""

    def close(self) -> None:
        """Nothing more comes: end the fold that is open, and write what nodes logged that did not end."""
        self._close()
        for name in list(self._held):
            self._let_go(name)


def command(name: str, message: str, *, title: str = "", place: str = "") -> str:
    """A workflow command: ``error``, ``warning`` or ``notice``, perhaps at a ``place`` (file:line:column)."""
    found: dict[str, str] = {}
    if place:
        file, line, column = place.rsplit(":", 2)
        found |= {"file": _in_repository(file), "line": line, "col": column}
    if title:
        found["title"] = clean(title)
    words = ",".join(f"{key}={_property(value)}" for key, value in found.items())
    text = _data("\n".join(clean(line) for line in message.splitlines()))
    return (f"::{name} {words}::{text}" if words else f"::{name}::{text}").replace("##[", "## [")


def harmless(line: str) -> str:
    """A line with foreign words, in which the runner finds no command."""
    if line.lstrip().startswith("::"):
        line = f"| {line}"
    return line.replace("##[", "## [")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _in_repository(file: str) -> str:
    """A file's name as annotations have it: from the workspace's folder."""
    workspace = os.environ.get("GITHUB_WORKSPACE", "")
    path = Path(file).absolute()
    return str(path.relative_to(workspace)) if workspace and path.is_relative_to(workspace) else file


# -- the job's summary -------------------------------------------------------------------------------------------


def summarize(title: str, artifacts: Iterable[tuple[str, int, str]], checks: Iterable[tuple[str, str, bool, str]],
              failure: Sequence[str] = ()) -> None:  # fmt: skip
    """Add a recipe's result to the job's summary, where there is one ($GITHUB_STEP_SUMMARY).

    ``artifacts``: file, bytes, SHA-256. ``checks``: what, firmware, whether it passed, what was seen. ``failure``: the
    message in lines.
    """
    path = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not path:
        return
    text = summary(title, artifacts, checks, failure)
    try:
        with Path(path).open("a", encoding="utf-8") as stream:
            if stream.tell() + len(text.encode()) < _LONGEST:
                stream.write(text)
    except OSError:
        pass  # a summary that cannot be written is no reason for a build to fail


def summary(title: str, artifacts: Iterable[tuple[str, int, str]], checks: Iterable[tuple[str, str, bool, str]],
            failure: Sequence[str] = ()) -> str:  # fmt: skip
    """A recipe's result as GitHub's Markdown."""
    lines = [f"### {_cell(title)}", ""]
    if failure:
        lines += ["<pre>", *(html.escape(clean(line)) or "&nbsp;" for line in failure), "</pre>", ""]
    rows = [f"| {_cell(name)} | {amount(size)} | `{sha256}` |" for name, size, sha256 in artifacts]
    if rows:
        lines += ["| artifact | size | SHA-256 |", "|---|---:|---|", *rows, ""]
    rows = [f"| {'✔' if passed else '✘'} | {_cell(what)} | {_cell(firmware)} | {_cell(seen)} |"
            for what, firmware, passed, seen in checks]  # fmt: skip
    if rows:
        lines += ["| | check | firmware | seen |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """A text in a table: neither Markdown nor HTML."""
    text = " ".join(clean(line) for line in text.splitlines())[:200]
    return html.escape("".join(f"\\{c}" if c in "\\`*_[]|#~!" else c for c in text), quote=False)
