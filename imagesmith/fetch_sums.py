"""What a download must be: checksums, lists of checksums, and the signatures on them."""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from imagesmith.errors import Refused, nearest
from imagesmith.host import Host

_DIGITS = {"sha256": 64, "sha512": 128}
_GNU = re.compile(r"^\\?([0-9a-fA-F]{32,128})\s+\*?(\S.*?)\s*$")  # coreutils' sha256sum: "HASH  name", "HASH *name"
_BSD = re.compile(r"^(\w[\w/-]*) ?\((.+)\) ?= ?([0-9a-fA-F]{32,128})\s*$")  # BSD's md5(1), coreutils' --tag
_ALONE = re.compile(r"^\s*([0-9a-fA-F]{64}|[0-9a-fA-F]{128})\s*$")


@dataclass(frozen=True)
class Pin:
    """The digest that a file must have."""

    algorithm: str
    """``sha256`` or ``sha512``."""
    digest: str
    """Lower-case hex."""

    @property
    def name(self) -> str:
        """The file's name in the store."""
        return f"{self.algorithm}-{self.digest}"


def pinned(checksum: str) -> Pin | None:
    """The digest in ``sha256:…`` or ``sha512:…``; None for anything else. Raises Refused for a malformed one."""
    algorithm, colon, digest = checksum.partition(":")
    if not colon or algorithm.lower() not in _DIGITS:
        return None
    pin = Pin(algorithm.lower(), digest.strip().lower())
    if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[pin.algorithm]}}}", pin.digest):
        raise Refused(f"'{checksum}' is no checksum: {pin.algorithm} has {_DIGITS[pin.algorithm]} hexadecimal digits")
    return pin


def find_pin(text: str, name: str, source: str) -> Pin:
    """Find a file's digest in a list of checksums: GNU lines, BSD lines, or one digest alone.

    The strongest is taken where the list has several for the file. ``source`` names the list in errors. Raises Refused
    where there is none, only MD5 or SHA-1, or two that contradict each other.
    """
    found: set[tuple[str, str]] = set()
    exact: set[tuple[str, str]] = set()
    names: set[str] = set()
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        if gnu := _GNU.match(line):
            digest, listed = gnu.group(1).lower(), gnu.group(2)
            algorithm = {64: "sha256", 128: "sha512"}.get(len(digest), "weak")
        elif bsd := _BSD.match(line):
            algorithm, listed, digest = bsd.group(1).lower().replace("-", ""), bsd.group(2), bsd.group(3).lower()
            algorithm = algorithm if len(digest) == _DIGITS.get(algorithm) else "weak"
        else:
            continue
        base = listed.rsplit("/", 1)[-1]
        names.add(base)
        if base == name:
            (exact if listed in (name, f"./{name}") else found).add((algorithm, digest))
    if not names and len(lines) == 1 and (alone := _ALONE.match(lines[0])):
        digest = alone.group(1).lower()
        return Pin("sha256" if len(digest) == 64 else "sha512", digest)
    found = exact or found
    if not found:
        raise Refused(f"{source} has no checksum for {name}{nearest(name, names)}")
    for algorithm in ("sha512", "sha256"):
        digests = {digest for a, digest in found if a == algorithm}
        if len(digests) > 1:
            raise Refused(f"{source} has two different {algorithm} checksums for {name}")
        if digests:
            return Pin(algorithm, digests.pop())
    raise Refused(f"{source} has no SHA-256 or SHA-512 for {name}, only weaker checksums",
                  hint="write the file's own checksum into the recipe: sha256:…")  # fmt: skip


# -- signatures (OpenPGP, RFC 4880) --------------------------------------------------------------------------------


def signed_text(
    host: Host, sums: bytes, *, signature: bytes | None, keyring: Path | None, source: str
) -> str:
    """The text of a list of checksums, after its signature was verified where a keyring is given.

    With ``signature`` that is a detached one; without, the list must be clear-signed (RFC 4880, section 7), and only
    what the signature covers is returned. Without a keyring a clear-signed list's text is taken as it is. Raises
    Refused, MissingTool.
    """
    clear = sums.lstrip().startswith(b"-----BEGIN PGP SIGNED MESSAGE-----")
    if keyring is None:
        if signature is not None:
            raise Refused(f"there is a signature for {source}, and no keyring to verify it with",
                          hint="name the keyring that holds the publisher's key: keyring: …")  # fmt: skip
        return _unwrapped(sums.decode("utf-8", "replace")) if clear else sums.decode("utf-8", "replace")
    if signature is None and not clear:
        raise Refused(f"{source} is not signed, and there is a keyring to verify it with",
                      hint="name the detached signature (signature: …), or leave the keyring out")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        here = Path(folder)
        (here / "keyring.gpg").write_bytes(_binary_keys(keyring))
        (here / "sums").write_bytes(sums)
        argv: list[str | Path] = ["gpgv", "--homedir", here, "--keyring", here / "keyring.gpg", "--status-fd", "1"]
        if signature is None:
            argv += ["--output", here / "text", here / "sums"]
        else:
            (here / "signature").write_bytes(signature)
            argv += [here / "signature", here / "sums"]
        done = host.run(argv, purpose=f"verify the signature of {source}", ok=range(256))
        words = {line.split()[1] for line in done.text.splitlines() if line.startswith("[GNUPG:] ")}
        # One good signature is enough (lists are often signed by an old and a new key), and a bad one is one too many.
        if "GOODSIG" not in words or "BADSIG" in words:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise Refused(f"the signature of {source} is not good: {said}",
                          hint="is it the publisher's key that is in the keyring?")  # fmt: skip
        return (sums if signature is not None else (here / "text").read_bytes()).decode("utf-8", "replace")


def _unwrapped(text: str) -> str:
    body = text.split("-----BEGIN PGP SIGNATURE-----", maxsplit=1)[0].replace("\r\n", "\n").split("\n\n", 1)[-1]
    return re.sub(r"(?m)^- ", "", body)


def _binary_keys(keyring: Path) -> bytes:
    """A keyring as gpgv wants it: armour (RFC 4880, section 6.2) taken off."""
    content = keyring.read_bytes()
    if not content.lstrip().startswith(b"-----BEGIN PGP PUBLIC KEY BLOCK-----"):
        return content
    keys = b""
    for block in re.findall(r"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END", content.decode("latin-1"), re.S):
        body = block.replace("\r\n", "\n").split("\n\n", 1)[-1]
        lines = [line.strip() for line in body.splitlines() if not line.startswith("=")]  # "=…": the block's CRC-24
        try:
            keys += base64.b64decode("".join(lines), validate=True)
        except binascii.Error as error:
            raise Refused(f"the keyring {keyring} is damaged: {error}") from error
    return keys
