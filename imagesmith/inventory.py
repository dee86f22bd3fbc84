"""What a system is made of: packages, services, users, kernels and every file; taken once for an image, and kept.

``inventory.json`` is JSON with a line for each file, so that programs that compare text can be used on it, too.
"""

from __future__ import annotations

import json
import posixpath
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, cast

from imagesmith.errors import BuildError

FILE = "inventory.json"
"""What it is called in an output folder."""
_VERSION = 1
_LISTS, _MAPPINGS = ("kernels", "notes"), ("packages", "services", "users", "groups")


class File(NamedTuple):
    """A file, folder, link or device. ``mode`` holds its type, as in stat(2); ``size`` in bytes, 0 but for files."""

    mode: int
    uid: int
    gid: int
    size: int
    what: str
    """A file's SHA-256, or nothing where it is not known; a link's target; ``= PATH`` where it is another name of what
    is at PATH; a device's numbers."""


@dataclass(frozen=True)
class Inventory:
    """What was found. What is not known is empty, and the notes say why."""

    system: str = ""
    """For people: ``Debian GNU/Linux 12 (bookworm)``."""
    init: str = ""
    hostname: str = ""
    kernels: Sequence[str] = field(default_factory=list)
    """The newest first."""
    package_format: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Name -> version."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Unit or script -> ``enabled`` or ``masked``."""
    users: Mapping[str, str] = field(default_factory=dict)
    """Name -> ids, home, shell and whether a password is set, in words."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """Name -> id and members, in words."""
    files: Mapping[str, File] = field(default_factory=dict)
    """Absolute path -> what is there; sorted."""
    notes: Sequence[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def public(self) -> Inventory:
        """The same without the digests of files that not everybody in the guest may read, be it because of a folder
        above them: guesses at what is in one, which may be a secret, could be held against its digest.
        """
        passable = {"/": True}
        for path, file in sorted(self.files.items()):
            if stat.S_ISDIR(file.mode):
                passable[path] = bool(file.mode & stat.S_IXOTH) and passable.get(posixpath.dirname(path), True)
        files = {
            path: file if not stat.S_ISREG(file.mode) or file.what.startswith("= ")
            or (file.mode & stat.S_IROTH and passable.get(posixpath.dirname(path), True)) else file._replace(what="")
            for path, file in self.files.items()
        }  # fmt: skip
        return Inventory(**{each.name: getattr(self, each.name) for each in fields(self)} | {"files": files})

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        plain = {"inventory": _VERSION, **asdict(Inventory(**{**self.__dict__, "files": {}}))}
        del plain["files"]
        lines = [f"{json.dumps(name)}: {json.dumps([_octal(f.mode), *f[1:]])}" for name, f in self.files.items()]
        with path.open("w", encoding="utf-8") as stream:
            head = json.dumps(plain, indent=1)
            stream.write(head[: head.rindex("}")].rstrip() + ',\n "files": {\n' + ",\n".join(lines) + "\n }\n}\n")


def read(path: Path) -> Inventory:
    """Read what ``write`` wrote. Raises BuildError."""
    try:
        plain = cast(dict[str, Any], json.loads(path.read_bytes()))
        if plain.pop("inventory") != _VERSION:
            raise BuildError(f"{path} was written by another version of imagesmith", hint="build again")
        files = {
            str(name): File(int(mode, 8), int(uid), int(gid), int(size), str(what))
            for name, (mode, uid, gid, size, what) in plain.pop("files").items()
        }
        for name, value in plain.items():
            wanted = dict if name in _MAPPINGS else list if name in _LISTS else str
            inside = value.values() if isinstance(value, dict) else value
            if not isinstance(value, wanted) or not all(isinstance(one, str) for one in inside):
                raise ValueError(f"'{name}' is not what it must be")
        return Inventory(**plain, files=files)
    except OSError as error:
        raise BuildError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BuildError(f"{path} is no inventory: {error}", hint="build again") from None


def _octal(mode: int) -> str:
    return f"{mode:06o}"
