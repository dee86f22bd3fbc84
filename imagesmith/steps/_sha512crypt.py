"""SHA-512 password hashes as crypt(3) reads them (Ulrich Drepper, "Unix crypt using SHA-256 and SHA-512", 0.6).

Made here, with a salt that is the same every time, because chpasswd in the guest would draw a new one each build.
"""

from __future__ import annotations

import hashlib

_LETTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS = 5000


def salt_of(password: str, user: str) -> str:
    """Return a salt of 16 letters, always the same for a user and password.

    It comes out of scrypt (RFC 7914), so that it is of no help to somebody who guesses.
    """
    raw = hashlib.scrypt(password.encode(), salt=b"imagesmith:" + user.encode(), n=1 << 14, r=8, p=1, dklen=16)
    return "".join(_LETTERS[byte & 63] for byte in raw)


def sha512_crypt(password: str, salt: str) -> str:
    """Return ``$6$salt$hash``."""
    key, pinch = password.encode(), salt.encode()
    inner = hashlib.sha512(key + pinch + key).digest()
    start = hashlib.sha512(key + pinch + _stretch(inner, len(key)))
    length = len(key)
    while length:
        start.update(inner if length & 1 else key)
        length >>= 1
    state = start.digest()
    p = _stretch(hashlib.sha512(key * len(key)).digest(), len(key))
    s = _stretch(hashlib.sha512(pinch * (16 + state[0])).digest(), len(pinch))
    for number in range(_ROUNDS):
        step = hashlib.sha512(p if number & 1 else state)
        if number % 3:
            step.update(s)
        if number % 7:
            step.update(p)
        step.update(state if number & 1 else p)
        state = step.digest()
    return f"$6${salt}${_encode(state)}"


def _stretch(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _encode(state: bytes) -> str:
    letters = []
    a, b, c = 0, 21, 42
    for _ in range(21):
        letters.append(_group(state[a] << 16 | state[b] << 8 | state[c], 4))
        a, b, c = b + 1, c + 1, a + 1
    return "".join([*letters, _group(state[63], 2)])


def _group(value: int, count: int) -> str:
    return "".join(_LETTERS[value >> 6 * i & 63] for i in range(count))
