"""A root file system in a squashfs, looked at through what unsquashfs(1) takes out of it."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.inventory import File
from imagesmith.look.reader import LARGEST
from imagesmith.look.system import INITS

_WANTED = ("etc/os-release", "usr/lib/os-release", "etc/hostname", "etc/passwd", "etc/group", "etc/shadow",
           "var/lib/dpkg/status", "lib/apk/db/installed",
           *(f"{lib}/modules/*/modules.{name}" for lib in ("lib", "usr/lib") for name in ("dep", "builtin")),
           *(path.lstrip("/") for paths in INITS.values() for path in paths))  # fmt: skip
_LINE = re.compile(r"([bcdlps-])([rwxsStT-]{9}) (\d+)/(\d+) +(\d+|\d+, *\d+) \S+ \S+ root(/.*)")
"""``unsquashfs -lln -d root``: type and mode, owners, size or device, date, name and target."""
_BITS = {"r": 4, "w": 2, "x": 1, "s": 1, "t": 1, "S": 0, "T": 0, "-": 0}
_TYPES = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO,
          "s": stat.S_IFSOCK, "-": stat.S_IFREG}  # fmt: skip


class SquashfsReader:
    """Implements reader.Reader. Its links lead nowhere outside."""

    def __init__(self, image: Path, work: Path, host: Host) -> None:
        self._image, self._work, self._host = image, work, host
        self._folder = self._taken("part", *_WANTED)

    def _taken(self, name: str, *wanted: str) -> Path:
        """Take files out into a folder of their own, as far as this user may."""
        folder = self._work / name
        self._host.run(["unsquashfs", "-no-progress", "-no-xattrs", "-d", folder, self._image, *wanted],
                       purpose="look into a squashfs", ok=range(256))  # fmt: skip
        return folder

    def _inside(self, path: str) -> Path | None:
        try:
            found = (self._folder / path.lstrip("/")).resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            return None
        return found if found.is_relative_to(self._folder.resolve()) else None

    def names(self, path: str) -> Sequence[str]:
        """See Reader."""
        found = self._inside(path)
        return sorted(p.name for p in found.iterdir()) if found is not None and found.is_dir() else []

    def read(self, path: str) -> bytes:
        """See Reader."""
        found = self._inside(path)
        if found is None or not found.is_file() or found.stat().st_size > LARGEST:
            raise FileNotFoundError(path)
        return found.read_bytes()

    def files(self) -> dict[str, File]:
        """Everything below /, by absolute path, with the digests of files."""
        whole = self._taken("whole")
        said = self._host.run(["unsquashfs", "-lln", "-d", "root", self._image], purpose="look into a squashfs")
        found: dict[str, File] = {}
        first: dict[int, str] = {}
        for line in sorted(said.stdout.decode("utf-8", "surrogateescape").split("\n")):
            match = _LINE.fullmatch(line)
            if match is None:
                continue
            kind, bits, uid, gid, size, path = match.groups()
            mode, what = _TYPES[kind] | _mode(bits), ""
            if kind == "l":
                path, _, what = path.partition(" -> ")
            elif kind in "bc":
                what = size.replace(" ", "").replace(",", ":")
            elif kind == "-" and (here := whole / path[1:]).is_file() and not here.is_symlink():
                leader = first.setdefault(here.stat().st_ino, path)
                with here.open("rb") as stream:
                    what = hashlib.file_digest(stream, "sha256").hexdigest() if leader == path else f"= {leader}"
            bytes_ = int(size) if kind == "-" and not what.startswith("= ") else 0
            found[path] = File(mode, int(uid), int(gid), bytes_, what)
        return found


def _mode(bits: str) -> int:
    special = sum(value for value, at in ((4, 2), (2, 5), (1, 8)) if bits[at] in "sStT")
    owner, group, others = (sum(_BITS[bit] for bit in bits[at : at + 3]) for at in (0, 3, 6))
    return special << 9 | owner << 6 | group << 3 | others
