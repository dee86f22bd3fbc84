"""What the store asks of the file system: locks that die with their owner, flushing, measuring, naming by contents."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from imagesmith.errors import StoreError

_libc = ctypes.CDLL(None, use_errno=True)


class Lock:
    """A held flock(2): it ends with ``release``, or with the process however that ends."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    def release(self, *, remove: bool = False) -> None:
        """Let go; with ``remove`` the lock's file goes, too. Doing it twice does no harm."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if remove:
                # While it is still held: whoever waits for it looks whether the file is there, and makes another.
                self.path.unlink(missing_ok=True)
            os.close(fd)


def lock(path: Path, *, wait: bool = True) -> Lock | None:
    """Lock a file, made where it is missing, against everyone else, threads of this process included.

    None where someone else has it and ``wait`` is off.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _take(fd, wait):
            return None
        if _still_there(path, fd):
            return Lock(path, fd)
        os.close(fd)  # its last owner removed it between our opening and our locking: another one counts now


def lock_folder(path: Path) -> Lock | None:
    """Lock a folder that is there, or None where someone has it or it went."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return Lock(path, fd) if _take(fd, wait=False) else None


def _take(fd: int, wait: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(fd)
        if not wait and error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _still_there(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


# -- space -------------------------------------------------------------------------------------------------------

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means that the folder's file system has no space left, or its user no quota.

    Programs' own words count when little is left here: a guest's disk may be full, too. SQLite says "disk I/O error"
    where it could not enlarge its shared memory.
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    if isinstance(error, sqlite3.Error):
        return "disk is full" in str(error) or free(folder) < 1 << 16
    return "No space left on device" in str(error) and free(folder) < 64 << 20


def is_rot(error: BaseException | None) -> bool:
    """Whether an error means that the index is no sound database: SQLite's own words for that, or a row's contents."""
    if isinstance(error, sqlite3.OperationalError):  # locked, out of space, not allowed …
        return "no such table" in str(error) or "no such column" in str(error) or "UTF-8" in str(error)
    return isinstance(error, (sqlite3.DatabaseError, ValueError))


def free(folder: Path) -> int:
    """The bytes that its user may still write to a file system."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def reserve(file: Path) -> None:
    """Set 1 MiB aside, where there is room: without it, nothing could be removed from a store that is full."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size == 0:
                os.posix_fallocate(fd, 0, 1 << 20)
        finally:
            os.close(fd)
    except OSError:
        file.unlink(missing_ok=True)


def no_space(folder: Path, doing: str) -> StoreError:
    """The error for a full file system: where, how much is free, and what frees more."""
    return StoreError(
        f"no space left to {doing}: {human(free(folder))} free in {folder}",
        hint="'imagesmith cache gc' removes what was not used lately; IMAGESMITH_CACHE puts the store elsewhere",
    )


def vanished(folder: Path) -> StoreError:
    """The error for a store that somebody removed, or put another one in its place, under our hands."""
    return StoreError(f"the store {folder} was removed or replaced while it was in use",
                      hint="build again: what was in it is made anew")  # fmt: skip


@contextmanager
def guarding(folder: Path, doing: str) -> Iterator[None]:
    """Turn 'no space left' and the index's errors into StoreError; ``doing`` completes "failed to …"."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if is_full(error, folder):
            raise no_space(folder, doing) from error
        if not (folder / "layers").is_dir():
            raise vanished(folder) from error
        if isinstance(error, sqlite3.Error):
            raise StoreError(
                f"the index of the store {folder} failed to {doing}: {error}",
                hint="'imagesmith cache verify --repair' makes it anew from what the layers' folders say of themselves",
            ) from error
        raise


def human(size: float) -> str:
    """A number of bytes, for people (powers of 1024)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


# -- files -------------------------------------------------------------------------------------------------------


def flush(folder: Path, *, many: bool) -> None:
    """Put everything in the folder, but for a checkpoint, on the medium; raises OSError where that failed.

    A few files by fsync(2), so that nobody else's are waited for; of ``many`` the whole file system, by syncfs(2):
    0.3 s against 1.9 s for a Debian root of 10,000 files, and it reaches files that belong to subordinate ids, which
    their maker may not open.
    """
    if not many:
        for entry in _walk(str(folder)):
            ours = CHECKPOINT not in Path(entry.path).relative_to(folder).parts
            if ours and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                flush_names(Path(entry.path))
        flush_names(folder)
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)


def flush_names(folder: Path) -> None:
    """Put the names in a folder, or what a file holds, on the medium."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def own(root: Path) -> None:
    """Make the store's folder, or see that it is ours alone: mode 0700. Raises StoreError where it is no store."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = root.stat()
    if found.st_uid != os.geteuid():
        raise StoreError(f"the store {root} belongs to another user (uid {found.st_uid})",
                         hint="let IMAGESMITH_CACHE name a folder of your own")  # fmt: skip
    if found.st_mode & 0o077:
        if any(root.iterdir()) and not (root / "index.db").exists():
            raise StoreError(f"{root} is neither empty nor a store, so it is left alone",
                             hint="let IMAGESMITH_CACHE name an empty folder or a new one")  # fmt: skip
        root.chmod(0o700)


def set_aside(path: Path, into: Path, name: str) -> Path:
    """Give a folder that is to be removed another name, in one step: it is there whole, or it is nothing.

    Returns its new name in ``into``; the old one where the file system has no room even for that.
    """
    for number in range(1000):
        aside = into / (f"{name}.gone" if not number else f"{name}.{number}.gone")
        try:
            if not aside.exists():
                return path.rename(aside)
        except FileNotFoundError:
            return path
        except OSError:
            break
    return path


def remove_tree(path: Path) -> None:
    """Remove a folder with everything in it, folders without write permission included."""

    def retry(function: Callable[[str], object], name: str, error: tuple[type, BaseException, object]) -> None:
        if isinstance(error[1], FileNotFoundError):
            return
        if not isinstance(error[1], PermissionError):
            raise error[1]
        for folder in (Path(name).parent, Path(name)):
            if stat.S_ISDIR(folder.lstat().st_mode):
                folder.chmod(0o700)
        if function in (os.unlink, os.rmdir):
            function(name)
        else:
            shutil.rmtree(name)

    shutil.rmtree(path, onerror=retry)


def _walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, sorted; folders that may not be read are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except PermissionError:
        return
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)


def allocated(folder: Path) -> int:
    """The bytes that a folder's files take on the disk; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for entry in _walk(str(folder)):
        found = entry.stat(follow_symlinks=False)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
        total += found.st_blocks * 512
    return total


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def layer_digests(
    gives: str, folder: Path, contents: Callable[[Path], str], known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:  # fmt: skip
    """What a layer is known by: the SHA-256 of every file by relative name, or a tree's shape and its ``contents``.

    ``known`` are those that its maker has hashed. Hashing runs at about 2 GB/s where the processor has instructions for
    it, 0.5 GB/s elsewhere: less than it took to write the files.
    """
    if gives == "tree":
        return {"": shape_digest(folder), CONTENTS: contents(folder)}
    names = (
        os.path.relpath(entry.path, folder) for entry in _walk(str(folder)) if entry.is_file(follow_symlinks=False)
    )  # fmt: skip
    return {
        name: known.get(name) or file_sha256(folder / name)
        for name in names if name != RECORD and not name.startswith(f"{CHECKPOINT}/")
    }  # fmt: skip


CHECKPOINT = "checkpoint"
"""The folder of a layer with a running guest's state. It may be finished after its layer, and can go at any time."""
SUMS = "SHA256SUMS"
"""The file of a checkpoint that is written last: the others' digests, as sha256sum(1) writes them."""
RECORD = "layer.json"
"""The file of a layer that says what it is (store_record)."""
CONTENTS = "its files' bytes"
"""The name of the digest of a tree's files."""


def contents_digest(folder: Path) -> str:
    """Name a tree by the bytes of its regular files: the SHA-256 of what ``find -type f -print0 | sort -z | xargs -0
    sha256sum -z`` prints in it (which is how it is made where the files belong to subordinate ids), without its record.
    """
    sha = hashlib.sha256()
    files = (entry.path for entry in _walk(str(folder)) if entry.is_file(follow_symlinks=False))
    for name in sorted(os.path.relpath(path, folder).encode("utf-8", "surrogateescape") for path in files):
        if name == RECORD.encode():
            continue
        digest = file_sha256(folder / os.fsdecode(name))
        sha.update(f"{digest}  ./".encode() + name + b"\0")
    return sha.hexdigest()


def shape_digest(folder: Path) -> str:
    """Name a tree by what lstat(2) tells of it: names, types, modes, owners, sizes, times of files, links' targets.

    It does not read the files (see ``contents_digest``), so it sees what was added, lost, cut or rewritten, and no bit
    that rotted in place. Sizes and times of folders are left out: they change when a store is moved to another file
    system.
    """
    sha = hashlib.sha256()
    for entry in _walk(str(folder)):
        if entry.path == f"{folder}/{RECORD}":
            continue
        found = entry.stat(follow_symlinks=False)
        row: list[object] = [os.path.relpath(entry.path, folder), found.st_mode, found.st_uid, found.st_gid]
        if entry.is_symlink():
            row.append(str(Path(entry.path).readlink()))
        elif stat.S_ISREG(found.st_mode):
            row += [found.st_size, int(found.st_mtime)]
        elif not stat.S_ISDIR(found.st_mode):
            row.append(found.st_rdev)
        sha.update(json.dumps(row).encode())
    return sha.hexdigest()
