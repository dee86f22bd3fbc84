"""Boot menus of GRUB: its configuration is a script, of which entries and plain ``set`` are understood.

GNU GRUB manual, "Shell-like scripting" and "The list of available commands".
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from imagesmith.installer.menu_entry import FILES_READ, Entry, Read

_WORD = re.compile(
    r"""(?P<end>[;\n{}])|\#[^\n]*|(?P<word>(?:\$\{\w+\}|'[^']*'|"(?:\\.|[^"\\])*"|\\\n|\\.|[^\s;{}'"\\])+)"""
)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_DEVICE = re.compile(r"^\([^)]*\)")


@dataclass
class _Item:
    """An entry or a submenu, at its place in its menu."""

    title: str
    ident: str
    entry: Entry | None


def entries(menu: str, read: Read) -> list[Entry]:
    """What a menu offers, in its order; nothing where there is no such file."""
    variables: dict[str, str] = {}
    items = list(_items(menu, read(menu) or "", variables, read, [FILES_READ]))
    default = variables.get("default", "0")
    tops = [item for item in items if item.ident != ">"]
    chosen = None
    if default.isdigit():
        chosen = tops[int(default)] if int(default) < len(tops) else None
    else:
        chosen = next((item for item in items if default in (item.ident, item.title)), None)
    return [replace(item.entry, chosen=item is chosen) for item in items if item.entry is not None]


def _items(
    menu: str, text: str, variables: dict[str, str], read: Read, left: list[int], nested: bool = False
) -> Iterator[_Item]:
    depth = 0
    for words, body in _commands(text):
        name = words[0]
        depth += {"if": 1, "fi": -1}.get(name, 0)
        assignment = words[1] if name == "set" and len(words) > 1 else name
        if re.match(r"\w+=", assignment):
            if depth == 0:  # conditions are not understood: what holds without them is taken
                key, _, value = assignment.partition("=")
                variables[key] = _plain(value, variables)
        elif name in ("source", "configfile", ".") and len(words) > 1 and left[0] > 0:
            left[0] -= 1
            below = read(_DEVICE.sub("", _plain(words[1], variables)))
            yield from _items(menu, below or "", variables, read, left, nested)
        elif name in ("menuentry", "submenu") and body is not None and len(words) > 1:
            ident = ">" if nested else _option(words, "--id", variables)
            title = _plain(words[1], variables) if not words[1].startswith("--") else _title(words, variables)
            entry = _entry(menu, title, body, variables) if name == "menuentry" else None
            yield _Item(title, ident, entry)
            if name == "submenu" and left[0] > 0:
                left[0] -= 1
                yield from _items(menu, body, variables, read, left, nested=True)


def _entry(menu: str, title: str, body: str, variables: dict[str, str]) -> Entry | None:
    kernel = ""
    initrds: list[str] = []
    arguments: list[str] = []
    known = dict(variables)
    for words, _ in _commands(body):
        name = _plain(words[0], known)
        if name == "set" and len(words) > 1 and "=" in words[1]:
            key, _, value = words[1].partition("=")
            known[key] = _plain(value, known)
            continue
        given = [word for raw in words[1:] for word in _split(raw, known)]
        if re.fullmatch(r"linux(?:16|efi)?", name) and given:
            # A word with blanks gets quotes around it again (GRUB, grub_create_loader_cmdline), which the kernel knows.
            kernel = inside(given[0])
            arguments = [f'"{word}"' if re.search(r"\s", word) else word for word in given[1:]]
        elif re.fullmatch(r"initrd(?:16|efi)?", name):
            initrds = [inside(word) for word in given]
    if not kernel:
        return None
    return Entry("grub", menu, title, kernel, tuple(initrds), tuple(arguments), text=body)


def _commands(text: str) -> Iterator[tuple[list[str], str | None]]:
    """The commands of a script, as raw words, and what is between braces behind them, if anything is."""
    words: list[str] = []
    at = 0
    while (found := _WORD.search(text, at)) is not None:
        at = found.end()
        if found["word"]:
            if found["word"] in ("then", "else", "do") and not words:
                continue
            words.append(found["word"])
        elif found["end"] == "{" and words:
            close = _closing(text, at)
            if words[0] != "function":
                yield words, text[at:close]
            words, at = [], close + 1
        elif found["end"] and words:
            yield words, None
            words = []
    if words:
        yield words, None


def _closing(text: str, at: int) -> int:
    depth = 1
    while (found := _WORD.search(text, at)) is not None:
        at = found.end()
        depth += {"{": 1, "}": -1}.get(found["end"] or "", 0)
        if depth == 0:
            return found.start()
    return len(text)


def _plain(word: str, variables: dict[str, str]) -> str:
    """A word as GRUB takes it: without quotes, its variables filled in (unknown ones are empty)."""
    found = []
    for part in re.findall(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\\n|\\.|[^'"\\]+""", word, re.S):
        if part[0] == "'":
            found.append(part[1:-1])
        elif part[0] == '"':
            found.append(_filled(part[1:-1].replace('\\"', '"').replace("\\\\", "\\"), variables))
        elif part == "\\\n":
            continue
        elif part[0] == "\\":
            # A label's "\x20" reaches the kernel as it is: GRUB drops the backslash before its own letters alone.
            found.append(part if part[1].isalnum() else part[1])
        else:
            found.append(_filled(part, variables))
    return "".join(found)


def _split(word: str, variables: dict[str, str]) -> list[str]:
    """What one raw word becomes: nothing, or several words, where it is an unquoted variable."""
    plain = _plain(word, variables)
    return plain.split() if word.startswith("$") else ([plain] if plain else [])


def _filled(text: str, variables: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def _option(words: Sequence[str], name: str, variables: dict[str, str]) -> str:
    for at, word in enumerate(words):
        if word.startswith(f"{name}="):
            return _plain(word[len(name) + 1 :], variables)
        if word in (name, "$menuentry_id_option") and at + 1 < len(words):
            return _plain(words[at + 1], variables)
    return ""


def _title(words: Sequence[str], variables: dict[str, str]) -> str:
    """The title of an entry that has options before it: Debian's ``menuentry --hotkey=i 'Install'``."""
    taken = False
    for word in words[1:]:
        if taken:
            taken = False
        elif word.startswith("--"):
            taken = "=" not in word and word != "--unrestricted"
        else:
            return _plain(word, variables)
    return ""


def inside(path: str) -> str:
    """An absolute path, of a path of GRUB's without its device: ``($root)/boot/linux``."""
    return posixpath.normpath("/" + _DEVICE.sub("", path).lstrip("/"))
