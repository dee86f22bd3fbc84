"""A cache that machines share: what one made, another takes, and ends with the same bytes without running a step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagesmith import api
from imagesmith.host import Host
from imagesmith.plan import Plan
from imagesmith.remote import prune
from imagesmith.remote.pack import pack, unpack
from imagesmith.remote.shared import Shared, shared
from imagesmith.remote.where import where
from imagesmith.store import Store
from imagesmith.store_files import contents_digest, shape_digest
from tests import rootless
from tests.conftest import Command
from tests.shared_caches import given, key_pair, layers, planned, served, silent, taken
from tests.trees import tiny


@dataclass(frozen=True)
class Warm:
    """A machine that has built the tiny recipe, and what it shared."""

    recipe: Path
    cache: Path
    key: Path
    public: Path
    machine: Command
    plan: Plan
    sums: str


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Warm:
    folder = tmp_path_factory.mktemp("warm")
    key, public = key_pair(folder)
    recipe, machine = tiny(folder), Command(folder / "store", folder / "output")
    ran = machine("build", recipe, "--cache-to", folder / "cache", "--cache-key", key)
    assert f"shared cache {folder}/cache: 5 results put there" in ran.err
    sums = (machine.output / "tiny" / "SHA256SUMS").read_text()
    return Warm(recipe, folder / "cache", key, public, machine, planned(recipe), sums)


@pytest.fixture
def laptop(tmp_path: Path) -> Command:
    return Command(tmp_path / "laptop", tmp_path / "output")


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


# -- a folder ----------------------------------------------------------------------------------------------------


def test_an_empty_machine_with_a_warm_cache_runs_no_step_and_has_the_same_bytes(warm: Warm, laptop: Command) -> None:
    ci = {"IMAGESMITH_CACHE_FROM": str(warm.cache), "IMAGESMITH_CACHE_TRUST": str(warm.public)}
    ran = laptop("build", warm.recipe, "--log-format", "json", env=ci)
    told = events(ran.err)
    assert not [event for event in told if event["event"] == "node-start"]
    assert "2 results taken" in str(next(event for event in told if event["event"] == "note"))
    assert (laptop.output / "tiny" / "SHA256SUMS").read_text() == warm.sums
    assert layers(laptop.store) == ["tiny: output rootfs.tar.zst", "tiny: take the inventory"]  # and no step or base
    assert "sound" in laptop("cache", "verify").out
    assert not list((laptop.store / "blobs").iterdir())


def test_a_change_takes_what_is_below_it_alone(warm: Warm, laptop: Command) -> None:
    ran = laptop("build", warm.recipe, "--var", "word=bye", "--cache-from", warm.cache, "--cache-trust", warm.public)
    assert "1 results taken" in ran.err
    assert "start  base" not in ran.err
    assert "start  1 shell echo 'bye'" in ran.err


def test_what_was_taken_keeps_its_age_and_is_not_taken_twice(warm: Warm, tmp_path: Path) -> None:
    first = taken(warm.plan, tmp_path / "store", str(warm.cache), warm.public)
    assert len(first.nodes) == 2
    assert taken(warm.plan, tmp_path / "store", str(warm.cache), warm.public).nodes == []
    there = {layer.key: layer.made for layer in Store(warm.machine.store).layers()}
    assert all(layer.made == there[layer.key] for layer in Store(tmp_path / "store").layers())
    assert given(warm.plan, tmp_path / "store", str(warm.cache), warm.key).nodes == []  # it is what is there


def test_a_push_that_was_broken_off_goes_on(warm: Warm, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(warm.cache / "chunks", cache / "chunks")  # all chunks arrived, and no entry
    went = given(warm.plan, warm.machine.store, str(cache), warm.key)
    assert (len(went.nodes), went.sent) == (5, 0)


def test_a_pull_that_was_broken_off_goes_on(warm: Warm, tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    for chunk in (warm.cache / "chunks").glob("*/*"):
        shutil.copy(chunk, tmp_path / "store" / "blobs" / f"sha256-{chunk.name}")
    came = taken(warm.plan, tmp_path / "store", str(warm.cache), warm.public)
    assert (len(came.nodes), came.fetched) == (2, 0)


def test_the_commands_of_the_cache(warm: Warm, laptop: Command, tmp_path: Path) -> None:
    url = ("--url", tmp_path / "cache")
    assert "5 results put there" in warm.machine("cache", "push", warm.recipe, *url, "--key", warm.key).out
    assert "nothing is there" in warm.machine("cache", "push", warm.recipe, *url, "--key", warm.key).out
    assert "2 results taken" in laptop("cache", "pull", warm.recipe, *url, "--trust", warm.public).out
    assert "nothing that is not there" in laptop("cache", "pull", warm.recipe, *url, "--trust", warm.public).out
    assert "removed 0 entries and 0 chunks" in laptop("cache", "prune", *url).out
    assert "no file lists the trusted keys" in laptop("build", warm.recipe, "--cache-from", *url[1:], expect=2).err
    assert "no key to sign it with" in laptop("build", warm.recipe, "--cache-to", *url[1:], expect=2).err
    refused = ("--cache-to", "https://example.org", "--cache-key", warm.key)
    assert "can only be read" in laptop("build", warm.recipe, *refused, expect=2).err


def test_each_variant_of_a_matrix_is_shared(warm: Warm, tmp_path: Path) -> None:
    family = tmp_path / "family.yaml"
    family.write_text(warm.recipe.read_text() + "matrix: {word: [one, two]}\n")
    shutil.copy(warm.recipe.parent / "tiny.tar", tmp_path)
    told = warm.machine("cache", "push", family, "--url", tmp_path / "cache", "--key", warm.key).out.splitlines()
    assert [line.partition(":")[0] for line in told] == ["tiny-one", "tiny-two"]
    assert "results put there" in told[0]


def test_what_is_old_goes_and_what_is_needed_stays(warm: Warm, tmp_path: Path) -> None:
    shutil.copytree(warm.cache, tmp_path / "cache")
    cache, now = where(str(tmp_path / "cache")), time.time()
    old = sorted((tmp_path / "cache" / "entries").iterdir())[:2]
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (now - 2 * prune.GRACE,) * 2)
    assert prune.prune(cache, older_than=1e9, now=now) == prune.Pruned(0, 0)
    for path in old:
        os.utime(path, (now - 9 * prune.GRACE,) * 2)
    gone = prune.prune(cache, older_than=8 * prune.GRACE, now=now)
    assert gone.entries == 2
    left = prune.prune(cache, older_than=prune.GRACE, now=now)
    assert (left.entries, gone.chunks + left.chunks) == (3, 5)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# -- what goes together ------------------------------------------------------------------------------------------


def test_artifacts_of_one_build_are_of_one_system(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Two machines made the same steps at different times; what one made of its own is not mixed with the other's."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(warm.recipe.read_text().replace("[tar]", "[tar, oci]"))
    shutil.copy(warm.recipe.parent / "tiny.tar", tmp_path)
    both, tar = planned(recipe), api.make_plan(api.load(recipe), only=["tar"])
    source = shared(str(tmp_path / "cache"), "", None, warm.public)

    def build(machine: str, plan: Plan, caches: Shared | None) -> tuple[str, ...]:
        monkeypatch.setenv("IMAGESMITH_CACHE", str(tmp_path / machine))
        return api.build(plan, tmp_path / f"{machine}.out", shared=caches).ran

    assert len(build("ci", both, shared("", str(tmp_path / "cache"), warm.key, None))) == 6
    build("desk", tar, None)
    assert build("desk", both, source) == ("output oci",)  # there is one in the cache, of another tree
    assert build("laptop", tar, source) == ()
    assert build("laptop", both, source) == ()  # the rest of the same tree's


DISK = """
name: chain
base: {disk: {path: base.qcow2}}
steps: [{shell: one}, {shell: two}, {cleanup: false}]
outputs: [qcow2]
"""


def test_a_disk_comes_with_the_layers_that_it_stands_on(tmp_path: Path) -> None:
    def qemu(*args: str | Path) -> None:
        subprocess.run(args, check=True, capture_output=True)

    key, public = key_pair(tmp_path)
    qemu("qemu-img", "create", "-f", "qcow2", tmp_path / "base.qcow2", "8M")
    (tmp_path / "chain.yaml").write_text(DISK)
    plan = planned(tmp_path / "chain.yaml")
    with Store(tmp_path / "one").using() as use:
        below = None
        for number, node in enumerate(plan.spine):
            with use.making(node.key, gives="disk", name=node.full_name, parent=below) as slot:
                file = slot.folder / "disk.qcow2"
                under = ("-u", "-F", "qcow2", "-b", f"../{below.id}/disk.qcow2") if below else ()
                qemu("qemu-img", "create", "-f", "qcow2", *under, file, "8M")
                qemu("qemu-io", "-c", f"write -P {number + 1} {number}M 1M", file)
                below = slot.commit({})
    assert below is not None
    given(plan, tmp_path / "one", str(tmp_path / "cache"), key)
    with Store(tmp_path / "two").using() as use:  # so that numbers are others there
        for other in ("a", "b"):
            with use.making(other, gives="record", name=other) as slot:
                slot.commit({})
    came = taken(plan, tmp_path / "two", str(tmp_path / "cache"), public)
    assert came.nodes == [plan.sealed.name]
    top = Store(tmp_path / "two").find(plan.sealed.key)
    assert top is not None
    assert top.id != below.id
    qemu("qemu-img", "compare", below.folder / "disk.qcow2", top.folder / "disk.qcow2")
    qemu("qemu-io", "-r", "-c", "read -P 1 0M 1M", "-c", "read -P 3 2M 1M", top.folder / "disk.qcow2")
    assert Store(tmp_path / "two").verify(repair=False) == []


def test_what_secrets_went_into_is_not_shared(tmp_path: Path) -> None:
    key, _ = key_pair(tmp_path)
    recipe = tiny(tmp_path)
    recipe.write_text(recipe.read_text().replace("word: {default: hello}", "word: {secret: {env: WORD}}"))
    machine = Command(tmp_path / "store", tmp_path / "output")
    ran = machine("build", recipe, "--cache-to", tmp_path / "cache", "--cache-key", key, env={"WORD": "hush-hush"})
    assert "1 results put there" in ran.err  # the base
    assert "4 results are not shared: secrets went into them" in ran.err
    assert len(list((tmp_path / "cache" / "entries").iterdir())) == 1


# -- trees -------------------------------------------------------------------------------------------------------


def furnish(upper: Path) -> None:
    """What a step may leave in a tree."""
    (upper / "etc").mkdir(parents=True)
    (upper / "etc" / "file").write_bytes(b"x" * 100)
    (upper / "etc" / "same").hardlink_to(upper / "etc" / "file")
    (upper / "etc" / "link").symlink_to("/etc/shadow")
    (upper / "etc" / "file").chmod(0o4755)
    os.mkfifo(upper / "etc" / "pipe")
    os.setxattr(upper / "etc" / "file", "user.note", b"kept")
    os.utime(upper / "etc" / "file", (1, 1_600_000_000))
    (upper / "opaque").mkdir(mode=0o1777)
    os.setxattr(upper / "opaque", "user.overlay.opaque", b"y")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes devices, and files of others")
def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    upper = before / "upper"
    furnish(upper)
    os.mknod(upper / "etc" / "gone", 0o020000, os.makedev(0, 0))  # overlayfs's white-out
    os.chown(upper / "etc" / "file", 1234, 4321)
    (upper / "etc" / "file").chmod(0o4755)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(upper / "etc" / "file", "security.capability", capability)
    (before / "log").write_text("said\n")
    (before / "layer.json").write_text("{}")
    pieces: list[bytes] = []
    pack("tree", before, Host(), pieces.append)
    again: list[bytes] = []
    pack("tree", before, Host(), again.append)
    assert pieces == again
    after.mkdir()
    unpack("tree", pieces, after, Host())
    assert shape_digest(after / "upper") == shape_digest(upper)
    assert contents_digest(after) == contents_digest(before)
    assert os.getxattr(after / "upper/etc/file", "security.capability") == capability
    assert os.getxattr(after / "upper/etc/file", "user.note") == b"kept"
    assert os.getxattr(after / "upper/opaque", "user.overlay.opaque") == b"y"
    assert (after / "upper/etc/same").samefile(after / "upper/etc/file")
    assert sorted(path.name for path in after.iterdir()) == ["log", "upper"]


ROOTLESS = """
import os
from pathlib import Path
from imagesmith import tree
from imagesmith.host import Host
from imagesmith.remote.pack import pack, unpack
from imagesmith.store_files import shape_digest
from tests.test_shared import furnish

home = Path(os.environ["HOME"])
furnish(home / "before/upper")
script = 'cd "$1" && echo x >theirs && chown 1000:50 theirs && chmod 600 theirs && mknod gone c 0 0'
tree.inside(Host(), ["sh", "-ec", script, "sh", str(home / "before/upper")], purpose="test", log=print)
pieces = []
pack("tree", home / "before", Host(), pieces.append)
(home / "after").mkdir()
unpack("tree", pieces, home / "after", Host())
assert shape_digest(home / "after") == shape_digest(home / "before")
assert (home / "after/upper/theirs").stat().st_uid == 300999
assert os.getxattr(home / "after/upper/opaque", "user.overlay.opaque") == b"y"
for name in ("before", "after"):
    tree.remove(Host(), home / name)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_tree_comes_back_as_it_was_for_an_ordinary_user() -> None:
    with rootless.home() as home:
        done = rootless.run(home, ROOTLESS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sparse_artifact_stays_sparse(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "files").mkdir(parents=True)
    with (before / "files" / "x.raw").open("wb") as out:
        out.truncate(64 << 20)
        out.seek(20 << 20)
        out.write(b"data")
    pieces: list[bytes] = []
    pack("files", before, Host(), pieces.append)
    after.mkdir()
    unpack("files", pieces, after, Host())
    assert contents_digest(after) == contents_digest(before)
    assert (after / "files" / "x.raw").stat().st_blocks * 512 < 4 << 20


# -- servers -----------------------------------------------------------------------------------------------------


def test_a_web_server_that_lists_nothing_is_enough(warm: Warm, laptop: Command) -> None:
    with served(warm.cache) as url:
        ran = laptop("build", warm.recipe, "--cache-from", url, "--cache-trust", warm.public)
    assert f"shared cache {url}: 2 results taken" in ran.err
    assert "start" not in ran.err
    assert (laptop.output / "tiny" / "SHA256SUMS").read_text() == warm.sums


def test_a_server_that_is_away_costs_one_line(warm: Warm, laptop: Command) -> None:
    with served(warm.cache) as url:
        pass
    ran = laptop("build", warm.recipe, "--cache-from", url, "--cache-trust", warm.public)
    (line,) = [line for line in ran.err.splitlines() if "shared cache" in line]
    assert line.endswith("building without it")
    assert (laptop.output / "tiny" / "SHA256SUMS").read_text() == warm.sums


@pytest.mark.parametrize("trickle", [False, True])
def test_a_server_that_hangs_is_given_up(trickle: bool, warm: Warm, tmp_path: Path) -> None:
    with silent(trickle=trickle) as (url, server):
        came = taken(warm.plan, tmp_path / "store", where(url, patience=1.0), warm.public)
        assert server.asked == 1  # type: ignore[attr-defined]
    assert list(came.lines(url)) == [f"shared cache {url}: it does not answer in time; building without it"]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"),
                        ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    S3FileSystem(endpoint_url=f"http://{host}:{port}").mkdir("layers")
    yield "s3://layers/imagesmith"
    server.stop()


@pytest.mark.slow
def test_a_bucket(warm: Warm, laptop: Command, bucket: str) -> None:
    assert "5 results put there" in warm.machine("cache", "push", warm.recipe, "--url", bucket, "--key", warm.key).out
    assert "nothing is there" in warm.machine("cache", "push", warm.recipe, "--url", bucket, "--key", warm.key).out
    ran = laptop("build", warm.recipe, "--cache-from", bucket, "--cache-trust", warm.public)
    assert "2 results taken" in ran.err
    assert (laptop.output / "tiny" / "SHA256SUMS").read_text() == warm.sums
    assert "removed 5 entries and 0 chunks" in laptop("cache", "prune", "--url", bucket, "--older-than", "0s").out


FULL = """
import sys
from pathlib import Path
from tests.shared_caches import given, planned
recipe, store, key, cache = map(Path, sys.argv[1:])
print(list(given(planned(recipe), store, str(cache), key).lines("here")), [str(p) for p in cache.rglob("*.json")],
      [str(p) for p in cache.rglob("*.part")])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a full disk")
def test_a_full_disk_takes_no_half_an_entry(warm: Warm) -> None:
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c",
             'mount -t tmpfs -o size=600k none "$0" && exec "$1" -c "$2" "$3" "$4" "$5" "$0"',
             place, sys.executable, FULL, warm.recipe, warm.machine.store, warm.key],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.stdout == "['shared cache here: not everything was put there: No space left on device'] [] []\n", (
        done.stdout + done.stderr
    )


def test_python_programs_share(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGESMITH_CACHE", str(tmp_path / "store"))
    result = api.build(warm.plan, tmp_path / "output", shared=shared(str(warm.cache), "", None, warm.public))
    assert result.ran == ()
