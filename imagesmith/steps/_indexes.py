"""What a package manager saw of its repositories: of each, the file that changes with whatever is in it.

For apt that is InRelease, for dnf and zypper ``repodata/repomd.xml``, for apk APKINDEX.tar.gz, for pacman the database.
Each function looks at the manager's own copies while they are there, and returns their addresses and SHA-256. What has
no address that a host could ask, or no copy, is left out. Of several mirrors the first one stands for all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from html import unescape

from imagesmith.apt import release
from imagesmith.interfaces import Root
from imagesmith.kinds import Seen
from imagesmith.steps._files import read_or_empty

_APT = "apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' | sort -u"
_DNF = '"$0" -C repoinfo --enabled'
_ZYPPER = "zypper --xmlout repos --show-enabled-only --uri"
_PACMAN = 'for r in $(pacman-conf --repo-list); do echo "$r $(pacman-conf --repo "$r" Server | head -n 1)"; done'


def apt(root: Root) -> Seen:
    """After ``apt-get update``."""
    found = {}
    for line in sorted(set(_ask(root, _APT).splitlines())):
        uri, _, suite = line.partition(" ")
        there = release(uri, suite)
        try:
            found[there.url] = hashlib.sha256(root.read(f"/var/lib/apt/lists/{there.file}")).hexdigest()
        except OSError:  # not signed in place, or not http: it has another name
            continue
    return found


def dnf(root: Root, program: str) -> Seen:
    """After dnf (4 or 5) has installed something; nothing of microdnf and yum 3, which do not tell."""
    urls = dnf_repositories(_ask(root, _DNF, program))
    copies = _copies(root, "/var/cache/dnf/*/repodata/repomd.xml", "/var/cache/libdnf5/*/repodata/repomd.xml")
    # the folder's name is the repository's and a digest of its address: libdnf, Repo::Impl::getHash()
    named = {path.split("/")[-3].rpartition("-")[0]: digest for path, digest in copies.items()}
    return _seen((f"{url}/repodata/repomd.xml", named.get(name, "")) for name, url in urls.items())


def dnf_repositories(told: str) -> Mapping[str, str]:
    """The names and addresses in what ``dnf repoinfo`` tells (dnf 4: "Repo-id", dnf 5: "Repo ID")."""
    found, name = {}, ""
    for line in told.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("Repo-id", "Repo ID"):
            name = value
        elif key in ("Repo-baseurl", "Base URL") and value:
            found[name] = re.split(r"[ ,]", value)[0].rstrip("/")
    return found


def zypper(root: Root) -> Seen:
    """After ``zypper refresh``."""
    urls = zypper_repositories(_ask(root, _ZYPPER))
    copies = _copies(root, "/var/cache/zypp/raw/*/repodata/repomd.xml")
    named = {path.split("/")[-3]: digest for path, digest in copies.items()}
    return _seen((f"{url}/repodata/repomd.xml", named.get(name.replace("/", "_"), "")) for name, url in urls.items())


def zypper_repositories(told: str) -> Mapping[str, str]:
    """The names and addresses in what ``zypper --xmlout repos`` tells (zypper(8), "XML output")."""
    pairs = re.findall(r'<repo [^>]*?alias="([^"]*)"[^>]*>\s*<url>([^<]*)</url>', told)
    return {unescape(alias): unescape(url).rstrip("/") for alias, url in pairs}


def apk(root: Root) -> Seen:
    """After ``apk update``."""
    arch = read_or_empty(root, "/etc/apk/arch").decode().strip()
    lines = read_or_empty(root, "/etc/apk/repositories").decode("utf-8", "replace").splitlines()
    copies = _copies(root, "/var/cache/apk/APKINDEX.*.tar.gz")
    return _seen(
        (_bare(index), next((copies[name] for name in _apk_names(url, index) if name in copies), ""))
        for url, index in apk_repositories(lines, arch).items()
    )


def apk_repositories(lines: Iterable[str], arch: str) -> Mapping[str, str]:
    """The addresses in a file of repositories (apk-repositories(5)), and those of their indexes."""
    urls = [re.sub(r"^@\S+\s+", "", line.strip()) for line in lines]
    return {url: f"{url.rstrip('/')}/{arch}/APKINDEX.tar.gz" for url in urls if re.match("https?://", url)}


def _apk_names(url: str, index: str) -> list[str]:
    """How apk calls its copy: by the SHA-1 of the repository's address (2.x), the SHA-256 of the index's (3.x).

    Source: apk-tools, src/database.c, ``apk_repo_format_cache_index``.
    """
    digests = (hashlib.sha1(url.encode(), usedforsecurity=False), hashlib.sha256(index.encode()))
    return [f"/var/cache/apk/APKINDEX.{digest.hexdigest()[:8]}.tar.gz" for digest in digests]


def pacman(root: Root) -> Seen:
    """After ``pacman -Sy``."""
    copies = _copies(root, "/var/lib/pacman/sync/*.db")
    lines = (line.partition(" ") for line in _ask(root, _PACMAN).splitlines())
    return _seen((f"{url.rstrip('/')}/{name}.db", copies.get(f"/var/lib/pacman/sync/{name}.db", ""))
                 for name, _, url in lines)  # fmt: skip


def _ask(root: Root, command: str, *words: str) -> str:
    """What a shell command tells, without the credentials that may stand in addresses: all of it is logged."""
    hidden = f"{{ {command}; }} 2>/dev/null | sed 's#//[^/ ]*@#//#g'"
    return root.run(["sh", "-c", hidden, *words], check=False).output


def _copies(root: Root, *patterns: str) -> Mapping[str, str]:
    """The SHA-256 of the guest's files, by their paths."""
    told = _ask(root, f"sha256sum {' '.join(patterns)}")
    return {path: digest for digest, path in re.findall(r"^([0-9a-f]{64})  (/.*)$", told, re.MULTILINE)}


def _bare(url: str) -> str:
    return re.sub("//[^/ ]*@", "//", url)


def _seen(pairs: Iterable[tuple[str, str]]) -> Seen:
    return {url: digest for url, digest in pairs if digest and re.match("https?://", url)}
