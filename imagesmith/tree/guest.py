"""What touches a guest's paths. Runs in a forked child that has made the guest its root, so that no link leads out.

Nothing here may import: the host's files are out of sight by then.
"""

from __future__ import annotations

import codecs
import errno
import glob
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

for _name in ("utf-8", "ascii", "iso8859-1", "unicode_escape"):
    codecs.lookup(_name)

_PLACES = ("/proc", "/sys", "/dev", "/")


def enter(root: str) -> None:
    """Make ``root`` the root of this process. There is no way back."""
    os.chroot(root)
    os.chdir("/")


def read(path: str, chunk: int) -> Iterator[bytes]:
    """Yield a regular file's bytes. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
    while data := os.read(fd, chunk):
        yield data


def remove(patterns: Sequence[str]) -> None:
    """Remove files and trees; wildcards are expanded as a shell does (``*`` leaves out hidden names)."""
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            if os.path.normpath(path) in _PLACES:
                raise OSError(errno.EPERM, "will not be removed", path)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)


def unpack(stream: BinaryIO) -> None:
    """Unpack a tar at ``/`` as ``Root.unpack`` says. Raises OSError, tarfile.TarError."""
    times: list[tuple[str, float]] = []
    with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
        for member in archive:
            path = "/" + os.path.normpath("/" + member.name).lstrip("/")
            if path == "/":
                continue
            _make_parents(os.path.dirname(path))
            if member.isdir():
                if os.path.isdir(path):
                    continue
                os.mkdir(path)
                times.append((path, member.mtime))
            else:
                _put(archive, member, path)
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
            if not member.issym():
                os.chmod(path, member.mode & 0o7777)
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
    for path, mtime in reversed(times):
        os.utime(path, (mtime, mtime))


def _make_parents(directory: str) -> None:
    if not os.path.isdir(directory):
        _make_parents(os.path.dirname(directory))
        os.mkdir(directory, 0o755)
        os.chmod(directory, 0o755)


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    """Make a file or link under a name of its own, and put it in its place: what runs there goes on running."""
    if os.path.isdir(path) and not os.path.islink(path):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    aside = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:200]}.imagesmith")
    try:
        os.unlink(aside)
    except FileNotFoundError:
        pass
    if member.issym():
        os.symlink(member.linkname, aside)
    elif member.islnk():
        os.link("/" + member.linkname.lstrip("/"), aside, follow_symlinks=False)
    elif member.isreg():
        source = archive.extractfile(member)
        assert source is not None
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    else:
        raise OSError(errno.EINVAL, "neither a file, a directory nor a link", member.name)
    os.rename(aside, path)
