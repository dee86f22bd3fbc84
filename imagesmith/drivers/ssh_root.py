"""A running guest's root file system over SSH: files, and programs run inside, by its own shell, coreutils and tar."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from imagesmith.drivers import ssh_sftp, ssh_shell
from imagesmith.drivers.placing import place
from imagesmith.drivers.ssh_guest import BOOT_SECONDS, SshGuest
from imagesmith.errors import BuildError, GuestFailed, StepFailed, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Connection, Log, Result, Terminal

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
    "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
}  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_MOST_OUTPUT = 64 << 20
_TAIL = 40
_FOREVER = 30 * 24 * 3600.0
_ABSENT, _ODD, _KEPT = 44, 45, 46  # our scripts' own exit statuses
_NO_PROGRAM = 127  # POSIX, "Exit Status for Commands"

_READ = f'[ -e "$1" ] || exit {_ABSENT}; [ -f "$1" ] || exit {_ODD}; exec cat -- "$1"'
_ENTRIES = """cd "$1" || exit 1
for name in * .*; do
    if [ -L "$name" ]; then kind=l; elif [ -d "$name" ]; then kind=d; else kind=f; [ -e "$name" ] || continue; fi
    printf '%s%s\\0' "$kind" "$name"
done"""
_REMOVE = f"""IFS=
for pattern; do for path in $pattern; do
    [ -e "$path" ] || [ -L "$path" ] || continue
    case $path in /|/dev|/proc|/sys|*/.|*/..) echo "$path" >&2; exit {_KEPT} ;; esac
    rm -rf -- "$path" || exit 1
done; done"""


class SshRoot:
    """One step's view of the guest (interfaces.Running)."""

    online = True

    def __init__(self, host: Host, guest: SshGuest, *, epoch: int, log: Log, deadline: float | None) -> None:
        """``deadline`` is on the clock of ``time.monotonic``."""
        self._host, self._guest, self.epoch, self._log, self._deadline = host, guest, epoch, log, deadline
        self._lines: list[str] = []
        self._may_disconnect = False

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",
        check: bool = True,
    ) -> Result:
        """Run a program in the guest (interfaces.Root). What it leaves running runs on until the guest is ended."""
        known = self._host.environment()
        # A proxy on this host's loopback is not on the guest's.
        passed = {name: known[name] for name in _PROXIES
                  if name in known and not re.search(r"//(localhost|127\.|\[::1\])", known[name])}  # fmt: skip
        environment = {**_ENVIRONMENT, "SOURCE_DATE_EPOCH": str(self.epoch), **passed, **(env or {})}
        for name in environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BuildError(f"'{name}' is no name of an environment variable")
        script = "\n".join([
            *(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())),
            "umask 022", "cd /", "set -- " + shlex.join(argv), 'exec "$@" 2>&1',
        ])  # fmt: skip
        got = bytearray()
        logged = 0

        def say(end: int) -> None:
            nonlocal logged
            if end > logged:
                for text in got[logged:end].decode("utf-8", "replace").removesuffix("\n").split("\n"):
                    line = text.rstrip("\r").rpartition("\r")[2]
                    self._lines = [*self._lines[1 - _TAIL :], line]
                    self._log(line)
                logged = end

        def take(data: bytes) -> None:
            got.extend(data)
            say(got.rfind(b"\n", logged) + 1)
            if len(got) > _MOST_OUTPUT:
                raise StepFailed(f"a program wrote more than {_MOST_OUTPUT >> 20} MiB of output; send it to a file")

        asked = self._ask(script, input=input, take=take)
        say(len(got))
        status = asked[0] if asked is not None else 0
        output = got.decode("utf-8", "replace")
        if check and status != 0:
            tail = "\n".join(output.splitlines()[-_TAIL:])
            raise StepFailed(f"'{argv[0]}' failed in the guest (exit status {status})" + (f":\n{tail}" if tail else ""),
                             status=status, tail=tail)  # fmt: skip
        return Result(status, output)

    def read(self, path: str) -> bytes:
        """Return a file's bytes (interfaces.Root)."""
        status, out, said = self._small(_READ, path)
        if status == _ABSENT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if status == _ODD:
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status != 0:
            raise BuildError(f"cannot read {path} in the guest: {said}")
        return out

    def exists(self, path: str) -> bool:
        """Whether it is there, links followed inside the guest."""
        return self._small('[ -e "$1" ]', path)[0] == 0

    def unpack(self, archive: BinaryIO) -> None:
        """Unpack a tar at ``/`` (interfaces.Root).

        By the guest's tar, in one request, whoever is logged in: SFTP knows no links, owners and sudo. Where there is
        no tar, by SFTP and the guest's shell.
        """
        with tempfile.TemporaryFile() as file:
            place(archive, file, self, epoch=self.epoch)
            for _ in range(2):
                file.seek(0)
                asked = self._ask("umask 022; exec tar -x -p --numeric-owner -f - -C /", stdin=file)
                if asked is not None:
                    break
            status, said = asked or (1, "the connection ended twice")
            if status == _NO_PROGRAM:
                file.seek(0)
                ssh_sftp.unpack(file, self.connection(), self._small)
            elif status != 0:
                raise BuildError(f"tar failed in the guest (exit status {status}): {said}")

    def entries(self, folder: str) -> dict[str, str]:
        """The names in a folder and what each is (placing.Folders)."""
        status, out, said = self._small(_ENTRIES, folder)
        if status != 0:
            raise BuildError(f"cannot look into {folder} in the guest: {said}")
        found = [entry.decode("utf-8", "surrogateescape") for entry in out.split(b"\0") if entry]
        return {entry[1:]: entry[0] for entry in found if entry[1:] not in {".", ".."}}

    def folder_behind(self, link: str) -> str | None:
        """The folder that a link leads to (placing.Folders)."""
        status, out, _ = self._small('cd -P "$1" 2>/dev/null && pwd -P', link)
        return out.decode("utf-8", "surrogateescape").removesuffix("\n") if status == 0 else None

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and trees (interfaces.Root)."""
        for path in paths:
            if not path.startswith("/"):
                raise OSError(errno.EINVAL, "not an absolute path", path)
        status, _, said = self._small(_REMOVE, *("/" + posixpath.normpath(path).lstrip("/") for path in paths))
        if status == _KEPT:
            raise OSError(errno.EPERM, "will not be removed", said)
        if status != 0:
            raise BuildError(f"cannot remove files in the guest: {said}")

    # -- what needs a running guest ------------------------------------------------------------------------------

    def restart(self, within: float) -> None:
        """Restart the guest (interfaces.Running)."""
        self._guest.restart(min(within, self._left()), self._log)

    def expect_disconnect(self) -> None:
        """See interfaces.Running."""
        self._guest.admit(self._log)
        self._may_disconnect = True

    def connection(self) -> Connection:
        """The connection, for a program of this host (interfaces.Running)."""
        ssh = self._guest.ssh(self._log)
        return Connection(
            host=self._host, log=self._log, folder=ssh.folder, user=ssh.user, name="guest", options=ssh.arguments,
            sudo_password=ssh.sudo_password, left=lambda: None if self._deadline is None else self._left(),
            check=ssh.check,
        )  # fmt: skip

    def shell(self, terminal: Terminal) -> None:
        """Let the user in (interfaces.Enterable), beside whatever still runs."""
        self._deadline = None
        ssh_shell.shell(self.connection(), terminal)

    def finish(self) -> None:
        """The step is done: wait for the guest where the step sent it away; no key of ours is left in it."""
        if self._may_disconnect:
            self._guest.come_back(min(BOOT_SECONDS, self._left()), self._log)
        self._guest.dismiss()

    # -- asking ------------------------------------------------------------------------------------------------

    def _small(self, script: str, *arguments: str) -> tuple[int, bytes, str]:
        """Run one of our own scripts: its status, stdout and stderr."""
        for _ in range(2):
            parts: list[bytes] = []
            asked = self._ask(f"export PATH={_ENVIRONMENT['PATH']} LC_ALL=C\n"
                              f"set -- {shlex.join(arguments)}\n{script}", take=parts.append)  # fmt: skip
            if asked is not None:
                return asked[0], b"".join(parts), asked[1]
        raise GuestFailed("the SSH connection to the guest was lost twice")

    def _left(self) -> float:
        return _FOREVER if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _ask(
        self, script: str, *, input: bytes = b"", stdin: BinaryIO | None = None,
        take: Callable[[bytes], object] = lambda data: None,
    ) -> tuple[int, str] | None:  # fmt: skip
        """Ask the guest; None where the connection ended, as it may, and is there again."""
        try:
            return self._guest.ask(script, self._log, within=self._left(), input=input, stdin=stdin, take=take)
        except TimedOut as late:
            tail = "\n".join(self._lines)
            what = "the step did not end in time" + (", and the guest does not answer over the network any more"
                                                     if late.hint else "")  # fmt: skip
            raise TimedOut(what + (f"; its last lines:\n{tail}" if tail else ""), tail=tail,
                           hint=late.hint or "raise its 'timeout:'") from late  # fmt: skip
        except GuestFailed:
            if not self._may_disconnect:
                raise
            self._guest.machine.check()  # it may have restarted; but not have died
        self._guest.come_back(min(BOOT_SECONDS, self._left()), self._log)
        return None
