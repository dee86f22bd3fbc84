"""The table that every benchmark's rows go into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One figure. ``ours`` and ``peer`` are already in words, units included; ``reached`` is None without a target."""

    figure: str
    ours: str
    peer: str = "-"
    ratio: str = "-"
    target: str = "-"
    reached: bool | None = None


def seconds(values: Sequence[float]) -> str:
    """Say the median of measured seconds, and between what they lie."""
    middle = f"{median(values):.2f} s"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def show(rows: Sequence[Row]) -> str:
    """Lay the rows out, in Markdown that is also readable as it is."""
    words = {True: "yes", False: "NO", None: "-"}
    cells = [("figure", "ours", "peer", "ratio", "target", "reached")]
    cells += [(r.figure, r.ours, r.peer, r.ratio, r.target, words[r.reached]) for r in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
