"""A guest's root file system as the libguestfs appliance sees it: files, and programs run inside.

The guest is mounted below the appliance's /sysroot, with what programs expect of a running system: the same things
that the native driver lends to a tree, and takes back. Paths are resolved by the guest's own links, never the
appliance's: libguestfs does so itself except in ``tar_in`` and ``rm_rf``, which are given names without links.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from imagesmith.drivers import line_shell
from imagesmith.drivers.appliance import Appliance, ApplianceError, decode, name_of
from imagesmith.drivers.placing import place
from imagesmith.errors import BuildError, StepFailed, TimedOut
from imagesmith.interfaces import Log, Result, Terminal

_POLICY = b"#!/bin/sh\nexit 101\n"
_POLICY_PATH = "/usr/sbin/policy-rc.d"
_ASIDE = "/run/.imagesmith"
_PLACES = ("/", "/dev", "/proc", "/sys")
_CHUNK = 1 << 20
"""Bytes of output fetched at once; one answer of the appliance holds 4 MiB at most (libguestfs, "PROTOCOL LIMITS")."""
_MOST_OUTPUT = 64 << 20
_TAIL = 40

_FURNISH = """
mkdir -p /imagesmith; grep -q ' /imagesmith ' /proc/mounts || mount -t tmpfs -o mode=0700 tmpfs /imagesmith
cd /sysroot; : >/imagesmith/made
for d in proc sys dev run; do
  [ -L $d ] && continue
  [ -d $d ] || { mkdir $d && echo $d >>/imagesmith/made; } || continue
  case $d in
    proc) mount -t proc proc proc;;
    sys) mount -t sysfs -o ro sysfs sys;;
    dev) mount --bind /dev dev; [ -d dev/pts ] && mount --bind /dev/pts dev/pts;;
    run) mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs run; mkdir -m 1777 run/lock;;
  esac
done; cat /etc/resolv.conf 2>/dev/null; :
"""
_KILL = """
cd /
for turn in 1 2 3 4 5; do
  found=
  for p in /proc/[0-9]*; do [ $p/root -ef /sysroot ] && found="$found ${p#/proc/}"; done
  [ "$found" ] || break
  kill -9 $found; sleep 0.1
done; :
"""
_UNFURNISH = """
cd /sysroot
for d in run dev/pts dev sys proc; do grep -q " /sysroot/$d " /proc/mounts && umount $d; done
while read -r d; do rmdir $d; done </imagesmith/made; :
"""


class ApplianceRoot:
    """One step's view of the guest (interfaces.Root)."""

    online = False

    def __init__(self, appliance: Appliance, *, epoch: int, log: Log) -> None:
        self._appliance, self.epoch, self._log = appliance, epoch, log
        self._lent: dict[str, tuple[bytes, bytes | None]] = {}

    # -- what the guest is lent ----------------------------------------------------------------------------------

    def furnish(self) -> None:
        """Mount the kernel's file systems, and put in a resolver and a policy that lets no service start."""
        resolver = self._appliance.shell(_FURNISH).strip().encode() + b"\n"
        target = "/etc/resolv.conf"
        if self._call("is_symlink", target):
            target = posixpath.normpath(posixpath.join("/etc", self._call("readlink", target)))
            if target.startswith("/var/run/"):
                target = target.removeprefix("/var")
        if target.startswith("/run/"):  # on our tmpfs: it goes by itself
            self._call("mkdir_p", posixpath.dirname(target))
            self._appliance.upload(resolver, target)
        else:
            self._lend(target, resolver, 0o644)
        if not self.exists(_POLICY_PATH):
            self._lend(_POLICY_PATH, _POLICY, 0o755)

    def _lend(self, path: str, content: bytes, mode: int) -> None:
        with suppress(ApplianceError):  # a root without such a folder, or full, does without
            there = self._call("is_file", path, followsymlinks=True)
            if not there and (self.exists(path) or not self._call("is_dir", posixpath.dirname(path))):
                return
            before = self._appliance.download(path) if there else None
            self._appliance.upload(content, path)
            if before is None:
                self._call("chmod", mode, path)
            self._lent[path] = (content, before)

    def take_back(self) -> None:
        """End every program that the step left running, and undo ``furnish``; what the step changed stays."""
        self._appliance.shell(_KILL)
        for path, (content, before) in self._lent.items():
            if not self._call("is_file", path, followsymlinks=False):
                continue  # replaced by the step, or removed
            now = self._appliance.download(path)
            if now == content and before is None:
                self._call("rm", path)
            elif now.startswith(content):
                self._appliance.upload((before or b"") + now[len(content) :], path)
        self._appliance.shell(_UNFURNISH)

    # -- Enterable -----------------------------------------------------------------------------------------------

    def shell(self, terminal: Terminal) -> None:
        """Let the user in (interfaces.Enterable): the appliance has no terminal that a program could have.

        What the step left running is ended, for the appliance watches one program at a time.
        """
        self._appliance.deadline = None
        self._appliance.shell(_KILL)
        terminal.say("the guest is mounted in the libguestfs appliance: each line that you type is run by a shell of "
                     "its own, and programs cannot ask you anything")
        folder = "/"

        def run(line: str) -> int:
            nonlocal folder
            status = self.run(["/bin/sh", "-c", line_shell.SCRIPT, "sh", folder, line], check=False).status
            with suppress(FileNotFoundError):
                folder = self.read(line_shell.PLACE).decode("utf-8", "replace").strip() or "/"
            return status

        log, self._log = self._log, lambda line: terminal.show(f"{line}\r\n")
        try:
            line_shell.lines(terminal, run, lambda: folder)
        finally:
            self._log = log

    # -- Root ----------------------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        input: bytes = b"",
        check: bool = True,
    ) -> Result:
        """Run a program in the guest (interfaces.Root); its output comes while it runs, some tenths of a second late.

        What it needs goes through a file on a tmpfs that only root can read, and is gone before the program begins.
        """
        self._call("mkdir_mode", _ASIDE, 0o700)
        self._appliance.upload(input, f"{_ASIDE}/input")
        self._appliance.upload(self._script(argv, env or {}), f"{_ASIDE}/script")
        self._appliance.shell(
            "rm -f /imagesmith/status; : >/imagesmith/output; "
            f"env -i setsid /bin/sh /sysroot{_ASIDE}/script </dev/null >/dev/null 2>&1 &"
        )
        status, output = self._follow()
        if check and status != 0:
            tail = "\n".join(output.splitlines()[-_TAIL:])
            raise StepFailed(f"'{argv[0]}' failed in the guest (exit status {status})" + (f":\n{tail}" if tail else ""),
                             status=status, tail=tail)  # fmt: skip
        return Result(status, output)

    def _script(self, argv: Sequence[str], env: Mapping[str, str]) -> bytes:
        known: dict[str, str] = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
            "LANG": "C.UTF-8", "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
            "SOURCE_DATE_EPOCH": str(self.epoch), **self._appliance.proxies, **env,
        }  # fmt: skip
        for name in known:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BuildError(f"'{name}' is no name of an environment variable")
        return "\n".join([
            f"exec </sysroot{_ASIDE}/input", f"rm -rf /sysroot{_ASIDE}", "umask 022",
            "set -- " + " ".join(map(shlex.quote, argv)),
            "(", *(f"export {name}={shlex.quote(value)}" for name, value in sorted(known.items())),
            'exec /usr/sbin/chroot /sysroot "$@"', ") >/imagesmith/output 2>&1",
            "echo $? >/imagesmith/s; /bin/mv /imagesmith/s /imagesmith/status", "",
        ]).encode("utf-8", "surrogateescape")  # fmt: skip

    def _follow(self) -> tuple[int, str]:
        """Log the output of the program that runs, until it ends; return its exit status and the whole."""
        got, logged, pause, status = bytearray(), 0, 0.05, ""
        while True:
            try:
                answer = self._appliance.shell(
                    f"sleep {pause:.2f}; cat /imagesmith/status 2>/dev/null || echo; "
                    f"tail -c +{len(got) + 1} /imagesmith/output | head -c {_CHUNK} | base64"
                )
            except TimedOut as late:
                tail = "\n".join(got.decode("utf-8", "replace").splitlines()[-_TAIL:])
                raise TimedOut("the step did not end in time", tail=tail, hint="raise its 'timeout:'") from late
            status, _, more = answer.partition("\n")
            new = decode(more)
            got += new
            end = got.rfind(b"\n") + 1 if new or not status else len(got)
            if end > logged:
                for line in got[logged:end].decode("utf-8", "replace").removesuffix("\n").split("\n"):
                    self._log(line.rstrip("\r"))
                logged = end
            if status and not new:
                break
            if len(got) > _MOST_OUTPUT:
                raise StepFailed(f"a program wrote more than {_MOST_OUTPUT >> 20} MiB of output; send it to a file")
            pause = 0.0 if new and (status or len(new) == _CHUNK) else min(pause * 1.5, 1.0) or 0.05
            if self._appliance.deadline is not None and time.monotonic() > self._appliance.deadline:
                raise TimedOut("the step did not end in time", hint="raise its 'timeout:'",
                               tail="\n".join(got.decode("utf-8", "replace").splitlines()[-_TAIL:]))  # fmt: skip
        return int(status), got.decode("utf-8", "replace")

    def read(self, path: str) -> bytes:
        """Return a file's bytes (interfaces.Root)."""
        if not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not self._call("is_file", path, followsymlinks=True):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return self._appliance.download(path)

    def exists(self, path: str) -> bool:
        """Whether it is there, links followed inside the guest."""
        return bool(self._call("exists", path))

    def unpack(self, archive: BinaryIO) -> None:
        """Unpack a tar at ``/`` (interfaces.Root)."""
        with tempfile.TemporaryFile() as file:
            place(archive, file, self, epoch=self.epoch)
            file.flush()
            self._call("tar_in", name_of(file), "/")

    def entries(self, folder: str) -> dict[str, str]:
        """The names in a folder and what each is (placing.Folders)."""
        found = {str(entry["name"]): str(entry["ftyp"]) for entry in self._list(folder)}
        for name, kind in found.items():
            if kind == "u":  # a file system that does not say
                path = posixpath.join(folder, name)
                found[name] = "l" if self._call("is_symlink", path) else "d" if self._call("is_dir", path) else "r"
        return found

    def folder_behind(self, link: str) -> str | None:
        """The folder that a link leads to (placing.Folders)."""
        return str(self._call("realpath", link)) if self._call("is_dir", link, followsymlinks=True) else None

    def _list(self, folder: str) -> list[dict[str, object]]:
        return list(self._call("readdir", folder))

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and trees (interfaces.Root)."""
        for pattern in paths:
            for found in sorted(self._call("glob_expand", pattern, directoryslash=False)):
                path = posixpath.normpath(found)
                if path in _PLACES:
                    raise OSError(errno.EPERM, "will not be removed", path)
                parent, name = posixpath.split(path)
                self._call("rm_rf", posixpath.join(self._call("realpath", parent), name))

    def _call(self, method: str, *arguments: object, **named: Any) -> Any:
        return self._appliance.call(method, *arguments, **named)
