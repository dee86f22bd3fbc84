"""Downloads: resumed, retried, verified, and kept in the store by digest.

::

    <folder>/sha256-…         verified contents
    <folder>/<name>.part      what came so far, with <name>.from (the server's word for this version of the file)
    <folder>/<name>.lock      held by whoever is downloading
    <folder>/url-….json       for ``checksum: none``: what the server called the contents it sent, and their digest
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from imagesmith.errors import BuildError, Interrupted, Refused
from imagesmith.events import Progress
from imagesmith.fetch_http import Http, forget, shown, version_file
from imagesmith.fetch_sums import Pin, find_pin, pinned, signed_text
from imagesmith.host import Host
from imagesmith.interfaces import Log
from imagesmith.store_files import Lock, file_sha256, guarding, lock

_SMALL = 4 << 20  # bytes; the largest list of checksums or signature that is read


def local_path(url: str) -> Path | None:
    """The file that a plain path or a ``file:`` URL names; None for a URL. Raises Refused for other kinds of URL."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise Refused(f"{url} names a file on another host")
        return Path(unquote(parts.path))
    if "://" in url:
        raise Refused(f"cannot fetch {shown(url)}: only http, https and file are known")
    return Path(url)


class Fetcher:
    """Fetches files into a folder that other processes use, too."""

    def __init__(
        self, folder: Path, host: Host, log: Log, *, delays: Sequence[float] = (1, 2, 4, 8, 15), every: float = 10,
        progress: Callable[[Progress], object] = lambda progress: None,
    ) -> None:  # fmt: skip
        """See fetch_http.Http."""
        self._folder = folder
        self._host = host
        self._log = log
        self._http = Http(lambda: host.cancelled, log, delays=delays, every=every, progress=progress)

    def fetch(self, url: str, checksum: str, signature: str = "", keyring: Path | None = None) -> Path:
        """Return a local file with the verified contents of ``url``; a local file is verified where it is.

        ``checksum`` is ``sha256:…``, ``sha512:…``, ``none``, or the URL or path of a list of checksums in which the
        line for the URL's base name counts; ``signature`` (URL or path) and ``keyring`` verify that list. What has the
        checksum already needs no network. Raises Refused (nothing is kept), BuildError, StoreError, Interrupted.
        """
        pin = pinned(checksum)
        if pin is None and checksum != "none":
            pin = self._listed(url, checksum, signature, keyring)
        elif signature or keyring:
            raise Refused(f"a signature is on a list of checksums, and '{checksum}' is none")
        local = local_path(url)
        if local is not None:
            return self._verified(local, pin)
        return self._unpinned(url) if pin is None else self._pinned(url, pin)

    def _listed(self, url: str, sums: str, signature: str, keyring: Path | None) -> Pin:
        if signature and keyring is None:
            raise Refused(f"there is a signature for {shown(sums)}, and no keyring to verify it with",
                          hint="name the keyring that holds the publisher's key: keyring: …")  # fmt: skip
        text = signed_text(
            self._host, self._small(sums), signature=self._small(signature) if signature else None,
            keyring=keyring, source=shown(sums),
        )  # fmt: skip
        local = local_path(url)
        name = local.name if local is not None else unquote(urlsplit(url).path).rsplit("/", 1)[-1]
        return find_pin(text, name, shown(sums))

    def _small(self, url: str) -> bytes:
        local = local_path(url)
        if local is not None:
            try:
                with local.open("rb") as stream:
                    content = stream.read(_SMALL + 1)
            except OSError as error:
                raise BuildError(f"cannot read {local}: {error.strerror}") from error
        else:
            part = self._folder / f"small-{hashlib.sha256(url.encode()).hexdigest()}.part"
            with self._alone(part.stem), guarding(self._folder, f"fetch {shown(url)}"):
                try:
                    self._http.download(url, part, limit=_SMALL)
                    content = part.read_bytes()
                finally:
                    forget(part)
        if len(content) > _SMALL:
            raise Refused(f"{shown(url)} is too large for a list of checksums or a signature")
        return content

    # -- the three ways to a file ----------------------------------------------------------------------------------

    def _verified(self, local: Path, pin: Pin | None) -> Path:
        try:
            got = _digest(local, pin.algorithm) if pin is not None else ""
            local.stat()
        except OSError as error:
            raise BuildError(f"cannot read {local}: {error.strerror}") from error
        if pin is not None and got != pin.digest:
            raise _mismatch(str(local), pin, got)
        return local

    def _pinned(self, url: str, pin: Pin) -> Path:
        kept = self._folder / pin.name
        with self._alone(pin.name), guarding(self._folder, f"fetch {shown(url)}"):
            if kept.exists():
                kept.touch()  # the store's collection goes by it
                return kept
            part = self._folder / f"{pin.name}.part"
            resumed = self._http.download(url, part)
            got = _digest(part, pin.algorithm)
            if got != pin.digest and resumed:
                self._log(f"{shown(url)}: the pieces do not fit together; once more from the start")
                forget(part)
                self._http.download(url, part)
                got = _digest(part, pin.algorithm)
            if got != pin.digest:
                forget(part)
                raise _mismatch(shown(url), pin, got)
            self._keep(part, kept)
        return kept

    def _unpinned(self, url: str) -> Path:
        name = f"url-{hashlib.sha256(url.encode()).hexdigest()}"
        note = self._folder / f"{name}.json"
        with self._alone(name), guarding(self._folder, f"fetch {shown(url)}"):
            try:
                version, digest = json.loads(note.read_text())
            except (OSError, ValueError):
                version, digest = "", ""
            kept = self._folder / f"sha256-{digest}"
            part = self._folder / f"{name}.part"
            known = str(version) if digest and kept.exists() else ""
            if self._http.download(url, part, known=known) is None:
                self._log(f"{shown(url)}: unchanged on the server")
                kept.touch()
                note.touch()
                return kept
            version = version_file(part).read_text() if version_file(part).exists() else ""
            digest = file_sha256(part)
            kept = self._folder / f"sha256-{digest}"
            self._keep(part, kept)
            note.write_text(json.dumps([version, digest]))
            note.chmod(0o600)
        return kept

    def _keep(self, part: Path, kept: Path) -> None:
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(kept)
        forget(part)

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Be the only process and thread that fetches this; a wait for another is announced."""
        mine: Lock | None = None
        with guarding(self._folder, "lock a download"):
            mine = lock(self._folder / f"{name}.lock", wait=False)
            if mine is None:
                self._log("waiting for another build that fetches the same file")
            while mine is None:
                time.sleep(0.05)
                if self._host.cancelled:
                    raise Interrupted()
                mine = lock(self._folder / f"{name}.lock", wait=False)
        try:
            yield
        finally:
            mine.release(remove=True)


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _mismatch(what: str, pin: Pin, got: str) -> Refused:
    return Refused(
        f"{what} is not what the recipe expects (nothing was kept):\n"
        f"  expected {pin.algorithm}:{pin.digest}\n  got      {pin.algorithm}:{got}",
        hint="if the publisher replaced the file and you trust it, put the new checksum into the recipe",
    )
