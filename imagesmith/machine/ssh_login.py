"""Who enters a guest over SSH, and with what: a key, a password, sudo.

The OpenSSH client takes a key and the pinned host keys from files alone, and a password from a program (ssh(1),
SSH_ASKPASS). These files are there while it logs in, in a private folder, and gone as soon as it has; the password is
in none of them, but in the environment of that one process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host

_ASKPASS = '#!/bin/sh\nprintf "%s\\n" "$IMAGESMITH_PASSWORD"\n'
_PURPOSE = "run steps in a guest over SSH"


@dataclass(frozen=True)
class Credentials:
    """What opens a guest. ``key`` is a private key as OpenSSH writes it; one of ``key`` and ``password`` is there."""

    user: str = "root"
    key: bytes = field(default=b"", repr=False)
    password: str = field(default="", repr=False)
    port: int = 22
    winrm: bool = False
    """Whether it is WinRM that is spoken, and not SSH: with a password, and without sudo."""
    sudo: bool = False
    """Whether all that is done in the guest goes through sudo; it gets ``password`` where it asks for one."""

    def check(self, folder: Path, host: Host) -> None:
        """Raise BuildError for a key that cannot be used. ``folder`` is private."""
        if not self.key:
            return
        file = folder / "given"
        _write(file, self.key)
        try:
            host.run(["ssh-keygen", "-y", "-P", "", "-f", file], purpose=_PURPOSE)
        except ToolFailed as error:
            said = error.tail.replace(str(file), "it").strip()
            raise BuildError(f"the private key of 'login' cannot be used: {said}",
                             hint="it must be one that ssh-keygen makes, without a passphrase") from None  # fmt: skip
        finally:
            file.unlink()


def make_key(folder: Path, host: Host) -> tuple[bytes, str]:
    """Make a throw-away key: its private half, and the line of the public one. Raises MissingTool, ToolFailed."""
    file = folder / "new"
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "imagesmith", "-f", file], purpose=_PURPOSE)
    public = file.with_suffix(".pub")
    try:
        return file.read_bytes(), public.read_text().strip()
    finally:
        file.unlink()
        public.unlink()


class Entrance:
    """The client's options, and its files while it logs in."""

    def __init__(self, credentials: Credentials, folder: Path) -> None:
        """``folder`` is private."""
        self._credentials, self._folder = credentials, folder
        self._pinned = b""

    @property
    def options(self) -> list[str]:
        """Options for logging in: ssh_config(5)."""
        methods = ["publickey"] if self._credentials.key else []
        methods += ["password", "keyboard-interactive"] if self._credentials.password else []
        return [
            "IdentitiesOnly=yes", "IdentityAgent=none", f"PreferredAuthentications={','.join(methods)}",
            f"IdentityFile={self._folder / 'key' if self._credentials.key else 'none'}",
            f"BatchMode={'no' if self._credentials.password else 'yes'}", "NumberOfPasswordPrompts=1",
            f"UserKnownHostsFile={self._folder / 'known_hosts'}", "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=accept-new", "HostKeyAlias=guest", "UpdateHostKeys=no",
        ]  # fmt: skip

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of the client that logs in, and of no other."""
        if not self._credentials.password:
            return {}
        return {"SSH_ASKPASS": str(self._folder / "askpass"), "SSH_ASKPASS_REQUIRE": "force",
                "IMAGESMITH_PASSWORD": self._credentials.password}  # fmt: skip

    def open(self) -> None:
        """Put the files there."""
        if self._credentials.key:
            _write(self._folder / "key", self._credentials.key)
        if self._credentials.password:
            _write(self._folder / "askpass", _ASKPASS.encode(), 0o700)
        if self._pinned:
            _write(self._folder / "known_hosts", self._pinned)

    def close(self) -> None:
        """Take them away again; the host's key, once seen, is kept in mind."""
        known = self._folder / "known_hosts"
        if known.exists():
            self._pinned = known.read_bytes()
        for name in ("key", "askpass", "known_hosts", "known_hosts.old"):
            (self._folder / name).unlink(missing_ok=True)

    def refusal(self, words: str) -> tuple[str, str, int]:
        """What a client's last words mean: in short, what to do, and after how many times that is final (0: never)."""
        user = self._credentials.user
        if "Host key verification failed" in words or "HOST IDENTIFICATION HAS CHANGED" in words:
            return ("another host key than at first contact",
                    "did a step, or the guest's start-up, remove or replace /etc/ssh/ssh_host_*?", 1)  # fmt: skip
        taken = re.search(r"Permission denied \(([^)]*)\)", words)
        if taken is None:
            return "", "", 0
        if not self._credentials.password:
            # Three times: the guest's start-up might still be busy with accounts.
            return f"key refused: {words}", (
                "does its sshd_config, or a file in sshd_config.d, say 'PermitRootLogin no', "
                "'PubkeyAuthentication no', or name other files of keys?" if user == "root"
                else f"is the key in {user}'s authorized_keys?"), 3  # fmt: skip
        if not {"password", "keyboard-interactive"} & set(taken[1].split(",")):
            return f"no passwords taken: {words}", "does its sshd_config say 'PasswordAuthentication no'?", 1
        return f"password refused: {words}", (
            "is 'login.password' right?" + (" And does its sshd_config say 'PermitRootLogin yes'? By default root may "
                                            "not come in with a password." if user == "root" else "")), 1  # fmt: skip


def _write(file: Path, content: bytes, mode: int = 0o600) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        stream.write(content)
