"""Where a shared cache is: small objects by name, read within a time and a size. Folders and buckets by fsspec, http(s)
by our own client, which follows no redirect from https to http.

(fsspec: "API Reference", ``AbstractFileSystem``; ``fsspec.asyn.sync`` runs a call of an asynchronous file system, as
those of buckets are, and gives up after ``timeout``.)
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-not-found,import-untyped,unused-ignore]
from fsspec.asyn import AsyncFileSystem, sync  # type: ignore[import-not-found,import-untyped,unused-ignore]

from imagesmith.errors import BuildError, ImagesmithError, Interrupted, RecipeError, Refused
from imagesmith.fetch_http import Http, NotThere, shown

PATIENCE = 15.0
"""Seconds that an answer may take, beside the time for its bytes."""
SLOWEST = 128 << 10
"""Bytes a second below which a cache is of no use."""


class Away(BuildError):
    """The shared cache does not answer, or not in time, or takes nothing."""


class Where(Protocol):
    """Objects by names such as ``entries/….json``. Every method raises Away."""

    shown: str
    """The address, for people."""

    def read(self, name: str, limit: int) -> bytes | None:
        """An object of at most ``limit`` bytes; None where there is none. Raises Refused for a larger one."""
        ...

    def size(self, name: str) -> int | None:
        """An object's bytes; None where there is none."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Put an object there, whole or not at all."""
        ...

    def list(self, folder: str) -> dict[str, float]:
        """The names of all objects below a folder, and when each was written (seconds since 1970)."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object; it is no error where there is none."""
        ...


def where(url: str, cancelled: Callable[[], bool] = lambda: False, *, patience: float = PATIENCE) -> Where:
    """Open a shared cache by its address: a path, or a URL of a kind that fsspec knows, or http(s), which is read only.

    Raises RecipeError for an address that leads nowhere, whatever happens.
    """
    if url.startswith(("http://", "https://")):
        return Web(url, cancelled, patience)
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise RecipeError((), f"the shared cache {shown(url)} needs a Python package that is not installed: {error}",
                          hint="s3:// is installed with imagesmith[s3], gs:// with gcsfs") from error  # fmt: skip
    except ValueError as error:
        raise RecipeError((), f"the shared cache {shown(url)}: {error}",
                          hint="write a folder, s3://…, gs://… or https://…") from error  # fmt: skip
    except Exception as error:
        raise RecipeError((), f"the shared cache {shown(url)}: {error}") from error
    return Bucket(files, root.rstrip("/"), shown(url), patience)


class Web:
    """Implements Where on what a web server shows; it can only be read."""

    def __init__(self, url: str, cancelled: Callable[[], bool], patience: float) -> None:
        self._url, self.shown, self._patience, self._cancelled = url.rstrip("/"), shown(url), patience, cancelled

    def read(self, name: str, limit: int) -> bytes | None:
        """See Where."""
        with tempfile.TemporaryDirectory(prefix="imagesmith-", ignore_cleanup_errors=True) as folder:
            part, began = Path(folder, "part"), time.monotonic()

            def late() -> bool:
                came = part.stat().st_size if part.exists() else 0
                return self._cancelled() or time.monotonic() > began + self._patience + came / SLOWEST

            client = Http(late, lambda line: None, delays=(1,), every=60)
            try:
                client.download(f"{self._url}/{name}", part, limit=limit)
            except NotThere:
                return None
            except Refused:
                raise
            except Interrupted:
                if self._cancelled():
                    raise
                raise Away("it does not answer in time") from None
            except (BuildError, OSError) as error:
                raise Away(str(error)) from error
            return part.read_bytes()

    def size(self, name: str) -> int | None:
        """Not to be had without asking for the object."""
        raise self._read_only()

    def write(self, name: str, data: bytes) -> None:
        """Not possible."""
        raise self._read_only()

    def list(self, folder: str) -> dict[str, float]:
        """Not possible."""
        raise self._read_only()

    def remove(self, name: str) -> None:
        """Not possible."""
        raise self._read_only()

    def _read_only(self) -> Away:
        return Away("a cache behind a web server can only be read", hint="write to the folder or bucket that it shows")


class Bucket:
    """Implements Where on a file system of fsspec."""

    def __init__(self, files: Any, root: str, named: str, patience: float) -> None:
        self._files, self._root, self.shown, self._patience = files, root, named, patience
        self._folders = "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol)
        """Whether it is a folder of this machine: objects are written aside and renamed."""

    def _do(self, method: str, bytes: int, *args: object, **options: object) -> Any:
        """Call a method of the file system, within its time where it can be given one."""
        try:
            if isinstance(self._files, AsyncFileSystem):
                within = self._patience + bytes / SLOWEST
                return sync(self._files.loop, getattr(self._files, f"_{method}"), *args, timeout=within, **options)
            return getattr(self._files, method)(*args, **options)
        except (FileNotFoundError, ImagesmithError):
            raise
        except TimeoutError as error:
            raise Away("it does not answer in time") from error
        except Exception as error:  # each file system has errors of its own
            raise Away(_reason(error)) from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str, limit: int) -> bytes | None:
        """See Where."""
        size = self.size(name)
        if size is None:
            return None
        if size > limit:
            raise Refused(f"{name} is larger than {limit} bytes")
        try:
            found: bytes = self._do("cat_file", size, self._path(name), start=0, end=size)
        except FileNotFoundError:
            return None
        return found

    def size(self, name: str) -> int | None:
        """See Where."""
        try:
            return int(self._do("info", 0, self._path(name))["size"])
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See Where."""
        path = self._path(name)
        if not self._folders:
            self._do("pipe_file", len(data), path, data)
            return
        aside = Path(f"{path}.{os.getpid()}.{time.monotonic_ns()}.part")
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            aside.replace(path)
        except OSError as error:
            raise Away(_reason(error)) from error
        finally:
            with suppress(OSError):
                aside.unlink()

    def list(self, folder: str) -> dict[str, float]:
        """See Where."""
        try:
            found: dict[str, dict[str, Any]] = self._do("find", 1 << 24, self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(self._root).lstrip("/"): _when(facts) for path, facts in found.items()}

    def remove(self, name: str) -> None:
        """See Where."""
        try:
            self._do("rm_file", 0, self._path(name))
        except FileNotFoundError:
            pass


def _when(facts: dict[str, Any]) -> float:
    """When an object was written, as the file system calls it: folders, S3, Google's; now, where it does not say."""
    found = next((facts[name] for name in ("mtime", "LastModified", "updated", "last_modified") if name in facts), None)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.timestamp() if isinstance(found, datetime) else float(found) if found is not None else time.time()


def _reason(error: BaseException) -> str:
    """An error in one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
    return " ".join(text.split())[:200]
