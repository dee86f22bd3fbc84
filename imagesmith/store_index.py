"""The store's index: which key is which layer, on which parent, used when and by whom (SQLite).

It holds no absolute path, so a store can be moved. Every change is one short ``BEGIN IMMEDIATE`` transaction, which
also orders the processes that share the store.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagesmith.errors import StoreError
from imagesmith.store_files import guarding, is_rot, lock, vanished

SCHEMA = 2
"""Kept as SQLite's user_version. 1: layers have no records (store_record); the tables are the same."""
_TABLES = """
CREATE TABLE layers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, parent INTEGER REFERENCES layers(id), gives TEXT NOT NULL,
    name TEXT NOT NULL, facts TEXT NOT NULL, digests TEXT NOT NULL, made REAL NOT NULL, used REAL NOT NULL,
    size INTEGER NOT NULL);
CREATE INDEX layers_key ON layers(key);
CREATE INDEX layers_parent ON layers(parent);
CREATE TABLE leases (name TEXT PRIMARY KEY, began REAL NOT NULL);
CREATE TABLE held (lease TEXT NOT NULL REFERENCES leases(name) ON DELETE CASCADE, layer INTEGER NOT NULL,
    PRIMARY KEY (lease, layer)) WITHOUT ROWID;
CREATE TABLE counter (last INTEGER NOT NULL);
INSERT INTO counter VALUES (0);
"""
_COLUMNS = "id, key, gives, parent, name, facts, digests, made, used, size"


@dataclass(frozen=True)
class Layer:
    """What one node left: a folder that never changes."""

    id: str
    """The name of its folder; never used again."""
    key: str
    gives: str
    """What is in it: ``tree``, ``disk``, ``files`` (an artifact) or ``record`` (facts alone)."""
    folder: Path
    parent: str | None
    """The id of the layer below."""
    name: str
    """The node that made it, for people."""
    facts: Mapping[str, object] = field(hash=False)
    """What its maker noted, as JSON values."""
    digests: Mapping[str, str] = field(hash=False)
    """The SHA-256 of each of its files, by relative name (of a tree: one entry, named ``""``, for its shape)."""
    made: float
    """Seconds since 1970."""
    used: float
    """When a build last asked for it, in seconds since 1970."""
    size: int
    """Bytes on the disk."""


def folder_name(number: int) -> str:
    """The name of a layer's folder."""
    return f"{number:06d}"


class Index:
    """One open index; may be used by several threads."""

    def __init__(self, root: Path) -> None:
        """Open it, or make it. Raises StoreError where it cannot be opened, or is of a newer version."""
        self._root = root
        self._file = root / "index.db"
        self._mutex = threading.RLock()
        with guarding(root, "open"):
            opening = lock(root / "lock")  # two processes must not make the tables at once
            assert opening is not None
            try:
                if not self._file.exists():  # opening it by hand where it is open already would end SQLite's locks
                    os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                self._db = sqlite3.connect(self._file, timeout=60, isolation_level=None, check_same_thread=False)
                try:
                    self.version = self._prepare()
                except BaseException:
                    self._db.close()
                    raise
                self._inode = self._file.stat().st_ino
            finally:
                opening.release()

    def _prepare(self) -> int:
        """Make the tables where there are none; the version that was found, or 0."""
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if found > SCHEMA:
            raise StoreError(
                f"the store {self._root} was made by a newer imagesmith (format {found}, this one knows {SCHEMA})",
                hint="upgrade imagesmith, or let IMAGESMITH_CACHE name another folder; nothing was changed",
            )
        # In WAL mode NORMAL loses at most the newest transactions when the power fails, in order, and never the rest.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if found == 0:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
        else:
            self._db.execute("SELECT last FROM counter").fetchone()  # raises where it is no index of ours
        return found

    @property
    def there(self) -> bool:
        """Whether the file that is open is still the store's: nobody removed it, or put another one in its place."""
        try:
            return self._file.stat().st_ino == self._inode
        except OSError:
            return False

    def upgrade(self, do: Callable[[], None]) -> None:
        """Bring the store to this version, unless another process has just done it: all that ``do`` does, or nothing
        is noted. Call it inside ``change``."""
        if int(self._db.execute("PRAGMA user_version").fetchone()[0]) < SCHEMA:
            do()
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")
        self.version = SCHEMA

    def wrong(self) -> str:
        """What SQLite finds wrong with the file; empty: nothing."""
        try:
            found = [str(row[0]) for row in self._ask("PRAGMA integrity_check(5)")]
            self.layers()
        except StoreError as error:
            if not is_rot(error.__cause__):
                raise
            return error.message
        return "" if found == ["ok"] else "; ".join(found)

    def close(self) -> None:
        """Close it."""
        with self._mutex:
            self._db.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One transaction: everything inside happens or nothing, and no other process changes the index meanwhile."""
        with self._mutex, guarding(self._root, "note a change"):
            if not self.there:
                raise vanished(self._root)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _ask(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._mutex, guarding(self._root, "be read"):
            return self._db.execute(sql, values).fetchall()

    # -- layers --------------------------------------------------------------------------------------------------

    def layers(self, where: str = "1", *values: object) -> list[Layer]:
        """The layers for which the condition holds, in the order they were begun."""
        rows = self._ask(f"SELECT {_COLUMNS} FROM layers WHERE {where} ORDER BY id", *values)
        return [self._layer(row) for row in rows]

    def _layer(self, row: tuple[object, ...]) -> Layer:
        number, key, gives, parent, name, facts, digests, made, used, size = row
        assert isinstance(number, int)
        try:
            return Layer(
                id=folder_name(number), key=str(key), gives=str(gives),
                folder=self._root / "layers" / folder_name(number),
                parent=folder_name(parent) if isinstance(parent, int) else None, name=str(name),
                facts=json.loads(str(facts)), digests=json.loads(str(digests)),
                made=float(str(made)), used=float(str(used)), size=int(str(size)),
            )  # fmt: skip
        except ValueError as error:
            raise StoreError(f"the index of the store {self._root} is damaged: layer {number}: {error}",
                             hint="'imagesmith cache verify --repair' makes it anew") from error  # fmt: skip

    def ids(self) -> set[str]:
        """The ids of all layers."""
        return {folder_name(int(str(row[0]))) for row in self._ask("SELECT id FROM layers")}

    def newest(self, key: str) -> Layer | None:
        """The layer that a key names now."""
        found = self.layers("id = (SELECT max(id) FROM layers WHERE key = ?)", key)
        return found[0] if found else None

    def add(self, layer: Layer) -> None:
        """Put a layer in. Raises StoreError where its parent went (it was not held)."""
        if layer.parent is not None and not self.layers("id = ?", int(layer.parent)):
            raise StoreError(f"{layer.name}: the layer below it, {layer.parent}, is gone from the store {self._root}",
                             hint="build again")  # fmt: skip
        self._db.execute(
            f"INSERT INTO layers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (int(layer.id), layer.key, layer.gives, layer.parent and int(layer.parent), layer.name,
             json.dumps(dict(layer.facts)), json.dumps(dict(layer.digests)), layer.made, layer.used, layer.size),
        )  # fmt: skip

    def correct(self, layer: Layer) -> None:
        """Let the index say of a layer what its record says."""
        self._db.execute(
            "UPDATE layers SET key = ?, gives = ?, parent = ?, name = ?, facts = ?, digests = ? WHERE id = ?",
            (layer.key, layer.gives, layer.parent and int(layer.parent), layer.name, json.dumps(dict(layer.facts)),
             json.dumps(dict(layer.digests)), int(layer.id)),
        )  # fmt: skip

    def drop(self, layer: Layer) -> None:
        """Take a layer out; its children must have gone before."""
        self._db.execute("DELETE FROM layers WHERE id = ?", (int(layer.id),))

    def touch(self, layer: Layer, now: float) -> None:
        """Note that a layer was used."""
        self._db.execute("UPDATE layers SET used = max(used, ?) WHERE id = ?", (now, int(layer.id)))

    def resize(self, layer: Layer, size: int) -> None:
        """Note that a layer takes other space than it did: its checkpoint went."""
        self._db.execute("UPDATE layers SET size = ? WHERE id = ?", (size, int(layer.id)))

    def next_number(self, beyond: int) -> int:
        """A number that no layer ever had; larger than ``beyond``, the largest seen on the disk."""
        self._db.execute("UPDATE counter SET last = max(last, ?) + 1", (beyond,))
        return int(self._db.execute("SELECT last FROM counter").fetchone()[0])

    # -- leases --------------------------------------------------------------------------------------------------

    def leases(self) -> dict[str, float]:
        """Every build that is noted as running, and when it began."""
        return {str(name): float(str(began)) for name, began in self._ask("SELECT name, began FROM leases")}

    def begin(self, lease: str, now: float) -> None:
        """Note a build."""
        self._db.execute("INSERT INTO leases VALUES (?, ?)", (lease, now))

    def end(self, lease: str) -> None:
        """Forget a build and what it held."""
        self._db.execute("DELETE FROM leases WHERE name = ?", (lease,))

    def hold(self, lease: str, layer: Layer) -> None:
        """Keep a layer, and with it everything below it, until the build ends."""
        self._db.execute("INSERT OR IGNORE INTO held VALUES (?, ?)", (lease, int(layer.id)))

    def held(self, *, but: str = "") -> set[str]:
        """The ids of the layers that some build keeps, the one whose lease is ``but`` not counted."""
        rows = self._ask("SELECT DISTINCT layer FROM held WHERE lease != ?", but)
        return {folder_name(int(str(row[0]))) for row in rows}
