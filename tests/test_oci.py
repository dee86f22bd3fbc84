"""OCI images: every validator takes them, Docker and containerd run them, and they are the same every time."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagesmith.errors import Refused
from imagesmith.host import Host
from imagesmith.interfaces import Maker
from imagesmith.kinds import FilesOutput, known, placeholder
from imagesmith.outputs._delta import Entry, changes, delta, noted
from imagesmith.outputs._gzip import GzipWriter
from imagesmith.outputs._image import reference
from tests.consumers import Docker, ask, dockerd, registry, validate_oci
from tests.test_outputs import MAKER

BUSYBOX = Path("/bin/busybox")  # Debian: busybox-static
NET_RAW = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # cap_net_raw=ep


class SmallRoot:
    """A root file system of a few MB with one of everything, packed as a tree or a disk packs it."""

    def __init__(
        self,
        *,
        noise: int = 0,
        extra: str = "",
        fail: bool = False,
        more: Mapping[str, bytes | str] | None = None,
        links: Mapping[str, str] | None = None,
    ) -> None:
        """``more`` are files by their bytes, and symbolic links by their target; ``links`` are hard ones."""
        self.links = dict(links or {})
        self.noise, self.extra, self.fail, self.more = noise, extra, fail, dict(more or {})
        self.before: SmallRoot | None = None

    def read(self, path: str) -> bytes:
        """A file's bytes; links are followed."""
        for member, stream in self._members():
            if member.name == path.strip("/"):
                if member.issym():
                    return self.read(os.path.normpath(PurePosixPath("/", path).parent / member.linkname))
                if stream is not None:
                    return stream.read()
        raise FileNotFoundError(path)

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        """Write the tar, sorted by name; names have no leading slash."""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for number, member in enumerate(sorted(self._members(), key=lambda m: m[0].name)):
                if self.fail and number == 8:
                    raise Refused("the disk is damaged")
                if not any(f"/{member[0].name}".startswith(f"{folder}/") for folder in exclude):
                    tar.addfile(*member)

    @contextmanager
    def base(self) -> Iterator[SmallRoot]:
        """What it was before the steps; see ``before``."""
        yield self.before or self

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
        folders = {"bin", "boot", "dev", "etc", "lib", "lib/modules", "lib/modules/6.1", "proc", "root", "run", "sys",
                   "tmp", "usr", "usr/lib", "var"}  # fmt: skip
        folders |= {str(p) for name in self.more for p in PurePosixPath(name).parents if str(p) != "."}
        for name in sorted(folders):
            yield self._member(name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755), None
        files = {
            "boot/vmlinuz-6.1": b"kernel", "lib/modules/6.1/x.ko": b"module", "tmp/left": b"x", "run/pid": b"1",
            "etc/fstab": b"UUID=1 / ext4\n", "etc/passwd": b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/var:/bin/sh\n",
            "etc/os-release": b"ID=small\n", "usr/lib/\xe4\xf6.txt".encode().decode(): b"umlauts\n",
            "var/web": b"owned\n", "var/" + "long/" * 30 + "name": b"deep\n",
            "var/noise": __import__("random").Random(2).randbytes(self.noise),
        }  # fmt: skip
        files |= {name: what for name, what in self.more.items() if isinstance(what, bytes)}
        for name, content in files.items():
            member = self._member(name, size=len(content))
            if name == "var/web":
                member.uid = member.gid = 33
                member.mtime = MAKER.epoch + 999.5
            yield member, io.BytesIO(content)
        busybox = BUSYBOX.read_bytes()
        yield self._member("bin/busybox", size=len(busybox), mode=0o755), io.BytesIO(busybox)
        member = self._member("bin/ping", size=4, mode=0o4755)
        member.pax_headers = {"SCHILY.xattr.security.capability": NET_RAW.decode()}
        yield member, io.BytesIO(b"ping")
        yield self._member("bin/sh", tarfile.SYMTYPE, link="busybox"), None
        yield self._member("bin/cat", tarfile.LNKTYPE, mode=0o755, link="bin/busybox"), None
        for name, what in self.more.items():
            if isinstance(what, str):
                yield self._member(name, tarfile.SYMTYPE, link=what), None
        for name, target in self.links.items():
            yield self._member(name, tarfile.LNKTYPE, mode=0o755, link=target), None
        if "etc/resolv.conf" not in self.more:
            yield self._member("etc/resolv.conf", tarfile.SYMTYPE, link="/run/systemd/resolve/stub-resolv.conf"), None
        yield self._member("vmlinuz", tarfile.SYMTYPE, link="boot/vmlinuz-6.1"), None
        yield self._member("initrd.img", tarfile.SYMTYPE, link="boot/initrd.img-6.1"), None
        device = self._member("dev/null", tarfile.CHRTYPE)
        device.devmajor, device.devminor = 1, 3
        yield device, None
        if self.extra:
            yield self._member(self.extra), None

    def _member(
        self, name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, mode: int = 0o644, link: str = ""
    ) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.mode, member.linkname = kind, size, mode, link
        member.mtime, member.uname, member.gname = MAKER.epoch - 5, "builder", "builder"
        return member


def write_oci(
    directory: Path, files: SmallRoot | None = None, maker: Maker = MAKER, options: Mapping[str, object] | None = None
) -> Path:
    """Make the image; its file."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = known("outputs")["oci"].model_validate(options or {})
    assert isinstance(kind, FilesOutput)
    (path,) = kind.write(files or SmallRoot(), maker, directory, Host(), lambda line: None)
    assert [path] == list(directory.iterdir()), "something else was left"
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {
        "entrypoint": ["/bin/sh", "-c"], "cmd": ["echo $GREETING from $(whoami) in $PWD"], "workdir": "/var",
        "env": {"GREETING": "hello"}, "user": "web", "ports": [80, "53/udp"], "labels": {"team": "red"},
    }  # fmt: skip
    return write_oci(tmp_path_factory.mktemp("oci"), options=options)


def test_every_validator_takes_it_and_what_a_machine_needs_is_gone(image: Path, tmp_path: Path) -> None:
    assert image.name == "web-golden.oci.tar"
    found = validate_oci(image, tmp_path)
    root = found.rootfs
    for empty in ("boot", "dev", "lib/modules", "proc", "run", "sys", "tmp"):
        assert not list((root / empty).iterdir())
    assert not (root / "vmlinuz").is_symlink()
    assert not (root / "initrd.img").is_symlink()
    for name in ("etc/fstab", "etc/resolv.conf"):
        assert not (root / name).is_symlink()
        assert (root / name).read_bytes() == b""
    assert (root / "usr/lib/\xe4\xf6.txt").read_text() == "umlauts\n"
    assert (root / "var" / ("long/" * 30) / "name").read_text() == "deep\n"
    assert (root / "bin/cat").stat().st_ino == (root / "bin/busybox").stat().st_ino
    assert (root / "bin/ping").stat().st_mode & 0o7777 == 0o4755
    assert (root / "var/web").stat().st_mtime == MAKER.epoch
    assert (root / "etc/passwd").stat().st_mtime == MAKER.epoch - 5
    if os.geteuid() == 0:
        assert (root / "var/web").stat().st_uid == 33
        assert os.getxattr(root / "bin/ping", "security.capability") == NET_RAW


def test_its_configuration_is_the_recipes(image: Path, tmp_path: Path) -> None:
    config = validate_oci(image, tmp_path).config
    assert (config["architecture"], config["os"], config["created"]) == ("amd64", "linux", "2023-11-14T22:13:20Z")
    assert config["config"] == {
        "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo $GREETING from $(whoami) in $PWD"], "User": "web",
        "Env": ["GREETING=hello", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"53/udp": {}, "80/tcp": {}}, "WorkingDir": "/var",
        "Labels": {"team": "red", "org.opencontainers.image.title": "web-golden",
                   "org.opencontainers.image.version": "2026.11",
                   "org.opencontainers.image.description": MAKER.description},
    }  # fmt: skip


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    if os.geteuid() != 0:
        pytest.skip("a Docker daemon needs root")
    with dockerd(tmp_path_factory.mktemp("d")) as daemon:
        yield daemon


def test_docker_loads_and_runs_it(docker: Docker, image: Path, tmp_path: Path) -> None:
    name = docker.load(image)
    assert name == "web-golden:2026.11"
    assert docker.run(name) == "hello from web in /var\n"
    assert docker.run(name, "cat /etc/os-release") == "ID=small\n"
    plain = docker.load(write_oci(tmp_path, maker=replace(MAKER, name="Plain Image", version="")))
    assert plain == "plain-image:latest"
    assert docker("image", "inspect", "-f", "{{.Config.Cmd}}", plain).strip() == "[/bin/sh]"


def test_docker_runs_an_image_of_two_layers(docker: Docker, tmp_path: Path) -> None:
    name = docker.load(write_oci(tmp_path, split_root(), replace(MAKER, name="split"), options={"split": True}))
    script = "$b ls -A / /opt /srv /srv/emptied; cd /opt; $b cat changed now-a-file now-a-link; $b stat -c %a /tmp"
    said = docker.run(name, "/bin/sh", "-c", f"b=/bin/busybox; {script}")
    assert "gone" not in said
    assert said.endswith("afterfilesame1777\n")


def test_docker_loads_and_runs_what_docker_save_would_write(docker: Docker, tmp_path: Path) -> None:
    kind = known("outputs")["docker-archive"].model_validate({"cmd": ["/bin/sh", "-c", "cat /etc/os-release"]})
    assert isinstance(kind, FilesOutput)
    (path,) = kind.write(SmallRoot(), replace(MAKER, name="saved"), tmp_path, Host(), lambda line: None)
    name = docker.load(path)
    assert name == "saved:2026.11"
    assert docker.run(name) == "ID=small\n"


@pytest.mark.parametrize("split", [False, True])
def test_pushed_to_a_registry_docker_pulls_and_runs_it(docker: Docker, tmp_path: Path, split: bool) -> None:
    path = write_oci(tmp_path, split_root(), options={"split": split, "cmd": ["/bin/cat", "/opt/changed"]})
    with registry(tmp_path) as address:
        ask("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{path}", f"docker://{address}/small:1")
        docker("pull", "-q", f"{address}/small:1")
        assert docker.run(f"{address}/small:1") == "after"
        docker("image", "rm", f"{address}/small:1")


def test_containerd_imports_it(docker: Docker, image: Path) -> None:
    assert "docker.io/library/web-golden:2026.11" in docker.ctr_import(image).splitlines()


# -- two layers ---------------------------------------------------------------------------------------------------


def split_root() -> SmallRoot:
    """A root file system whose steps did one of everything to what the base gave."""
    same: dict[str, bytes | str] = {"opt/same": b"same", "opt/link": "same", "srv/kept/file": b"kept"}
    root = SmallRoot(more={
        **same, "opt/changed": b"after", "opt/now-a-file": b"file", "opt/now-a-folder/file": b"new",
        "opt/now-a-link": "same", "srv/emptied/.keep": b"", "etc/ssh/ssh_host_ed25519_key": b"left on purpose",
        "srv/made/deep/new": b"new", "var/log/dpkg.log": b"",
    })  # fmt: skip
    root.before = SmallRoot(more={
        **same, "opt/changed": b"before", "opt/now-a-file/old": b"old", "opt/now-a-folder": b"old",
        "opt/now-a-link/below": b"old", "opt/gone": b"gone", "opt/gone-link": "gone", "srv/gone/deep/file": b"gone",
        "srv/emptied/one": b"1", "srv/emptied/two": b"2", "etc/ssh/ssh_host_rsa_key": b"secret",
        "var/log/installer": b"secret", "gone-from-the-root": b"",
    })  # fmt: skip
    return root


def listing(root: Path) -> list[tuple[object, ...]]:
    """All that is below a folder: names, modes, owners, times of files, contents, other names."""
    found: list[tuple[object, ...]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        time = "" if path.is_dir() and not path.is_symlink() else status.st_mtime
        found.append((path.relative_to(root), oct(status.st_mode), status.st_uid, time, content,
                      "" if path.is_dir() else status.st_nlink))  # fmt: skip
    return found


def test_two_layers_make_the_same_root_as_one(tmp_path: Path) -> None:
    split = validate_oci(write_oci(tmp_path / "two", split_root(), options={"split": True}), tmp_path / "split")
    whole = validate_oci(write_oci(tmp_path / "one", split_root()), tmp_path / "whole")
    assert listing(split.rootfs) == listing(whole.rootfs)
    assert len(split.config["rootfs"]["diff_ids"]) == 2
    assert [entry["created_by"] for entry in split.config["history"]] == ["imagesmith: base", "imagesmith: steps"]


def layers_of(path: Path) -> list[dict[str, tarfile.TarInfo]]:
    """The members of an image's layers."""
    found = []
    with tarfile.open(path) as image:
        stream = image.extractfile("manifest.json")
        assert stream is not None
        for name in json.load(stream)[0]["Layers"]:
            with tarfile.open(fileobj=image.extractfile(name)) as layer:
                found.append({member.name: member for member in layer})
    return found


def test_the_second_layer_holds_what_steps_changed_and_marks_what_is_gone(tmp_path: Path) -> None:
    base, steps = layers_of(write_oci(tmp_path, split_root(), options={"split": True}))
    assert {name for name in steps if ".wh." in name} == {
        ".wh.gone-from-the-root", "opt/.wh.gone", "opt/.wh.gone-link", "srv/.wh.gone",
        "srv/emptied/.wh.one", "srv/emptied/.wh.two",
    }  # fmt: skip
    assert all(steps[name].isreg() and steps[name].size == 0 for name in steps if ".wh." in name)
    assert {name for name in steps if ".wh." not in name} == {
        "etc", "etc/ssh", "etc/ssh/ssh_host_ed25519_key", "opt", "opt/changed", "opt/now-a-file", "opt/now-a-folder",
        "opt/now-a-folder/file", "opt/now-a-link", "srv", "srv/emptied", "srv/emptied/.keep", "srv/made",
        "srv/made/deep", "srv/made/deep/new", "var", "var/log", "var/log/dpkg.log",
    }  # fmt: skip
    assert not {"etc/ssh/ssh_host_rsa_key", "var/log/installer"} & set(base), "what tells of the build's machine"


def test_all_names_of_a_file_are_in_one_layer(tmp_path: Path) -> None:
    """A hard link to a file of a lower layer can be made by no program that unpacks layers one by one."""
    root = SmallRoot(links={"usr/another": "bin/busybox"})
    root.before = SmallRoot()
    _, steps = layers_of(write_oci(tmp_path / "new", root, options={"split": True}))
    assert steps["bin/busybox"].isreg()
    assert {name for name in steps if steps[name].islnk()} == {"bin/cat", "usr/another"}


def test_images_of_one_base_share_its_layer(tmp_path: Path) -> None:
    names = []
    for number, text in enumerate([b"one", b"two"]):
        root = SmallRoot(more={"etc/motd": text})
        root.before = SmallRoot()
        with tarfile.open(write_oci(tmp_path / str(number), root, options={"split": True})) as image:
            stream = image.extractfile("manifest.json")
            assert stream is not None
            names.append(json.load(stream)[0]["Layers"])
    assert names[0][0] == names[1][0]
    assert names[0][1] != names[1][1]


def test_where_steps_changed_nothing_there_is_one_layer(tmp_path: Path) -> None:
    assert len(layers_of(write_oci(tmp_path, SmallRoot(), options={"split": True}))) == 1


# -- two layers, whatever the steps did -----------------------------------------------------------------------------

NAMES = ("a", "a/b", "a/b/c", "a/d", "e", "e/f", "g", "h")
WHAT = st.sampled_from(["folder", "one", "two", "to a", "to e/f"])


def tree_of(chosen: Mapping[str, str]) -> Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]:
    """A root file system's members: names whose folders are there, and hard links of files with the same contents."""
    first: dict[str, str] = {}
    for name in sorted(chosen):
        if any(chosen.get(str(above), "") != "folder" for above in PurePosixPath(name).parents if str(above) != "."):
            continue
        member, what = tarfile.TarInfo(name), chosen[name]
        if what == "folder":
            member.type = tarfile.DIRTYPE
        elif what.startswith("to "):
            member.type, member.linkname = tarfile.SYMTYPE, what[3:]
        elif what in first:
            member.type, member.linkname = tarfile.LNKTYPE, first[what]
        else:
            first[what] = name
            member.size = len(what)
            yield member, io.BytesIO(what.encode())
            continue
        yield member, None


def applied(layers: Sequence[Sequence[tuple[tarfile.TarInfo, bytes]]]) -> dict[str, object]:
    """What layers make, by the specification (layer.md, "Applying Changesets"); links name files of their own layer."""
    root: dict[str, object] = {}
    for layer in layers:
        here: dict[str, object] = {}
        for member, content in layer:
            folder, _, base = member.name.rpartition("/")
            gone = f"{folder}/{base[4:]}".lstrip("/") if base.startswith(".wh.") else member.name
            if base.startswith(".wh.") or not member.isdir() or root.get(member.name) != "folder":
                for name in [name for name in root if name == gone or name.startswith(f"{gone}/")]:
                    del root[name]
            if base.startswith(".wh."):
                continue
            assert not folder or root.get(folder) == "folder"
            root[member.name] = here[member.name] = (
                "folder" if member.isdir() else member.linkname if member.issym()
                else here[member.linkname] if member.islnk() else content
            )  # fmt: skip
    return root


@given(st.dictionaries(st.sampled_from(NAMES), WHAT), st.dictionaries(st.sampled_from(NAMES), WHAT))
@settings(max_examples=400, deadline=None)
def test_whatever_the_steps_did_two_layers_make_the_same_root(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    def taken(found: Iterator[tuple[tarfile.TarInfo, BinaryIO | None]]) -> list[tuple[tarfile.TarInfo, bytes]]:
        return [(member, stream.read() if stream else b"") for member, stream in found]

    before: dict[str, Entry] = {}
    after: dict[str, Entry] = {}
    base = taken(noted(tree_of(old), before))
    whole = taken(noted(tree_of(new), after))
    names, gone = changes(before, after)
    steps = taken(delta(tree_of(new), names, gone, epoch=0))
    assert applied([base, steps]) == applied([whole])
    if old == new:
        assert not steps


def test_written_twice_it_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_oci(tmp_path / "first", SmallRoot(noise=3 << 20))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert write_oci(tmp_path / "second", SmallRoot(noise=3 << 20)).read_bytes() == first.read_bytes()


def test_an_arm_image_has_gos_name_for_it(tmp_path: Path) -> None:
    path = write_oci(tmp_path / "arm", maker=replace(MAKER, arch="aarch64"))
    config = validate_oci(path, tmp_path / "v").config
    assert (config["architecture"], config["variant"]) == ("arm64", "v8")


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("web-golden", "2026.11", ("web-golden", "2026.11")),
        ("Web  Golden-_2", "1.0 (beta)+x", ("web-golden-2", "1.0-beta-x")),
        ("-x-", "", ("x", "latest")),
        ("ä", "..", ("image", "latest")),
    ],
)
def test_names_are_made_to_fit_a_reference(name: str, version: str, expected: tuple[str, str]) -> None:
    assert reference(replace(MAKER, name=name, version=version)) == expected


def test_a_name_that_would_delete_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"/etc/\.wh\.passwd cannot be in an OCI layer"):
        write_oci(tmp_path, SmallRoot(extra="etc/.wh.passwd"))
    assert not list(tmp_path.iterdir())


def test_what_fails_while_packing_is_what_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="the disk is damaged"):
        write_oci(tmp_path, SmallRoot(fail=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"ports": [0]}, {"ports": ["http"]}, {"ports": [70000]}, {"workdir": "var"}])
def test_options_are_looked_at(options: Mapping[str, object]) -> None:
    with pytest.raises(ValidationError):
        known("outputs")["oci"].model_validate(options)


def test_a_secret_is_not_left_in_an_image() -> None:
    with pytest.raises(ValidationError, match="a secret would be left in the image"):
        known("outputs")["oci"].model_validate({"env": {"TOKEN": placeholder("token")}})


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_gzip_gives_back_what_it_took(size: int) -> None:
    data = (b"some text that repeats, " * 300_000)[: size // 2] + __import__("random").Random(3).randbytes(size // 2)
    out = io.BytesIO()
    with GzipWriter(out.write) as writer:
        for start in range(0, len(data), 300_000):
            writer.write(data[start : start + 300_000])
    assert gzip.decompress(out.getvalue()) == data
