"""Bootstrapped systems: what is in them, who may make them, and that they are the same every time."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import pytest
from pydantic import ValidationError

from imagesmith import tree
from imagesmith.bases._mirrors import Mirrors, parse_targets, sources
from imagesmith.drivers.native_tree import NativeTree
from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host
from tests import rootless
from tests.consumers import ask
from tests.trees import EPOCH, Shop, bootstrap, make, small_tree

CLEANED = """
from pathlib import Path
from tests.test_bootstrap import clean, packed
from tests.trees import Shop, bootstrap
import hashlib, os, sys
home = Path(os.environ["HOME"])
base = bootstrap(home / "base", Shop(), kernel="none")
print(hashlib.sha256(packed([base, clean(base, home / "clean")])).hexdigest())
from imagesmith import tree
for name in ("base", "clean"):
    tree.remove(Shop().host, home / name)
print(os.getuid(), os.listdir(home))
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory)


def clean(base: Path, into: Path) -> Path:
    """The layer of a clean-up on top."""
    into.mkdir()
    host = Host()
    with NativeTree(host).session([base], epoch=EPOCH, log=print) as session, session.layer(
        into, below=base, log=print
    ) as root:  # fmt: skip
        make("steps", "cleanup", None).apply(root)
    return into


def _open(folders: Sequence[Path], use: Callable[[tree.TreeRoot], None]) -> None:
    mount = tree.OverlayMount(tuple(str(folder / "upper") for folder in folders))
    with tree.open_root(Host(), mount, epoch=EPOCH, log=print) as root:
        use(root)


def packed(folders: Sequence[Path]) -> bytes:
    out = io.BytesIO()
    _open(folders, lambda root: root.pack(out))
    return out.getvalue()


def _digest(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = archive.extractfile(member) if member.isreg() else None
    return "" if stream is None else hashlib.sha256(stream.read()).hexdigest()


def members(source: BinaryIO) -> dict[str, object]:
    with tarfile.open(fileobj=source) as archive:
        return {
            m.name: (m.type, m.mode, m.uid, m.gid, m.mtime, m.linkname, m.pax_headers,
                     _digest(archive, m))
            for m in archive
        }  # fmt: skip


def test_a_small_system_holds_nothing_of_the_host(small: Path) -> None:
    def look(root: tree.TreeRoot) -> None:
        assert root.read("/etc/hostname") == b"debian\n"
        assert not root.exists("/etc/resolv.conf")
        assert not root.exists("/boot/vmlinuz")
        assert root.read("/etc/shadow").startswith(b"root:*:")
        lines = root.read("/etc/apt/sources.list").decode().splitlines()
        assert [line.split()[3] for line in lines] == ["bookworm", "bookworm-updates", "bookworm-security"]
        assert all("signed-by=/usr/share/keyrings/debian-archive-keyring.gpg" in line for line in lines)
        assert not root.exists("/etc/dpkg/dpkg.cfg.d/bootstrap")
        listing = io.BytesIO()
        root.pack(listing)
        listing.seek(0)
        with tarfile.open(fileobj=listing) as archive:
            names = archive.getnames()
        assert not [name for name in names if name.startswith(("dev/", "proc/", "sys/", "var/lib/apt/lists/d"))]
        assert not [name for name in names if name.endswith(".deb")]

    _open([small], look)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_makes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    with rootless.home() as home:
        done = rootless.run(home, CLEANED)
        assert done.returncode == 0, done.stderr[-3000:]
        digest, rest = done.stdout.splitlines()[-2:]
        assert rest == f"{rootless.UID} []"
    assert digest == hashlib.sha256(packed([small, clean(small, tmp_path / "clean")])).hexdigest()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_without_subordinate_ids_is_told_how_to_get_them() -> None:
    with rootless.home() as home:
        code = "from imagesmith import tree; from imagesmith.host import Host; print(tree.available(Host()))"
        done = rootless.run(home, code, subordinate=0)
    assert "somebody has no subordinate ids" in done.stdout
    assert "sudo usermod --add-subuids" in done.stdout


@pytest.mark.slow
def test_a_bootable_system_is_the_same_every_time(tmp_path: Path) -> None:
    packs = []
    for name in ("a", "b"):
        base = bootstrap(tmp_path / name / "base", Shop(), packages=["openssh-server", "sudo"])
        packs.append(packed([base, clean(base, tmp_path / name / "clean")]))
    first, second = (members(io.BytesIO(pack)) for pack in packs)
    assert {name: (first.get(name), second.get(name)) for name in first.keys() | second.keys()
            if first.get(name) != second.get(name)} == {}  # fmt: skip
    assert packs[0] == packs[1]
    for name in ("vmlinuz", "initrd.img", "etc/fstab", "etc/systemd/network/80-dhcp.network", "boot/efi",
                 "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"):  # fmt: skip
        assert name in first


def test_a_wrong_signature_is_refused(tmp_path: Path) -> None:
    if not shutil.which("gpg"):
        pytest.fail("gpg is needed for this test")
    gpg = ["gpg", "--homedir", str(tmp_path), "--batch", "--quiet"]
    subprocess.run([*gpg, "--passphrase", "", "--quick-gen-key", "x"], check=True, capture_output=True)
    key = subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(tmp_path), "--kill", "all"], check=False)
    (tmp_path / "other.gpg").write_bytes(key)
    shop = Shop()
    with pytest.raises(ToolFailed, match="mmdebstrap failed"):
        bootstrap(tmp_path / "base", shop, kernel="none", keyring=str(tmp_path / "other.gpg"))
    assert any("NO_PUBKEY" in line for line in shop.lines)


def test_a_folder_may_be_the_mirror(tmp_path: Path) -> None:
    keys = tmp_path / "keys.gpg"
    keys.write_bytes(b"")
    base = make("bases", "bootstrap", {"distribution": "debian", "suite": "bookworm", "mirror": "file:///srv/mirror",
                                       "keyring": str(keys)})  # fmt: skip
    assert base._sources(Shop(), "/k.gpg")[0] == "deb [signed-by=/k.gpg] copy:///srv/mirror bookworm main"


def mirror(folder: Path) -> Path:
    """A mirror in a folder of what the smallest Debian needs, signed by a key of its own, which is returned."""
    pool, home = folder / "mirror/pool", folder / "gnupg"
    pool.mkdir(parents=True)
    home.mkdir(mode=0o700)
    ask("mmdebstrap", "--mode=root", "--variant=minbase", "--skip=cleanup/apt,essential/unlink", "--format=null",
        f'--customize-hook=cp "$1"/var/cache/apt/archives/*.deb {pool}', "bookworm")  # fmt: skip
    gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
    ask(*gpg, "--passphrase", "", "--quick-gen-key", "mirror", "default", "sign")
    for suite in ("bookworm", "bookworm-updates"):
        index = folder / "mirror/dists" / suite / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True)
        index.write_text("" if suite != "bookworm" else "\n".join(
            f"{ask('dpkg-deb', '-f', deb).strip()}\nFilename: pool/{deb.name}\nSize: {deb.stat().st_size}\n"
            f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n" for deb in sorted(pool.iterdir())))  # fmt: skip
        content = index.read_bytes()
        release = index.parents[2] / "Release"
        release.write_text(f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: main\n"
                           f"Date: {ask('date', '-Ru').strip()}\nSHA256:\n {hashlib.sha256(content).hexdigest()} "
                           f"{len(content)} main/binary-amd64/Packages\n")  # fmt: skip
        ask(*gpg, "--clearsign", "--output", release.with_name("InRelease"), release)
    (folder / "mirror.gpg").write_bytes(
        subprocess.run([*map(str, gpg), "--export"], check=True, capture_output=True).stdout
    )
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
    return folder / "mirror.gpg"


@pytest.mark.slow
def test_a_system_is_made_of_a_mirror_in_a_folder(tmp_path: Path) -> None:
    keys = mirror(tmp_path)
    made = bootstrap(tmp_path / "base", Shop(), kernel="none", keyring=str(keys), mirror=f"file://{tmp_path}/mirror")
    assert "12" in (made / "upper/etc/debian_version").read_text()


def test_mirrors_are_those_of_the_host() -> None:
    lines = [
        "Debian|bookworm|http://mirror.example/debian/", "Debian|bookworm-updates|http://mirror.example/debian/",
        "Debian|bookworm-security|http://security.example/debian-security/", "Other|bookworm|http://other.example/",
    ]  # fmt: skip
    found = parse_targets("debian", lines)
    assert found == Mirrors("http://mirror.example/debian", "http://security.example/debian-security")
    assert parse_targets("ubuntu", lines) is None
    before_update = [line.replace("Debian|", "$(ORIGIN)|") for line in lines]
    assert parse_targets("debian", before_update) == found
    lines = ["Ubuntu|noble|http://u.example/ubuntu/", "Ubuntu|noble-security|http://s.example/"]
    ubuntu = parse_targets("ubuntu", lines)
    assert ubuntu is not None
    assert sources("ubuntu", "jammy", ubuntu, ["main", "universe"], "/k.gpg") == (
        "deb [signed-by=/k.gpg] http://u.example/ubuntu jammy main universe",
        "deb [signed-by=/k.gpg] http://u.example/ubuntu jammy-updates main universe",
        "deb [signed-by=/k.gpg] http://s.example jammy-security main universe",
    )
    assert len(sources("debian", "sid", found, ["main"], "/k.gpg")) == 1


def test_the_command_is_always_the_same() -> None:
    base = make("bases", "bootstrap", {"distribution": "debian", "suite": "bookworm", "packages": ["sudo"]})
    argv = base.arguments("amd64", Path("/into"), ("deb x",), Path("/first.tar"), lists=Path("/lists"))
    assert argv[:5] == ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--architectures=amd64"]
    assert argv[-3:] == ["bookworm", "/into", "deb x"]
    wanted = [word.removeprefix("--include=") for word in argv if word.startswith("--include=")]
    assert wanted == sorted(wanted)
    assert {"sudo", "linux-image-cloud-amd64", "?exact-name(systemd-resolved)"} <= set(wanted)
    assert base.trusted_origin
    small = make("bases", "bootstrap", {"distribution": "ubuntu", "suite": "noble", "kernel": "none"})
    assert small.wanted("arm64") == ()


@pytest.mark.parametrize("options", [
    {"distribution": "fedora", "suite": "40"}, {"distribution": "debian", "suite": "Bookworm!"}, {"suite": "bookworm"},
    {"distribution": "debian", "suite": "bookworm", "packages": ["--root"]},
    {"distribution": "debian", "suite": "bookworm", "mirror": "http://x [trusted=yes]"},
])  # fmt: skip
def test_a_wrong_base_is_refused_before_anything_is_built(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make("bases", "bootstrap", options)


def test_a_distribution_without_keys_or_mirror_says_so(tmp_path: Path) -> None:
    base = make("bases", "bootstrap", {"distribution": "ubuntu", "suite": "noble", "kernel": "none"})
    if Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg").exists():
        with pytest.raises(BuildError, match="uses no mirror of Ubuntu"):
            base.make(tmp_path, Shop())
    else:
        with pytest.raises(BuildError, match="cannot be verified without its keys"):
            base.make(tmp_path, Shop())
