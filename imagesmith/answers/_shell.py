"""Answer files that a shell reads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from imagesmith.answers._words import misspelt
from imagesmith.host import Host
from imagesmith.kinds import Remark, Rendered

_SAID = re.compile(r"^/dev/stdin: (?:line )?(\d+): (?:\S*sh: )?(.*)$")
_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=", re.M)


def syntax(rendered: Rendered, text: str, host: Host, *, first: int = 1, ash: bool = False) -> list[Remark]:
    """What a shell does not read as its language. ``first`` is the line on which ``text`` begins in the whole.

    ``ash``: it is for BusyBox's shell, which takes more than others; that decides, where it is on this host.
    """
    shells = [["busybox", "sh"]] if ash and host.find("busybox") else [["sh"]] if host.find("sh") else []
    for shell in shells:
        done = host.run([*shell, "-n", "/dev/stdin"], purpose="check a script", input=text.encode("utf-8", "replace"),
                        timeout=60, ok=range(-64, 256))  # fmt: skip
        if done.status:
            said = done.stderr.decode("utf-8", "replace").splitlines() or ["its shell does not say why"]
            match = _SAID.match(said[0])
            line, why = (first + int(match[1]) - 1, match[2]) if match else (0, said[0])
            return [rendered.remark(f"is no shell script: {why}", line)]
    return []


def slips(rendered: Rendered, text: str, known: frozenset[str]) -> Iterator[Remark]:
    """Variables that the installer does not know, with names much like those that it knows."""
    for match in _ASSIGNED.finditer(text):
        if near := misspelt(match[1], known):
            line = text.count("\n", 0, match.start(1)) + 1
            yield rendered.remark(f"nobody reads {match[1]}; did you mean '{near}'?", line)
