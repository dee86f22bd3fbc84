"""Where the space of a system goes: its largest folders, and how they lie beside each other in a rectangle.

Layout: Bruls, Huizing, van Wijk, "Squarified Treemaps" (2000): rows are filled as long as that makes them squarer.
"""

from __future__ import annotations

import heapq
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imagesmith.inventory import File

_ASPECT = 2.0
"""Width by height of what it will be drawn in, about."""
_SMALLEST = 0.012
"""Folders with less than this share of all are shown with the rest of their parent."""


@dataclass(frozen=True)
class Cell:
    """A folder's rectangle, in percent of the whole; ``rest``: without the folders below it that have their own."""

    path: str
    rest: bool
    size: int
    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> str:
        """The folder of the first two levels that it is in: ``/usr/lib``."""
        return "/".join(self.path.split("/")[:3])


@dataclass
class _Folder:
    path: str
    size: int
    rest: bool = False
    inside: list[_Folder] = field(default_factory=list)


def cells(files: Mapping[str, File], most: int = 28) -> list[Cell]:
    """At most about ``most`` rectangles that fill the whole, the larger first."""
    sizes: defaultdict[str, int] = defaultdict(int)
    below: defaultdict[str, set[str]] = defaultdict(set)
    for path, file in files.items():
        if file.size:
            folder = posixpath.dirname(path)
            sizes[folder] += file.size
            while folder != "/":
                parent = posixpath.dirname(folder)
                below[parent].add(folder)
                sizes[parent] += file.size
                folder = parent
    whole = _Folder("/", sizes["/"])
    waiting, count = [(-whole.size, whole.path, whole)], 1
    while waiting and count < most:
        _, _, widest = heapq.heappop(waiting)
        large = [_Folder(path, sizes[path]) for path in sorted(below[widest.path])
                 if sizes[path] >= _SMALLEST * whole.size]  # fmt: skip
        rest = widest.size - sum(one.size for one in large)
        if not large:
            continue
        if len(large) == 1 and not rest:  # however many folders in each other have nothing else in them
            widest.path = large[0].path
            heapq.heappush(waiting, (-widest.size, widest.path, widest))
            continue
        widest.inside = large + ([_Folder(widest.path, rest, rest=True)] if rest else [])
        count += len(widest.inside) - 1
        for one in large:
            heapq.heappush(waiting, (-one.size, one.path, one))
    if not whole.size:
        return []
    return sorted(_placed(whole, 0.0, 0.0, 100.0 * _ASPECT, 100.0), key=lambda cell: (-cell.size, cell.path))


def _placed(folder: _Folder, x: float, y: float, width: float, height: float) -> Iterator[Cell]:
    if not folder.inside:
        yield Cell(folder.path, folder.rest, folder.size, round(x / _ASPECT, 3), round(y, 3),
                   round(width / _ASPECT, 3), round(height, 3))  # fmt: skip
        return
    inside = sorted(folder.inside, key=lambda one: (-one.size, one.rest, one.path))
    scale = width * height / folder.size
    start = 0
    while start < len(inside):
        short = min(width, height)
        end = start + 1
        while end < len(inside) and _worst(inside[start : end + 1], scale, short) <= _worst(inside[start:end], scale,
                                                                                            short):  # fmt: skip
            end += 1
        thick = sum(one.size for one in inside[start:end]) * scale / short
        at = 0.0
        for one in inside[start:end]:
            length = one.size * scale / thick
            if width >= height:
                yield from _placed(one, x, y + at, thick, length)
            else:
                yield from _placed(one, x + at, y, length, thick)
            at += length
        if width >= height:
            x, width = x + thick, width - thick
        else:
            y, height = y + thick, height - thick
        start = end


def _worst(row: Sequence[_Folder], scale: float, short: float) -> float:
    """The longest side by the shortest one of a row's worst rectangle."""
    areas = [one.size * scale for one in row]
    total = sum(areas)
    return max(max(short**2 * area / total**2, total**2 / (short**2 * area)) for area in areas)
