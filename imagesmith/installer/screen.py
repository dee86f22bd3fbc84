"""The text on a guest's screen, read without guessing: its characters are drawn with the BIOS' own font.

In text modes, and in the menus that boot loaders draw in graphics, each character stands in a cell of 16 lines and 8
columns (9 in VGA's text mode of 720 columns). The font is in the video BIOS, which the guest's memory
shows at 0xC0000 (SeaBIOS, docs/Memory_Model.md); each glyph is 16 bytes, a byte a line, in code page 437's order. Where
there is no such BIOS (UEFI), or another font is used, no text is seen.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from imagesmith.errors import ToolFailed
from imagesmith.machine.qemu import Machine

_ROM, _ROM_SIZE = 0xC0000, 0x10000
_HEIGHT = 16
_CAPITAL_A = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")
_PRINTABLE = range(0x20, 0x7F)
_LARGEST = 4 << 20
_NEARLY = 72
"""Pixels whose red, green and blue together differ by less are of one colour, for a reader."""
_COLOURS = 6
_BORDERS = (0, 8)
"""Pixels: vesamenu.c32 leaves 8 free on each side (Syslinux, com32/lib/sys/vesa/video.h, VIDEO_BORDER)."""

Font = dict[bytes, str]
"""Glyphs, 16 bytes each, and what they mean."""


class Screen:
    """Reads the screen of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._font: Font = {}

    def text(self) -> str:
        """What can be read on it now: lines, without blank ones; nothing where there is no screen, or no text."""
        with tempfile.TemporaryDirectory(prefix="imagesmith-screen-") as name:  # for our eyes only (0700)
            try:
                if not self._font:  # the firmware may not have put it there yet
                    self._machine.qmp.execute("pmemsave", val=_ROM, size=_ROM_SIZE, filename=f"{name}/rom")
                    self._font = font((Path(name) / "rom").read_bytes())
                if not self._font:
                    return ""
                self._machine.qmp.execute("screendump", filename=f"{name}/screen")
                return read((Path(name) / "screen").read_bytes(), self._font)
            except ToolFailed:
                return ""


def font(rom: bytes) -> Font:
    """The printable characters of the font in a video BIOS; none where it holds none."""
    start = rom.find(_CAPITAL_A) - 0x41 * _HEIGHT
    if start < 0:
        return {}
    return {rom[start + code * _HEIGHT : start + (code + 1) * _HEIGHT]: chr(code) for code in _PRINTABLE}


def read(picture: bytes, known: Font) -> str:
    """The text in a PPM picture (P6, as QEMU's screendump writes it)."""
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", picture)
    if head is None:
        return ""
    width, height = int(head[1]), int(head[2])
    pixels = memoryview(picture)[head.end() :]
    if len(pixels) < width * height * 3 or width * height > _LARGEST:
        return ""
    cell = 9 if width == 720 else 8
    seen = [_text(pixels, width, height, border, cell, known) for border in _BORDERS]
    return max(seen, key=lambda text: len("".join(text.split())))


def _text(pixels: memoryview, width: int, height: int, border: int, cell: int, known: Font) -> str:
    found = []
    for top in range(border, height - _HEIGHT + 1, _HEIGHT):
        rows = [bytes(pixels[(top + row) * width * 3 : (top + row + 1) * width * 3]) for row in range(_HEIGHT)]
        cells = (b"".join([row[left * 3 : left * 3 + 24] for row in rows]) for left in range(border, width - 7, cell))
        found.append("".join(_character(one, known) for one in cells).rstrip())
    return "\n".join(line for line in found if line)


def _character(cell: bytes, known: Font) -> str:
    """What the 128 pixels of a cell show; a blank where that is not known.

    There may be more colours than two: vesamenu.c32 draws shadows, and lets a picture shine through. So pixels of
    nearly one colour are taken together, and one such shape must be a glyph.
    """
    if all(max(channel) - min(channel) < _NEARLY // 2 for channel in (cell[0::3], cell[1::3], cell[2::3])):
        return " "
    shapes: dict[tuple[int, int, int], int] = {}
    for number in range(0, len(cell), 3):
        red, green, blue = cell[number], cell[number + 1], cell[number + 2]
        bit = 1 << (127 - number // 3)
        for colour in shapes:
            if abs(colour[0] - red) + abs(colour[1] - green) + abs(colour[2] - blue) < _NEARLY:
                shapes[colour] |= bit
                break
        else:
            if len(shapes) == _COLOURS:
                return " "
            shapes[red, green, blue] = bit
    found = (known.get(shape.to_bytes(_HEIGHT, "big"), " ") for shape in shapes.values())
    return next((character for character in found if character != " "), " ")
