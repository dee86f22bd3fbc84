"""What keeps a store sound and small: finding what dead builds left, what is damaged, and what may go.

These functions look and choose; ``Store`` removes. Whoever calls them holds the store's ``sweep`` lock.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterator
from pathlib import Path

from imagesmith.store_files import CHECKPOINT, CONTENTS, allocated, layer_digests, lock, lock_folder
from imagesmith.store_index import Index, Layer


def strays(root: Path, index: Index) -> list[Path]:
    """Folders that no layer has and no living process fills. Forgets the builds and locks of dead processes, too."""
    with index.change():  # so nobody begins or commits a layer while we look
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
        known = {layer.id for layer in index.layers()}
        found = []
        for path in sorted((root / "layers").iterdir()):
            if path.name in known:
                continue
            if path.is_dir() and path.suffix == ".part":
                abandoned = lock_folder(path)
                if abandoned is None:
                    continue  # its maker lives
                abandoned.release()
            found.append(path)
    return found


def checkpoints(index: Index, limit: int, other: int) -> list[tuple[Path, Layer, int]]:
    """The checkpoints to remove so that at most ``limit`` bytes are left beside ``other`` ones: folders, the layers
    that they are beside, and what these take without them. Those that were used longest ago come first.
    """
    held, layers = index.held(), index.layers()
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


def damage(
    root: Path, index: Index, contents: Callable[[Path], str]
) -> Iterator[tuple[str, Layer | Path]]:
    """What is wrong, in words, and which layer or download that is.

    Every byte of layers and downloads is read and compared with the SHA-256 noted when they were kept; of trees the
    shape, too (``store_files.shape_digest``). ``contents`` names a tree by its files' bytes.
    """
    for layer in index.layers():
        if not layer.folder.is_dir():
            yield f"layer {layer.id} ({layer.name}): its folder is missing", layer
            continue
        try:
            now = layer_digests(layer.gives, layer.folder, contents)
        except OSError as error:
            yield f"layer {layer.id} ({layer.name}): cannot be read: {error}", layer
            continue
        if CONTENTS not in layer.digests:  # made by a version that did not note it
            now.pop(CONTENTS, None)
        for name in sorted({*now, *layer.digests}):
            if now.get(name) != layer.digests.get(name):
                how = "is gone" if name not in now else "is new" if name not in layer.digests else "changed"
                yield f"layer {layer.id} ({layer.name}): {name or 'its tree'} {how} since it was made", layer
                break
    for path in sorted((root / "blobs").iterdir()):
        algorithm, _, digest = path.name.partition("-")
        if algorithm in ("sha256", "sha512") and not path.suffix:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, algorithm).hexdigest() != digest:
                    yield f"download {path.name[:19]}…: its contents changed since it was fetched", path


def drop_damaged(index: Index, damaged: Layer) -> tuple[list[Layer], list[Layer]]:
    """Take a layer and all that stand on it out of the index; return those that went, and those that are in use."""
    with index.change():
        affected = {damaged.id}
        above = [layer for layer in index.layers() if layer.id == damaged.id]
        for layer in index.layers():  # in the order of making, so parents come first
            if layer.parent in affected:
                affected.add(layer.id)
                above.append(layer)
        held = index.held()
        gone: list[Layer] = []
        kept: list[Layer] = []
        needed: set[str | None] = set()
        for layer in reversed(above):
            if layer.id in held:
                kept.append(layer)
            if layer.id in held or layer.id in needed:
                needed.add(layer.parent)
                continue
            index.drop(layer)
            gone.append(layer)
    return gone, kept
