"""CD images: looking into them, reading files out, and making them. The only module that knows pycdlib.

ISO 9660 is ECMA-119; names come from Rock Ridge (RRIP, IEEE P1282) where it is there, then UDF (ECMA-167; Windows has
all its files there alone), Joliet, and ISO 9660's own. An ISO is somebody else's work: what it says about sizes, names
and links is bounded here, and whatever goes wrong inside pycdlib is a Refused.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self, cast

from pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibInvalidInput

from imagesmith.errors import BuildError, Refused
from imagesmith.installer.iso_guard import Bounded, Metered, parsing

SECTOR = 2048
"""Bytes; ECMA-119, 6.1.2."""
_READ_LIMIT = 1 << 20
_LINKS_FOLLOWED = 8
_VERSION = re.compile(r";\d+$")

NotThere = PyCdlibInvalidInput
"""What pycdlib raises where there is no such path."""
Names = Literal["rr_path", "udf_path", "joliet_path", "iso_path"]


@dataclass(frozen=True)
class _Entry:
    inside: str
    """The path in pycdlib's words: with ``;1`` and all."""
    folder: bool = False
    link: str = ""
    size: int = 0
    extents: tuple[tuple[int, int], ...] = ()
    """Where its bytes are: offsets in the ISO, and lengths. Not known in UDF."""


_ROOT = _Entry("/", folder=True)


class Iso:
    """An ISO that is open for reading, from the beginning of a ``with`` block to its end.

    Paths are absolute or relative to its root, separated by ``/``; where there is no file of that very name, one that
    differs in case only is taken. Symbolic links are followed inside the ISO.
    """

    label: str
    """The volume's name (ECMA-119, 8.4.8)."""
    names: Names
    """Where file names come from."""
    cd: Any
    """pycdlib's object, for iso_edit.py."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folders: dict[str, dict[str, _Entry]] = {}

    def __enter__(self) -> Self:
        """Open it. Raises BuildError where there is no such file, Refused where it is no ISO that can be read."""
        try:
            self._file = Metered(self.path.open("rb"))
        except OSError as error:
            raise BuildError(f"cannot open {self.path}: {error.strerror}") from error
        self.cd = PyCdlib()
        try:
            with parsing(self.path):
                self.cd.open_fp(cast(BinaryIO, self._file))
                self.label = self.cd.pvd.volume_identifier.decode("utf-8", "replace").rstrip(" \0")
                self.names = _best_names(self.cd)
        except BaseException:
            self._file.close()
            raise
        self._file.left = None
        self._cut = self.cd.pvd.space_size * self.cd.pvd.logical_block_size() > self._file.size
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.cd.close()
        finally:
            self._file.close()

    # -- looking -----------------------------------------------------------------------------------------------

    def __contains__(self, path: str) -> bool:
        return self._find(path) is not None

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder of that name."""
        found = self._find(path)
        return found is not None and found[1].folder

    def list(self, folder: str = "/") -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        found = self._find(folder)
        if found is None or not found[1].folder:
            return []
        return sorted(self._entries(*found))

    def real(self, path: str) -> str | None:
        """The path as the ISO spells it, with links followed; None where there is nothing."""
        found = self._find(path)
        return None if found is None else found[0]

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self, path: str, limit: int = _READ_LIMIT) -> bytes:
        """A small file's bytes. Raises FileNotFoundError, Refused where it is larger than ``limit``."""
        entry = self._file_entry(path)
        if entry.size > limit:
            raise Refused(f"{path} in {self.path.name} has {entry.size} bytes, more than the {limit} that are read")
        into = io.BytesIO()
        self._copy(entry, path, into, limit)
        return into.getvalue()

    def extract(self, path: str, to: Path) -> None:
        """Write a file's bytes to ``to``, a new file. Raises FileNotFoundError, Refused, BuildError."""
        entry = self._file_entry(path)
        with to.open("xb") as into:
            self._copy(entry, path, into, self._file.size)

    def _file_entry(self, path: str) -> _Entry:
        found = self._find(path)
        if found is None or found[1].folder:
            raise FileNotFoundError(f"there is no file {path} in {self.path.name}")
        return found[1]

    def _copy(self, entry: _Entry, path: str, into: BinaryIO, limit: int) -> None:
        bounded = Bounded(into, limit, f"{path} in {self.path.name}")
        with parsing(self.path):
            if self.names == "udf_path":
                self.cd.get_file_from_iso_fp(cast(BinaryIO, bounded), **{self.names: entry.inside})
            for offset, length in entry.extents:
                self._file.copy(offset, length, bounded)
        # pycdlib lets no file end behind the end of the ISO, whatever its record says.
        end = max((offset + length for offset, length in entry.extents), default=0)
        if bounded.written < entry.size or (self._cut and end >= self._file.size):
            raise Refused(f"{self.path.name} is cut short: it ends within {path}", hint="download it again")

    # -- finding -----------------------------------------------------------------------------------------------

    def _find(self, path: str) -> tuple[str, _Entry] | None:
        """The real path, and what is there."""
        way = [("/", _ROOT)]
        left = [part for part in path.split("/") if part]
        links = 0
        while left:
            part = left.pop(0)
            here, entry = way[-1]
            if part == "..":  # never above the root
                way = way[:-1] or way[:1]
            elif part != ".":
                named = _named(self._entries(here, entry), part) if entry.folder else None
                if named is None:
                    return None
                name, below = named
                if below.link:
                    links += 1
                    if links > _LINKS_FOLLOWED:
                        return None
                    left = [part for part in below.link.split("/") if part] + left
                    way = way[:1] if below.link.startswith("/") else way
                else:
                    way.append((posixpath.join(here, name), below))
        return way[-1]

    def _entries(self, path: str, entry: _Entry) -> dict[str, _Entry]:
        known = self._folders.get(path)
        if known is None:
            with parsing(self.path):
                known = dict(self._children(entry.inside))
            self._folders[path] = known
        return known

    def _children(self, inside: str) -> Iterator[tuple[str, _Entry]]:
        for record in self.cd.list_children(**{self.names: inside}):
            if record is None or (self.names != "udf_path" and (record.is_dot() or record.is_dotdot())):
                continue
            try:
                name = _name(record, self.names)
                link = _link(record, self.names)
            except UnicodeDecodeError:
                continue  # no installer has such names; whoever asks for one does not find it
            plain = name if self.names == "rr_path" else _VERSION.sub("", name).rstrip(".")
            if plain in ("", ".", "..") or "/" in plain or "\0" in plain:
                continue
            folder = bool(record.is_dir())
            size, extents = (0, ()) if folder or link else _place(record, self.names, self.cd.pvd.logical_block_size())
            yield plain, _Entry(posixpath.join(inside, name), folder, link, size, extents)


def _named(entries: Mapping[str, _Entry], name: str) -> tuple[str, _Entry] | None:
    if name in entries:
        return name, entries[name]
    lower = name.lower()
    return next(((found, entry) for found, entry in entries.items() if found.lower() == lower), None)


def _best_names(cd: Any) -> Names:
    if cd.has_rock_ridge():
        return "rr_path"
    if cd.has_udf():
        return "udf_path"
    return "joliet_path" if cd.has_joliet() else "iso_path"


def _name(record: Any, names: Names) -> str:
    if names == "udf_path":
        ident = record.file_ident
        return str(ident.fi.decode("latin-1" if ident.encoding == "latin-1" else "utf-16_be"))
    if names == "rr_path":
        # A record without a name of Rock Ridge's own (a folder that others were moved to) cannot be asked for by it.
        return "" if record.rock_ridge is None else str(record.rock_ridge.name().decode("utf-8"))
    return str(record.file_identifier().decode("utf-16_be" if names == "joliet_path" else "utf-8"))


def _link(record: Any, names: Names) -> str:
    if names != "rr_path" or not record.is_symlink():
        return ""
    return str(record.rock_ridge.symlink_path().decode("utf-8"))


def _place(record: Any, names: Names, block: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """A file's length, and its extents.

    pycdlib 1.22 gives out only the last part of a file of several, when it is asked for it by its Rock Ridge name.
    """
    if names == "udf_path":
        return int(record.get_data_length()), ()
    extents = []
    while record is not None:  # a file of more than 4 GiB has several records (ECMA-119, 6.5.1)
        extents.append((int(record.extent_location()) * block, int(record.get_data_length())))
        record = record.data_continuation
    return sum(length for _, length in extents), tuple(extents)


# -- making ----------------------------------------------------------------------------------------------------------


def write_volume(path: Path, label: str, files: Mapping[str, bytes]) -> None:
    """Make a small ISO at ``path``, for our eyes only (0600): a second volume with answer files.

    It has Rock Ridge and Joliet names, and the label as it is written: ``cidata`` (cloud-init, NoCloud) and ``OEMDRV``
    (Anaconda, Driver Update Disks) are looked for by it. ``files`` are relative names, with folders. Raises BuildError.
    """
    if not 0 < len(label.encode()) <= 16 or not label.isascii():
        raise BuildError(f"a volume's name is 1 to 16 plain letters (Joliet has no room for more), not {label!r}")
    cd = PyCdlib()
    cd.new(interchange_level=3, vol_ident=label, joliet=3, rock_ridge="1.09", app_ident_str="IMAGESMITH")
    try:
        _add(cd, files)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as into:
            cd.write_fp(into)
    finally:
        cd.close()


def _add(cd: Any, files: Mapping[str, bytes]) -> None:
    """Add files, and the folders that they are in, to a volume that is open in pycdlib."""
    folders = {"": ""}
    for number, (name, content) in enumerate(sorted(files.items())):
        parts = relative(name).split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                above = "/".join(parts[: depth - 1])
                folders[folder] = f"{folders[above]}/D{len(folders):06d}"
                cd.add_directory(iso_path=folders[folder], rr_name=parts[depth - 1], joliet_path=f"/{folder}")
        cd.add_fp(io.BytesIO(content), len(content), iso_path=f"{folders['/'.join(parts[:-1])]}/F{number:06d}.;1",
                  rr_name=parts[-1], joliet_path="/" + "/".join(parts))  # fmt: skip


def relative(name: str) -> str:
    """A name inside a volume, without a leading ``/``. Raises BuildError for one that leads out of it."""
    parts = name.strip("/").split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in name:
        raise BuildError(f"{name!r} is no name for a file on a volume")
    return "/".join(parts)
