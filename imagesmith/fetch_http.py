"""One file over HTTP: resumed, retried, with progress, and never from https back to http (RFC 9110)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from imagesmith.errors import BuildError, Interrupted, Refused
from imagesmith.events import Progress
from imagesmith.interfaces import Log
from imagesmith.store_files import human

_CHUNK = 1 << 18
_TIMEOUT = (20, 30)  # seconds without a connection, seconds without a byte
_REDIRECTS = 10
_TELL = 0.25
"""Seconds between two words on how far a download is."""
_LATE = 10.0
"""Seconds that a download's rate is taken from: the last ones."""


class _Lost(Exception):
    """The connection was lost or the server is busy: worth another try, after ``wait`` seconds at least."""

    def __init__(self, why: str, wait: float = 0) -> None:
        super().__init__(why)
        self.wait = wait


class NotThere(BuildError):
    """The server has no such file, or none for us: 403, 404 or 410 (RFC 9110, section 15.5)."""


def shown(url: str) -> str:
    """A URL for people: without the credentials that may be in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url


class Http:
    """Downloads into files."""

    def __init__(self, cancelled: Callable[[], bool], log: Log, *, delays: Sequence[float], every: float,
                 progress: Callable[[Progress], object] = lambda progress: None) -> None:  # fmt: skip
        """``delays``: seconds before each new try that follows a fruitless one; ``every``: seconds between two lines.

        ``progress`` is told several times a second how far a download is.
        """
        self._cancelled = cancelled
        self._log = log
        self._delays = delays
        self._every = every
        self._progress = progress
        self._session = requests.Session()
        bundle = os.environ.get("SSL_CERT_FILE", "")
        if bundle and not os.environ.get("REQUESTS_CA_BUNDLE"):
            self._session.verify = bundle

    def download(self, url: str, part: Path, *, known: str = "", limit: int | None = None) -> bool | None:
        """Complete ``part``. Return whether it was put together of pieces; None where the server still has ``known``.

        The work is done in a thread of its own, so that a cancelled build need not wait for a silent server.
        """
        stop = threading.Event()
        outcome: list[bool | BaseException | None] = []

        def work() -> None:
            try:
                outcome.append(self._attempts(url, part, known, limit, stop))
            except BaseException as error:
                outcome.append(error)

        worker = threading.Thread(target=work, daemon=True, name=f"fetch {shown(url)}")
        worker.start()
        try:
            while worker.is_alive():
                worker.join(0.1)
                if self._cancelled():
                    raise Interrupted()
        finally:
            stop.set()
        result = outcome[0]
        if isinstance(result, BaseException):
            raise result
        return result

    def _attempts(
        self, url: str, part: Path, known: str, limit: int | None, stop: threading.Event
    ) -> bool | None:
        fruitless = 0
        resumed = False
        while True:
            before = _size(part)
            resumed = resumed or before > 0
            try:
                return resumed if self._attempt(url, part, known, limit, stop) else None
            except _Lost as lost:
                fruitless = 0 if _size(part) > before else fruitless + 1
                if fruitless > len(self._delays):
                    raise BuildError(
                        f"cannot fetch {shown(url)}: {lost} ({urlsplit(url).hostname}, {fruitless} tries)",
                        hint="check the network and the proxy settings (https_proxy); what came is kept for resuming",
                    ) from lost
                pause = max(self._delays[max(fruitless - 1, 0)] if self._delays else 0, lost.wait)
                self._log(f"{shown(url)}: {lost}; trying again in {pause:g} s")
                if stop.wait(pause):
                    raise Interrupted() from None

    def _attempt(self, url: str, part: Path, known: str, limit: int | None, stop: threading.Event) -> bool:
        """One request; False where the server still has the ``known`` version."""
        have = _size(part)
        version = version_file(part).read_text() if have and version_file(part).exists() else ""
        headers = {"Accept-Encoding": "identity"}
        if have and version:
            headers |= {"Range": f"bytes={have}-", "If-Range": version}
        elif known:
            headers["If-None-Match" if known.startswith('"') else "If-Modified-Since"] = known
        with _losses(url), self._get(url, headers) as answer:
            if answer.status_code == 304 and known:
                return False
            if answer.status_code == 416:  # the part is as long as the file, or the file became shorter
                if answer.headers.get("Content-Range") == f"bytes */{have}":
                    return True
                forget(part)
                raise _Lost("the file changed on the server")
            if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
                raise _Lost(f"the server says {answer.status_code} {answer.reason}", _retry_after(answer))
            if answer.status_code not in (200, 206):
                kind = NotThere if answer.status_code in (403, 404, 410) else BuildError
                raise kind(f"cannot fetch {shown(url)}: the server says {answer.status_code} {answer.reason}",
                           hint="is the URL still right?")  # fmt: skip
            if answer.status_code == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                forget(part)
                raise _Lost("the server sent another piece than the one asked for")
            if answer.status_code == 200:
                have = 0
            self._receive(answer, url, part, have, limit, stop)
        return True

    def _receive(
        self, answer: requests.Response, url: str, part: Path, have: int, limit: int | None, stop: threading.Event
    ) -> None:
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        name = Path(urlsplit(url).path).name or shown(url)
        progress = _Progress(name, have, total, self._every, self._log, self._progress)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if have else os.O_TRUNC)
        with os.fdopen(os.open(part, flags, 0o600), "wb") as out:
            if not have:
                version_file(part).write_text(_version(answer))
                version_file(part).chmod(0o600)
            out.seek(have)
            for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                out.write(chunk)
                have += len(chunk)
                if stop.is_set():
                    raise Interrupted()
                if limit is not None and have > limit:
                    raise Refused(f"{shown(url)} is larger than {human(limit)}")
                progress.at(have)
        if total is not None and have < total:
            raise _Lost("the connection was cut off")
        progress.done(have)

    def _get(self, url: str, headers: dict[str, str]) -> requests.Response:
        """GET, following redirects among http and https alone, and never from https back to http."""
        here = url
        for _ in range(_REDIRECTS):
            answer = self._session.get(here, headers=headers, stream=True, timeout=_TIMEOUT, allow_redirects=False)
            there = answer.headers.get("Location")
            if answer.status_code not in (301, 302, 303, 307, 308) or not there:
                return answer
            answer.close()
            after = urljoin(here, there)
            if urlsplit(after).scheme not in ("http", "https"):
                raise Refused(f"{shown(url)} redirects to {shown(after)}: only http and https are followed")
            if urlsplit(here).scheme == "https" and urlsplit(after).scheme != "https":
                raise Refused(f"{shown(url)} redirects from https to {shown(after)}, which is not encrypted")
            here = after
        raise BuildError(f"cannot fetch {shown(url)}: more than {_REDIRECTS} redirects")


@contextlib.contextmanager
def _losses(url: str) -> Iterator[None]:
    """Tell what is worth another try from what is not."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        if "CERTIFICATE" not in str(error):
            raise _Lost(_reason(error)) from error
        raise BuildError(f"cannot fetch {shown(url)}: {_reason(error)}",
                         hint="SSL_CERT_FILE names another bundle of certificates") from error  # fmt: skip
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, HTTPError) as error:
        raise _Lost(_reason(error)) from error
    except requests.RequestException as error:
        raise BuildError(f"cannot fetch {shown(url)}: {type(error).__name__}") from error


def _reason(error: BaseException) -> str:
    """The innermost cause in words; requests' own text repeats the URL, with what may be secret in it."""
    if isinstance(error, requests.exceptions.ReadTimeout):
        return f"no answer for {_TIMEOUT[1]} s"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return f"no connection within {_TIMEOUT[0]} s"
    seen: BaseException | None = error
    found = ""
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror and not isinstance(seen, requests.RequestException):
            found = seen.strerror
        seen = seen.__cause__ or seen.__context__
    return found or "the connection was cut off"


def _retry_after(answer: requests.Response) -> float:
    word = answer.headers.get("Retry-After", "")
    return min(float(word), 60) if word.isdigit() else 0


def _version(answer: requests.Response) -> str:
    """What If-Range takes (RFC 9110, section 13.1.5): a strong entity tag, else the date of the last change."""
    tag: str = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def version_file(part: Path) -> Path:
    """Where it stands which version of the file a part belongs to."""
    return part.with_suffix(".from")


def forget(part: Path) -> None:
    """Remove a part."""
    part.unlink(missing_ok=True)
    version_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _Progress:
    """Tells several times a second how far a download is, and every few seconds says so in the log."""

    def __init__(self, name: str, have: int, total: int | None, every: float, log: Log,
                 tell: Callable[[Progress], object]) -> None:  # fmt: skip
        self._name, self._total, self._every, self._log, self._tell = name, total, every, log, tell
        self._began = self._said = self._told = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self._began, have)])
        """When there was how much, in the last seconds."""
        if have:
            log(f"{name}: going on at {human(have)}")

    def at(self, have: int) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL:
            self._told = now
            self._tell(Progress(self._name, have, self._total, self._rate(now, have)))
        if now - self._said >= self._every:
            self._said = now
            rate = self._rate(now, have)
            text = f"{human(have)}, {human(rate)}/s"
            if self._total and rate:
                text = (f"{100 * have // self._total} % of {human(self._total)}, {human(rate)}/s, "
                        f"{(self._total - have) / rate:.0f} s left")  # fmt: skip
            self._log(f"{self._name}: {text}")

    def _rate(self, now: float, have: int) -> float:
        """Bytes a second, of late."""
        self._seen.append((now, have))
        while now - self._seen[1][0] > _LATE:
            self._seen.popleft()
        began, before = self._seen[0]
        return (have - before) / (now - began) if now > began else 0.0

    def done(self, have: int) -> None:
        """It is whole."""
        took = time.monotonic() - self._began
        self._tell(Progress(self._name, have, have, have / took if took else 0.0, finished=True))
        self._log(f"{self._name}: {human(have)} in {took:.1f} s")
