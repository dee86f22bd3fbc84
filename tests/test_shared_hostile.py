"""Shared caches that lie: nothing of theirs is used, nothing else happens, and the build makes what it needs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zstandard

from imagesmith.errors import RecipeError, Refused
from imagesmith.host import Host
from imagesmith.plan import Node, Plan
from imagesmith.remote import pack
from imagesmith.remote.entry import Chunk, Entry, Part, entry_name
from imagesmith.remote.trust import Trust, signer, trusted
from imagesmith.remote.where import where
from imagesmith.store import Store
from tests.conftest import Command
from tests.shared_caches import given, key_pair, layers, planned, taken
from tests.trees import tiny


@dataclass(frozen=True)
class Victim:
    """A plan, a cache with a good entry of each leaf of it, and the keys."""

    recipe: Path
    plan: Plan
    key: Path
    public: Path
    cache: Path

    @property
    def node(self) -> Node:
        return self.plan.outputs[0]

    @property
    def file(self) -> Path:
        return self.cache / entry_name(self.node.key)

    def entry(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_bytes().partition(b"\n")[0])
        return found

    def sign(self, entry: object, key: Path | None = None) -> None:
        self.file.write_bytes(signer(key or self.key).sealed(json.dumps(entry).encode()))

    def put(self, data: bytes, plain: int) -> dict[str, Any]:
        """Put a chunk there, by its digest."""
        chunk = {**pack.compress(b"x")[0].model_dump(), "sha256": hashlib.sha256(data).hexdigest(),
                 "size": len(data), "plain": plain}  # fmt: skip
        path = self.cache / "chunks" / str(chunk["sha256"])[:2] / str(chunk["sha256"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return chunk


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """Results that look like a build's, put into a store by hand and shared."""
    folder = tmp_path_factory.mktemp("good")
    key, public = key_pair(folder)
    recipe = tiny(folder)
    plan = planned(recipe)
    assert plan.inventory is not None
    with Store(folder / "store").using() as use:
        for node in (plan.outputs[0], plan.inventory):
            with use.making(node.key, gives=node.gives, name=node.full_name) as slot:
                (slot.folder / "files").mkdir()
                (slot.folder / "files" / "a.tar").write_bytes(b"artifact" * 1000)
                slot.commit({"files": [{"name": "a.tar"}]})
    given(plan, folder / "store", str(folder / "cache"), key)
    return Victim(recipe, plan, key, public, folder / "cache")


@pytest.fixture
def victim(good: Victim, tmp_path: Path) -> Victim:
    shutil.copytree(good.cache, tmp_path / "cache")
    return Victim(good.recipe, good.plan, good.key, good.public, tmp_path / "cache")


def chunk_of(victim: Victim) -> Path:
    sha256 = victim.entry()["layers"][0]["chunks"][0]["sha256"]
    return victim.cache / "chunks" / sha256[:2] / sha256


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Victim], object]:
    """The same entry, signed by the trusted key, but for a change."""

    def attack(victim: Victim) -> None:
        entry = victim.entry()
        change(entry)
        victim.sign(entry)

    return attack


def wrong_signature(victim: Victim) -> None:
    line, _, seal = victim.file.read_bytes().partition(b"\n")
    victim.file.write_bytes(line.replace(b'"made":', b'"made":1') + b"\n" + seal)


def unlisted(victim: Victim) -> None:
    key, _ = key_pair(victim.cache, "other")
    victim.sign(victim.entry(), key)


def borrowed_name(victim: Victim) -> None:
    """Signed by another key, and it says that the trusted one did."""
    key, _ = key_pair(victim.cache, "other")
    victim.sign(victim.entry(), key)
    words = victim.file.read_bytes().split(b" ")
    words[-2] = base64.b64encode(next(iter(trusted(victim.public).keys)))
    victim.file.write_bytes(b" ".join(words))


def renamed(victim: Victim) -> None:
    assert victim.plan.inventory is not None
    shutil.copy(victim.cache / entry_name(victim.plan.inventory.key), victim.file)


def tar_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", *, before: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        if before:
            first = tarfile.TarInfo(before)
            first.type, first.linkname = tarfile.SYMTYPE, "/tmp"
            tar.addfile(first)
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"evil") if member.size else None)
    return out.getvalue()


def packed(victim: Victim, plain: bytes) -> None:
    """A trusted machine signed a tar that no layer makes."""
    entry = victim.entry()
    entry["layers"][0]["chunks"] = [victim.put(zstandard.compress(plain), len(plain))]
    victim.sign(entry)


def bomb(victim: Victim) -> None:
    """A few bytes that unpack to a hundred times what their entry says."""
    entry = victim.entry()
    entry["layers"][0]["chunks"] = [victim.put(zstandard.compress(bytes(64 << 20)), 4096)]
    victim.sign(entry)


def silent_bomb(victim: Victim) -> None:
    """The same, in a frame that does not say how large it is."""
    entry = victim.entry()
    data = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    entry["layers"][0]["chunks"] = [victim.put(data, 4096)]
    victim.sign(entry)


def far_too_much(victim: Victim) -> None:
    """A terabyte, all of it announced."""
    entry = victim.entry()
    entry["layers"][0]["chunks"] = [{**entry["layers"][0]["chunks"][0], "plain": 16 << 20}] * (1 << 16)
    victim.sign(entry)


def of_layer(**more: object) -> Callable[[Victim], object]:
    return changed(lambda entry: entry["layers"][0].update(more))


ATTACKS: dict[str, tuple[Callable[[Victim], object], str]] = {
    "wrong signature": (wrong_signature, "its signature is wrong"),
    "unlisted key": (unlisted, "signed by a key that is not trusted"),
    "another's name": (borrowed_name, "its signature is wrong"),
    "no signature": (lambda v: v.file.write_text(json.dumps(v.entry())), "it has no signature"),
    "no base64": (lambda v: v.file.write_bytes(b"{}\ned25519 *** ***\n"), "its signature is none"),
    "nothing": (lambda v: v.file.write_bytes(b""), "it has no signature"),
    "entry of another key": (renamed, "it is the entry of another key"),
    "truncated chunk": (lambda v: chunk_of(v).write_bytes(chunk_of(v).read_bytes()[:-1]), "not what its digest says"),
    "longer chunk": (lambda v: chunk_of(v).write_bytes(chunk_of(v).read_bytes() + b"x"), "is larger than"),
    "other chunk": (lambda v: chunk_of(v).write_bytes(bytes(chunk_of(v).stat().st_size)), "not what its digest says"),
    "missing chunk": (lambda v: chunk_of(v).unlink(), "is missing"),
    "path upwards": (lambda v: packed(v, tar_of("files/../../../escaped")), "is no place in a layer"),
    "absolute path": (lambda v: packed(v, tar_of("/escaped")), "is no place in a layer"),
    "a record of its own": (lambda v: packed(v, tar_of("layer.json")), "is no place in a layer"),
    "a link": (lambda v: packed(v, tar_of("files/a.tar", tarfile.SYMTYPE, "/etc/passwd")), "of a kind that no layer"),
    "through a link": (lambda v: packed(v, tar_of("files/escaped", before="files")), "of a kind that no layer"),
    "no tar": (lambda v: packed(v, b"x" * 2000), "it is no tar"),
    "bomb": (bomb, "does not unpack to what its entry says"),
    "silent bomb": (silent_bomb, "does not unpack to what its entry says"),
    "a terabyte": (far_too_much, "are free in"),
    "large chunks": (changed(lambda e: e["layers"][0]["chunks"][0].update(size=1 << 40)), "it is no entry"),
    "artifact upwards": (of_layer(facts={"files": [{"name": "../../x"}]}), "names artifacts that cannot be"),
    "chunk upwards": (changed(lambda e: e["layers"][0]["chunks"][0].update(sha256="../" * 21 + "x")), "it is no entry"),
    "stands on nothing": (of_layer(backing="0" * 64), "stands on none of those below it"),
    "another kind": (of_layer(gives="tree"), "of another kind"),
    "a newer format": (changed(lambda e: e.update(format=2)), "it is no entry"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_a_lying_cache_is_used(name: str, victim: Victim, tmp_path: Path) -> None:
    attack, reason = ATTACKS[name]
    attack(victim)
    came = taken(victim.plan, tmp_path / "store", str(victim.cache), victim.public)
    assert victim.node.name not in came.nodes
    assert reason in came.refused[0]
    assert sum("not taken" in line for line in came.lines("here")) == 1
    assert victim.node.full_name not in layers(tmp_path / "store")
    assert not [path for path in tmp_path.rglob("*escaped*") if not path.is_relative_to(victim.cache)]
    assert not Path("/escaped").exists()
    assert not list((tmp_path / "store" / "layers").glob("*.part"))


def test_the_cache_that_is_not_changed_is_taken(victim: Victim, tmp_path: Path) -> None:
    assert victim.node.name in taken(victim.plan, tmp_path / "store", str(victim.cache), victim.public).nodes


def test_nothing_is_taken_where_nobody_is_trusted(victim: Victim, tmp_path: Path) -> None:
    came = taken(victim.plan, tmp_path / "store", str(victim.cache), Trust())
    (line,) = came.lines("here")
    assert line == "shared cache here: no key is trusted, so nothing is taken; building without it"


@pytest.mark.parametrize(("tar", "reason"), [
    (tar_of("upper/evil", before="upper"), "is no place in a layer"),
    (tar_of("upper/x", tarfile.LNKTYPE, "../../etc/shadow"), "which is not in it"),
    (tar_of("upper/x", tarfile.LNKTYPE, "/etc/shadow"), "which is not in it"),
    (tar_of("../upper/x"), "is no place in a layer"),
    (tar_of("upper/./x"), "is no place in a layer"),
    (tar_of("upper/x", b"S"), "of a kind that no layer"),
])  # fmt: skip
def test_a_tree_leads_nowhere_else(tar: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=reason):
        pack.unpack("tree", [tar], tmp_path, Host())
    assert [path.name for path in tmp_path.iterdir()] == [".shared.tar"]


def test_a_build_goes_on_without_a_lying_cache(victim: Victim, tmp_path: Path) -> None:
    for entry in (victim.cache / "entries").iterdir():
        entry.write_bytes(b"{}\n")
    machine = Command(tmp_path / "store", tmp_path / "output")
    ran = machine("build", victim.recipe, "--cache-from", victim.cache, "--cache-trust", victim.public)
    (line,) = [line for line in ran.err.splitlines() if "shared cache" in line]
    assert line.endswith("it has no signature (and 1 more)")
    assert "done   output rootfs.tar.zst" in ran.err


def test_an_entry_that_nobody_vouches_for_is_replaced(victim: Victim, good: Victim, tmp_path: Path) -> None:
    unlisted(victim)
    went = given(victim.plan, good.cache.parent / "store", str(victim.cache), victim.key)
    assert went.nodes == [victim.node.name]
    assert victim.node.name in taken(victim.plan, tmp_path / "store", str(victim.cache), victim.public).nodes


def test_key_files_that_are_none_are_named(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    for reads, file, reason in (
        (trusted, private, "holds a private key"), (signer, public, "no Ed25519 private key"),
        (signer, tmp_path / "none", "No such file"), (trusted, tmp_path, "Is a directory"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=reason):
            reads(file)
    (tmp_path / "two").write_text("# ci\n" + public.read_text() + "# me\n" + key_pair(tmp_path, "me")[1].read_text())
    assert len(trusted(tmp_path / "two").keys) == 2
    with pytest.raises(RecipeError, match="nonsense://x"):
        where("nonsense://x")


def test_what_is_written_is_read_again() -> None:
    chunk = Chunk(sha256="a" * 64, size=1, plain=1)
    part = Part(key="b" * 64, gives="record", name="é", origin="c" * 64, made=1.5, facts={"x": [1]}, backing=None,
                chunks=[chunk])  # fmt: skip
    entry = Entry(key="b" * 64, layers=[part], below={"d" * 64: "e" * 64})
    assert Entry.model_validate_json(entry.line()) == entry
