"""What programs expect of a running system, lent to a root at rest and taken back without a trace.

``/proc``, ``/sys``, ``/dev`` and ``/run``; a name resolver; and a policy that lets no package start its services
(Debian's invoke-rc.d: /usr/share/doc/init-system-helpers/README.policy-rc.d).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from imagesmith.tree import linux

_POLICY = b"#!/bin/sh\nexit 101\n"
_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
          ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx"), ("core", "/proc/kcore"))  # fmt: skip
_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
"""Parts of /proc through which the host's own settings could be changed."""
_QUIET = linux.NOSUID | linux.NODEV | linux.NOEXEC


@dataclass
class _Lent:
    """A file that was put in, and what was there before."""

    path: str
    content: bytes
    before: bytes | None = None
    times: tuple[int, int] = (0, 0)


@dataclass
class _Directory:
    """The times of a directory before we put something in it, and its time of change just after that."""

    times: tuple[int, int]
    noted: int = 0


@dataclass
class Furniture:
    """Puts things in and takes them back.

    ``lend`` and ``take_back`` run in a process that has the root as its own ``/``; ``mount`` and ``unmount`` outside.
    """

    resolver: bytes
    mounted: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    lent: list[_Lent] = field(default_factory=list)
    directories: dict[str, _Directory] = field(default_factory=dict)

    # -- outside the root ----------------------------------------------------------------------------------------

    def mount(self, root: str) -> None:
        """Mount the kernel's file systems in ``root``, whose paths cannot be trusted: no link is followed."""
        for name, furnish in (("proc", _proc), ("sys", _sys), ("dev", _dev), ("run", _run)):
            place = f"{root}/{name}"
            if os.path.islink(place):
                continue
            if not os.path.isdir(place):
                try:
                    with self._changing(root):
                        os.mkdir(place, 0o755)
                except OSError:
                    continue  # a read-only root does without
                self.made.append(place)
            furnish(place)
            self.mounted.append(place)

    def unmount(self, root: str) -> None:
        """Undo ``mount``."""
        for place in reversed(self.mounted):
            linux.umount(place)
        for place in self.made:
            with suppress(OSError), self._changing_back(root):
                os.rmdir(place)

    # -- inside the root -----------------------------------------------------------------------------------------

    def lend(self) -> None:
        """Put in the resolver and the policy."""
        target = os.path.realpath("/etc/resolv.conf")
        if target.startswith("/run/"):  # on our tmpfs: goes by itself
            with suppress(OSError):
                os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
                _write(target, self.resolver)
        elif os.path.isdir(os.path.dirname(target)):
            self._lend(target, self.resolver, 0o644)
        if os.path.isdir("/usr/sbin") and not os.path.lexists("/usr/sbin/policy-rc.d"):
            self._lend(os.path.realpath("/usr/sbin") + "/policy-rc.d", _POLICY, 0o755)

    def _lend(self, path: str, content: bytes, mode: int) -> None:
        lent = _Lent(path, content)
        try:
            if os.path.lexists(path):
                found = os.lstat(path)
                if not stat.S_ISREG(found.st_mode):
                    return
                lent.before, lent.times = _read(path), (found.st_atime_ns, found.st_mtime_ns)
                _write(path, content)
            else:
                with self._changing(os.path.dirname(path)):
                    _write(path, content)
                    os.chmod(path, mode)
        except OSError:
            return  # a read-only root does without
        self.lent.append(lent)

    def take_back(self) -> None:
        """Undo ``lend``; what a step changed in the meantime stays, without our part of it."""
        for lent in self.lent:
            if os.path.islink(lent.path) or not os.path.isfile(lent.path):
                continue  # replaced by the step, or removed
            now = _read(lent.path)
            if now == lent.content and lent.before is None:
                with self._changing_back(os.path.dirname(lent.path)):
                    os.unlink(lent.path)
            elif now == lent.content:
                _write(lent.path, lent.before or b"")
                os.utime(lent.path, ns=lent.times)
            elif now.startswith(lent.content):  # something was added to it
                _write(lent.path, (lent.before or b"") + now[len(lent.content) :])

    # -- directories' times --------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self, path: str) -> Iterator[None]:
        found = os.stat(path)
        directory = self.directories.setdefault(path, _Directory((found.st_atime_ns, found.st_mtime_ns)))
        yield
        directory.noted = os.stat(path).st_mtime_ns

    @contextmanager
    def _changing_back(self, path: str) -> Iterator[None]:
        directory = self.directories[path]
        only_ours = os.stat(path).st_mtime_ns == directory.noted
        yield
        if only_ours:
            os.utime(path, ns=directory.times)
            directory.noted = directory.times[1]


def _read(path: str) -> bytes:
    with open(path, "rb") as source:
        return source.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as out:
        out.write(content)


def _proc(place: str) -> None:
    try:
        linux.mount("proc", place, "proc", _QUIET)
    except PermissionError:  # in a container that hides parts of /proc, the kernel allows no complete one
        linux.mount("/proc", place, flags=linux.BIND | linux.RECURSIVE)
    for name in _READ_ONLY:
        path = f"{place}/{name}"
        if os.path.exists(path):
            with suppress(OSError):
                linux.mount(path, path, flags=linux.BIND | linux.RECURSIVE)
                linux.read_only(path)


def _sys(place: str) -> None:
    linux.mount("/sys", place, flags=linux.BIND | linux.RECURSIVE)
    try:
        linux.read_only(place)
    except OSError:  # better none than one that can be written to
        linux.umount(place)
        linux.mount("sys", place, "tmpfs", _QUIET, "mode=0555")


def _dev(place: str) -> None:
    linux.mount("dev", place, "tmpfs", linux.NOSUID | linux.NOEXEC, "mode=0755,size=64m")
    for name in _NODES:
        with suppress(FileNotFoundError):
            os.stat(f"/dev/{name}")
            _write(f"{place}/{name}", b"")
            linux.mount(f"/dev/{name}", f"{place}/{name}", flags=linux.BIND)
    for name, target in _LINKS:
        os.symlink(target, f"{place}/{name}")
    os.mkdir(f"{place}/shm", 0o755)
    linux.mount("shm", f"{place}/shm", "tmpfs", linux.NOSUID | linux.NODEV, "mode=1777")
    os.mkdir(f"{place}/pts", 0o755)
    with suppress(OSError):  # gid 5 may not be mapped
        linux.mount("pts", f"{place}/pts", "devpts", linux.NOSUID | linux.NOEXEC,
                    "newinstance,ptmxmode=0666,mode=0620,gid=5")  # fmt: skip


def _run(place: str) -> None:
    linux.mount("run", place, "tmpfs", linux.NOSUID | linux.NODEV, "mode=0755")
    os.mkdir(f"{place}/lock", 0o755)
    os.chmod(f"{place}/lock", 0o1777)
