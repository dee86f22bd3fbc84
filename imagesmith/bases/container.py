"""A container image, made into a system that boots."""

from __future__ import annotations

import json
import os
import posixpath
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal

from pydantic import Field

from imagesmith.archive import Archive, archive_of
from imagesmith.bases import _bootable
from imagesmith.bases._source import Sourced
from imagesmith.errors import BuildError, Refused
from imagesmith.interfaces import Log, Root, Workshop
from imagesmith.kinds import UNKEYED
from imagesmith.look.contained import opened

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_RUNTIME = ("dev", "proc", "run", "sys", "tmp")
"""Folders whose contents a machine's kernel and init make."""
_FOLDERS = """
for name in dev proc run sys; do [ -d "$1/$name" ] || mkdir -m 0755 "$1/$name"; done
[ -d "$1/tmp" ] || { mkdir "$1/tmp"; chmod 1777 "$1/tmp"; }
"""
_OWN = """
import json, os, stat, sys
with open(sys.argv[2]) as found:
    names = json.load(found)
os.chroot(sys.argv[1])
for path, own in names.items():
    path = b"/" + path.encode("utf-8", "surrogateescape")
    try:
        kind = os.lstat(path).st_mode
        if isinstance(own, str):
            if stat.S_ISREG(kind):
                os.setxattr(path, "security.capability", bytes.fromhex(own), follow_symlinks=False)
        elif stat.S_ISDIR(kind):
            os.chown(path, own[1], own[2])
            os.chmod(path, own[0])
    except (FileNotFoundError, NotADirectoryError):
        pass
"""
"""Gives a tree's folders owners and modes, and programs their capabilities, by names in a file; no link leads out."""
_CAPABILITY = "SCHILY.xattr.security.capability"
_LEFTOVERS = ("/.dockerenv", "/.dockerinit", "/usr/sbin/policy-rc.d", "/etc/apt/apt.conf.d/docker-*",
              "/etc/dpkg/dpkg.cfg.d/docker-apt-speedup", "/run/.containerenv")  # fmt: skip
"""What container images have because they are no machines."""
_APT = ("apt-get", "--yes", "--quiet", "-o", "Dpkg::Use-Pty=0", "-o", "Acquire::Retries=3", "-o",
        "Acquire::Languages=none", "-o", "Dpkg::Options::=--force-confold",
        "-o", "Dpkg::Options::=--force-unsafe-io")  # fmt: skip


class Container(Sourced, name="container", version=1, shorthand="path"):
    """Begin with a container image: an OCI archive, what `docker save` writes, or a plain tar of a root file system.

    Its layers are put on top of each other, and the guest's own package manager adds what a machine needs besides:
    kernel, init, DHCP. So the same root file system that runs as a container becomes a disk that boots. Debian and
    Ubuntu can get a kernel; with `kernel: none` any image is taken as it is, for outputs that need none.

    The image's programs run on this host, in namespaces, not in a virtual machine. As another user than root that is
    all they are; as root, say `trusted: true`.
    """

    gives: ClassVar[Literal["tree", "disk"]] = "tree"

    trusted: Annotated[bool, UNKEYED] = Field(
        False, description="Whether its programs may run as root on this host, in namespaces."
    )
    kernel: str = Field(
        "", pattern=r"^([a-z0-9][a-z0-9+.-]+)?$",
        description="The kernel's package; by default the one for virtual machines; none for no kernel.",
    )  # fmt: skip
    hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")] | None = Field(
        None, description="The host's name; by default that of the distribution."
    )

    @property
    def worldly(self) -> bool:
        """The kernel comes from the image's own mirrors."""
        return self.kernel != "none" or (bool(self.url) and not self.pinned)

    def identity(self) -> dict[str, object]:
        """The contents where they are known."""
        return {"kernel": self.kernel, "hostname": self.hostname, **self.source_identity()}

    def make(self, into: Path, shop: Workshop) -> None:
        """Unpack it, and make it bootable."""
        if os.geteuid() == 0 and not self.trusted:
            raise BuildError(f"the programs in {self.describe()} would run as root on this host, in namespaces",
                             hint="say 'trusted: true' where you trust it, or build as an ordinary user")  # fmt: skip
        source, begun = self.source(shop), time.time()
        with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
            found = opened(source, Path(folder))
            if not found.trees:
                raise BuildError(f"{source.name} holds no root file system, but {found.format or 'a disk image'}",
                                 hint="a disk image is begun with by 'base: {disk: …}'")  # fmt: skip
            made_for = found.about.get("architecture", _ARCHES[shop.arch])
            if made_for != _ARCHES[shop.arch]:
                raise BuildError(f"{source.name} is made for {made_for}, and the recipe for {_ARCHES[shop.arch]}",
                                 hint="take the image of that platform, or correct 'arch'")  # fmt: skip
            names: _Names = {}
            with shop.tree(into) as root:
                for number, tree in enumerate(found.trees, 1):
                    shop.log(f"layer {number} of {len(found.trees)}")
                    _apply(tree, Path(folder), root, shop.log, names)
            # while programs run in a tree, these are lent to it: what a layer says of them does not stay
            shop.inside(["sh", "-ec", _FOLDERS, "sh", str(into)], purpose="make the folders of a machine")
            listed = Path(folder, "names.json")
            listed.write_text(json.dumps({name: own for name, own in names.items() if own}))
            shop.inside([sys.executable, "-I", "-c", _OWN, str(into), str(listed)], purpose="set owners and modes")
        with shop.tree(into) as root:
            root.remove(list(_LEFTOVERS))
            if self.kernel != "none":
                self._make_bootable(root, _ARCHES[shop.arch])
        newer = ["-newermt", f"@{int(begun) - 1}", "-exec", "touch", "--no-dereference", f"--date=@{shop.epoch}"]
        shop.inside(["find", str(into), "-xdev", *newer, "{}", "+"], purpose="set the files' times")

    def _make_bootable(self, root: Root, arch: str) -> None:
        distribution = _distribution(root)
        if distribution not in _bootable.KERNELS or not root.exists("/usr/bin/apt-get"):
            raise BuildError(
                f"{self.describe()} is {distribution or 'no known distribution'}: imagesmith cannot make it boot",
                hint="Debian's and Ubuntu's images can get a kernel; of any other, container formats can be made with "
                     "'kernel: none'",
            )  # fmt: skip
        kernel = self.kernel or _bootable.KERNELS[distribution].format(arch=arch)
        root.unpack(archive_of(_bootable.before, epoch=root.epoch))
        root.run([*_APT, "-o", "APT::Update::Error-Mode=any", "update"])
        root.run([*_APT, "install", "--no-install-recommends", "--", *_bootable.PACKAGES, kernel, *_bootable.SEPARATE])
        root.run([*_APT, "clean"])
        root.remove(["/var/lib/apt/lists/*"])
        resolved = _bootable.has_resolved(root)
        _bootable.own_state(root)
        name = self.hostname or distribution

        def configure(archive: Archive) -> None:
            _bootable.names(archive, name)
            _bootable.after(archive, resolved=resolved)

        root.unpack(archive_of(configure, epoch=root.epoch))
        _bootable.enable(root, resolved=resolved)


def _distribution(root: Root) -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = root.read(path).decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            continue
        return next((line[3:].strip("\"'") for line in lines if line.startswith("ID=")), "")
    return ""


_Names = dict[str, tuple[int, int, int] | str]
"""Of a folder: mode, owner and group, which a later layer may change. Of the rest: its capabilities in hex, or none."""


def _apply(tree: Path, work: Path, root: Root, log: Log, names: _Names) -> None:
    """Put one layer on what is there (OCI image specification 1.0, layer.md): removals first, then its files.

    ``names`` are all that are there.
    """
    with tempfile.TemporaryFile(dir=work) as plain:
        gone, emptied, own = _sorted_out(tree, plain, log, names)
        if emptied:
            root.remove([f"/{_escaped(path)}/{which}" for path in emptied for which in ("*", ".[!.]*", "..?*")])
        if gone:
            root.remove([f"/{_escaped(path)}" for path in gone])
        lost = {*gone, *(f"{path}/" for path in emptied)}
        for name in [name for name in names if not lost.isdisjoint(_at_and_above(name))]:
            del names[name]
        names.update(own)
        plain.seek(0)
        root.unpack(plain)


def _at_and_above(name: str) -> list[str]:
    """A name and the folders that it is in; these with a slash, too, as they lose what is in them."""
    found = [name]
    while name := posixpath.dirname(name):
        found += [name, f"{name}/"]
    return found


def _escaped(path: str) -> str:
    """Take their meaning from a name's wildcards."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _sorted_out(
    tree: Path, into: BinaryIO, log: Log, before: _Names
) -> tuple[Sequence[str], Sequence[str], _Names]:  # fmt: skip
    """Write the layer's files into a plain tar; return what it removes, the folders that it empties, and its names.

    What is a folder in the layers ``before`` and none in this one, or the other way round, is removed first.
    """
    gone, emptied, devices = list[str](), list[str](), 0
    own: _Names = {}
    try:
        with (
            tarfile.open(tree, "r:*") as source,
            tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as out,
        ):
            for member in source:
                name = posixpath.normpath("/" + member.name).lstrip("/")
                parent, base = posixpath.split(name)
                if ".." in member.name.split("/"):
                    raise Refused(f"{tree.name} holds a name that leads elsewhere: {member.name}")
                if base == ".wh..wh..opq":
                    emptied.append(parent)
                elif base.startswith(".wh."):
                    if base[4:] in ("", ".", ".."):
                        raise Refused(f"{tree.name} removes what has no name: {member.name}")
                    gone.append(posixpath.join(parent, base[4:]))
                elif not name or parent.partition("/")[0] in _RUNTIME:
                    continue
                elif member.ischr() or member.isblk() or member.isfifo():
                    devices += 1
                else:
                    if name in before and isinstance(before[name], tuple) != member.isdir():
                        gone.append(name)
                    capability = member.pax_headers.get(_CAPABILITY, "").encode("utf-8", "surrogateescape").hex()
                    own[name] = (member.mode & 0o7777, member.uid, member.gid) if member.isdir() else capability
                    _copy(member, name, source, out)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise Refused(f"{tree.name} is a damaged layer: {error}") from error
    if devices:
        log(f"left out {devices} device nodes and named pipes: a machine's kernel makes its own")
    return gone, emptied, own


def _copy(member: tarfile.TarInfo, name: str, source: tarfile.TarFile, out: tarfile.TarFile) -> None:
    """Write a member under ``name``; a sparse file becomes a plain one."""
    stream = source.extractfile(member) if member.isreg() else None
    member.name = name
    if member.islnk():
        member.linkname = posixpath.normpath("/" + member.linkname).lstrip("/")
    # else names and sizes in them would count for more than the member's
    member.pax_headers = {key: value for key, value in member.pax_headers.items() if key.startswith("SCHILY.xattr.")}
    if member.issparse():
        member.type, member.sparse = tarfile.REGTYPE, None
    out.addfile(member, stream)
