"""Layers by key, on the disk: found, made once, kept while in use, collected when the store grows too large.

::

    ROOT/index.db        key -> layer -> parent (store_index)
    ROOT/layers/000012/  a finished layer; 000013.part/ one that is being made, locked by its maker; NAME.gone/ goes
    ROOT/blobs/          downloads by digest (fetch)
    ROOT/leases/         one locked file for each running build; what a build found or made stays until it ends
    ROOT/locks/          one locked file for each key that is being made

Whatever a process held goes with it when it dies: all locks are flock(2). A layer is written aside, flushed, renamed
and indexed in one transaction, so a key is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from imagesmith import store_files as files
from imagesmith import store_record
from imagesmith.errors import ImagesmithError, Interrupted, StoreError
from imagesmith.store_care import (
    Damage,
    checkpoints,
    choose,
    damage,
    drop_damaged,
    half_checkpoints,
    strays,
    without_folders,
)
from imagesmith.store_files import Lock, lock
from imagesmith.store_index import SCHEMA, Index, Layer, folder_name

__all__ = ["Layer", "Slot", "Store", "Use"]

GIVES = ("tree", "disk", "files", "record")


class Slot:
    """A place for a layer: ``folder`` to fill and ``commit``, or ``layer`` where somebody else has just made it."""

    def __init__(self, use: Use, layer: Layer | None, template: Layer | None, part: Lock | None) -> None:
        self.layer = layer
        self._use = use
        self._template = template
        self._part = part

    @property
    def folder(self) -> Path:
        """ROOT/layers/<id>.part: there, empty, and removed again unless it is committed."""
        assert self._part is not None, "the layer is there: use slot.layer"
        return self._part.path

    def commit(
        self, facts: Mapping[str, object] | None = None, *, digests: Mapping[str, str] | None = None, made: float = 0
    ) -> Layer:  # fmt: skip
        """Keep what is in the folder, for good; ``facts`` are JSON values. Raises StoreError where space ran out.

        ``digests`` are the SHA-256 of those of its files that were hashed already, by relative name; ``made`` is when
        another machine made it.
        """
        assert self._template is not None, "the layer is there: use slot.layer"
        assert self.layer is None, "it was committed before"
        store, template = self._use.store, self._template
        with files.guarding(store.root, f"keep {template.name}"):
            now = time.time()
            layer = Layer(
                id=template.id, key=template.key, gives=template.gives, folder=template.folder, parent=template.parent,
                name=template.name, facts=dict(facts or {}), made=made or now, used=now,
                size=store.measure(self.folder),
                digests=files.layer_digests(template.gives, self.folder, store.contents, known=digests or {}),
            )  # fmt: skip
            store_record.write(store.index, layer, self.folder)
            files.flush(self.folder, many=template.gives == "tree")
            try:
                with store.index.change():
                    store.index.add(layer)
                    store.index.hold(self._use.lease, layer)
                    self.folder.rename(layer.folder)
                    files.flush_names(layer.folder.parent)
            except BaseException:
                if layer.folder.exists() and not store.index.layers("id = ?", int(layer.id)):
                    layer.folder.rename(self.folder)
                raise
        self.layer = layer
        return layer


class Use:
    """A running build's view of the store: what it finds or makes stays until it ends. For any number of threads."""

    def __init__(self, store: Store, lease: str, cancelled: Callable[[], bool]) -> None:
        self.store = store
        self.lease = lease
        self._cancelled = cancelled

    def find(self, key: str) -> Layer | None:
        """Return the layer that the key names, kept for this build and marked as used; None where there is none."""
        with self.store.index.change():
            layer = self.store.find(key)
            if layer is not None:
                self.store.index.hold(self.lease, layer)
                self.store.index.touch(layer, time.time())
        return layer

    def keep(self, layer: Layer) -> bool:
        """Keep a layer that was seen in the store, for this build; False where it is gone."""
        with self.store.index.change():
            there = bool(self.store.index.layers("id = ?", int(layer.id))) and layer.folder.is_dir()
            if there:
                self.store.index.hold(self.lease, layer)
        return there

    @contextmanager
    def making(
        self, key: str, *, gives: str, name: str, parent: Layer | None = None, fresh: bool = False,
        waiting: Callable[[], None] | None = None,
    ) -> Iterator[Slot]:  # fmt: skip
        """Make the layer of a key, as the only one who does.

        Where another thread or process is at it, ``waiting`` is called once and its end awaited (Interrupted when the
        build is cancelled meanwhile); ``slot.layer`` is its result then. ``fresh`` makes a new one though the key is
        there: the key names the new one from then on. ``name`` is for people. Raises StoreError.
        """
        assert gives in GIVES
        turn = self._turn(key, waiting)
        try:
            there = None if fresh else self.find(key)
            if there is not None:
                yield Slot(self, there, None, None)
                return
            template, part = self.store.new_part(key, gives, name, parent)
            slot = Slot(self, None, template, part)
            try:
                yield slot
            except (OSError, ImagesmithError) as error:
                if files.is_full(error, self.store.root):
                    raise files.no_space(self.store.root, f"make {name}") from error
                if not self.store.index.there or (slot.layer is None and not part.path.exists()):
                    raise files.vanished(self.store.root) from error
                if isinstance(error, ImagesmithError) and files.free(self.store.root) < 1 << 20:
                    # A guest sees its disk fail, a tool has words of its own: that may be why.
                    room = files.no_space(self.store.root, f"make {name}")
                    error.hint = "; ".join(part for part in (error.hint, f"{room.message}; {room.hint}") if part)
                raise
            finally:
                if slot.layer is None and part.path.exists():
                    self.store.remove(part.path)
                part.release()
        finally:
            turn.release(remove=True)

    def _turn(self, key: str, waiting: Callable[[], None] | None) -> Lock:
        path = self.store.root / "locks" / hashlib.sha256(key.encode()).hexdigest()
        with files.guarding(self.store.root, "lock a layer"):
            mine = lock(path, wait=False)
            if mine is None and waiting is not None:
                waiting()
            while mine is None:  # not a blocking flock: that could not be interrupted in a thread
                time.sleep(0.05)
                if self._cancelled():
                    raise Interrupted()
                mine = lock(path, wait=False)
        return mine


class Store:
    """A folder of layers, shared by any number of processes of one user."""

    def __init__(
        self,
        root: Path,
        *,
        remove: Callable[[Path], None] = files.remove_tree,
        measure: Callable[[Path], int] = files.allocated,
        contents: Callable[[Path], str] = files.contents_digest,
        rebuild: bool = False,
    ) -> None:
        """Open the store, making it where it is missing.

        ``remove`` deletes a layer's folder, ``measure`` returns the bytes it takes, and ``contents`` names it by its
        files' bytes: they are replaced where files belong to subordinate ids, which the user alone can neither see
        whole nor delete. With ``rebuild``, an index that cannot be read is made anew from the layers' records. Raises
        StoreError where the folder is no store, belongs to somebody else, or was written by a newer version.
        """
        self.root = root.absolute()
        self.measure = measure
        self.contents = contents
        self.remove = remove
        try:
            with files.guarding(self.root, "make the store"):
                files.own(self.root)
                for name in ("layers", "blobs", "leases", "locks"):
                    (self.root / name).mkdir(mode=0o700, exist_ok=True)
            files.reserve(self.root / "reserve")
        except OSError as error:
            raise StoreError(f"cannot make the store {root}: {error.strerror}",
                             hint="let IMAGESMITH_CACHE name a folder that you may write") from error  # fmt: skip
        try:
            self.index = Index(self.root)
        except StoreError as error:
            if error.__cause__ is not None and files.is_full(error.__cause__, self.root):
                (self.root / "reserve").unlink(missing_ok=True)  # collecting begins with opening
                self.index = Index(self.root)
            elif rebuild and files.is_rot(error.__cause__):
                with self._sweeping():
                    self._replace_index()
            else:
                raise
        if self.index.version < SCHEMA:
            self._upgrade()

    def _upgrade(self) -> None:
        """Bring the store to this version: layers get their records; a new index learns of the layers that are there.

        It happens whole or not at all, and does no harm to those who have the store open.
        """
        with self._sweeping(), self.index.change():
            found = self.index.version
            self.index.upgrade(self._write_records)
            if found == 0:
                folders = (path for path in (self.root / "layers").iterdir() if path.name.isdigit())
                known = self.index.ids()
                store_record.take_in(self.index, (path for path in folders if path.name not in known))

    def _write_records(self) -> None:
        for layer in self.index.layers():
            if layer.folder.is_dir():
                store_record.write(self.index, layer, layer.folder)

    def _replace_index(self) -> None:
        """Make an index of what the layers' folders say of themselves; the damaged one is put aside.

        Raises StoreError where a build runs: what it holds only the old index knows.
        """
        for path in (self.root / "leases").iterdir():
            dead = lock(path, wait=False)
            if dead is None:
                raise StoreError(f"the index of the store {self.root} is damaged, and a build is using it",
                                 hint="end the build, then do this again")  # fmt: skip
            dead.release(remove=True)
        for name in ("index.db-wal", "index.db-shm"):
            (self.root / name).unlink(missing_ok=True)
        (self.root / "index.db").replace(self.root / "index.db.damaged")
        self.index = Index(self.root)
        with self.index.change():
            store_record.take_in(self.index, (p for p in (self.root / "layers").iterdir() if p.name.isdigit()))
        self.index.version = SCHEMA

    @staticmethod
    def default_root() -> Path:
        """Where the store is: $IMAGESMITH_CACHE, else the user's cache folder of this platform."""
        named = os.environ.get("IMAGESMITH_CACHE")
        return Path(named).expanduser() if named else platformdirs.user_cache_path("imagesmith")

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    @property
    def blobs(self) -> Path:
        """The folder of the downloads."""
        return self.root / "blobs"

    # -- a build -------------------------------------------------------------------------------------------------

    @contextmanager
    def using(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Use]:
        """Use the store for a build. Removes what dead builds left. ``cancelled`` ends the waiting for others."""
        name = uuid.uuid4().hex
        with files.guarding(self.root, "begin a build"):
            alive = lock(self.root / "leases" / name)
        assert alive is not None
        try:
            with self.index.change():
                self.index.begin(name, time.time())
            sweeping = lock(self.root / "sweep", wait=False)
            if sweeping is not None:  # else someone is at it already
                try:
                    with suppress(OSError, ImagesmithError):  # what cannot be removed is no reason not to build
                        self._sweep()
                finally:
                    sweeping.release()
            yield Use(self, name, cancelled)
        finally:
            try:
                with suppress(StoreError), self.index.change():  # else the next build does: nobody locks it any more
                    self.index.end(name)
            finally:
                alive.release(remove=True)

    def new_part(self, key: str, gives: str, name: str, parent: Layer | None) -> tuple[Layer, Lock]:
        """Begin a layer: an empty folder with a number of its own, locked by its maker (for ``Use.making``)."""
        with files.guarding(self.root, f"make {name}"), self.index.change():
            seen = [int(p.name[:6]) for p in (self.root / "layers").iterdir() if p.name[:6].isdigit()]
            number = folder_name(self.index.next_number(max(seen, default=0)))
            part = self.root / "layers" / f"{number}.part"
            part.mkdir(mode=0o700)
            mine = files.lock_folder(part)  # inside the transaction, so that no sweeper sees it without its lock
            assert mine is not None
        folder = self.root / "layers" / number
        return Layer(id=number, key=key, gives=gives, folder=folder, parent=None if parent is None else parent.id,
                     name=name, facts={}, digests={}, made=0, used=0, size=0), mine  # fmt: skip

    # -- looking -------------------------------------------------------------------------------------------------

    def find(self, key: str) -> Layer | None:
        """Return the layer that the key names, without keeping it: for a plan."""
        layer = self.index.newest(key)
        return layer if layer is not None and layer.folder.is_dir() else None

    def chain(self, layer: Layer) -> list[Layer]:
        """The layer and everything below it, the oldest first."""
        found = [layer]
        while found[-1].parent is not None:
            below = self.index.layers("id = ?", int(found[-1].parent))
            if not below:
                raise StoreError(f"the layer below {found[-1].name} is gone from the store {self.root}",
                                 hint="'imagesmith cache verify --repair' removes what cannot be used")  # fmt: skip
            found.append(below[0])
        return found[::-1]

    def layers(self) -> list[Layer]:
        """Every finished layer, the oldest first."""
        return self.index.layers()

    def size(self) -> int:
        """The bytes that layers and downloads take."""
        return sum(layer.size for layer in self.layers()) + files.allocated(self.blobs)

    # -- removing ------------------------------------------------------------------------------------------------

    def collect(self, limit: int, *, done: Use | None = None) -> list[Layer]:
        """Remove what was not used for longest until at most ``limit`` bytes are left; return the removed layers.

        Checkpoints go first (without one, a guest is booted), then artifacts (they are made anew from a disk in
        seconds), then layers and downloads. What a running build uses stays, and so does every layer that another
        stands on. ``done`` is a build that has made its layers: they stay, but it needs no checkpoints any more.
        """
        with self._sweeping():
            (self.root / "reserve").unlink(missing_ok=True)  # the index needs some space to note what goes
            self._sweep()
            with self.index.change():
                other, lease = files.allocated(self.blobs), done.lease if done is not None else ""
                states = checkpoints(self.index, limit, other, done=lease)
                for _, layer, size in states:
                    self.index.resize(layer, size)
            self._remove_all([folder for folder, _, _ in states])
            with self.index.change():
                victims, downloads = choose(self.root, self.index, limit)
                for layer in victims:
                    self.index.drop(layer)
            self._remove_all([layer.folder for layer in victims] + downloads)
            files.reserve(self.root / "reserve")
        return victims

    def clear(self) -> list[Layer]:
        """Remove everything that no running build uses; return the removed layers."""
        return self.collect(-1)

    def verify(self, *, repair: bool, note: Callable[[str], None] = lambda _: None) -> list[str]:
        """Look at the index, every layer and every download; return what is wrong, in words (``store_care.damage``).

        ``repair`` puts right what can be put right, and removes what is damaged and what stands on it, unless a running
        build uses it: it is made anew when it is needed. What dead builds left is no damage: the next build, or
        ``repair``, removes it. ``note`` is told of layers that the index did not know, and that are good ones.
        """
        problems: list[str] = []
        with self._sweeping():
            wrong = self.index.wrong()
            if wrong:
                problems.append(f"the index is damaged: {wrong}")
                if not repair:
                    return problems
                self.index.close()
                self._replace_index()
            left, taken = strays(self.root, self.index)
            for layer in taken:
                note(f"layer {layer.id} ({layer.name}) was not in the index, and is again")
            problems += [f"{path.name}: the index does not know it" for path in left if path.name.isdigit()]
            for found in damage(self.root, self.index, self.contents):
                problems.append(found.text)
                if repair:
                    problems += self._mend(found, left)
            if repair:
                self._remove_all(left)
        return problems

    def _mend(self, found: Damage, left: list[Path]) -> list[str]:
        """Put right what is wrong, but for what is to be removed: that is added to ``left``. What stays, in words."""
        if found.path is not None:
            left.append(found.path)
        if found.record is not None:
            store_record.write(self.index, found.record, found.record.folder)
        if found.row is not None:
            with self.index.change():
                self.index.correct(found.row)
        if found.layer is None:
            return []
        gone, kept = drop_damaged(self.index, found.layer, rotten=found.layer.folder.exists())
        left += [layer.folder for layer in gone]
        return [f"layer {layer.id} is in use by a running build: not removed" for layer in kept]

    def _sweep(self) -> None:
        """Remove what dead builds left, and let the index say what is there."""
        left, _ = strays(self.root, self.index)
        half = half_checkpoints(self.root, self.index)
        for layer in without_folders(self.root, self.index):
            left += [above.folder for above in drop_damaged(self.index, layer, rotten=False)[0]]
        self._remove_all(left + half)
        for folder in half:
            for layer in self.index.layers("id = ?", int(folder.parent.name)):
                with self.index.change():
                    self.index.resize(layer, self.measure(layer.folder))

    def _remove_all(self, paths: list[Path]) -> None:
        """Remove files and folders; the latter get other names before, as they take a while to go."""
        layers, folders = self.root / "layers", []
        for path in paths:
            if not path.is_dir() or path.is_symlink():
                path.unlink(missing_ok=True)
            elif path.suffix:
                folders.append(path)
            else:
                name = path.name if path.parent == layers else f"{path.parent.name}.{path.name}"
                folders.append(files.set_aside(path, layers, name))
        for folder in folders:
            self.remove(folder)

    @contextmanager
    def _sweeping(self) -> Iterator[None]:
        """Be the only one who removes finished layers."""
        with files.guarding(self.root, "clean it"):
            mine = lock(self.root / "sweep")
        assert mine is not None
        try:
            yield
        finally:
            mine.release()
