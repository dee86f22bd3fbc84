"""A catalog of Vagrant boxes that grows with every build, read by Vagrant from a folder and from a web server."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Artifact, Disk
from imagesmith.outputs._catalog import Box, add
from imagesmith.outputs.vagrant import Vagrant
from tests.conftest import Command
from tests.consumers import ask, vagrant_env
from tests.test_outputs import MAKER, MIB, make_disk, write


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=64 * MIB)


def catalog(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metadata.json").read_bytes())
    return found


def box(folder: Path, content: str, *, provider: str = "libvirt", version: str = "1.2") -> Box:
    """Something that a catalog can hold; Vagrant would not start it."""
    path = folder / f"{content}.box"
    path.write_text(content)
    return Box("acme/web", version, "A web server", provider, path, ask("sha256sum", path).split()[0])


def versions(folder: Path) -> dict[str, list[str]]:
    return {v["version"]: [p["name"] for p in v["providers"]] for v in catalog(folder)["versions"]}


def test_every_build_is_a_version_and_the_same_box_is_there_once(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes"
    assert add(box(tmp_path, "one"), boxes, "", Host()) == "1.2"
    assert add(box(tmp_path, "one"), boxes, "", Host()) == "1.2"
    assert add(box(tmp_path, "for virtualbox", provider="virtualbox"), boxes, "", Host()) == "1.2"
    assert add(box(tmp_path, "two"), boxes, "", Host()) == "1.2.1"
    assert add(box(tmp_path, "three"), boxes, "", Host()) == "1.2.2"
    assert add(box(tmp_path, "four", version="1.3"), boxes, "", Host()) == "1.3"
    assert add(box(tmp_path, "one"), boxes, "", Host()) == "1.2"
    assert versions(boxes) == {
        "1.2": ["libvirt", "virtualbox"], "1.2.1": ["libvirt"], "1.2.2": ["libvirt"], "1.3": ["libvirt"],
    }  # fmt: skip
    (boxes / "1.2.1-libvirt.box").unlink()  # somebody made room
    assert add(box(tmp_path, "two"), boxes, "", Host()) == "1.2.1"
    assert (boxes / "1.2.1-libvirt.box").read_text() == "two"


def test_the_first_build_makes_the_catalog(command: Command, tmp_path: Path) -> None:
    ask("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk.qcow2", "64M")
    (tmp_path / "boxed.yaml").write_text("""
version: "1.2"
base: {disk: disk.qcow2}
steps: [cleanup: false]
outputs: [vagrant: {provider: libvirt, catalog: {box: acme/web, folder: boxes}}]
""")
    for _ in range(2):
        command("build", tmp_path / "boxed.yaml")
        assert versions(tmp_path / "boxes") == {"1.2": ["libvirt"]}
    inputs = json.loads((command.output / "boxed" / "manifest.json").read_text())["inputs"]
    assert "boxes" not in json.dumps(inputs)  # what the build gives is nothing that it was made of


def test_builds_that_end_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    boxes = [box(tmp_path, f"build {number}") for number in range(12)]
    with ThreadPool(6) as pool:
        told = pool.map(lambda one: add(one, tmp_path / "boxes", "", Host()), boxes)
    assert sorted(versions(tmp_path / "boxes")) == sorted(told)
    assert len(set(told)) == 12


@pytest.mark.parametrize(("content", "said"), [
    ('{"name": "acme/other", "versions": []}', "the catalog of acme/other, not of acme/web"),
    ("no JSON", "no catalog of Vagrant's"), ('{"name": "acme/web"}', "no catalog of Vagrant's"), ("[]", "no catalog"),
])  # fmt: skip
def test_what_is_no_catalog_of_this_box_stays_as_it_is(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "metadata.json").write_text(content)
    with pytest.raises(BuildError, match=said):
        add(box(tmp_path, "one"), tmp_path, "", Host())
    assert (tmp_path / "metadata.json").read_text() == content


def test_a_version_that_vagrant_does_not_take_is_refused(tmp_path: Path) -> None:
    for version in ("", "latest", "v1"):
        with pytest.raises(BuildError, match="version"):
            add(box(tmp_path, "one", version=version), tmp_path / "boxes", "", Host())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def guess_type(self, path: Any) -> str:
            return "application/json" if str(path).endswith(".json") else "application/octet-stream"

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("on_the_web", [False, True])
def test_vagrant_adds_the_box_from_its_catalog_and_sees_the_next_build(
    disk: Disk, tmp_path: Path, on_the_web: bool
) -> None:
    folder, home = tmp_path / "boxes", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    with served(folder) as url:
        options = {"catalog": {"box": "acme/web", "folder": str(folder), **({"url": url} if on_the_web else {})}}
        kind = Vagrant.model_validate(options)
        for maker in (MAKER, replace(MAKER, description="built again")):
            (path,) = write("vagrant", options, disk, tmp_path / maker.description[:5], maker)
            artifact = Artifact(path, ask("sha256sum", path).split()[0])
            (told,) = kind.published([artifact], maker, Host())
            env = vagrant_env(home)
            if maker is MAKER:
                document = f"{url}/metadata.json" if on_the_web else f"{folder}/metadata.json"
                ask("vagrant", "box", "add", document, env=env, cwd=home)
                assert "acme/web 2026.11 is in" in told
            else:
                ask("vagrant", "box", "update", "--box", "acme/web", env=env, cwd=home)
        listed = ask("vagrant", "box", "list", env=env, cwd=home)
    assert listed.splitlines() == ["acme/web (libvirt, 2026.11)", "acme/web (libvirt, 2026.11.1)"]


def test_a_box_that_was_changed_in_the_catalog_is_refused_by_vagrant(disk: Disk, tmp_path: Path) -> None:
    (path,) = write("vagrant", {}, disk, tmp_path / "out")
    folder = tmp_path / "boxes"
    add(Box("acme/web", "1.0", "", "libvirt", path, ask("sha256sum", path).split()[0]), folder, "", Host())
    with (folder / "1.0-libvirt.box").open("ab") as stream:
        stream.write(b"more")
    done = Host().run(["vagrant", "box", "add", folder / "metadata.json"], purpose="test", env=vagrant_env(tmp_path),
                      cwd=tmp_path, ok=range(256))  # fmt: skip
    assert done.status != 0
    assert b"checksum" in done.stdout + done.stderr
