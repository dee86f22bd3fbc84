"""Who may fill a shared cache: Ed25519 keys (RFC 8032), as openssl(1) makes them, in files.

::

    openssl genpkey -algorithm ed25519 -out cache.key
    openssl pkey -in cache.key -pubout -out cache.pub

The first signs, and is nobody else's; of the second kind, a file lists those whose entries are taken.
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from imagesmith.errors import RecipeError, Refused

_MEANT = b"an entry of an imagesmith cache, 1\n"
"""Stands before what is signed, so that a signature made for anything else is none here."""
_LARGEST = 1 << 20
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\s*", re.S)


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


@dataclass(frozen=True)
class Trust:
    """The public keys whose entries are taken."""

    keys: frozenset[bytes] = frozenset()

    def opened(self, signed: bytes) -> bytes:
        """What was signed, of what ``Signer.sealed`` made. Raises Refused, for whatever is not by one of the keys."""
        line, _, seal = signed.rstrip(b"\n").rpartition(b"\n")
        words = seal.split(b" ")
        if len(words) != 3 or words[0] != b"ed25519":
            raise Refused("it has no signature")
        try:
            key, signature = (base64.b64decode(word, validate=True) for word in words[1:])
        except binascii.Error:
            raise Refused("its signature is none") from None
        if key not in self.keys:
            raise Refused(f"it is signed by a key that is not trusted: {words[1].decode('ascii', 'replace')[:44]}")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, _MEANT + line)
        except (InvalidSignature, ValueError):
            raise Refused("its signature is wrong") from None
        return line

    def and_of(self, signer: Signer) -> Trust:
        """These, and who signs here."""
        return Trust(self.keys | {signer.public})


class Signer:
    """Signs entries."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = _raw(key.public_key())

    def sealed(self, line: bytes) -> bytes:
        """A line without line ends, with a second one: ``ed25519 KEY SIGNATURE``, in base64."""
        assert b"\n" not in line
        seal = [b"ed25519", base64.b64encode(self.public), base64.b64encode(self._key.sign(_MEANT + line))]
        return line + b"\n" + b" ".join(seal) + b"\n"


def trusted(file: Path) -> Trust:
    """The public keys in a file (PEM; text between them does not count). Raises RecipeError."""
    found = set()
    text = _read(file)
    for block in _PEM.findall(text):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise RecipeError((), f"{file}: one of the public keys in it cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise RecipeError((), f"{file}: one of the public keys in it is no Ed25519 key")
        found.add(_raw(key))
    if not found and b"PRIVATE KEY" in text:
        raise RecipeError((), f"{file} holds a private key; public ones are listed",
                          hint="openssl pkey -in FILE -pubout prints the public one")  # fmt: skip
    return Trust(frozenset(found))


def signer(file: Path) -> Signer:
    """The private key in a file (PEM, PKCS #8, not encrypted). Raises RecipeError."""
    key: object = None
    text = _read(file)
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = serialization.load_pem_private_key(text, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError((), f"{file} holds no Ed25519 private key without a passphrase",
                          hint="openssl genpkey -algorithm ed25519 -out FILE makes one")  # fmt: skip
    return Signer(key)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_LARGEST)
    except OSError as error:
        raise RecipeError((), f"cannot read the key file {file}: {error.strerror}") from error
