"""A mirror on loopback that the installer can install from, laid over the one that the host's apt uses.

Such a mirror may lack some of the installer's components. All is passed through (and kept), except

* ``Release``, ``Release.gpg`` and the installer's own index of the suite: made here, signed with a key that iso.py put
  into the installer; the index names the components that a simple install needs, the missing ones made by udebs.py;
* other suites' ``Release``: the lines that choose-mirror looks for, so that it finds the one suite valid.

``InRelease`` is passed through: debootstrap and the target's apt verify the real archive.
"""

from __future__ import annotations

import hashlib
import http.server
import lzma
import re
import threading
from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote

import requests

from imagesmith.host import Host
from tests.debian_installer.iso import installer, kernel_version
from tests.debian_installer.signer import Signer
from tests.debian_installer.suite import SUITE, Suite
from tests.debian_installer.udebs import repack

COMPONENTS = (
    "apt-mirror-setup", "apt-setup-udeb", "base-installer", "bootstrap-base", "clock-setup", "debootstrap-udeb",
    "di-utils-mapdevfs", "disk-detect", "dmidecode-udeb", "dosfstools-udeb", "finish-install", "grub-installer",
    "libdevmapper1.02.1-udeb", "libparted-fs-resize0-udeb", "libparted2-udeb", "os-prober-udeb", "partman-auto",
    "partman-base", "partman-basicfilesystems", "partman-basicmethods", "partman-ext3", "partman-partitioning",
    "partman-target", "partman-utils", "tzsetup-udeb", "user-setup-udeb",
)  # fmt: skip
"""What an install on one ext4 file system needs besides udebs.py's: each costs seconds under emulation.

pkgsel, which installs further packages, is not among them: the few come with the base system.
"""
NEVER_RUN = {"ntfs-3g-udeb", "rdate-udeb", "grub-mount-udeb"}
"""Dependencies that such an install never runs."""
INDEX = "main/debian-installer/binary-amd64/Packages"


class Overlay:
    """Serves ``http://127.0.0.1:<port>/debian`` while entered. ``without``: components that are named, but lost."""

    def __init__(self, folder: Path, host: Host, *, without: Collection[str] = ()) -> None:
        self._suite, self._without = Suite(folder, host), without
        self._cache = folder / "mirror"
        self._lock, self._locks = threading.Lock(), dict[str, threading.Lock]()
        kernel = kernel_version(installer(folder, self._suite, host) / "linux")
        self._local = {file.name: file for file in repack(folder / "udebs", self._suite, kernel, host)}
        self._made = self._release(Signer(folder, host), host)
        self.asked: list[str] = []
        """What was asked for, in order."""

    @property
    def upstream(self) -> str:
        """The mirror below."""
        return self._suite.mirror

    @property
    def port(self) -> int:
        """Where it listens. A guest on QEMU's user network sees it at 10.0.2.2."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Overlay:
        overlay = self

        class Handler(_Handler):
            def find(self, path: str) -> Found | None:
                return overlay.find(path)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def find(self, path: str) -> Found | None:
        """What is at a path below the archive's root."""
        self.asked.append(path)
        if path in self._made:
            data = self._made[path]
            return None if data is None else Found(data=data)
        name = path.rpartition("/")[2]
        if name.partition("_")[0] in self._without:
            return None
        if path.startswith("pool/local/"):
            return Found(file=self._local[name]) if name in self._local else None
        file = self._fetch(path)
        if file is not None and re.fullmatch(r"dists/[^/]+/Release", path):
            wanted = r"(Origin|Suite|Codename|Architectures|Components):"
            lines = [line for line in file.read_text().splitlines() if re.match(wanted, line)]
            return Found(data="".join(f"{line}\n" for line in lines).encode())
        return None if file is None else Found(file=file)

    def _fetch(self, path: str) -> Path | None:
        """A file of the mirror below, fetched once; None where it has none."""
        file = self._cache / path
        with self._lock:
            lock = self._locks.setdefault(path, threading.Lock())
        with lock:
            if file.exists():
                return file
            with requests.get(f"{self.upstream}/{path}", timeout=60, stream=True) as answer:
                if answer.status_code == http.HTTPStatus.NOT_FOUND:
                    return None
                answer.raise_for_status()
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(file.name + ".part")
                with part.open("wb") as out:
                    for block in answer.iter_content(1 << 18):
                        out.write(block)
                part.rename(file)
                return file

    def _read(self, path: str) -> bytes:
        file = self._fetch(path)
        assert file is not None, f"{self.upstream}/{path} is not there"
        return file.read_bytes()

    def _release(self, signer: Signer, host: Host) -> dict[str, bytes | None]:
        """The installer's index and what verifies it, by path. The index is there in one form only."""
        top = f"dists/{SUITE}"
        index = lzma.compress("".join(f"{stanza}\n\n" for stanza in self._stanzas(host)).encode())
        wanted = r"(Origin|Label|Suite|Version|Codename|Date|Architectures):"
        lines = [line for line in self._read(f"{top}/Release").decode().splitlines() if re.match(wanted, line)]
        digest = hashlib.sha256(index).hexdigest()
        lines += ["Components: main", "SHA256:", f" {digest} {len(index)} {INDEX}.xz"]
        release = "".join(f"{line}\n" for line in lines).encode()
        return {f"{top}/Release": release, f"{top}/Release.gpg": signer.sign(release), f"{top}/{INDEX}.xz": index,
                f"{top}/{INDEX}.gz": None, f"{top}/{INDEX}": None}  # fmt: skip

    def _stanzas(self, host: Host) -> list[str]:
        stanzas = {}
        for name, file in self._local.items():
            data = file.read_bytes()
            control = host.run(["dpkg-deb", "-f", file], purpose="read a component's fields").text.strip()
            stanzas[_field(control, "Package")] = (
                f"{control}\nFilename: pool/local/{name}\nSize: {len(data)}\n"
                f"MD5sum: {hashlib.md5(data, usedforsecurity=False).hexdigest()}\n"
                f"SHA256: {hashlib.sha256(data).hexdigest()}"
            )
        for stanza in lzma.decompress(self._read(f"dists/{SUITE}/{INDEX}.xz")).decode().strip().split("\n\n"):
            name = _field(stanza, "Package")
            if name in COMPONENTS and name not in stanzas:
                needs = [need for need in _field(stanza, "Depends").split(", ") if need.split(" ")[0] not in NEVER_RUN]
                stanzas[name] = re.sub(r"^Depends: .*$", "Depends: " + ", ".join(needs), stanza, flags=re.MULTILINE)
        lost = set(COMPONENTS) - set(stanzas)
        assert not lost, f"{self.upstream} does not even name these components: {sorted(lost)}"
        return list(stanzas.values())


def _field(stanza: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", stanza, re.MULTILINE)
    return found.group(1) if found else ""


@dataclass(frozen=True)
class Found:
    """A file, or bytes."""

    data: bytes = b""
    file: Path | None = None

    @property
    def size(self) -> int:
        """How many bytes."""
        return len(self.data) if self.file is None else self.file.stat().st_size

    def send(self, out: BufferedIOBase, start: int) -> None:
        """Write it from a byte on."""
        if self.file is None:
            out.write(self.data[start:])
            return
        with self.file.open("rb") as stream:
            stream.seek(start)
            while block := stream.read(1 << 18):
                out.write(block)


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET and HEAD, and ranges to the end (what apt and wget use to go on)."""

    protocol_version = "HTTP/1.1"

    def find(self, path: str) -> Found | None:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = re.sub(r"/{2,}", "/", unquote(self.path.split("?")[0]))
        inside = path.startswith("/debian/") and ".." not in path.split("/")
        found = self.find(path.removeprefix("/debian/")) if inside else None
        size = found.size if found else 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked.group(1)) if asked and int(asked.group(1)) < size else 0
        self.send_response(404 if found is None else 206 if start else 200)
        self.send_header("Content-Length", str(size - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if body and found is not None:
            found.send(self.wfile, start)
