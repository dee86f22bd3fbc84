"""Downloads against a real server that misbehaves, and the base that uses them."""

from __future__ import annotations

import hashlib
import http.server
import multiprocessing
import os
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from imagesmith.bases.cloud_image import CloudImage
from imagesmith.errors import BuildError, ImagesmithError, Interrupted, Refused, StoreError
from imagesmith.fetch import Fetcher
from imagesmith.host import Host
from imagesmith.interfaces import Log, Root
from imagesmith.store import Store

CONTENT = os.urandom(1 << 10) * 3000  # 3 MB
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
SHA512 = "sha512:" + hashlib.sha512(CONTENT).hexdigest()


def version(body: bytes) -> str:
    """A strong entity tag."""
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


@dataclass
class Site:
    """What the server serves, how it fails, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    trouble: list[int] = field(default_factory=list)
    """For each request in turn: a status to answer with, or (< 100) drop the connection after that many tenths."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range header of each request."""
    redirects: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    validators: bool = True
    stall: bool = False
    base: str = ""

    def url(self, name: str) -> str:
        return f"{self.base}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    site: ClassVar[Site]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site, name = self.site, self.path.partition("?")[0].lstrip("/")
        site.asked.append((name, self.headers.get("Range", "")))
        trouble = site.trouble.pop(0) if site.trouble else 100
        if name in site.redirects:
            self._head(302, {"Location": site.redirects[name], "Content-Length": "0"})
            return
        if trouble > 100 or name not in site.files:
            self._head(trouble if trouble > 100 else 404, {"Content-Length": "0", "Retry-After": "0"})
            return
        body = site.files[name]
        tag = version(body)
        headers = {"ETag": tag} if site.validators else {}
        if self.headers.get("If-None-Match") == tag:
            self._head(304, headers)
            return
        status, start = 200, 0
        wanted = self.headers.get("Range", "")
        if site.ranges and wanted and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self._head(status, headers | {"Content-Length": str(len(body) - start), "Content-Encoding": "x-gzip"})
        end = start + (len(body) - start) * trouble // 10 if trouble < 100 else len(body)
        self.wfile.write(body[start:end])
        if site.stall and trouble < 100:
            self.wfile.flush()
            time.sleep(20)
        if end < len(body):
            self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serving(site: Site, certificate: Path | None = None) -> Iterator[Site]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"site": site}))
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    site.base = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site({"image.qcow2": CONTENT})) as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Store(tmp_path / "store").blobs


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def fetcher(folder: Path, lines: list[str]) -> Fetcher:
    return Fetcher(folder, Host(), lines.append, delays=(0.01, 0.01, 0.01), every=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- the plain way -----------------------------------------------------------------------------------------------


def test_a_file_is_fetched_once_and_kept_by_its_digest(fetcher: Fetcher, site: Site, folder: Path) -> None:
    found = fetcher.fetch(site.url("image.qcow2"), SHA256)
    assert found.read_bytes() == CONTENT  # as sent, though the server calls it compressed
    assert names(folder) == [SHA256.replace(":", "-")]
    assert found.stat().st_mode & 0o077 == 0
    asked = len(site.asked)
    assert fetcher.fetch("http://no-such-host.invalid/other-name", SHA256.upper().replace("SHA", "sha")) == found
    assert len(site.asked) == asked
    assert fetcher.fetch(site.url("image.qcow2"), SHA512).read_bytes() == CONTENT


def test_progress_is_told(fetcher: Fetcher, site: Site, lines: list[str]) -> None:
    fetcher.fetch(site.url("image.qcow2"), SHA256)
    assert any("% of 2.9 MiB" in line and "/s" in line and "left" in line for line in lines)
    assert lines[-1].startswith("image.qcow2: 2.9 MiB in ")


def test_a_local_file_is_verified_where_it_is(fetcher: Fetcher, tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "an image.raw"
    file.write_bytes(CONTENT)
    assert fetcher.fetch(str(file), SHA256) == file
    assert fetcher.fetch(file.as_uri(), SHA512) == file
    with pytest.raises(Refused, match="not what the recipe expects"):
        fetcher.fetch(str(file), "sha256:" + "0" * 64)
    with pytest.raises(BuildError, match="No such file"):
        fetcher.fetch(str(tmp_path / "other"), "none")
    assert names(folder) == []


# -- trouble -----------------------------------------------------------------------------------------------------


def test_wrong_contents_are_refused_and_not_kept(fetcher: Fetcher, site: Site, folder: Path) -> None:
    with pytest.raises(Refused) as caught:
        fetcher.fetch(site.url("image.qcow2"), "sha256:" + "12" * 32)
    assert "expected sha256:" + "12" * 32 in str(caught.value)
    assert f"got      {SHA256}" in str(caught.value)
    assert names(folder) == []


def test_a_cut_connection_is_resumed(fetcher: Fetcher, site: Site, folder: Path) -> None:
    site.trouble = [5, 5, 5]
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    ranges = [asked for _, asked in site.asked]
    assert ranges == ["", "bytes=1536000-", "bytes=2304000-", "bytes=2688000-"]
    assert len(names(folder)) == 1


def test_a_busy_server_is_asked_again(fetcher: Fetcher, site: Site, lines: list[str]) -> None:
    site.trouble = [503, 429, 100]
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    assert sum("trying again" in line for line in lines) == 2


def test_a_server_that_stays_broken_is_given_up(fetcher: Fetcher, site: Site) -> None:
    site.trouble = [500] * 20
    with pytest.raises(BuildError, match="500 Internal Server Error"):
        fetcher.fetch(site.url("image.qcow2"), SHA256)
    assert len(site.asked) == 4


def test_what_is_not_there_is_not_asked_for_again(fetcher: Fetcher, site: Site) -> None:
    with pytest.raises(BuildError, match="404 Not Found"):
        fetcher.fetch(site.url("other.qcow2"), SHA256)
    assert len(site.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changes_between_the_pieces_is_begun_anew(
    fetcher: Fetcher, site: Site, folder: Path, ranges: bool
) -> None:
    site.files["image.qcow2"] = b"old" * 1_000_000
    site.trouble = [5, *[404]]
    site.ranges = ranges
    with pytest.raises(BuildError):
        fetcher.fetch(site.url("image.qcow2"), SHA256)
    assert any(name.endswith(".part") for name in names(folder))
    site.files["image.qcow2"] = CONTENT
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    assert len(names(folder)) == 1


def test_a_file_that_shrank_is_begun_anew(fetcher: Fetcher, site: Site, folder: Path) -> None:
    pin = SHA256.replace(":", "-")
    (folder / f"{pin}.part").write_bytes(b"x" * 4_000_000)
    (folder / f"{pin}.from").write_text(version(CONTENT))
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT


def test_a_part_that_is_damaged_is_begun_anew_once(fetcher: Fetcher, site: Site, folder: Path) -> None:
    pin = SHA256.replace(":", "-")
    (folder / f"{pin}.part").write_bytes(b"x" * 1_000_000)
    (folder / f"{pin}.from").write_text(version(CONTENT))
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    assert [asked for _, asked in site.asked] == ["bytes=1000000-", ""]


def test_a_server_without_versions_is_asked_for_the_whole_again(fetcher: Fetcher, site: Site) -> None:
    site.validators = False
    site.trouble = [5]
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    assert [asked for _, asked in site.asked] == ["", ""]


def test_no_network_names_the_host_and_the_reason(fetcher: Fetcher, site: Site) -> None:
    with pytest.raises(BuildError, match=r"no-such-host\.invalid.*(not known|resolution)") as caught:
        fetcher.fetch("https://joe:hunter2@no-such-host.invalid/x.qcow2?token=hunter3", SHA256)
    assert "hunter" not in str(caught.value) + caught.value.hint
    with pytest.raises(BuildError, match=r"127\.0\.0\.1.*refused"):
        fetcher.fetch("http://127.0.0.1:1/x.qcow2", SHA256)


def test_a_cancelled_build_does_not_wait_for_a_silent_server(site: Site, folder: Path) -> None:
    site.trouble, site.stall = [5], True
    host = Host()
    threading.Timer(0.4, host.cancel).start()
    with pytest.raises(Interrupted):
        Fetcher(folder, host, lambda _: None).fetch(site.url("image.qcow2"), SHA256)
    assert any(name.endswith(".part") for name in names(folder))


def _fetch_process(folder: Path, url: str, said: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Fetcher(folder, Host(), lambda _: None).fetch(url, SHA256)
    except KeyboardInterrupt:
        said.write_text("interrupted")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_download_is_resumed_by_the_next_build(
    fetcher: Fetcher, site: Site, folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    site.trouble, site.stall = [5], True
    arguments = (folder, site.url("image.qcow2"), tmp_path / "said")
    process = multiprocessing.get_context("fork").Process(target=_fetch_process, args=arguments)
    process.start()
    part = folder / f"{SHA256.replace(':', '-')}.part"
    while not (part.exists() and part.stat().st_size >= 1_000_000):
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(10)
    assert (tmp_path / "said").exists() == (number == signal.SIGINT)
    assert fetcher.fetch(site.url("image.qcow2"), SHA256).read_bytes() == CONTENT
    assert site.asked[-1][1].startswith("bytes=1")
    assert len(names(folder)) == 1


def test_builds_that_want_the_same_file_fetch_it_once(fetcher: Fetcher, site: Site, folder: Path) -> None:
    found: list[Path] = []
    crowd = [
        threading.Thread(target=lambda: found.append(fetcher.fetch(site.url("image.qcow2"), SHA256))) for _ in range(4)
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert len(found) == 4
    assert len(site.asked) == 1


# -- redirects ---------------------------------------------------------------------------------------------------


def test_redirects_stay_with_http(fetcher: Fetcher, site: Site) -> None:
    site.redirects = {"a": "/b", "b": site.url("image.qcow2"), "file": "file:///etc/passwd", "round": "/round"}
    assert fetcher.fetch(site.url("a"), SHA256).read_bytes() == CONTENT
    with pytest.raises(Refused, match="only http and https"):
        fetcher.fetch(site.url("file"), "none")
    with pytest.raises(BuildError, match="redirects"):
        fetcher.fetch(site.url("round"), "none")
    with pytest.raises(Refused, match="only http, https and file"):
        fetcher.fetch("ftp://127.0.0.1/x", "none")


def test_https_wants_a_certificate_and_never_falls_back(
    folder: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", certificate,
         "-out", tmp_path / "public.pem"], check=True, capture_output=True,
    )  # fmt: skip
    with certificate.open("a") as out:
        out.write((tmp_path / "public.pem").read_text())
    with serving(Site({"image.qcow2": CONTENT}), certificate) as safe:
        with pytest.raises(BuildError, match="certificate verify failed") as caught:
            Fetcher(folder, Host(), print).fetch(safe.url("image.qcow2"), SHA256)
        assert "SSL_CERT_FILE" in caught.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "public.pem"))
        fetcher = Fetcher(folder, Host(), print)
        safe.redirects = {"down": site.url("image.qcow2")}
        with pytest.raises(Refused, match="from https to http://"):
            fetcher.fetch(safe.url("down"), SHA256)
        assert fetcher.fetch(safe.url("image.qcow2"), SHA256).read_bytes() == CONTENT


def test_a_full_disk_says_so(fetcher: Fetcher, site: Site, folder: Path) -> None:
    (folder / f"{SHA256.replace(':', '-')}.part").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="no space left") as caught:
        fetcher.fetch(site.url("image.qcow2"), SHA256)
    assert "imagesmith cache gc" in caught.value.hint


# -- without a checksum ------------------------------------------------------------------------------------------


def test_without_a_checksum_the_server_is_asked_each_time(fetcher: Fetcher, site: Site, lines: list[str]) -> None:
    first = fetcher.fetch(site.url("image.qcow2"), "none")
    assert first.read_bytes() == CONTENT
    assert fetcher.fetch(site.url("image.qcow2"), "none") == first
    assert "unchanged on the server" in lines[-1]
    site.files["image.qcow2"] = b"a newer one"
    assert fetcher.fetch(site.url("image.qcow2"), "none").read_bytes() == b"a newer one"
    first.unlink()
    site.files["image.qcow2"] = CONTENT
    assert fetcher.fetch(site.url("image.qcow2"), "none").read_bytes() == CONTENT
    assert len(site.asked) == 4


# -- lists of checksums ------------------------------------------------------------------------------------------

_HEX = SHA256.partition(":")[2]
_HEX512 = SHA512.partition(":")[2]


@pytest.mark.parametrize(
    "text",
    [
        f"{'0' * 64}  other.qcow2\n{_HEX}  image.qcow2\n",
        f"{_HEX} *image.qcow2\r\n",
        f"{_HEX512}  ./image.qcow2\n",
        f"# Fedora\nSHA256 (other.qcow2) = {'0' * 64}\nSHA256 (image.qcow2) = {_HEX}\n",
        f"SHA512 (image.qcow2) = {_HEX512}\nSHA256 (image.qcow2) = {'0' * 64}\n",
        f"{'0' * 64}  old/image.qcow2\n{_HEX}  image.qcow2\n",
        f"{_HEX}\n",
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{_HEX}  image.qcow2\n-----BEGIN PGP SIGNATURE-----\n\nx",
    ],
)
def test_the_files_line_is_found_in_a_list(fetcher: Fetcher, site: Site, text: str) -> None:
    site.files["SUMS"] = text.encode()
    assert fetcher.fetch(site.url("image.qcow2"), site.url("SUMS")).read_bytes() == CONTENT


def test_a_list_may_be_a_local_file(fetcher: Fetcher, site: Site, tmp_path: Path) -> None:
    (tmp_path / "SUMS").write_text(f"{_HEX}  image.qcow2\n")
    assert fetcher.fetch(site.url("image.qcow2"), str(tmp_path / "SUMS")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"{_HEX}  image.qcow\n", "no checksum for image.qcow2; did you mean 'image.qcow'"),
        ("<html>404</html>", "no checksum for image.qcow2"),
        (f"{'a' * 32}  image.qcow2\n", "only weaker"),
        (f"SHA1 (image.qcow2) = {'a' * 40}\n", "only weaker"),
        (f"{_HEX}  a/image.qcow2\n{'0' * 64}  b/image.qcow2\n", "two different"),
        (f"{'0' * 64}  image.qcow2\n", "not what the recipe expects"),
        ("x" * (5 << 20), "larger than 4.0 MiB"),
    ],
)
def test_a_list_that_does_not_help_is_refused(
    fetcher: Fetcher, site: Site, folder: Path, text: str, complaint: str
) -> None:
    site.files["SUMS"] = text.encode()
    with pytest.raises(Refused, match=complaint.replace("?", r"\?")):
        fetcher.fetch(site.url("image.qcow2"), site.url("SUMS"))
    assert names(folder) == []


# -- signatures --------------------------------------------------------------------------------------------------


@dataclass
class Keys:
    home: Path

    def gpg(self, *argv: str | Path) -> None:
        common = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--pinentry-mode", "loopback"]
        subprocess.run([*common, "--passphrase", "", *argv], check=True, capture_output=True)

    def signed(self, text: str, mode: str, user: str = "good") -> bytes:
        (self.home / "in").write_text(text)
        self.gpg("--yes", "--local-user", user, "--output", self.home / "out", mode, self.home / "in")
        return (self.home / "out").read_bytes()

    def ring(self, user: str = "good", *, armour: bool = False) -> Path:
        file = self.home / f"{user}.{'asc' if armour else 'gpg'}"
        self.gpg("--yes", *(["--armor"] if armour else []), "--output", file, "--export", user)
        return file


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    # Not under tmp_path: gpg-agent's socket needs a short name.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="ism-") as name:
        found = Keys(Path(name))
        try:
            for user in ("good", "other"):
                found.gpg("--quick-generate-key", user, "ed25519", "sign", "never")
            yield found
        finally:
            subprocess.run(["gpgconf", "--homedir", name, "--kill", "all"], check=False, capture_output=True)


LIST = f"{_HEX}  image.qcow2\n"


@pytest.mark.parametrize("armour", [False, True])
def test_a_detached_signature_is_verified(fetcher: Fetcher, site: Site, keys: Keys, armour: bool) -> None:
    site.files |= {"SUMS": LIST.encode(), "SUMS.sig": keys.signed(LIST, "--detach-sign")}
    found = fetcher.fetch(
        site.url("image.qcow2"), site.url("SUMS"), signature=site.url("SUMS.sig"), keyring=keys.ring(armour=armour)
    )
    assert found.read_bytes() == CONTENT


def test_a_clear_signed_list_is_verified_and_nothing_outside_of_it_counts(
    fetcher: Fetcher, site: Site, keys: Keys
) -> None:
    clear = keys.signed(LIST, "--clear-sign")
    site.files["SUMS"] = clear
    assert fetcher.fetch(site.url("image.qcow2"), site.url("SUMS"), keyring=keys.ring()).read_bytes() == CONTENT
    empty = keys.signed("nothing\n", "--clear-sign")
    for forged in (LIST.encode() + empty, empty + LIST.encode()):
        site.files["SUMS"] = forged
        with pytest.raises(Refused):
            fetcher.fetch(site.url("image.qcow2"), site.url("SUMS"), keyring=keys.ring())


def test_a_signature_that_proves_nothing_is_refused(fetcher: Fetcher, site: Site, keys: Keys, folder: Path) -> None:
    image, sums = site.url("image.qcow2"), site.url("SUMS")
    site.files |= {"SUMS": LIST.encode(), "SUMS.sig": keys.signed(LIST, "--detach-sign")}
    site.files["wrong.sig"] = keys.signed(LIST + "\n", "--detach-sign")
    with pytest.raises(Refused, match=r"not good.*No public key"):
        fetcher.fetch(image, sums, signature=site.url("SUMS.sig"), keyring=keys.ring("other"))
    with pytest.raises(Refused, match=r"not good.*BAD signature"):
        fetcher.fetch(image, sums, signature=site.url("wrong.sig"), keyring=keys.ring())
    with pytest.raises(Refused, match="not signed"):
        fetcher.fetch(image, sums, keyring=keys.ring())
    with pytest.raises(Refused, match="no keyring"):
        fetcher.fetch(image, sums, signature=site.url("SUMS.sig"))
    with pytest.raises(Refused, match="is none"):
        fetcher.fetch(image, SHA256, keyring=keys.ring())
    assert names(folder) == []


# -- the base ----------------------------------------------------------------------------------------------------


class Shop:
    """A workshop that only fetches and notes what is imported."""

    arch, epoch, seed, hostname = "x86_64", 0, "", ""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.host = Host()
        self.log: Log = print
        self.imported: list[tuple[bytes, str]] = []

    def fetch(self, url: str, *, checksum: str, signature: str = "", keyring: Path | None = None) -> Path:
        return self.fetcher.fetch(url, checksum, signature, keyring)

    def import_disk(self, source: Path, into: Path, *, format: str = "") -> None:
        self.imported.append((source.read_bytes(), format))

    def tree(self, directory: Path) -> AbstractContextManager[Root]:
        raise NotImplementedError

    def inside(self, argv: Sequence[str], *, purpose: str, env: Mapping[str, str] | None = None) -> None:
        raise NotImplementedError


def base(folder: Path, **options: object) -> CloudImage:
    return CloudImage.model_validate(options, context={"folder": folder})


def complaint(folder: Path, **options: object) -> str:
    with pytest.raises(ValidationError) as caught:
        base(folder, **options)
    return str(caught.value.errors()[0]["msg"])


def test_a_cloud_image_is_fetched_and_imported(fetcher: Fetcher, site: Site, tmp_path: Path) -> None:
    shop = Shop(fetcher)
    (tmp_path / "SUMS").write_text(LIST)
    (tmp_path / "mine.img").write_bytes(b"mine")
    for image in (
        base(tmp_path, url=site.url("image.qcow2"), checksum=SHA256, format="raw"),
        base(tmp_path, url=site.url("image.qcow2"), checksum="SUMS"),
        base(tmp_path, path="mine.img"),
    ):
        image.make(tmp_path / "disk.qcow2", shop)
    assert shop.imported == [(CONTENT, "raw"), (CONTENT, ""), (b"mine", "")]
    with pytest.raises(ImagesmithError, match="not what the recipe expects"):
        base(tmp_path, path="mine.img", checksum=SHA256).make(tmp_path / "disk.qcow2", shop)


def test_the_key_is_the_contents_where_they_are_known(tmp_path: Path) -> None:
    for name, text in (("a.img", "a"), ("b.img", "a"), ("c.img", "c"), ("SUMS", LIST)):
        (tmp_path / name).write_text(text)

    def key(**options: object) -> dict[str, object]:
        return base(tmp_path, **options).identity()

    assert key(url="https://a/x", checksum=SHA256) == key(url="https://b/y", checksum=SHA256.upper())
    assert key(url="https://a/x", checksum=SHA256) == key(path="a.img", checksum=SHA256)
    assert key(path="a.img") == key(path="b.img", trusted=True)
    assert key(path="a.img") != key(path="c.img")
    assert key(path="a.img") != key(path="a.img", format="raw")
    assert key(url="https://a/x", checksum="none") != key(url="https://b/x", checksum="none")
    listed = key(url="https://a/x", checksum="SUMS")
    assert listed != key(url="https://a/x", checksum="https://a/SUMS")
    assert str(tmp_path) not in str(listed)
    (tmp_path / "SUMS").write_text("changed")
    assert listed != key(url="https://a/x", checksum="SUMS")


def test_a_cloud_image_that_cannot_be_trusted_or_found_is_complained_about(tmp_path: Path) -> None:
    (tmp_path / "ring.gpg").touch()
    url = "https://a/x.qcow2"
    assert "checksum: none" in complaint(tmp_path, url=url)
    assert "`url` or `path`" in complaint(tmp_path)
    assert "64 hexadecimal digits" in complaint(tmp_path, url=url, checksum="sha256:abc")
    assert "write sha256:" in complaint(tmp_path, url=url, checksum="a" * 64)
    assert "md5 proves nothing" in complaint(tmp_path, url=url, checksum="md5:" + "a" * 32)
    assert "no such file" in complaint(tmp_path, url=url, checksum="SHA256SUM")
    assert "named by `path`" in complaint(tmp_path, url="x.qcow2", checksum="none")
    assert "no such file" in complaint(tmp_path, path="x.qcow2")
    assert "needs `keyring`" in complaint(tmp_path, url=url, checksum="https://a/S", signature="https://a/S.sig")
    assert "list of checksums" in complaint(tmp_path, url=url, checksum=SHA256, keyring="ring.gpg")
