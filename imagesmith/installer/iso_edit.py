"""A copy of an ISO with other files in it, made with pycdlib: what boots it as a CD is kept (El Torito).

A partition table in front of it is not kept as it should be (its GPT is damaged): see remaster.py.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagesmith.installer.iso import Iso, NotThere, relative
from imagesmith.installer.iso_guard import parsing


def rewrite(source: Path, into: Path, files: Mapping[str, bytes]) -> None:
    """Write a copy of ``source`` to ``into``, a new file (0600), with ``files`` added or put in the place of others.

    The files are seen under all kinds of names that the ISO has. Raises BuildError, Refused.
    """
    with Iso(source) as iso:
        edit = _Edit(iso.cd)
        with parsing(source):
            for name, content in files.items():
                real = iso.real(name) or "/" + relative(name)
                edit.put(real, content)
            with os.fdopen(os.open(into, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                iso.cd.write_fp(out)


_VALID = re.compile(r"^(?=.{1,33}$)[A-Z0-9_]*\.?[A-Z0-9_]*;\d+$")
"""A file's name that pycdlib makes (ECMA-119, 7.5.1, at interchange level 3)."""


class _Edit:
    def __init__(self, cd: Any) -> None:
        self._cd = cd
        self._rock_ridge = bool(cd.has_rock_ridge())

    def put(self, path: str, content: bytes) -> None:
        """Put one file there, by its path as people write it."""
        folder, name = posixpath.split(path)
        joliet, udf = self._cd.has_joliet(), self._cd.has_udf()
        for kind in [*(["joliet_path"] if joliet else []), *(["udf_path"] if udf else [])]:
            if self._there(**{kind: path}) is not None:
                self._cd.rm_hard_link(**{kind: path})
            self._folder_of(kind, folder)
        old = self._iso_path(path)
        if old is not None:
            self._cd.rm_hard_link(iso_path=old)
        place = self._kept(old) if old is not None else None
        if place is None:
            place = self._free(self._iso_folder(folder), name, ".;1")
        self._cd.add_fp(io.BytesIO(content), len(content), iso_path=place, rr_name=name if self._rock_ridge else None,
                        joliet_path=path if joliet else None, udf_path=path if udf else None)  # fmt: skip

    def _there(self, **path: str) -> Any:
        try:
            return self._cd.get_record(**path)
        except NotThere:
            return None

    def _folder_of(self, kind: str, folder: str) -> None:
        """Make a folder of Joliet or UDF, and those above it."""
        if folder == "/" or self._there(**{kind: folder}) is not None:
            return
        self._folder_of(kind, posixpath.dirname(folder))
        self._cd.add_directory(**{kind: folder})

    def _iso_path(self, path: str) -> str | None:
        """The path in ISO 9660's own names."""
        if path == "/":
            return "/"
        if self._rock_ridge:
            record = self._there(rr_path=path)
            return None if record is None else str(self._cd.full_path_from_dirrecord(record))
        above = self._iso_path(posixpath.dirname(path))
        plain = _iso_name(posixpath.basename(path))
        names = (plain, plain + ";1", plain + ".;1")
        return next((found for found in (posixpath.join(above or "/", name) for name in names)
                     if above is not None and self._there(iso_path=found) is not None), None)  # fmt: skip

    def _iso_folder(self, folder: str) -> str:
        """The same for a folder, which is made where it is not there."""
        found = self._iso_path(folder)
        if found is None:
            name = posixpath.basename(folder)
            found = self._free(self._iso_folder(posixpath.dirname(folder)), name, "")
            self._cd.add_directory(iso_path=found, rr_name=name if self._rock_ridge else None)
        return found

    def _kept(self, old: str) -> str | None:
        """The same name for the file that comes in its place: isolinux knows ISO 9660's names alone, in either case."""
        folder, name = posixpath.split(old)
        upper = name.upper() if ";" in name else name.upper() + ";1"
        return posixpath.join(folder, upper) if _VALID.match(upper) else None

    def _free(self, folder: str, name: str, end: str) -> str:
        """A path of ISO 9660's that is not taken yet (ECMA-119, 7.5.1: eight and three letters)."""
        plain = _iso_name(name)
        if not self._rock_ridge:
            return posixpath.join(folder, plain + (end and (";1" if "." in plain else end)))
        numbered = (posixpath.join(folder, f"ADD{number:05d}{end}") for number in range(100_000))
        return next(path for path in numbered if self._there(iso_path=path) is None)


def _iso_name(name: str) -> str:
    stem, dot, extension = name.upper().partition(".")
    clean = [re.sub(r"[^A-Z0-9_]", "_", part) for part in (stem, extension)]
    return clean[0][:8] + (dot and "." + clean[1][:3])
