"""What keeps a store sound and small: finding what dead builds left, what is damaged, and what may go.

These functions look and choose, and put the index right; ``Store`` removes. Whoever calls them holds the store's
``sweep`` lock.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imagesmith import store_record
from imagesmith.store_files import CHECKPOINT, CONTENTS, SUMS, allocated, file_sha256, layer_digests, lock, lock_folder
from imagesmith.store_index import Index, Layer


def forget_the_dead(root: Path, index: Index) -> None:
    """Forget the builds and locks of processes that have ended. Call it inside ``Index.change``."""
    leases = index.leases()
    for name in {*leases, *(path.name for path in (root / "leases").iterdir())}:
        dead = lock(root / "leases" / name, wait=False)
        if dead is not None:
            index.end(name)
            dead.release(remove=True)
    for path in (root / "locks").iterdir():
        free = lock(path, wait=False)
        if free is not None:
            free.release(remove=True)


def strays(root: Path, index: Index) -> tuple[list[Path], list[Layer]]:
    """Folders that no layer has and no living process fills; and the layers that the index took in.

    A finished folder that the index does not know, because its maker was killed at the last moment or the index is an
    old one, becomes a layer where its record says which.
    """
    with index.change():  # so nobody begins or commits a layer while we look
        forget_the_dead(root, index)
        known = index.ids()
        unknown = [path for path in (root / "layers").iterdir() if path.name not in known]
        taken = store_record.take_in(index, (path for path in unknown if path.name.isdigit()))
        names = {layer.id for layer in taken}
        found = []
        for path in sorted(unknown):
            if path.name in names:
                continue
            if path.is_dir() and path.suffix == ".part":
                abandoned = lock_folder(path)
                if abandoned is None:
                    continue  # its maker lives
                abandoned.release()
            found.append(path)
    return found, taken


def without_folders(root: Path, index: Index) -> list[Layer]:
    """The layers in the index that are not in the store: it is older or newer than the folders."""
    known = index.ids()  # first: a layer's folder is there before its row is
    lost = known - {path.name for path in (root / "layers").iterdir()}
    return [layer for layer in index.layers() if layer.id in lost] if lost else []


def half_checkpoints(root: Path, index: Index) -> list[Path]:
    """Checkpoints that whoever made or removed them was killed at: without their sums they are of no use."""
    beside = [path for path in (root / "layers").glob(f"*/{CHECKPOINT}") if path.parent.name.isdigit()]
    found = [path for path in beside if not (path / SUMS).exists()]
    held = index.held() if found else set()  # asked afterwards: a build has its checkpoints finished before it ends
    return [path for path in found if path.parent.name not in held]


def checkpoints(index: Index, limit: int, other: int, *, done: str = "") -> list[tuple[Path, Layer, int]]:
    """The checkpoints to remove so that at most ``limit`` bytes are left beside ``other`` ones: folders, the layers
    that they are beside, and what these take without them. Those that were used longest ago come first.

    Those of layers that a build holds stay, but for the build whose lease is ``done``: it needs none any more.
    """
    held, layers = index.held(but=done), index.layers()
    total, found = other + sum(layer.size for layer in layers), []
    for layer in sorted(layers, key=lambda layer: (layer.used, layer.id)):
        folder = layer.folder / CHECKPOINT
        if total <= limit:
            break
        if layer.id in held or not folder.is_dir():
            continue
        size = allocated(folder)
        total -= size
        found.append((folder, layer, max(layer.size - size, 0)))
    return found


def choose(root: Path, index: Index, limit: int) -> tuple[list[Layer], list[Path]]:
    """The layers and downloads to remove, in this order, so that at most ``limit`` bytes are left."""
    layers = {layer.id: layer for layer in index.layers()}
    children = dict.fromkeys(layers, 0)
    for layer in layers.values():
        if layer.parent in children:
            children[layer.parent] += 1
    held = index.held()
    oldest_build = min(index.leases().values(), default=float("inf"))
    total = sum(layer.size for layer in layers.values())
    heap: list[tuple[bool, float, str, int, Layer | Path]] = []  # artifacts first, then the longest unused

    def offer(layer: Layer) -> None:
        if not children[layer.id] and layer.id not in held:
            heapq.heappush(heap, (layer.gives != "files", layer.used, layer.id, layer.size, layer))

    for path in (root / "blobs").iterdir():
        found = path.stat()
        total += found.st_blocks * 512
        if found.st_mtime < oldest_build:  # a download is touched whenever it is used
            heapq.heappush(heap, (True, found.st_mtime, path.name, found.st_blocks * 512, path))
    for layer in layers.values():
        offer(layer)
    victims: list[Layer] = []
    downloads: list[Path] = []
    while total > limit and heap:
        _, _, _, size, victim = heapq.heappop(heap)
        total -= size
        if isinstance(victim, Path):
            downloads.append(victim)
            continue
        victims.append(victim)
        if victim.parent in layers:
            children[victim.parent] -= 1
            offer(layers[victim.parent])
    return victims, downloads


@dataclass(frozen=True)
class Damage:
    """Something that is wrong, in words, and what mends it."""

    text: str
    layer: Layer | None = None
    """Drop it, with all that stand on it."""
    path: Path | None = None
    """Remove it: a download, or a layer's checkpoint."""
    record: Layer | None = None
    """Write its record anew."""
    row: Layer | None = None
    """Let the index say this."""


def damage(root: Path, index: Index, contents: Callable[[Path], str]) -> Iterator[Damage]:
    """What is wrong with layers and downloads.

    Every byte of them is read and compared with the SHA-256 noted when they were kept; of trees the shape, too
    (``store_files.shape_digest``). ``contents`` names a tree by its files' bytes. Where the index and a layer's record
    disagree, it is the record that is believed: it has a SHA-256 of its own.
    """
    for layer in index.layers():
        yield from _damage_of(layer, contents)
    for path in sorted((root / "blobs").iterdir()):
        algorithm, _, digest = path.name.partition("-")
        if algorithm in ("sha256", "sha512") and not path.suffix:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, algorithm).hexdigest() != digest:
                    yield Damage(f"download {path.name[:19]}…: its contents changed since it was fetched", path=path)


def _damage_of(layer: Layer, contents: Callable[[Path], str]) -> Iterator[Damage]:
    name = f"layer {layer.id} ({layer.name})"
    if not layer.folder.is_dir():
        yield Damage(f"{name}: its folder is missing", layer=layer)
        return
    record = store_record.read(layer.folder)
    noted = layer if record is None else record
    try:
        now = layer_digests(noted.gives, layer.folder, contents)
    except OSError as error:
        yield Damage(f"{name}: cannot be read: {error}", layer=layer)
        return
    if CONTENTS not in noted.digests:  # made by a version that did not note it
        now.pop(CONTENTS, None)
    then = {file: digest for file, digest in noted.digests.items() if not file.startswith(f"{CHECKPOINT}/")}
    for file in sorted({*now, *then}):
        if now.get(file) == then.get(file):
            continue
        how = "is gone" if file not in now else "is new" if file not in then else "changed"
        yield Damage(f"{name}: {file or 'its tree'} {how} since it was made", layer=layer)
        return
    if (rotten := _rot_beside(layer.folder / CHECKPOINT)) is not None:
        yield Damage(f"{name}: {CHECKPOINT}/{rotten} since it was made", path=layer.folder / CHECKPOINT)
    if record is None:
        yield Damage(f"{name}: its record is missing or damaged", record=layer)
    elif not store_record.says_the_same(layer, record):
        yield Damage(f"{name}: the index says of it what its record does not", row=record)


def _rot_beside(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, if it was finished: without its sums it was not, and is never used."""
    try:
        lines = (checkpoint / SUMS).read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        digest, _, name = line.partition("  ")
        try:
            if "/" in name or file_sha256(checkpoint / name) != digest:
                return f"{name} changed"
        except OSError:
            return f"{name} is gone"
    return None


def drop_damaged(index: Index, damaged: Layer, *, rotten: bool) -> tuple[list[Layer], list[Layer]]:
    """Take a layer and all that stand on it out of the index; return those that went, and those that are in use.

    Where it is ``rotten``, and not only gone, what was made of it goes, too: its maker noted that in the fact
    ``made_of``, a list of ids.
    """
    with index.change():
        layers, affected = index.layers(), {damaged.id}
        while more := {
            layer.id
            for layer in layers
            if layer.id not in affected and (layer.parent in affected or (rotten and affected & _made_of(layer)))
        }:
            affected |= more
        held = index.held()
        gone: list[Layer] = []
        kept: list[Layer] = []
        needed: set[str | None] = set()
        for layer in reversed([layer for layer in layers if layer.id in affected]):  # parents were made before
            if layer.id in held:
                kept.append(layer)
            if layer.id in held or layer.id in needed:
                needed.add(layer.parent)
                continue
            index.drop(layer)
            gone.append(layer)
    return gone, kept


def _made_of(layer: Layer) -> set[object]:
    found = layer.facts.get("made_of")
    return set(found) if isinstance(found, list) else set()
