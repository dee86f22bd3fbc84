"""What differs between two inventories."""

from __future__ import annotations

import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imagesmith.inventory import File, Inventory


@dataclass(frozen=True)
class Change:
    """Something that is different. What was not there is None; so is what is not there any more."""

    name: str
    before: str | None
    after: str | None

    @property
    def sign(self) -> str:
        """``+``, ``-`` or ``~``."""
        return "+" if self.before is None else "-" if self.after is None else "~"


@dataclass(frozen=True)
class FileChange:
    """A file that is different."""

    path: str
    before: File | None
    after: File | None
    how: Sequence[str] = ()
    """Of one that is in both: ``type``, ``content``, ``size``, ``target``, ``mode``, ``owner``."""

    @property
    def sign(self) -> str:
        """``+``, ``-`` or ``~``."""
        return "+" if self.before is None else "-" if self.after is None else "~"

    @property
    def grown(self) -> int:
        """Bytes by which it is larger now."""
        return (self.after.size if self.after else 0) - (self.before.size if self.before else 0)

    def told(self) -> str:
        """How it is different, for people; nothing for what was added or removed."""
        if self.before is None or self.after is None:
            return ""
        words = {
            "mode": f"mode {_octal(self.before)} -> {_octal(self.after)}",
            "owner": f"owner {_owner(self.before)} -> {_owner(self.after)}",
            "target": f"{self.before.what} -> {self.after.what}",
            "size": f"{self.before.size:,} -> {self.after.size:,} bytes",
            "type": f"{stat.filemode(self.before.mode)} -> {stat.filemode(self.after.mode)}",
        }
        return ", ".join(words.get(how, how) for how in self.how)


@dataclass(frozen=True)
class Difference:
    """All that differs; empty where nothing does."""

    system: Sequence[Change] = ()
    """``system``, ``init``, ``hostname``."""
    kernels: Sequence[Change] = ()
    packages: Sequence[Change] = ()
    services: Sequence[Change] = ()
    users: Sequence[Change] = ()
    groups: Sequence[Change] = ()
    files: Sequence[FileChange] = ()
    sizes: tuple[int, int] = (0, 0)
    """Bytes of all files, before and after."""
    unsure: int = 0
    """How many files have the same size and no digest on one side: only their sizes, modes and owners were compared."""
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any((self.system, self.kernels, self.packages, self.services, self.users, self.groups, self.files))

    def plain(self) -> dict[str, object]:
        """Return it as JSON has it."""
        named: dict[str, object] = {
            what: [{"name": c.name, "before": c.before, "after": c.after} for c in getattr(self, what)]
            for what in ("system", "kernels", "packages", "services", "users", "groups")
        }
        files = [
            {"path": c.path, "how": list(c.how), "before": _plain(c.before), "after": _plain(c.after)}
            for c in self.files
        ]
        return {"same": self.same, **named, "files": files, "size": {"before": self.sizes[0], "after": self.sizes[1]},
                "unsure": self.unsure, "notes": list(self.notes)}  # fmt: skip


def difference(before: Inventory, after: Inventory) -> Difference:
    """Compare two inventories."""
    about = ("system", "init", "hostname")
    files, unsure = _files(before.files, after.files)
    return Difference(
        system=_changes({n: getattr(before, n) for n in about}, {n: getattr(after, n) for n in about}),
        kernels=_changes(dict.fromkeys(before.kernels, ""), dict.fromkeys(after.kernels, "")),
        packages=_changes(before.packages, after.packages), services=_changes(before.services, after.services),
        users=_changes(before.users, after.users), groups=_changes(before.groups, after.groups),
        files=files, sizes=(before.size, after.size), unsure=unsure, notes=[*before.notes, *after.notes],
    )  # fmt: skip


def counted(changes: Iterable[Change | FileChange]) -> str:
    """How many were added, removed and changed, in words; empty for none."""
    found = Counter(change.sign for change in changes)
    words = {"+": "added", "-": "removed", "~": "changed"}
    return ", ".join(f"{found[sign]:,} {word}" for sign, word in words.items() if found[sign])


def folded(changes: Iterable[FileChange]) -> list[tuple[FileChange, int, int]]:
    """Added or removed files without those in folders that are added or removed as a whole.

    With each: how many are in it, and the bytes by which it all grew.
    """
    top: dict[str, str] = {}
    found: dict[str, tuple[FileChange, int, int]] = {}
    for change in sorted(changes, key=lambda one: one.path):
        above = top.get(posixpath.dirname(change.path))
        top[change.path] = above or change.path
        first, count, grown = found[above] if above else (change, -1, 0)
        found[above or change.path] = (first, count + 1, grown + change.grown)
    return list(found.values())


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    return [
        Change(name, before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)
    ]  # fmt: skip


def _files(before: Mapping[str, File], after: Mapping[str, File]) -> tuple[list[FileChange], int]:
    found, unsure = [], 0
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(FileChange(path, old, new))
        elif old != new:
            how = list(_how(old, new))
            if how:
                found.append(FileChange(path, old, new, how))
            elif not old.what or not new.what:
                unsure += 1
        elif stat.S_ISREG(old.mode) and not old.what and old.size:
            unsure += 1
    return found, unsure


def _how(old: File, new: File) -> Iterable[str]:
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield "type"
        return
    link = stat.S_ISLNK(old.mode)
    known = bool(old.what and new.what)
    if old.size != new.size:
        yield "size"
    elif known and old.what != new.what:
        yield "content" if stat.S_ISREG(old.mode) else "target"
    if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode) and not link:
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"


def _plain(file: File | None) -> dict[str, object] | None:
    if file is None:
        return None
    return {"mode": f"{file.mode:06o}", "uid": file.uid, "gid": file.gid, "size": file.size, "what": file.what}


def _octal(file: File) -> str:
    return f"{stat.S_IMODE(file.mode):04o}"


def _owner(file: File) -> str:
    return f"{file.uid}:{file.gid}"
