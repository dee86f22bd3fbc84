"""The store under everything that happens to it: crashes, crowds, collection, rot, moves and full disks."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imagesmith import store_files, tree
from imagesmith.errors import Interrupted, StoreError
from imagesmith.host import Host
from imagesmith.store import Layer, Store, Use

fork = multiprocessing.get_context("fork")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(use: Use, key: str, parent: Layer | None = None, *, gives: str = "disk", size: int = 5000) -> Layer:
    with use.making(key, gives=gives, name=f"node {key}", parent=parent) as slot:
        if slot.layer is None:
            (slot.folder / "disk.qcow2").write_bytes(key.encode() + b"x" * size)
            slot.commit({"seconds": 1.5})
        assert slot.layer is not None
        return slot.layer


def everything_in(root: Path) -> set[str]:
    return {p.name for p in (root / "layers").iterdir()}


def test_a_layer_is_found_again_with_its_facts_and_its_chain(store: Store) -> None:
    with store.using() as use:
        assert use.find("a") is None
        base = make(use, "a")
        top = make(use, "b", base)
    again = Store(store.root)
    found = again.find("b")
    assert found == top
    assert found.facts == {"seconds": 1.5}
    assert [layer.key for layer in again.chain(found)] == ["a", "b"]
    assert (found.folder / "disk.qcow2").read_bytes().startswith(b"bxxx")
    assert found.size >= 4096
    assert list(found.digests) == ["disk.qcow2"]


def test_a_slot_that_is_not_committed_leaves_nothing(store: Store) -> None:
    with store.using() as use:
        with pytest.raises(ZeroDivisionError), use.making("a", gives="disk", name="a") as slot:
            (slot.folder / "half").write_text(f"{1 // 0}")
        with use.making("a", gives="disk", name="a"):
            pass
        assert use.find("a") is None
    assert everything_in(store.root) == set()


def test_a_fresh_layer_takes_the_key_and_leaves_the_old_one_to_its_children(store: Store) -> None:
    with store.using() as use:
        old = make(use, "base")
        child = make(use, "child", old)
        with use.making("base", gives="disk", name="base", fresh=True) as slot:
            (slot.folder / "disk.qcow2").write_bytes(b"made anew")
            new = slot.commit()
        assert use.find("base") == new
        assert [layer.id for layer in store.chain(child)] == [old.id, child.id]
        assert (old.folder / "disk.qcow2").read_bytes().startswith(b"base")


def test_a_number_is_never_used_again(store: Store) -> None:
    with store.using() as use:
        first = make(use, "a")
    store.clear()
    with store.using() as use:
        second = make(use, "a")
    assert int(second.id) > int(first.id)
    # … even where the index was lost and the folders were not
    store.close()
    for file in store.root.glob("index.db*"):
        file.unlink()
    with Store(store.root).using() as use:
        (store.root / "layers" / "000777").mkdir()
        assert int(make(use, "b").id) > 777


def test_nobody_else_can_look_into_the_store(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = Store(tmp_path / "new" / "store")
        with store.using() as use:
            layer = make(use, "a")
    finally:
        os.umask(old)
    private = [store.root, *(store.root / n for n in ("layers", "blobs", "leases", "locks")), layer.folder]
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in store.root.iterdir() if p.is_file()} == {0o600}


def test_a_folder_of_other_things_is_not_taken_for_a_store(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(StoreError, match="neither empty nor a store"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_the_store_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGESMITH_CACHE", str(tmp_path / "here"))
    assert Store.default_root() == tmp_path / "here"
    monkeypatch.delenv("IMAGESMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Store.default_root() == tmp_path / "imagesmith"


def test_the_store_can_be_moved(store: Store, tmp_path: Path) -> None:
    with store.using() as use:
        make(use, "b", make(use, "a"))
        with use.making("t", gives="tree", name="t") as slot:
            (slot.folder / "upper").mkdir()
            (slot.folder / "upper" / "link").symlink_to("/etc")
            slot.commit()
    store.close()
    shutil.move(store.root, tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")
    found = moved.find("b")
    assert found is not None
    assert all(layer.folder.parent == tmp_path / "elsewhere/layers" for layer in moved.chain(found))
    assert moved.verify(repair=False) == []


def test_a_newer_store_is_refused_and_left_as_it_is(store: Store) -> None:
    with store.using() as use:
        make(use, "a")
    store.close()
    with sqlite3.connect(store.root / "index.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer imagesmith") as caught:
        Store(store.root)
    assert "upgrade" in caught.value.hint
    assert everything_in(store.root) == {"000001"}
    with sqlite3.connect(store.root / "index.db") as db:
        assert db.execute("SELECT count(*) FROM layers").fetchone() == (1,)
    db.close()


# -- crowds ------------------------------------------------------------------------------------------------------


def test_threads_of_one_build_make_each_layer_once(store: Store) -> None:
    made: list[str] = []

    def work(use: Use, seed: int) -> None:
        order = [f"k{n}" for n in range(12)]
        random.Random(seed).shuffle(order)
        for key in order:
            assert use.find("base") is not None
            with use.making(key, gives="files", name=key) as slot:
                if slot.layer is None:
                    made.append(key)
                    (slot.folder / "a.img").write_text(key)
                    slot.commit()

    with store.using() as use:
        make(use, "base")
        threads = [threading.Thread(target=work, args=(use, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(made) == sorted({f"k{n}" for n in range(12)})
    assert store.verify(repair=False) == []


def _maker(root: Path, log: Path, start: float) -> None:
    time.sleep(max(0, start - time.time()))
    with Store(root).using() as use:
        for n in range(8):
            with use.making(f"k{n}", gives="disk", name="k") as slot:
                if slot.layer is None:
                    time.sleep(0.01)
                    slot.commit()
                    with log.open("a") as stream:
                        stream.write(f"k{n}\n")


def test_processes_make_the_same_layer_once(tmp_path: Path) -> None:
    """They also meet at the making of the store itself."""
    log = tmp_path / "log"
    crowd = [fork.Process(target=_maker, args=(tmp_path / "s", log, time.time() + 0.2)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == [f"k{n}" for n in range(8)]


def _slow(root: Path, begun: Path) -> None:
    with Store(root).using() as use, use.making("slow", gives="disk", name="slow") as slot:
        begun.write_text(slot.folder.name)
        time.sleep(600)


def _start_slow(store: Store, tmp_path: Path) -> multiprocessing.process.BaseProcess:
    process = fork.Process(target=_slow, args=(store.root, tmp_path / "begun"))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    return process


def test_who_waits_is_told_once_and_makes_it_himself_when_the_other_is_killed(store: Store, tmp_path: Path) -> None:
    other = _start_slow(store, tmp_path)
    told: list[float] = []

    def waiting() -> None:
        told.append(time.time())
        threading.Timer(0.3, other.kill).start()

    with store.using() as use, use.making("slow", gives="disk", name="slow", waiting=waiting) as slot:
        assert slot.layer is None
        slot.commit()
    other.join()
    assert len(told) == 1
    assert store.find("slow") is not None


def test_waiting_ends_when_the_build_is_cancelled(store: Store, tmp_path: Path) -> None:
    other = _start_slow(store, tmp_path)
    stop = threading.Event()
    try:
        with (
            store.using(cancelled=stop.is_set) as use,
            pytest.raises(Interrupted),
            use.making("slow", gives="disk", name="slow", waiting=stop.set),
        ):
            pytest.fail("it was never our turn")
    finally:
        other.kill()
        other.join()


# -- crashes -----------------------------------------------------------------------------------------------------


def _endless(root: Path, seed: int) -> None:
    dice = random.Random(seed)
    store = Store(root)
    while True:
        with store.using() as use:
            below: Layer | None = None
            for _ in range(6):
                key = f"{'' if below is None else below.key}/{dice.randrange(4)}"
                below = make(use, key, below, size=dice.randrange(200_000))
        if dice.random() < 0.5:
            store.collect(dice.randrange(2_000_000))


def test_kill_9_at_any_moment_leaves_a_sound_store(tmp_path: Path) -> None:
    """Two processes make, use and collect; they are killed 20 times; the store never needs a repair."""
    root = tmp_path / "s"
    dice = random.Random(20261127)
    committed = 0
    for round_ in range(20):
        crowd = [fork.Process(target=_endless, args=(root, 2 * round_ + n)) for n in range(2)]
        for process in crowd:
            process.start()
        time.sleep(dice.uniform(0.02, 0.35))
        for process in crowd:
            process.kill()
        for process in crowd:
            process.join()
        store = Store(root)
        assert store.verify(repair=False) == []
        with store.using():
            known = {layer.id for layer in store.layers()}
            assert everything_in(root) == known
            assert store.verify(repair=False) == []
            for layer in store.layers():
                store.chain(layer)
        assert list((root / "leases").iterdir()) == []
        assert store.index.held() == set()
        committed += len(known)
        store.close()
    assert committed > 20  # they did get somewhere


def test_what_a_living_process_makes_is_not_swept_away(store: Store, tmp_path: Path) -> None:
    other = _start_slow(store, tmp_path)
    part = (tmp_path / "begun").read_text()
    try:
        with store.using():
            pass
        store.clear()
        assert store.verify(repair=True) == []
        assert everything_in(store.root) == {part}
    finally:
        other.kill()
        other.join()
    assert everything_in(store.root) == {part}
    assert store.verify(repair=False) == []
    with store.using():
        assert everything_in(store.root) == set()


def test_what_cannot_be_removed_does_not_stop_a_build(tmp_path: Path) -> None:
    def remove(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    store = Store(tmp_path / "s", remove=remove)
    (store.root / "layers" / "000003.part").mkdir()
    with store.using() as use:
        make(use, "a")
    assert (store.root / "layers" / "000003.part").exists()
    assert store.verify(repair=False) == []


# -- collection --------------------------------------------------------------------------------------------------


def test_collection_takes_artifacts_first_then_the_longest_unused(store: Store) -> None:
    with store.using() as use:
        old = make(use, "old")
        base = make(use, "base")
        top = make(use, "top", base)
        image = make(use, "image", top, gives="files")
    time.sleep(0.01)
    with store.using() as use:
        use.find("old")
    assert [layer.id for layer in store.collect(store.size() - 1)] == [image.id]
    assert [layer.id for layer in store.collect(store.size() - 1)] == [top.id]  # not base: top stands on it
    assert [layer.id for layer in store.collect(0)] == [base.id, old.id]
    assert everything_in(store.root) == set()
    assert store.size() == 0


def test_collection_keeps_what_is_below_the_limit(store: Store) -> None:
    with store.using() as use:
        make(use, "a")
    assert store.collect(store.size()) == []


def _holder(root: Path, ready: Path, key: str) -> None:
    with Store(root).using() as use:
        assert use.find(key) is not None
        ready.touch()
        time.sleep(600)


def test_collection_never_takes_what_a_running_build_uses_or_what_is_below_it(store: Store, tmp_path: Path) -> None:
    with store.using() as use:
        base = make(use, "base")
        top = make(use, "top", base)
        make(use, "other", base)
    holder = fork.Process(target=_holder, args=(store.root, tmp_path / "ready", "top"))
    holder.start()
    try:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        assert [layer.key for layer in store.clear()] == ["other"]
        assert everything_in(store.root) == {base.id, top.id}
    finally:
        holder.kill()
        holder.join()
    assert [layer.key for layer in store.clear()] == ["top", "base"]


def test_collection_counts_downloads_and_spares_those_of_running_builds(store: Store) -> None:
    blob = store.blobs / ("sha256-" + "0" * 64)
    blob.write_bytes(b"x" * 100_000)
    assert store.size() >= 100_000
    with store.using():
        used = store.blobs / ("sha256-" + "1" * 64)
        used.write_bytes(b"x" * 100_000)
        os.utime(blob, (1, 1))
        store.clear()
        assert list(store.blobs.iterdir()) == [used]
    store.clear()
    assert list(store.blobs.iterdir()) == []


def test_folders_without_write_permission_can_be_removed(store: Store) -> None:
    with store.using() as use, use.making("t", gives="tree", name="t") as slot:
        deep = slot.folder / "upper" / "ro" / "deep"
        deep.mkdir(parents=True)
        (deep / "file").touch()
        deep.chmod(0o000)
        deep.parent.chmod(0o555)
        slot.commit()
    store.clear()
    assert everything_in(store.root) == set()


# -- damage ------------------------------------------------------------------------------------------------------


def test_one_flipped_bit_is_found_and_what_stands_on_it_goes_with_it(store: Store) -> None:
    with store.using() as use:
        base = make(use, "base")
        rotten = make(use, "rotten", base)
        make(use, "above", rotten)
    disk = rotten.folder / "disk.qcow2"
    content = bytearray(disk.read_bytes())
    content[777] ^= 4
    before = disk.stat()
    disk.write_bytes(content)
    os.utime(disk, ns=(before.st_atime_ns, before.st_mtime_ns))
    problems = store.verify(repair=False)
    assert problems == [f"layer {rotten.id} (node rotten): disk.qcow2 changed since it was made"]
    assert len(store.layers()) == 3
    assert store.verify(repair=True) == problems
    assert [layer.key for layer in store.layers()] == ["base"]
    assert everything_in(store.root) == {base.id}
    assert store.verify(repair=False) == []


def test_a_missing_folder_is_no_layer(store: Store) -> None:
    with store.using() as use:
        base = make(use, "base")
        make(use, "top", base)
    shutil.rmtree(base.folder)
    assert store.find("base") is None
    assert any("folder is missing" in problem for problem in store.verify(repair=True))
    assert store.layers() == []
    with store.using() as use:
        make(use, "base")


def test_a_folder_that_nobody_knows_is_removed(store: Store) -> None:
    with store.using() as use:
        layer = make(use, "a")
    (store.root / "layers" / "000077").mkdir()
    assert store.verify(repair=False) == ["000077: the index does not know it"]
    assert everything_in(store.root) == {layer.id, "000077"}
    store.verify(repair=True)
    assert everything_in(store.root) == {layer.id}


def test_damage_that_a_running_build_stands_on_stays_until_it_ends(store: Store) -> None:
    with store.using() as use:
        base = make(use, "base")
        top = make(use, "top", base)
        (base.folder / "disk.qcow2").write_bytes(b"rot")
        assert any("in use" in problem for problem in store.verify(repair=True))
        assert everything_in(store.root) == {base.id, top.id}
    store.verify(repair=True)
    assert everything_in(store.root) == set()


def test_a_tree_that_lost_or_gained_a_file_is_found(store: Store) -> None:
    with store.using() as use, use.making("t", gives="tree", name="a tree") as slot:
        (slot.folder / "upper" / "etc").mkdir(parents=True)
        (slot.folder / "upper" / "etc" / "passwd").write_text("root")
        layer = slot.commit()
    assert store.verify(repair=False) == []
    (layer.folder / "upper" / "etc" / "passwd").unlink()
    assert len(store.verify(repair=False)) == 1


def test_a_bit_that_rotted_in_a_file_of_a_tree_is_found(store: Store) -> None:
    with store.using() as use, use.making("t", gives="tree", name="a tree") as slot:
        (slot.folder / "upper").mkdir()
        file = slot.folder / "upper" / "passwd"
        file.write_text("root")
        layer = slot.commit()
    file = layer.folder / "upper" / "passwd"
    times = file.stat()
    file.write_text("rook")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (problem,) = store.verify(repair=False)
    assert "bytes changed" in problem


def test_trees_are_named_alike_in_and_outside_of_a_namespace(tmp_path: Path) -> None:
    (tmp_path / "a dir").mkdir()
    (tmp_path / "a dir" / "-n\\ew\nline").write_text("x")
    (tmp_path / "b").write_text("y")
    (tmp_path / "link").symlink_to("b")
    assert tree.contents(Host(), tmp_path) == store_files.contents_digest(tmp_path)


def test_a_rotten_download_is_found(store: Store) -> None:
    blob = store.blobs / "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    blob.touch()
    assert store.verify(repair=False) == []
    blob.write_text("rot")
    assert len(store.verify(repair=True)) == 1
    assert not blob.exists()


# -- no space ----------------------------------------------------------------------------------------------------

_FULL = """
import sys
from pathlib import Path
from imagesmith.errors import StoreError
from imagesmith.store import Store
root = Path(sys.argv[1])
store = Store(root / "store")
def chunk(use, key, size):
    with use.making(key, gives="disk", name=key) as slot:
        (slot.folder / "disk.qcow2").write_bytes(b"x" * size)
        slot.commit()
with store.using() as use:
    chunk(use, "kept", 1 << 20)
    try:
        chunk(use, "too large", 64 << 20)
    except StoreError as error:
        print(error, "|", error.hint)
    assert use.find("kept") and not use.find("too large")
filler = root / "filler"
with filler.open("wb", buffering=0) as out:      # to the last byte
    size = 1 << 16
    while size:
        try:
            while out.write(b"x" * size) == size: pass
            size //= 2
        except OSError:
            size //= 2
try:
    with store.using() as use:
        for n in range(2000):
            chunk(use, f"small {n}", 0)
    raise SystemExit("there was room")
except StoreError as error:
    print(error, "|", error.hint)
store.close()
store = Store(root / "store")                # and it still opens
assert [layer.key for layer in store.clear()][-1:] == ["kept"], store.layers()
filler.unlink()
with store.using() as use:
    chunk(use, "again", 1 << 20)
assert store.verify(repair=False) == []
print("sound")
"""


def test_a_full_disk_says_so_loses_nothing_and_can_be_collected(tmp_path: Path) -> None:
    mount = tmp_path / "m"
    mount.mkdir()
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if subprocess.run([*private, f"mount -t tmpfs none {mount}"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*private, 'mount -t tmpfs -o size=8m none "$1"; exec "$2" -c "$3" "$1"', "-", mount, sys.executable, _FULL],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, last = done.stdout.splitlines()
    assert "no space left to make too large" in first
    assert " free in " in first
    assert "imagesmith cache gc" in first
    assert "no space left" in second
    assert last == "sound"
