"""What the tests of shared caches share: keys, a plan with a store, servers on this machine."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagesmith import api
from imagesmith.host import Host
from imagesmith.plan import Plan
from imagesmith.remote.pull import Came, pull
from imagesmith.remote.push import Went, push
from imagesmith.remote.trust import Trust, signer, trusted
from imagesmith.remote.where import Where, where
from imagesmith.store import Store


def key_pair(folder: Path, name: str = "ci") -> tuple[Path, Path]:
    """A private key and its public one, as the documentation makes them."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


def planned(recipe: Path, **variables: str) -> Plan:
    return api.make_plan(api.load(recipe, variables=variables))


def taken(plan: Plan, store: Path, source: str | Where, trust: Path | Trust, *, again: Sequence[str] = ()) -> Came:
    """Pull into a store."""
    place = where(source) if isinstance(source, str) else source
    listed = trusted(trust) if isinstance(trust, Path) else trust
    with (opened := Store(store)).using() as use:
        came = pull(plan, use, place, listed, Host(), again=again)
    opened.close()
    return came


def given(plan: Plan, store: Path, target: str | Where, key: Path) -> Went:
    """Push from a store."""
    place = where(target) if isinstance(target, str) else target
    with (opened := Store(store)).using() as use:
        went = push(plan, use, place, signer(key), Trust(), Host())
    opened.close()
    return went


def layers(store: Path) -> list[str]:
    """The names of what a store has, sorted."""
    opened = Store(store)
    found = sorted(layer.name for layer in opened.layers())
    opened.close()
    return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Files alone: who asks for a folder is told nothing."""

    def log_message(self, *args: object) -> None: ...

    def list_directory(self, path: object) -> None:
        self.send_error(403)


class _Silent(http.server.BaseHTTPRequestHandler):
    """Takes a request and never answers, or a byte at a time."""

    trickle = False

    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        if self.trickle:
            self.send_response(200)
            self.end_headers()
        while not self.server.end.wait(0.05):  # type: ignore[attr-defined]
            if self.trickle:
                self.wfile.write(b"x")

    def log_message(self, *args: object) -> None: ...


@contextmanager
def _running(handler: object) -> Iterator[tuple[str, http.server.ThreadingHTTPServer]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    server.asked, server.end = 0, threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server
    finally:
        server.end.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A static web server that lists no folder; its address."""
    with _running(functools.partial(_Quiet, directory=str(folder))) as (url, _):
        yield url


@contextmanager
def silent(*, trickle: bool) -> Iterator[tuple[str, http.server.ThreadingHTTPServer]]:
    """A web server that never answers: its address, and the server, whose ``asked`` counts requests.

    ``trickle``: it does, a byte at a time.
    """
    with _running(type("Mine", (_Silent,), {"trickle": trickle})) as found:
        yield found
