"""What can be a root file system, how each is mounted, and how it is left: flushed, and with the layer's own times."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from imagesmith.tree import linux

_SPARE = ("/mnt", "/media", "/srv", "/opt")
"""Folders that every system has; a block image is mounted over one of them, seen by nobody else."""


DEEPEST = 500
"""The layers below that overlayfs takes (kernel: fs/overlayfs/super.c, later params.h, OVL_MAX_STACK)."""


@dataclass(frozen=True)
class DirectoryMount:
    """A plain directory is the root."""

    path: str


@dataclass(frozen=True)
class OverlayMount:
    """Layers, the oldest first, are the root; changes go to ``upper``. Without ``upper`` it is read-only.

    ``work`` is a new, empty folder on the file system of ``upper``; it is removed in the end.
    """

    layers: tuple[str, ...]
    upper: str = ""
    work: str = ""


@dataclass(frozen=True)
class BlockMount:
    """A file system in a file or block device, ``size`` bytes from ``offset``. Only real root may mount it.

    ``inner`` are other parts of the same file that belong below it: mount point, offset, size and file system. Where
    the kernel does not know one of these, an empty read-only folder is there, so that nothing is written beside it.
    """

    path: str
    offset: int
    size: int
    fs: str
    read_only: bool = False
    inner: tuple[tuple[str, int, int, str], ...] = ()


Mount = DirectoryMount | OverlayMount | BlockMount
KINDS: dict[str, type[DirectoryMount] | type[OverlayMount] | type[BlockMount]] = {
    kind.__name__: kind for kind in (DirectoryMount, OverlayMount, BlockMount)
}


def _folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_part(mount: BlockMount, offset: int, size: int, fs: str, place: str) -> None:
    device, fd = linux.attach_loop(mount.path, offset, size, read_only=mount.read_only)
    try:
        linux.mount(device, place, fs, linux.NODEV | (linux.RDONLY if mount.read_only else 0))
    finally:
        os.close(fd)


class Mounted:
    """A mounted root. ``place`` is where; ``made`` a descriptor of the folder that holds what is new (or None)."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._lower: list[int] = []
        self.made: int | None = None
        if isinstance(mount, DirectoryMount):
            self.place = mount.path
            self.made = _folder(mount.path)
            linux.mount(mount.path, mount.path, flags=linux.BIND | linux.RECURSIVE)
        elif isinstance(mount, OverlayMount):
            self.place = mount.upper or mount.layers[-1]
            self._overlay(mount)
        else:
            self.place = next(d for d in _SPARE if os.path.isdir(d) and not mount.path.startswith(d + "/"))
            self._inner: list[str] = []
            _mount_part(mount, mount.offset, mount.size, mount.fs, self.place)
            for point, offset, size, fs in mount.inner:
                place = self.place + os.path.normpath("/" + point.strip("/"))
                if os.path.realpath(place) != place or not os.path.isdir(place):
                    raise OSError(errno.ENOTDIR, "no folder to mount a partition on", point)
                try:
                    _mount_part(mount, offset, size, fs, place)
                except OSError as error:
                    if error.errno != errno.ENODEV:
                        raise
                    linux.mount("none", place, "tmpfs", linux.RDONLY, "mode=0755")
                self._inner.append(place)

    def _overlay(self, mount: OverlayMount) -> None:
        """Mount over ``upper`` itself. Layers are named by descriptor, so that hundreds fit in the mount's one page.

        ``userxattr``: without privilege in the first user namespace, overlayfs keeps its notes in user.overlay.*
        (kernel: Documentation/filesystems/overlayfs.rst, "User xattr"). ``volatile``: no fsync of the guest reaches
        the medium; the layer is flushed as a whole when it is done (ibid., "Volatile mount").
        """
        self._lower = [_folder(path) for path in reversed(mount.layers)]
        os.chdir("/proc/self/fd")
        data = "userxattr,lowerdir=" + ":".join(map(str, self._lower))
        if mount.upper:
            self.made = _folder(mount.upper)
            _same_attributes(self._lower[0], self.made)
            work = _folder(mount.work)
            linux.mount("overlay", self.place, "overlay", 0, f"{data},volatile,upperdir={self.made},workdir={work}")
            os.close(work)
        elif len(self._lower) > 1:
            linux.mount("overlay", self.place, "overlay", linux.RDONLY, data)
        else:
            linux.mount(self.place, self.place, flags=linux.BIND | linux.RECURSIVE)
            linux.read_only(self.place)
        os.chdir("/")

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written to it."""
        mount = self._mount
        return mount.read_only if isinstance(mount, BlockMount) else self.made is None

    def close(self, *, touched: Sequence[str], since: float, epoch: int) -> None:
        """Unmount, give what was made since ``since`` the time ``epoch``, drop traces in ``touched``, and flush."""
        if isinstance(self._mount, BlockMount):
            for place in [*reversed(self._inner), self.place]:
                fd = _folder(place)
                linux.flush(fd)
                os.close(fd)
                linux.umount(place, detach=False)
            return
        linux.umount(self.place)
        if self.made is None:
            return
        if isinstance(self._mount, OverlayMount):
            shutil.rmtree(self._mount.work)
            for path in touched:
                self._forget(path.strip("/"))
        normalise(self.made, since, epoch)
        linux.flush(self.made)

    def _forget(self, path: str) -> None:
        """Remove copies of a file and of directories that overlayfs made only because we once put something there."""
        assert self.made is not None
        while path:
            with _parent(self.made, path) as folder:
                here = _look(folder, path)
                if here is not None:
                    if not self._is_copy(folder, path, here):
                        return
                    holder = os.fstat(folder)
                    try:
                        (os.rmdir if stat.S_ISDIR(here.st_mode) else os.unlink)(os.path.basename(path), dir_fd=folder)
                    except OSError:  # a directory that holds more
                        return
                    os.utime(folder, ns=(holder.st_atime_ns, holder.st_mtime_ns))
            path = os.path.dirname(path)

    def _is_copy(self, folder: int, path: str, here: os.stat_result) -> bool:
        for layer in self._lower:
            with _parent(layer, path) as below_folder:
                below = _look(below_folder, path)
                if below is not None:
                    return _attributes(here) == _attributes(below) and (
                        not stat.S_ISREG(here.st_mode) or _content(folder, path) == _content(below_folder, path)
                    )
        return False


@contextmanager
def _parent(root: int, path: str) -> Iterator[int]:
    """Open the directory that holds ``path`` below ``root``, following no link; -1 where there is none."""
    fd = os.dup(root)
    try:
        for name in os.path.dirname(path).split("/"):
            if name:
                try:
                    deeper = os.open(name, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                except OSError:
                    yield -1
                    return
                os.close(fd)
                fd = deeper
        yield fd
    finally:
        os.close(fd)


def _look(folder: int, path: str) -> os.stat_result | None:
    try:
        return None if folder < 0 else os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None


def _content(folder: int, path: str) -> bytes:
    with open(os.open(os.path.basename(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        return file.read()


def _attributes(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns


def _same_attributes(source: int, target: int) -> None:
    """A layer's own folder stands for ``/``: it must look like that of the layer below."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))


def normalise(root: int, since: float, epoch: int) -> None:
    """Set the times of everything under ``root`` that is not older than ``since`` to ``epoch``.

    Packages' files keep the times they have in their archives; what was made by the build must not tell when.
    """
    new = (epoch, epoch)
    for directory, names in _walk(root):
        for name in names:
            if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime >= since:
                os.utime(name, new, dir_fd=directory, follow_symlinks=False)
    if os.fstat(root).st_mtime >= since:
        os.utime(root, new)


def _walk(root: int) -> Iterator[tuple[int, list[str]]]:
    for _, folders, files, directory in os.fwalk(".", topdown=False, dir_fd=root):
        yield directory, folders + files
