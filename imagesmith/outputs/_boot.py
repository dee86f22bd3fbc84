"""What a root file system boots: its kernel, its initial RAM disk, and the kernel's modules."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from imagesmith import cpio
from imagesmith.disk.kernel import find_kernel
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.interfaces import Files
from imagesmith.outputs._decompress import decompress
from imagesmith.outputs._rootfs import Content, members, packed, read

_ELSEWHERE = tuple(
    f"/{name}" for name in (
        "bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "lost+found", "media", "mnt", "nix", "opt",
        "proc", "root", "run", "sbin", "snap", "srv", "sys", "tmp", "usr", "var",
    )
)  # fmt: skip
_RELEASE = re.compile(r"(?:vmlinuz|vmlinux|Image)-(.+)")
_SUFFIX = re.compile(r"\.ko(\.(?:gz|xz|zst))?$")


@dataclass(frozen=True)
class Boot:
    """A kernel and what goes with it."""

    release: str
    """As ``uname -r`` says: the name of the folder with its modules."""
    kernel: bytes
    initrd: bytes
    """Empty where there is none."""


def find_boot(files: Files, what: str) -> Boot:
    """Find the kernel that the root file system boots. Raises BuildError where there is none: ``what`` needs it."""
    entries: dict[str, str] = {}
    content = Content(_ELSEWHERE)
    with packed(files, content) as source:
        for member, _ in members(source, content, epoch=0):
            entries[f"/{member.name.strip('/')}"] = member.linkname if member.issym() else ""
    found = find_kernel(entries)
    if found is None:
        raise BuildError(
            f"{what} boots the image's kernel, and the image has none in / or /boot",
            hint="leave `kernel: none` out of the base, or install a kernel in a step: "
            "`packages: [linux-image-cloud-amd64]`",
        )
    real = _followed(found.kernel, entries)
    release = _RELEASE.fullmatch(posixpath.basename(real))
    if release is None:
        raise BuildError(f"{real} does not tell the kernel's release: it should be called vmlinuz-RELEASE")
    return Boot(release[1], files.read(real), files.read(_followed(found.initrd, entries)) if found.initrd else b"")


def _followed(name: str, entries: dict[str, str]) -> str:
    while target := entries[name]:  # find_kernel has seen that it ends somewhere
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return name


class Modules:
    """A kernel's modules, as depmod(8) lists them (modules.dep(5); modules.builtin: Linux, Documentation/kbuild)."""

    def __init__(self, files: Files, release: str, host: Host) -> None:
        """Raises BuildError where there are none."""
        self._files, self._host = files, host
        self.folder = f"/lib/modules/{release}"
        listed = read(files, f"{self.folder}/modules.dep")
        if listed is None:
            raise BuildError(
                f"the image's kernel {release} has no modules: there is no {self.folder}/modules.dep",
                hint="run `depmod -a RELEASE` in a step, or install the kernel's package again",
            )
        self._needs: dict[str, tuple[str, ...]] = {}
        self._paths: dict[str, str] = {}
        for line in listed.decode("utf-8", "replace").splitlines():
            path, _, needs = line.partition(":")
            self._paths[plain(path)] = path
            self._needs[path] = tuple(needs.split())
        built_in = read(files, f"{self.folder}/modules.builtin") or b""
        self.built_in = {plain(path) for path in built_in.decode("utf-8", "replace").split()}

    def missing(self, wanted: Iterable[str]) -> list[str]:
        """Those that the kernel has neither inside nor as a module."""
        return [name for name in wanted if name not in self.built_in and name not in self._paths]

    def load(self, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
        """Names and contents (not compressed) of what must be loaded, in this order, to have all that is wanted."""
        order: list[str] = []

        def visit(path: str) -> None:
            if path in order:
                return
            for needed in self._needs.get(path, ()):
                visit(needed)
            order.append(path)

        for name in wanted:
            if name not in self.built_in and name in self._paths:
                visit(self._paths[name])
        return [(plain(path) + ".ko", self._content(path)) for path in order]

    def _content(self, path: str) -> bytes:
        data = self._files.read(path if path.startswith("/") else f"{self.folder}/{path}")
        return decompress(data, path, self._host) or data


def plain(path: str) -> str:
    """A module's name of its file's."""
    return _SUFFIX.sub("", posixpath.basename(path)).replace("-", "_")


def initrd_names(data: bytes, host: Host) -> set[str]:
    """What is in an initial RAM disk: archives, each compressed or not (see cpio.py). Raises Refused."""
    found: set[str] = set()
    try:
        while data:
            names, rest = cpio.names(data)
            found.update(names)
            unpacked = decompress(rest, "the image's initial RAM disk", host) if rest else b""
            if unpacked is None:
                raise ValueError(f"what follows {len(found)} files is no archive")
            data = unpacked
    except ValueError as error:
        raise Refused(f"the image's initial RAM disk cannot be read: {error}") from error
    return found


