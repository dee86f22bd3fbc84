"""The base `container`: a container image becomes a tree, and a machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from tests.conftest import Command
from tests.trees import Shop, make


def layer(files: dict[str, str], links: dict[str, str] | None = None, devices: tuple[str, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
        for name in devices:
            member = tarfile.TarInfo(name)
            member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
            tar.addfile(member)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.mode = len(text), 7, 0o640
            tar.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


def folder(name: str, mode: int, owner: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.uid, member.gid = tarfile.DIRTYPE, mode, owner, owner
    return member


def of_members(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


def oci(path: Path, layers: list[bytes]) -> Path:
    """An OCI archive as registries' tools write it, with nothing but what is needed."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    manifest = {"layers": [blob(content) for content in layers],
                "config": blob(json.dumps({"architecture": "amd64"}).encode())}  # fmt: skip
    index = {"manifests": [blob(json.dumps(manifest).encode())]}
    with tarfile.open(path, "w") as tar:
        files = {"oci-layout": b"{}", "index.json": json.dumps(index).encode()}
        files |= {f"blobs/sha256/{digest}": content for digest, content in blobs.items()}
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


LOWER = layer({"etc/os-release": "ID=acme\n", "etc/old": "x", "opt/a/one": "1", "opt/a/.two": "2", "opt/b": "b",
               "dev/console": "no", "we*ird/x": "x", "we*ird/y": "y", "weird/x": "kept",
               "usr/bin/first": "f"},
              {"bin": "usr/bin"}, ("null",))  # fmt: skip
UPPER = layer({"etc/.wh.old": "", "opt/a/.wh..wh..opq": "", "opt/a/three": "3", "we*ird/.wh.x": "", "bin/tool": "t"})


@pytest.mark.parametrize("squeeze", [lambda b: b, gzip.compress, zstandard.compress])
def test_layers_are_put_on_top_of_each_other(tmp_path: Path, squeeze) -> None:  # type: ignore[no-untyped-def]
    image = oci(tmp_path / "image.tar", [squeeze(LOWER), squeeze(UPPER)])
    into = tmp_path / "tree"
    into.mkdir()
    shop = Shop()
    make("bases", "container", {"path": str(image), "kernel": "none", "trusted": True}).make(into, shop)
    found = sorted(str(p.relative_to(into)) for p in into.rglob("*") if p.is_symlink() or not p.is_dir())
    assert found == [
        "bin", "etc/os-release", "opt/a/three", "opt/b", "usr/bin/first", "usr/bin/tool", "we*ird/y", "weird/x",
    ]  # fmt: skip
    assert (into / "bin").is_symlink()
    assert (into / "opt/b").stat().st_mode & 0o777 == 0o640
    assert all((into / name).is_dir() for name in ("dev", "proc", "run", "sys", "tmp"))
    assert any("1 device node" in line for line in shop.lines)


def test_a_plain_tar_is_taken_too_and_a_disk_is_not(tmp_path: Path) -> None:
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(LOWER))
    into = tmp_path / "tree"
    into.mkdir()
    options = {"path": str(tmp_path / "root.tar.gz"), "kernel": "none", "trusted": True}
    make("bases", "container", options).make(into, Shop())
    assert (into / "etc/old").read_text() == "x"
    (tmp_path / "disk").write_bytes(b"QFI\xfb" + bytes(1000))
    with pytest.raises(BuildError, match="holds no root file system"):
        make("bases", "container", {**options, "path": str(tmp_path / "disk")}).make(into, Shop())


def test_a_later_layer_changes_folders_and_what_is_one(tmp_path: Path) -> None:
    first = of_members(folder("srv", 0o755), folder("was", 0o755), folder("was/folder", 0o755), folder("gone", 0o700),
                       tarfile.TarInfo("was/file"), tarfile.TarInfo("gone/x"))  # fmt: skip
    link = tarfile.TarInfo("was/folder")
    link.type, link.linkname = tarfile.SYMTYPE, "/srv"
    second = of_members(folder("srv", 0o2750, 7), link, folder("was/file", 0o711), tarfile.TarInfo(".wh.gone"),
                        tarfile.TarInfo("opt/child"), folder("opt", 0o1770, 9))  # fmt: skip
    image, into = oci(tmp_path / "image.tar", [first, second]), tmp_path / "tree"
    into.mkdir()
    make("bases", "container", {"path": str(image), "kernel": "none", "trusted": True}).make(into, Shop())
    found = {name: (into / name).lstat() for name in ("srv", "opt", "was/file")}
    assert {name: (oct(s.st_mode & 0o7777), s.st_uid) for name, s in found.items()} == {
        "srv": ("0o2750", 7), "opt": ("0o1770", 9), "was/file": ("0o711", 0)}  # fmt: skip
    assert (into / "was/folder").is_symlink()
    assert (into / "was/file").is_dir()
    assert not (into / "gone").exists()


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_and_long_names_of_a_tar_are_what_they_were(tmp_path: Path, format: str) -> None:
    files, name = tmp_path / "files", f"{'d' * 120}/é"
    (files / name).parent.mkdir(parents=True)
    with (files / name).open("wb") as sparse:
        for at in (1 << 20, 3 << 20):
            sparse.seek(at)
            sparse.write(b"x" * 5000)
    (files / "other").hardlink_to(files / name)
    Host().run(["tar", "-S", f"--format={format}", "-cf", tmp_path / "root.tar", "-C", files, "."], purpose="test")
    into = tmp_path / "tree"
    into.mkdir()
    options = {"path": str(tmp_path / "root.tar"), "kernel": "none", "trusted": True}
    make("bases", "container", options).make(into, Shop())
    assert (into / name).read_bytes() == (files / name).read_bytes()
    assert (into / "other").samefile(into / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives capabilities")
def test_programs_keep_their_capabilities(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # linux/capability.h, revision 2: net_raw
    files = tmp_path / "files"
    files.mkdir()
    for name in ("ping", "plain"):
        (files / name).write_text(name)
    os.setxattr(files / "ping", "security.capability", capability)
    Host().run(["tar", "--xattrs", "--xattrs-include=*", "-cf", tmp_path / "root.tar", "-C", files, "."],
               purpose="test")  # fmt: skip
    into = tmp_path / "tree"
    into.mkdir()
    options = {"path": str(tmp_path / "root.tar"), "kernel": "none", "trusted": True}
    make("bases", "container", options).make(into, Shop())
    assert os.getxattr(into / "ping", "security.capability") == capability
    assert os.listxattr(into / "plain") == []


def test_a_layer_that_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    image = oci(tmp_path / "image.tar", [LOWER])
    image.write_bytes(image.read_bytes().replace(b"ID=acme", b"ID=evil"))
    options = {"path": str(image), "kernel": "none", "trusted": True}
    with pytest.raises(Refused, match="is not what its name says"):
        make("bases", "container", options).make(tmp_path / "tree", Shop())


def test_an_image_for_another_processor_is_refused(tmp_path: Path) -> None:
    shop = Shop()
    shop.arch = "aarch64"
    options = {"path": str(oci(tmp_path / "image.tar", [LOWER])), "kernel": "none", "trusted": True}
    with pytest.raises(BuildError, match="made for amd64, and the recipe for arm64"):
        make("bases", "container", options).make(tmp_path / "tree", shop)


def test_a_layer_that_removes_what_has_no_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(layer({"etc/.wh...": ""}))
    (tmp_path / "tree").mkdir()
    options = {"path": str(tmp_path / "bad.tar"), "kernel": "none", "trusted": True}
    with pytest.raises(Refused, match="removes what has no name"):
        make("bases", "container", options).make(tmp_path / "tree", Shop())


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(layer({"../../evil": "x"}))
    (tmp_path / "tree").mkdir()
    options = {"path": str(tmp_path / "bad.tar"), "kernel": "none", "trusted": True}
    with pytest.raises(Refused, match="leads elsewhere"):
        make("bases", "container", options).make(tmp_path / "tree", Shop())


def test_root_is_asked_for_trust_and_a_strange_distribution_gets_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root.tar").write_bytes(LOWER)
    (tmp_path / "tree").mkdir()
    with pytest.raises(BuildError, match="is acme: imagesmith cannot make it boot"):
        make("bases", "container", {"path": str(tmp_path / "root.tar"), "trusted": True}).make(
            tmp_path / "tree", Shop())  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(BuildError, match="as root on this host") as caught:
        make("bases", "container", {"path": str(tmp_path / "root.tar")}).make(tmp_path / "tree", Shop())
    assert "trusted: true" in caught.value.hint


@pytest.mark.slow
def test_a_container_becomes_a_machine_that_boots(command: Command, tmp_path: Path) -> None:
    """A container image of ours, without kernel and init, as a base: the disk boots, and its checks pass."""
    (tmp_path / "app.yaml").write_text(
        "name: app\nbase: {bootstrap: {distribution: debian, suite: bookworm, kernel: none}}\n"
        "steps: [{shell: 'echo hello > /etc/hello'}]\noutputs: [{oci: {cmd: [cat, /etc/hello]}}]\n"
    )
    command("build", tmp_path / "app.yaml")
    image = next((command.output / "app").glob("*.oci.tar"))
    (tmp_path / "machine.yaml").write_text(
        f"name: machine\nmachine: {{disk: 2G}}\nbase: {{container: {{path: {image}, trusted: true, hostname: app}}}}\n"
        "checks:\n- boot: {}\n- file: {path: /etc/hello, contains: hello}\n- command: {run: hostname, contains: app}\n"
        "outputs: [qcow2]\n"
    )
    command("build", tmp_path / "machine.yaml")
    assert (command.output / "machine/machine.qcow2").exists()
