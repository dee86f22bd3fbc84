"""The guest's serial console: kept in a file while it comes, readable as text, and watched for signs of failure."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

LOG_LIMIT = 16 * 1024 * 1024
"""Bytes of a console that are kept; a guest must not be able to fill the host's disk."""
_TAIL = 64 * 1024
_NEWS = 256 * 1024
_LONGEST = 8192
_END_OF_LOG = b"\n[imagesmith: the console said more than is kept]\n"

# ECMA-48: CSI sequences (5.4), OSC and other strings (5.6), two-byte escapes (5.3); then what is left of C0.
# Firmware and boot loaders paint: a movement of the cursor stands where a line's end would.
_MOVES = re.compile(r"\x1b\[[0-9;]*[HfJ]")
_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# What a console says when a boot has failed, and what that means. Each was seen from the program named.
_PANIC = re.compile(r"Kernel panic - not syncing: ?(.*)")
_FAULTS = (
    (re.compile(r"BdsDxe: failed to load Boot[^\n]*: Access Denied\n(?s:.*)BdsDxe: No bootable option"),
     "the firmware refused to boot what is not signed with a key it knows (UEFI Secure Boot)"),
    (re.compile(r"Verification failed: \(0x1A\) Security Violation"),
     "shim refused to start what is not signed with a key it knows (UEFI Secure Boot)"),
    (re.compile(r"error: bad shim signature"),
     "GRUB refused the kernel, which is not signed with a key that shim knows (UEFI Secure Boot)"),
    (re.compile(r"No bootable device"), "the firmware found no bootable device (SeaBIOS)"),
    (re.compile(r"BdsDxe: No bootable option|UEFI Interactive Shell|Shell>"),
     "the firmware found nothing to boot (UEFI)"),
    (re.compile(r"grub rescue>"), "GRUB does not find its files and dropped to its rescue prompt"),
    (re.compile(r"Minimal BASH-like line editing|^grub> ?$", re.M), "GRUB found no configuration and shows its prompt"),
    (re.compile(r"error: (?:you need to load the kernel first|file `[^']*(?:vmlinu|linux)[^']*' not found)"),
     "GRUB did not find the kernel that it was told to boot"),
    (re.compile(r"dropping to a shell!", re.I), "the initial RAM disk did not find the root file system"),
    (re.compile(r"Entering emergency mode\. Exit the shell to continue|You are in (?:emergency|rescue) mode"
                r"|Give root password for maintenance|Cannot open access to console, the root account is locked"),
     "start-up ended in emergency mode"),
    (re.compile(r"systemd\[1\]: Freezing execution|Freezing execution\."), "systemd gave up and froze"),
)  # fmt: skip


def plain(raw: bytes) -> str:
    """Return a console's text without control sequences, blank lines or trailing blanks."""
    text = _MOVES.sub("\n", raw.decode("utf-8", "replace"))
    text = _SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    lines = (line.rstrip() for line in _CONTROLS.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line)


def panic(text: str) -> str | None:
    """Return what a kernel's panic says, if there is one in a console's text (Linux: kernel/panic.c)."""
    found = _PANIC.search(text)
    return None if found is None else found[1].strip() or "no reason given"


def boot_fault(text: str) -> str | None:
    """Return, in words, why a boot has failed, if a console's text shows that it has."""
    reason = panic(text)
    if reason is not None:
        return f"the guest's kernel panicked: {reason}"
    return next((meaning for sign, meaning in _FAULTS if sign.search(text)), None)


class Lines:
    """Cuts what a console says into plain lines while it comes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, news: bytes) -> list[str]:
        """The lines that are whole now."""
        whole, end, self._rest = (self._rest + news).rpartition(b"\n")
        if len(self._rest) > _LONGEST:  # a screen that is painted has no lines' ends
            whole, end, self._rest = whole + end + self._rest, b"\n", b""
        return plain(whole).split("\n") if end else []

    @property
    def pending(self) -> str:
        """What stands at the end without a line's end: a prompt, perhaps, or half a line."""
        return plain(self._rest)


class Console:
    """Reads a console in a thread of its own until the other end closes it."""

    def __init__(self, wire: socket.socket, log: Path) -> None:
        """``wire`` is our end of QEMU's serial port, ``log`` the file that keeps what comes (as it comes)."""
        self.log = log
        self._wire = wire
        self._tail = self._news = b""
        self._copy: socket.socket | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="console", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        kept = 0
        with self.log.open("wb", buffering=0) as file:
            while True:
                try:
                    news = self._wire.recv(65536)
                except OSError:
                    return
                with self._lock:
                    self._tail = (self._tail + news)[-_TAIL:]
                    self._news = (self._news + news)[-_NEWS:]
                    copy = self._copy
                if copy is not None:
                    self._pass_on(copy, news)
                if not news:
                    return
                if kept < LOG_LIMIT:
                    kept += len(news)
                    file.write(news if kept < LOG_LIMIT else news + _END_OF_LOG)

    @staticmethod
    def _pass_on(copy: socket.socket, news: bytes) -> None:
        with suppress(OSError):  # nobody looks any more
            if news:
                copy.sendall(news)
            else:
                copy.close()

    def follow(self) -> socket.socket:
        """Return where all that comes can be read, as it comes, beginning with the last 64 KiB; to be called once."""
        ours, theirs = socket.socketpair()
        with self._lock:
            theirs.sendall(self._tail)
            self._copy = theirs
        return ours

    def type(self, data: bytes) -> None:
        """Type at it."""
        with suppress(OSError):  # QEMU has ended; Machine.check says why
            self._wire.sendall(data)

    @property
    def text(self) -> str:
        """The last 64 KiB, as plain text."""
        with self._lock:
            return plain(self._tail)

    def news(self) -> bytes:
        """What has come since the last call, at most the last 256 KiB of it, as it came."""
        with self._lock:
            news, self._news = self._news, b""
        return news

    def tail(self, lines: int = 25) -> str:
        """The last lines, as plain text."""
        return "\n".join(self.text.split("\n")[-lines:])

    def forget(self) -> None:
        """Leave what has come so far out of ``text``, ``tail`` and ``news``."""
        with self._lock:
            self._tail = self._news = b""

    def finish(self) -> None:
        """Wait for the rest, once the other end is closed, and close ours."""
        self._thread.join(2)
        self._wire.close()
        self._thread.join(2)
