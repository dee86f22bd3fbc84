"""How a session and its agent talk: frames over two pipes.

A frame is two big-endian lengths (32 bits: the header's; 64 bits: the payload's), a JSON header, and raw bytes.
Nothing is read ahead, so a forked child can take over the pipes in mid-conversation.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any

_LENGTHS = struct.Struct(">IQ")
CHUNK = 1 << 20
"""Bytes in one frame of a stream."""


def send(fd: int, header: Mapping[str, Any], payload: bytes | memoryview = b"") -> None:
    """Write a frame. Raises BrokenPipeError where nobody reads any more."""
    text = json.dumps(dict(header)).encode("ascii")
    _write(fd, _LENGTHS.pack(len(text), len(payload)) + text)
    _write(fd, payload)


def receive(fd: int) -> tuple[dict[str, Any], bytes]:
    """Read a frame. Raises EOFError where the other side is gone."""
    header_length, payload_length = _LENGTHS.unpack(_read(fd, _LENGTHS.size))
    header: dict[str, Any] = json.loads(_read(fd, header_length))
    return header, _read(fd, payload_length)


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(fd, min(length, CHUNK))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
