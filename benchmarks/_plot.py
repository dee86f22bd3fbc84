"""Line plots as SVG 1.1 (https://www.w3.org/TR/SVG11/), for what grows with something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 72, 48
_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6")
_STYLE = "text{font:12px sans-serif;fill:#222}.axis{stroke:#222}.grid{stroke:#ddd}"


@dataclass(frozen=True)
class Plot:
    """A picture: what stands above it, what the axes are (units included), and lines of points by their names."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float]]]

    def svg(self) -> str:
        """Draw it. Both axes begin at zero."""
        points = [point for line in self.lines.values() for point in line]
        wide, high = ticks(max(x for x, _ in points)), ticks(max(y for _, y in points))
        place = _Place(wide[-1], high[-1])
        parts = [_text(_LEFT, 18, self.title, "start", bold=True)]
        for y in high:
            parts.append(_line("grid", _LEFT, place.y(y), _WIDTH - _RIGHT, place.y(y)))
            parts.append(_text(_LEFT - 6, place.y(y) + 4, f"{y:g}", "end"))
        parts += [_text(place.x(x), _HEIGHT - _BOTTOM + 18, f"{x:g}", "middle") for x in wide]
        parts.append(_line("axis", _LEFT, place.y(0), _WIDTH - _RIGHT, place.y(0)))
        parts.append(_line("axis", _LEFT, _TOP, _LEFT, place.y(0)))
        parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 10, self.across, "end"))
        parts.append(_text(_LEFT, _TOP - 6, self.up, "start"))
        for number, (name, line) in enumerate(self.lines.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in line]
            parts.append(_text(_WIDTH - _RIGHT, 18 + 14 * number, name, "end", colour=colour))
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
                f'width="{_WIDTH}" height="{_HEIGHT}">')  # fmt: skip
        white = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
        return "\n".join([head, f"<style>{_STYLE}</style>", white, *parts, "</svg>\n"])


def ticks(most: float) -> list[float]:
    """The marks of an axis from zero: round numbers, at most six, the last at or above ``most``."""
    size = 1e-6
    while size * 1e6 < 1e18:
        for step in (size, 2 * size, 5 * size):
            if step * 5 >= most:
                count = next(n for n in range(1, 6) if step * n >= most - 1e-9)
                return [round(step * n, 9) for n in range(count + 1)]
        size *= 10
    raise ValueError(f"too large for an axis: {most}")


@dataclass(frozen=True)
class _Place:
    wide: float
    high: float

    def x(self, value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.wide, 1)

    def y(self, value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.high, 1)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, words: str, anchor: str, *, bold: bool = False, colour: str = "") -> str:
    style = (' font-weight="bold"' if bold else "") + (f' style="fill:{colour}"' if colour else "")
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{style}>{escape(words)}</text>'
