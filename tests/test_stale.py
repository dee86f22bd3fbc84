"""Layers that are older than the world."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith import plan as planning
from imagesmith import recipe, stale
from imagesmith.apt import release
from imagesmith.host import Host
from imagesmith.plan import Facts, Plan
from imagesmith.store import Store
from imagesmith.workbench import moved
from tests.conftest import Command, Golden

RECIPE = """
name: aged
base: {disk: x.img}
steps:
  - copy: {from: x.img, to: /x}
  - packages: [a]
  - shell: curl x
  - cleanup: false
"""


@pytest.fixture
def aged(tmp_path: Path) -> tuple[Plan, Store]:
    (tmp_path / "x.img").write_text("x")
    (tmp_path / "r.yaml").write_text(RECIPE)
    made = planning.make_plan(recipe.load(tmp_path / "r.yaml"), Facts(root=False), recipe.load)
    store = Store(tmp_path / "store")
    below = None
    with store.using() as use:
        for node in made.spine:
            with use.making(node.key, gives=node.gives, name=node.name, parent=below) as slot:
                (slot.folder / "disk.qcow2").write_text(node.name)
                seen = {"http://m/dists/s/InRelease": "old"} if "packages" in node.name else {}
                below = slot.commit({"seen": seen} if seen else {})
    return made, store


def test_what_a_repository_moved_on_from_runs_again(aged: tuple[Plan, Store]) -> None:
    asked: list[tuple[str, str]] = []

    def same(url: str, digest: str) -> bool:
        asked.append((url, digest))
        return False

    assert stale.stale(*aged, same, older_than=None, now=time.time()) == {}
    assert asked == [("http://m/dists/s/InRelease", "old")]
    (found, why), = stale.stale(*aged, lambda url, digest: True, older_than=None, now=time.time()).items()
    assert "packages" in found
    assert "has changed" in why


def test_what_is_old_runs_again_only_where_it_depends_on_servers(aged: tuple[Plan, Store]) -> None:
    found = stale.stale(*aged, lambda url, digest: False, older_than=3600, now=time.time() + 7200)
    assert list(found) == ["2 packages a"]  # neither the disk nor the file that was copied
    assert stale.stale(*aged, lambda url, digest: False, older_than=3600, now=time.time() + 1800) == {}


class Changing(http.server.BaseHTTPRequestHandler):
    content = b"first"

    def do_GET(self) -> None:
        if "gone" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Changing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_repository_is_asked_whether_it_moved(address: str, tmp_path: Path) -> None:
    store, host = Store(tmp_path / "store"), Host()
    then = hashlib.sha256(Changing.content).hexdigest()
    assert not moved(store, host, print)(f"{address}/InRelease", then)
    Changing.content = b"second"
    assert moved(store, host, print)(f"{address}/InRelease", then)
    said: list[str] = []
    assert not moved(store, host, said.append)(f"{address}/gone/InRelease", then)
    assert "404" in said[-1]


def test_what_was_collected_is_made_anew(aged: tuple[Plan, Store]) -> None:
    made, store = aged
    layer = store.find(made.spine[2].key)
    assert layer is not None
    with store.index.change():
        store.index._db.execute("UPDATE layers SET key = 'gone' WHERE id = ?", (int(layer.id),))
    (found, why), = stale.stale(made, store, lambda url, digest: False, older_than=None, now=time.time()).items()
    assert "packages" in found
    assert "collected" in why


def test_layers_note_the_repositories_that_they_saw(command: Command, golden: Golden) -> None:
    layers = [layer for layer in Store(command.store).layers() if stale.seen(layer)]
    assert any("bootstrap" in layer.name for layer in layers)
    assert any("packages" in layer.name for layer in layers)
    for layer in layers:
        assert all(url.endswith("/InRelease") and len(digest) == 64 for url, digest in stale.seen(layer).items())
    assert "runs again" not in command("build", golden.recipe, "--refresh", "--no-checks").err
    planned = command("plan", golden.recipe).out
    assert " ago)" in planned.splitlines()[0]


def test_a_wrong_age_is_said(command: Command, golden: Golden) -> None:
    assert "write an age such as 12h or 7d" in command("build", golden.recipe, "--refresh=soon", expect=2).err


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="/"), min_size=1, max_size=20))
def test_apts_name_for_a_release_file_is_one_name(suite: str) -> None:
    found = release("http://user:pw@m.example/debian/", suite)
    assert "/" not in found.file
    assert "pw" not in found.url.replace(suite, "")


def test_release_files_are_named_as_apt_names_them() -> None:
    assert release("http://m.example:80/debian", "bookworm-updates").file == (
        "m.example:80_debian_dists_bookworm-updates_InRelease"
    )
    assert release("https://m.example/my_repo", "./").url == "https://m.example/my_repo/./InRelease"
    assert release("https://m.example/my_repo", "./").file == "m.example_my%5frepo_._InRelease"
