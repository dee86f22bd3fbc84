"""Keys to be typed, in Packer's notation, and the names that QEMU has for them. Pure.

The notation is that of Packer's ``boot_command`` (packer-plugin-sdk, bootcommand/boot_command.pigeon)::

    <enter> <f2> <leftCtrlOn>c<leftCtrlOff> <aOn> <aOff> <wait> <wait5> <wait1m10s>    and plain characters

and ``<waitFor "text" 60s>``: go on when the console, or the screen, shows the text. The keyboard is a US one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagesmith.errors import BuildError, nearest

SPECIAL: dict[str, str] = {
    # Packer's names -> QKeyCode (QEMU, qapi/ui.json)
    "bs": "backspace", "del": "delete", "enter": "ret", "return": "ret", "esc": "esc", "tab": "tab", "up": "up",
    "down": "down", "left": "left", "right": "right", "spacebar": "spc", "insert": "insert", "home": "home",
    "end": "end", "pageUp": "pgup", "pageDown": "pgdn", "menu": "compose", "leftAlt": "alt", "rightAlt": "alt_r",
    "leftCtrl": "ctrl", "rightCtrl": "ctrl_r", "leftShift": "shift", "rightShift": "shift_r", "leftMeta": "meta_l",
    "rightMeta": "meta_r", "leftSuper": "meta_l", "rightSuper": "meta_r",
    **{f"f{number}": f"f{number}" for number in range(1, 13)},
}  # fmt: skip
_PLAIN: dict[str, str] = {
    "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right", ";": "semicolon", "'": "apostrophe",
    "`": "grave_accent", "\\": "backslash", ",": "comma", ".": "dot", "/": "slash", " ": "spc", "\n": "ret",
    "\t": "tab", **{letter: letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"},
}  # fmt: skip
_SHIFTED = dict(zip('!@#$%^&*()_+{}:"~|<>?', "1234567890-=[];'`\\,./", strict=True))
KEYS: dict[str, tuple[str, ...]] = {
    **{character: (key,) for character, key in _PLAIN.items()},
    **{character: ("shift", _PLAIN[below]) for character, below in _SHIFTED.items()},
    **{letter.upper(): ("shift", letter) for letter in "abcdefghijklmnopqrstuvwxyz"},
}
"""The keys that are held together for a character, the last of them pressed last."""

_LOWER = {name.lower(): key for name, key in SPECIAL.items()}
_WORDS = [*SPECIAL, "wait", "wait5s", "waitFor"]
# A "<" that opens no such word is a character: "a < b", "<<EOF".
_TOKEN = re.compile(r'<(waitFor\b(?:"(?:\\.|[^"\\])*"|[^">])*|[A-Za-z][A-Za-z0-9.]*|[^\s<>]O(?:n|ff))>', re.I)
_WAIT = re.compile(r"wait(?:(\d+)|((?:\d+(?:\.\d+)?(?:ms|s|m|h))+))?", re.I)
_WAIT_FOR = re.compile(r'waitFor\s+"((?:\\.|[^"\\])+)"(?:\s+((?:\d+(?:\.\d+)?(?:ms|s|m|h)?)+))?\s*', re.I)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|$)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_WAIT_FOR_SECONDS = 60.0


@dataclass(frozen=True)
class Press:
    """Press these keys one after the other, and let them go in the opposite order. Names are QKeyCode's."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Hold:
    """Press keys and hold them, or let them go."""

    keys: tuple[str, ...]
    down: bool


@dataclass(frozen=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class WaitFor:
    """Go on when the guest shows this text; give up after some seconds."""

    text: str
    within: float


Action = Press | Hold | Wait | WaitFor


def parse(command: Sequence[str]) -> list[Action]:
    """Read ``boot_command``, whose parts are typed without anything between them.

    Raises BuildError, which names the part, the place in it (from 1), and the right word where one is near.
    """
    found: list[Action] = []
    for number, text in enumerate(command, 1):
        at = 0
        while at < len(text):
            token = _TOKEN.match(text, at)
            where = f"boot_command, part {number}, character {at + 1}"
            if token is not None:
                found.append(_token(token[1], where))
                at = token.end()
                continue
            found.append(Press(_character(text[at], where)))
            at += 1
    return found


def _token(word: str, where: str) -> Action:
    lower = word.lower()
    if lower in _LOWER:
        return Press((_LOWER[lower],))
    for end, down in (("on", True), ("off", False)):
        stem = word[: -len(end)]
        if lower.endswith(end) and stem.lower() in _LOWER:
            return Hold((_LOWER[stem.lower()],), down)
        if lower.endswith(end) and len(stem) == 1:
            return Hold(_character(stem, where), down)
    wait = _WAIT.fullmatch(word)
    if wait is not None:
        return Wait(float(wait[1]) if wait[1] else _duration(wait[2]) if wait[2] else 1.0)
    if lower.startswith("waitfor"):
        return _wait_for(word, where)
    raise BuildError(f"{where}: there is no key <{word}>{nearest(word, _WORDS)}",
                     hint="a < that is to be typed is written <leftShiftOn>,<leftShiftOff>")  # fmt: skip


def _wait_for(word: str, where: str) -> WaitFor:
    given = _WAIT_FOR.fullmatch(word)
    if given is None:
        raise BuildError(f'{where}: <{word}> is not <waitFor "text" 60s>')
    text = re.sub(r"\\(.)", r"\1", given[1])
    if not text.strip():
        raise BuildError(f"{where}: <{word}> waits for nothing")
    return WaitFor(text, _duration(given[2]) if given[2] else _WAIT_FOR_SECONDS)


def _duration(text: str) -> float:
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in _DURATION.findall(text.lower()))


def _character(character: str, where: str) -> tuple[str, ...]:
    if character not in KEYS:
        raise BuildError(f"{where}: {character!r} is on no key of a US keyboard")
    return KEYS[character]
