"""What a store makes of damage: rot in whatever it holds, an index that is gone or wrong, a folder that is lost."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from imagesmith import store_record
from imagesmith.errors import StoreError
from imagesmith.store import Layer, Store
from imagesmith.store_files import file_sha256, lock
from imagesmith.store_index import SCHEMA, Index
from tests import rootless
from tests.test_store import everything_in, make

fork = multiprocessing.get_context("fork")


def fill(root: Path) -> dict[str, Layer]:
    """A store with a layer of each sort; it is closed."""
    with closing(Store(root)) as store, store.using() as use:
        with use.making("tree", gives="tree", name="a tree") as slot:
            (slot.folder / "upper" / "etc").mkdir(parents=True)
            (slot.folder / "upper" / "etc" / "passwd").write_text("root:x:0:0" * 50)
            (slot.folder / "log").write_text("it was made\n")
            tree = slot.commit({"seconds": 1.5, "options": {"packages": ["curl"]}})
        base = make(use, "base")
        with use.making("online", gives="disk", name="a step that ran", parent=base) as slot:
            (slot.folder / "disk.qcow2").write_bytes(b"d" * 9000)
            (slot.folder / "checkpoint").mkdir()
            (slot.folder / "checkpoint" / "state.zst").write_bytes(b"s" * 9000)
            (slot.folder / "checkpoint" / "fits").write_text("this machine")
            sums = [f"{file_sha256(file)}  {file.name}" for file in (slot.folder / "checkpoint").iterdir()]
            (slot.folder / "checkpoint" / "SHA256SUMS").write_text("\n".join(sums) + "\n")
            online = slot.commit()
        image = make(use, "image", online, gives="files")
        with use.making("checks", gives="record", name="checks") as slot:
            (slot.folder / "log").write_text("all passed\n")
            checks = slot.commit({"checks": [{"passed": True}], "made_of": [online.id]})
    return {layer.key: layer for layer in (tree, base, online, image, checks)}


def flip(file: Path) -> None:
    """Let one bit of a file rot."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def lose_index(root: Path) -> None:
    for file in root.glob("index.db*"):
        file.unlink()


@pytest.mark.parametrize(
    ("key", "file", "goes"),
    [
        ("tree", "upper/etc/passwd", {"tree"}),
        ("tree", "log", {"tree"}),
        ("base", "disk.qcow2", {"base", "online", "image", "checks"}),
        ("online", "disk.qcow2", {"online", "image", "checks"}),
        ("image", "disk.qcow2", {"image"}),
        ("checks", "log", {"checks"}),
        ("online", "checkpoint/state.zst", set()),
        ("image", "layer.json", set()),
    ],
)
@pytest.mark.parametrize("how", [flip, Path.unlink])
def test_rot_anywhere_is_found_and_only_what_it_touches_goes(
    tmp_path: Path, key: str, file: str, goes: set[str], how: object
) -> None:
    layers = fill(tmp_path / "s")
    how(layers[key].folder / file)  # type: ignore[operator]
    with closing(Store(tmp_path / "s")) as store:
        problem, *more = store.verify(repair=False)
        assert more == [], problem
        assert f"layer {layers[key].id} " in problem
        assert len(store.layers()) == len(layers)
        assert store.verify(repair=True) == [problem]
        assert store.verify(repair=False) == []
        assert {layer.key for layer in store.layers()} == set(layers) - goes
        assert everything_in(store.root) == {layer.id for layer in store.layers()}
        assert (layers["online"].folder / "checkpoint").exists() == ("checkpoint" not in file and "online" not in goes)


def test_a_checkpoint_may_come_after_its_layer_or_never(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    late = layers["base"].folder / "checkpoint"
    late.mkdir()
    (late / "state.zst").write_bytes(b"half of it")
    with closing(Store(tmp_path / "s")) as store:
        assert store.verify(repair=False) == []
        (late / "SHA256SUMS").write_text(f"{'0' * 64}  state.zst\n")
        [problem] = store.verify(repair=False)
        assert problem == f"layer {layers['base'].id} (node base): checkpoint/state.zst changed since it was made"


def test_a_checkpoint_that_was_collected_is_no_damage(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        (layers["online"].folder / "checkpoint" / "SHA256SUMS").unlink()  # whoever removes it begins with this
        assert store.verify(repair=False) == []
        assert store.collect(store.size() - 1) == []
        assert not (layers["online"].folder / "checkpoint").exists()
        assert store.verify(repair=False) == []


def test_an_index_that_was_lost_is_made_anew_from_the_layers(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    lose_index(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        for key, layer in layers.items():
            found = store.find(key)
            assert found is not None
            assert (found, found.facts, found.digests) == (layer, layer.facts, layer.digests)
        assert [layer.key for layer in store.chain(layers["image"])] == ["base", "online", "image"]
        assert store.verify(repair=False) == []


def test_an_index_made_anew_takes_in_nothing_that_is_wrong(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    lose_index(tmp_path / "s")
    flip(layers["base"].folder / "layer.json")  # and with it what stands on it
    flip(layers["tree"].folder / "upper" / "etc" / "passwd")
    shutil.copytree(layers["checks"].folder, tmp_path / "s" / "layers" / "000050")  # says that it is another one
    with closing(Store(tmp_path / "s")) as store:
        assert len(store.verify(repair=True)) == 5
        assert [layer.key for layer in store.layers()] == ["checks"]
        assert everything_in(store.root) == {layers["checks"].id}
        assert store.verify(repair=False) == []


def test_a_layer_of_another_store_is_not_put_on_one_of_this(tmp_path: Path) -> None:
    theirs, layers = fill(tmp_path / "other"), fill(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        with store.using() as use:
            assert use.find("base")
            store.clear()
        for layer in theirs.values():  # the numbers fit, and the keys do
            if layer.key != "base":
                shutil.copytree(layer.folder, tmp_path / "s" / "layers" / layer.id)
        assert [problem for problem in store.verify(repair=True) if layers["base"].id in problem] == []
        assert {layer.key for layer in store.layers()} == {"base", "tree", "checks"}
        assert store.verify(repair=False) == []


def test_an_older_copy_of_the_index_learns_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    root = tmp_path / "s"
    fill(root)
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("layers"))
    with closing(Store(root)) as store:
        with store.using() as use:
            found = use.find("base")
            assert found is not None
            late = make(use, "late", found)
        with store.using() as use:
            assert use.find("late")
            assert {layer.key for layer in store.clear()} == {"tree", "online", "image", "checks"}
    lose_index(root)
    for file in (tmp_path / "copy").glob("index.db*"):
        shutil.copy(file, root)
    said: list[str] = []
    with closing(Store(root)) as store:
        problems = store.verify(repair=False, note=said.append)
        assert said == [f"layer {late.id} (node late) was not in the index, and is again"]
        assert len(problems) == 4
        assert all("its folder is missing" in problem for problem in problems)
        with store.using() as use:  # a build puts it right by itself
            assert use.find("image") is None
            assert use.find("late") == late
        assert {layer.key for layer in store.layers()} == {"base", "late"}
        assert store.verify(repair=False) == []


def test_an_index_that_is_none_is_said_and_made_anew(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    for garbage in (b"not a database, but long enough to look like one" * 100, b""):
        (tmp_path / "s" / "index.db").write_bytes(garbage)
        if garbage:
            with pytest.raises(StoreError, match="not a database") as caught:
                Store(tmp_path / "s")
            assert "cache verify --repair" in caught.value.hint
        with closing(Store(tmp_path / "s", rebuild=True)) as store:
            assert {layer.key for layer in store.layers()} == set(layers)
            assert store.verify(repair=True) == []


def test_an_index_with_rotten_pages_is_said_and_made_anew(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    file = tmp_path / "s" / "index.db"
    content = bytearray(file.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 8] = b"\xff" * 8
    file.write_bytes(content)
    with closing(Store(tmp_path / "s", rebuild=True)) as store:
        store.verify(repair=True)
        assert (tmp_path / "s" / "index.db.damaged").exists()
        assert {layer.key for layer in store.layers()} == set(layers)
        assert store.verify(repair=False) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "key = 'another' WHERE key = 'base'",
        "facts = '{\"broken' WHERE key = 'tree'",
        "parent = NULL WHERE key = 'image'",
        "digests = '{}' WHERE key = 'checks'",
        "gives = 'disk' WHERE key = 'tree'",
    ],
)
def test_where_the_index_and_a_layer_disagree_the_layer_is_believed(tmp_path: Path, wrong: str) -> None:
    layers = fill(tmp_path / "s")
    with closing(sqlite3.connect(tmp_path / "s" / "index.db")) as db:
        db.execute(f"UPDATE layers SET {wrong}")
        db.commit()
    with closing(Store(tmp_path / "s", rebuild=True)) as store:
        assert len(store.verify(repair=False)) == 1
        assert len(store.verify(repair=True)) == 1
        assert store.verify(repair=False) == []
        assert {layer.key for layer in store.layers()} == set(layers)
        assert [layer.key for layer in store.chain(layers["image"])] == ["base", "online", "image"]


def test_an_index_is_not_made_anew_under_a_running_build(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s" / "index.db").write_bytes(b"garbage" * 2000)
    running = lock(tmp_path / "s" / "leases" / "another")
    assert running is not None
    with pytest.raises(StoreError, match="a build is using it"):
        Store(tmp_path / "s", rebuild=True)
    running.release()
    with closing(Store(tmp_path / "s", rebuild=True)) as store:
        assert store.verify(repair=True) == []


def downgrade(root: Path) -> None:
    """Make of a store what the version before layers had records would have made."""
    for record in root.glob("layers/*/layer.json"):
        record.unlink()
    with closing(sqlite3.connect(root / "index.db")) as db:
        db.execute("PRAGMA user_version = 1")
        db.commit()


def test_a_store_of_an_older_version_is_brought_to_this_one(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    downgrade(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        assert {layer.key for layer in store.layers()} == set(layers)
        assert store.verify(repair=False) == []
    with closing(sqlite3.connect(tmp_path / "s" / "index.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    lose_index(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        assert {layer.key for layer in store.layers()} == set(layers)


def test_an_upgrade_that_fails_half_way_is_done_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = fill(tmp_path / "s")
    downgrade(tmp_path / "s")
    write, left = store_record.write, [2]

    def dies(index: Index, layer: Layer, folder: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(28, "No space left on device")
        write(index, layer, folder)

    with monkeypatch.context() as patch:
        patch.setattr(store_record, "write", dies)
        with pytest.raises(StoreError, match="no space left"):
            Store(tmp_path / "s")
    with closing(sqlite3.connect(tmp_path / "s" / "index.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
    with closing(Store(tmp_path / "s")) as store:
        assert store.verify(repair=False) == []
        assert {layer.key for layer in store.layers()} == set(layers)


def _build_into(root: Path, meanwhile: Callable[[], object]) -> None:
    with closing(Store(root)) as store, store.using() as use, use.making("new", gives="disk", name="new") as slot:
        meanwhile()
        (slot.folder / "disk.qcow2").write_bytes(b"x")


def test_a_store_that_vanishes_while_it_is_used_is_said(tmp_path: Path) -> None:
    root = tmp_path / "s"

    def replaced() -> None:
        root.rename(tmp_path / "elsewhere")
        fill(root)

    for meanwhile in (lambda: shutil.rmtree(root), replaced):
        fill(root)
        with pytest.raises(StoreError, match="was removed or replaced while it was in use") as caught:
            _build_into(root, meanwhile)
        assert "build again" in caught.value.hint


# -- collection beside a build -----------------------------------------------------------------------------------------


def _collector(root: Path, begun: Path) -> None:
    store = Store(root)
    while True:
        store.collect(0)
        begun.touch()


def test_a_build_beside_endless_collection_finds_all_that_it_made(tmp_path: Path) -> None:
    collector = fork.Process(target=_collector, args=(tmp_path / "s", tmp_path / "begun"))
    collector.start()
    try:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        with closing(Store(tmp_path / "s")) as store:
            for round_ in range(3):
                with store.using() as use:
                    below = None
                    for number in range(12):
                        below = make(use, f"{round_} {number}", below)
                        (below.folder / "checkpoint").mkdir()  # beside the layer, as an old one
                        (below.folder / "checkpoint" / "fits").touch()
                        image = make(use, f"image {round_} {number}", below, gives="files")
                        assert image.folder.is_dir()
                    assert below is not None
                    for number, layer in enumerate(store.chain(below)):
                        assert layer.key == f"{round_} {number}"
                        assert (layer.folder / "disk.qcow2").read_bytes().startswith(layer.key.encode())
                        assert (layer.folder / "checkpoint" / "fits").exists()
    finally:
        collector.kill()
        collector.join()
    with closing(Store(tmp_path / "s")) as store:
        store.collect(0)
        assert everything_in(tmp_path / "s") == set()


def test_a_build_at_its_end_gives_its_checkpoints_before_others_layers(tmp_path: Path) -> None:
    layers = fill(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store, store.using() as use:
        assert use.find("online")
        with closing(Store(tmp_path / "s")) as other, other.using() as theirs:
            assert theirs.find("online")
            assert store.collect(store.size() - 1, done=use) != []  # another build may need it, so a layer goes
            assert (layers["online"].folder / "checkpoint").exists()
        assert store.collect(store.size() - 1, done=use) == []
        assert not (layers["online"].folder / "checkpoint").exists()


def test_what_is_being_removed_is_never_taken_for_a_layer(tmp_path: Path) -> None:
    fill(tmp_path / "s")

    def remove(path: Path) -> None:  # and the process is gone in the middle of it
        (path / "disk.qcow2").unlink(missing_ok=True)
        raise InterruptedError

    with closing(Store(tmp_path / "s", remove=remove)) as store, pytest.raises(InterruptedError):
        store.clear()
    lose_index(tmp_path / "s")
    with closing(Store(tmp_path / "s")) as store:
        assert store.verify(repair=False) == []
        with store.using():
            assert {path.suffix for path in (tmp_path / "s" / "layers").iterdir()} == {""}
        assert store.verify(repair=False) == []


_ROOTLESS = """
import os
from pathlib import Path
from imagesmith import tree
from imagesmith.host import Host
os.environ["IMAGESMITH_CACHE"] = os.environ["HOME"] + "/cache"
from imagesmith.workbench import open_store
store = open_store()
with store.using() as use, use.making("t", gives="tree", name="a tree") as slot:
    upper = slot.folder / "upper"
    upper.mkdir()
    script = 'cd "$1"; mkdir d; echo secret >d/f; chown -R 33:33 d; chmod 700 d; mknod p p'
    tree.inside(Host(), ["sh", "-ec", script, "sh", str(upper)], purpose="test", log=print)
    layer = slot.commit()
assert (layer.folder / "upper" / "d").stat().st_uid == 300032
assert store.verify(repair=False) == []
store.close()
for file in store.root.glob("index.db*"):
    file.unlink()
store = open_store()
assert store.find("t") == layer
assert store.verify(repair=False) == []
script = 'echo Secret >"$1"/upper/d/f; touch -d @0 "$1"/upper/d/f'
tree.inside(Host(), ["sh", "-ec", script, "sh", str(layer.folder)], purpose="test", log=print)
print(store.verify(repair=True))
assert store.layers() == [] and list((store.root / "layers").iterdir()) == []
"""


def test_trees_of_users_who_are_not_root_are_mended_alike() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with rootless.home() as home:
        done = rootless.run(home, _ROOTLESS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "since it was made" in done.stdout
