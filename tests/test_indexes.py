"""What the packages step notes of repositories: dnf, zypper and pacman run here, apk does not."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from imagesmith.host import Host
from imagesmith.interfaces import Result
from imagesmith.steps import _indexes
from imagesmith.store import Store
from imagesmith.workbench import moved
from tests.test_steps import System
from tests.trees import small_tree

DNF_4 = """\
Last metadata expiration check: 0:00:05 ago on Wed Dec 13 15:20:30 2023.
Repo-id            : epel
Repo-name          : Extra Packages
Repo-status        : enabled
Repo-metalink      : https://m.example/metalink?repo=epel-8&arch=x86_64
  Updated          : Thu Oct 12 17:16:56 2023
Repo-baseurl       : https://a.m.example/epel/8/x86_64/ (153 more)
Repo-filename      : /etc/yum.repos.d/epel.repo

Repo-id            : two-places
Repo-baseurl       : http://b.m.example/r, http://c.m.example/r
Total packages: 9,872
"""
DNF_5 = """\
Repo ID              : fedora
Name                 : Fedora 41 - x86_64
URLs                 :
  Base URL           : https://a.m.example/fedora/41/os/ (120 more)
  Metalink           : https://m.example/metalink?repo=fedora-41&arch=x86_64
"""


def test_repositories_of_dnf_are_found_in_what_it_tells() -> None:
    assert _indexes.dnf_repositories(DNF_4) == {
        "epel": "https://a.m.example/epel/8/x86_64", "two-places": "http://b.m.example/r",
    }  # fmt: skip
    assert _indexes.dnf_repositories(DNF_5) == {"fedora": "https://a.m.example/fedora/41/os"}
    assert _indexes.dnf_repositories("Unknown argument \"repoinfo\"\n") == {}


class Alpine:
    """As much of an Alpine as the function looks at: its files; sha256sum and sed are this host's."""

    online, epoch = False, 0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, path: str) -> bytes:
        return (self.folder / path.lstrip("/")).read_bytes()

    def run(self, argv: list[str], **options: object) -> Result:
        lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  /{file.relative_to(self.folder)}\n"
                 for file in self.folder.glob("var/cache/apk/*"))  # fmt: skip
        return Result(0, "".join(lines))


@pytest.mark.parametrize("version", [2, 3])
def test_indexes_of_apk_are_found_by_the_name_that_it_gives_them(tmp_path: Path, version: int) -> None:
    pages = {"http://u:p@w@m.example/v3/main": b"one", "https://m.example/v3/community/": b"two", "/media/cd": b"none"}
    for folder in ("etc/apk", "var/cache/apk"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/apk/arch").write_text("x86_64\n")
    (tmp_path / "etc/apk/repositories").write_text("#http://m.example/v3/testing\n@edge " + "\n".join(pages) + "\n")
    for url, content in pages.items():
        index = f"{url.rstrip('/')}/x86_64/APKINDEX.tar.gz"
        made = hashlib.sha1(url.encode()) if version == 2 else hashlib.sha256(index.encode())  # noqa: S324
        digest = made.hexdigest()
        (tmp_path / f"var/cache/apk/APKINDEX.{digest[:8]}.tar.gz").write_bytes(content)
    assert _indexes.apk(Alpine(tmp_path)) == {  # type: ignore[arg-type]
        "http://m.example/v3/main/x86_64/APKINDEX.tar.gz": hashlib.sha256(b"one").hexdigest(),
        "https://m.example/v3/community/x86_64/APKINDEX.tar.gz": hashlib.sha256(b"two").hexdigest(),
    }


# -- real ones, in a Debian ------------------------------------------------------------------------------------------

REPOSITORY = r"""
set -e
mkdir -p /srv/r /tmp/b
cd /tmp/b
for name in one two; do
    printf '%s\n' "Name: $name" 'Version: 1' 'Release: 1' 'Summary: x' 'License: x' 'BuildArch: noarch' '%description' \
        '%files' > a.spec
    rpmbuild --quiet -bb --define '_rpmdir /srv/r' --define '_topdir /tmp/b' a.spec
done
createrepo_c --quiet /srv/r
printf '%s\n' 'pkgname = three' 'pkgver = 1-1' 'arch = any' 'size = 0' > .PKGINFO
tar -czf /srv/r/three-1-1-any.pkg.tar.gz .PKGINFO
mkdir three-1-1
printf '%s\n' '%FILENAME%' three-1-1-any.pkg.tar.gz '' '%NAME%' three '' '%VERSION%' 1-1 '' '%ARCH%' any \
    > three-1-1/desc
tar -czf /srv/r/ours.db three-1-1
rm -r /tmp/b /usr/bin/apt-get
"""
CONFIGURATION = """
mkdir -p /etc/yum.repos.d /etc/zypp/repos.d
printf '%s\n' '[ours]' 'name=Ours' 'baseurl={url}' 'enabled=1' 'gpgcheck=0' > /etc/yum.repos.d/ours.repo
printf '%s\n' '[our/s]' 'name=Ours' 'baseurl={url}' 'enabled=1' 'gpgcheck=0' > /etc/zypp/repos.d/ours.repo
printf '%s\n' '[options]' 'Architecture = auto' 'SigLevel = Never' '[ours]' 'Server = {url}' > /etc/pacman.conf
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://user:pw@127.0.0.1:{server.server_port}"
        server.shutdown()


def install(system: System, name: str) -> Mapping[str, str]:
    """Install a package; what the step notes."""
    system.do("packages", [name])
    assert system.seen is not None
    return system.seen


@pytest.mark.slow
def test_dnf_zypper_and_pacman_install_and_tell_what_they_saw(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    system = System(small_tree(tmp_path_factory), tmp_path)
    system.do("packages", ["dnf", "zypper", "pacman-package-manager", "createrepo-c", "rpm"])
    repository = system.do("shell", REPOSITORY) / "srv/r"
    ask = moved(Store(tmp_path / "store"), Host(), print)
    with served(repository) as url:
        system.do("shell", CONFIGURATION.format(url=url))
        bare = url.replace("user:pw@", "")
        for program, package, index in (
            ("dnf", "one", "repodata/repomd.xml"),
            ("zypper", "two", "repodata/repomd.xml"),
            ("pacman", "three", "ours.db"),
        ):
            seen = install(system, package)
            assert seen == {f"{bare}/{index}": hashlib.sha256((repository / index).read_bytes()).hexdigest()}, program
            assert not ask(*next(iter(seen.items())))
            system.do("shell", f"rm /usr/bin/{program}*")
