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

from imagesmith.drivers.placing import place
from imagesmith.errors import BuildError, StepFailed, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Log, Result
from imagesmith.machine.ssh import Ssh, begin

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
    "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
}  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_MOST_OUTPUT = 64 << 20
_TAIL = 40
_FOREVER = 30 * 24 * 3600.0
_ABSENT, _ODD, _KEPT = 44, 45, 46  # our scripts' own exit statuses

# What sshd and PAM have put into the environment must not differ from guest to guest.
_FORGET = "for name in $(env | sed -n 's/^\\([A-Za-z_][A-Za-z0-9_]*\\)=.*/\\1/p'); do unset \"$name\"; done"
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
    """One step's view of the guest (interfaces.Root)."""

    online = True

    def __init__(self, host: Host, ssh: Ssh, *, epoch: int, log: Log, deadline: float | None) -> None:
        """``deadline`` is on the clock of ``time.monotonic``."""
        self._host, self._ssh, self.epoch, self._log, self._deadline = host, ssh, epoch, log, deadline
        self._lines: list[str] = []

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
            _FORGET, *(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())),
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

        status, _ = self._ask(script, input=input, take=take)
        say(len(got))
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
        """Unpack a tar at ``/`` (interfaces.Root)."""
        with tempfile.TemporaryFile() as file:
            begin("umask 022; exec tar -x -p --numeric-owner -f - -C /", file)
            place(archive, file, self, epoch=self.epoch)
            status, said = self._ask("", stdin=file)
        if status != 0:
            raise BuildError(f"tar failed in the guest (exit status {status}): {said}",
                             hint="steps over SSH need tar in the guest" if status == 127 else "")  # fmt: skip

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

    def _small(self, script: str, *arguments: str) -> tuple[int, bytes, str]:
        """Run one of our own scripts: its status, stdout and stderr."""
        parts: list[bytes] = []
        status, said = self._ask(f"{_FORGET}\nexport PATH={_ENVIRONMENT['PATH']} LC_ALL=C\n"
                                 f"set -- {shlex.join(arguments)}\n{script}", take=parts.append)  # fmt: skip
        return status, b"".join(parts), said

    def _ask(
        self, script: str, *, input: bytes = b"", stdin: BinaryIO | None = None,
        take: Callable[[bytes], object] = lambda data: None,
    ) -> tuple[int, str]:  # fmt: skip
        left = _FOREVER if self._deadline is None else self._deadline - time.monotonic()
        try:
            return self._ssh.ask(script, within=max(0.0, left), input=input, stdin=stdin, take=take)
        except TimedOut as late:
            tail = "\n".join(self._lines)
            raise TimedOut("the step did not end in time" + (f"; its last lines:\n{tail}" if tail else ""),
                           tail=tail, hint="raise its 'timeout:'") from late  # fmt: skip
