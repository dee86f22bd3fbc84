"""Password hashes as crypt(3) reads them, the same every time."""

from __future__ import annotations

import hashlib
import re

_HASHED = re.compile(r"\$[0-9a-z]+\$[./A-Za-z0-9$=,_-]+$|[!*]")
_LETTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS = 5000  # crypt(5): the default of sha512crypt, which is then not written into the hash


def hashed(password: str, user: str) -> str:
    """Return a sha512crypt hash, ``$6$salt$…``; what is a hash already, or ``!`` or ``*``, as it is.

    It is made here, because chpasswd in the guest would draw a new salt in each build. The salt comes out of scrypt
    (RFC 7914) of the password and the user's name, so that it is of no help to somebody who guesses.
    """
    if _HASHED.match(password):
        return password
    from passlib.hash import sha512_crypt  # type: ignore[import-untyped]

    raw = hashlib.scrypt(password.encode(), salt=b"imagesmith:" + user.encode(), n=1 << 14, r=8, p=1, dklen=16)
    salt = "".join(_LETTERS[byte & 63] for byte in raw)
    return str(sha512_crypt.using(salt=salt, rounds=_ROUNDS).hash(password))
