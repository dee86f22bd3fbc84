"""Boot menus of isolinux and syslinux (Syslinux: doc/syslinux.txt, doc/menu.txt)."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from imagesmith.installer.menu_entry import FILES_READ, Entry, Read

_BINARIES = re.compile(r"\.(?:c32|com|cbt|bin|bss|0)$", re.I)


def entries(menu: str, read: Read) -> list[Entry]:
    """What a menu offers, in its order; nothing where there is no such file."""
    return _Menu(menu, read).entries()


@dataclass
class _Label:
    name: str
    title: str = ""
    kernel: str = ""
    append: str | None = None
    initrd: str = ""
    default: bool = False


class _Menu:
    def __init__(self, menu: str, read: Read) -> None:
        self._menu, self._read = menu, read
        self._labels: list[_Label] = []
        self._default = self._on_timeout = self._append = ""
        self._left = FILES_READ
        self._include(menu)

    def _include(self, path: str) -> None:
        text = self._read(path) if self._left > 0 else None
        self._left -= 1
        label: _Label | None = None
        in_help = False
        for line in (text or "").splitlines():
            words = line.split(None, 1)
            if not words or words[0].startswith("#"):
                continue
            word, rest = words[0].lower(), words[1].strip() if len(words) > 1 else ""
            if in_help or word == "text":
                in_help = word != "endtext"
            elif word == "label":
                label = _Label(rest)
                self._labels.append(label)
            elif word == "menu":
                self._menu_line(rest, label)
            elif word == "include":
                self._include(self._path(rest))
            elif word == "config" and label is None:
                self._include(self._path(_first(rest)))
            elif label is not None and word in ("kernel", "linux", "append", "initrd", "config"):
                self._label_line(label, word, rest)
            elif word == "append":
                self._append = rest
            elif word == "default":
                self._default = rest
            elif word == "ontimeout":
                self._on_timeout = rest

    def _menu_line(self, rest: str, label: _Label | None) -> None:
        words = rest.split(None, 1)
        word = words[0].lower() if words else ""
        if word == "include" and len(words) > 1:
            self._include(self._path(_first(words[1])))
        elif label is not None and word == "default":
            label.default = True
        elif label is not None and word == "label" and len(words) > 1:
            label.title = words[1].replace("^", "")

    def _label_line(self, label: _Label, word: str, rest: str) -> None:
        if word in ("kernel", "linux"):
            label.kernel = "" if _BINARIES.search(rest) and word == "kernel" else rest
        elif word == "append":
            label.append = rest
        elif word == "initrd":
            label.initrd = rest
        else:
            self._include(self._path(_first(rest)))

    def _path(self, name: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(self._menu), name))

    def entries(self) -> list[Entry]:
        chosen = self._chosen()
        found = []
        for label in self._labels:
            words = label.kernel.split()
            if not words:
                continue
            append = self._append if label.append is None else ("" if label.append == "-" else label.append)
            arguments = [*words[1:], *append.split()]
            given = [label.initrd] if label.initrd else [a[7:] for a in arguments if a.startswith("initrd=")]
            found.append(Entry(
                "isolinux", self._menu, label.title or label.name, self._path(words[0]),
                tuple(self._path(name) for name in ",".join(given[-1:]).split(",") if name),
                tuple(a for a in arguments if not a.startswith("initrd=")), label is chosen,
            ))  # fmt: skip
        return found

    def _chosen(self) -> _Label | None:
        for name in (self._on_timeout, self._default):
            named = next((label for label in self._labels if name and label.name == _first(name)), None)
            if named is not None and named.kernel:
                return named
        return next((label for label in self._labels if label.default), None)


def _first(text: str) -> str:
    return text.split(maxsplit=1)[0] if text else ""
