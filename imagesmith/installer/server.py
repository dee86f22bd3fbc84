"""The web server that hands answer files to one guest, and knows which of them it has asked for.

It listens on the loopback address, which the guest reaches through QEMU, below a path that nobody can guess, and it
answers this user's programs only (peers.py).
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from imagesmith.installer.peers import GUESTS_HOST, is_ours

_PATIENCE = 30.0
"""Seconds that a client may take for its request."""


class _Quiet(ThreadingHTTPServer):
    """A guest that goes away in the middle of an answer is nobody's error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


class Server:
    """Serves files from memory for as long as a ``with`` block lasts."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """``files``: relative names and contents."""
        self._files = dict(files)
        self._token = secrets.token_urlsafe(24)
        self._fetched: dict[str, float] = {}
        self._asked = 0
        self._unknown = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Quiet(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="answers", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    @property
    def address(self) -> tuple[str, int]:
        """Where the guest finds it: address and port."""
        return GUESTS_HOST, self._server.server_address[1]

    @property
    def path(self) -> str:
        """The folder with the files on it: ``/TOKEN/``."""
        return f"/{self._token}/"

    @property
    def url(self) -> str:
        """The same for the guest, as a URL."""
        host, port = self.address
        return f"http://{host}:{port}{self.path}"

    @property
    def fetched(self) -> Mapping[str, float]:
        """The files that were sent, and when first (time.monotonic)."""
        with self._lock:
            return dict(self._fetched)

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self._asked

    @property
    def unknown(self) -> str:
        """The last file that was asked for below our path, and that is none of ours."""
        return self._unknown

    # -- inside ------------------------------------------------------------------------------------------------

    def _find(self, path: str, *, sent: bool) -> bytes | None:
        _, token, name = (path.partition("?")[0] + "//").split("/", 2)
        name = name.removesuffix("//").removesuffix("/")
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        found = self._files.get(name)
        with self._lock:
            self._asked += 1
            if found is None:
                self._unknown = name[:200]
            elif sent:
                self._fetched.setdefault(name, time.monotonic())
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        find = self._find

        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE
            server_version, sys_version = "imagesmith", ""

            def do_GET(self) -> None:
                self._answer(body=True)

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def _answer(self, *, body: bool) -> None:
                found = find(self.path, sent=body) if is_ours("tcp", self.client_address[1]) else None
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                if body and found:
                    self.wfile.write(found)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the path is a secret."""

        return Handler
