"""How times, amounts and foreign text are shown to people."""

from __future__ import annotations

import re
from collections.abc import Mapping

# ECMA-48, 5.4 (CSI) and 8.3.89 (OSC and its like, up to BEL or ST), with their C1 forms; and other two-byte escapes
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02} s"


def clock(seconds: float) -> str:
    """Seconds where they go on counting: whole ones."""
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"


def amount(size: float) -> str:
    """Bytes as people read them."""
    power = 0
    while size >= 1024 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.1f} {_UNITS[power]}" if power else f"{int(size)} B"


def clean(text: str) -> str:
    """A line of a guest's, or a server's, without what a terminal would obey: it is shown, and nothing else.

    What a carriage return goes back over (progress) is left out.
    """
    text = _SEQUENCE.sub("", text).rstrip("\r\n").rpartition("\r")[2].replace("\t", "    ")
    return printable(text)


def printable(text: str) -> str:
    """A text of an image's (a name, a version) with a ? for each character that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def how_far(data: Mapping[str, object]) -> str:
    """A ``progress`` event in words."""
    done, total, rate, left = (float(str(data.get(name) or 0)) for name in ("done", "total", "rate", "left"))
    words = f"{amount(done)}, {amount(rate)}/s"
    if total:
        words = f"{100 * done / total:.0f} % of {amount(total)}, {amount(rate)}/s, {clock(left)} left"
    return f"{clean(str(data.get('what', '')))}: {words}"


def check(data: Mapping[str, object]) -> str:
    """A ``check`` event in words: where it was made, what it is, what was seen."""
    seen = "; ".join(clean(line) for line in str(data["seen"]).splitlines() if line.strip())
    return f"{data['firmware']}: {clean(str(data['check']))}: {seen}"


def lines(value: object) -> list[str]:
    """The lines of an event's field that is a list of them, or one text, each made safe."""
    found = value if isinstance(value, (list, tuple)) else str(value or "").splitlines()
    return [clean(str(line)) for line in found]
