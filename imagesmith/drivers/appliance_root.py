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
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

from imagesmith.drivers import line_shell
from imagesmith.drivers.appliance import Appliance, ApplianceError, name_of
from imagesmith.drivers.appliance_tools import ASIDE, CHUNK, Tools, script_of
from imagesmith.drivers.placing import place
from imagesmith.errors import BuildError, StepFailed, TimedOut
from imagesmith.interfaces import Log, Result, Terminal

_POLICY_PATH = "/usr/sbin/policy-rc.d"
_PLACES = ("/", "/dev", "/proc", "/sys")
_MOST_WRITTEN = 1 << 20
"""Bytes of text that are written into the guest with one request; an upload takes several."""
_MOST_OUTPUT = 64 << 20
_TAIL = 40


class ApplianceRoot:
    """One step's view of the guest (interfaces.Root)."""

    online = False

    def __init__(self, appliance: Appliance, tools: Tools | None, *, epoch: int, log: Log) -> None:
        """Without ``tools`` no program can be run."""
        self._appliance, self._tools, self.epoch, self._log = appliance, tools, epoch, log

    @property
    def tools(self) -> Tools:
        """The appliance's shell functions."""
        assert self._tools is not None
        return self._tools

    def furnish(self) -> None:
        """Mount the kernel's file systems, and put in a resolver and a policy that lets no service start."""
        policy = "" if self.exists(_POLICY_PATH) else self._behind(_POLICY_PATH)
        self.tools.begin(resolver=self._behind("/etc/resolv.conf"), policy=policy)

    def _behind(self, path: str) -> str:
        """Where a file is, or would be, by the guest's own links; empty where it cannot be."""
        try:
            if self._call("is_symlink", path):
                path = posixpath.normpath(posixpath.join(posixpath.dirname(path), self._call("readlink", path)))
            path = re.sub("^/var/run/", "/run/", path)
            if "\n" in path:
                return ""
            if path.startswith("/run/"):  # it will be a file system of our own, and empty
                return path
            return posixpath.join(self._call("realpath", posixpath.dirname(path)), posixpath.basename(path))
        except ApplianceError:
            return ""

    # -- Enterable -----------------------------------------------------------------------------------------------

    def shell(self, terminal: Terminal) -> None:
        """Let the user in (interfaces.Enterable): the appliance has no terminal that a program could have.

        What the step left running is ended, for the appliance watches one program at a time.
        """
        self._appliance.deadline = None
        self.tools.kill_all()
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
        known: dict[str, str] = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
            "LANG": "C.UTF-8", "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive",
            "SOURCE_DATE_EPOCH": str(self.epoch), **self._appliance.proxies, **(env or {}),
        }  # fmt: skip
        for name in known:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise BuildError(f"'{name}' is no name of an environment variable")
        self._call("mkdir_mode", ASIDE, 0o700)
        self._put(input, f"{ASIDE}/input")
        self._put(script_of(argv, known), f"{ASIDE}/script")
        status, output = self._follow()
        if check and status != 0:
            tail = "\n".join(output.splitlines()[-_TAIL:])
            raise StepFailed(f"'{argv[0]}' failed in the guest (exit status {status})" + (f":\n{tail}" if tail else ""),
                             status=status, tail=tail)  # fmt: skip
        return Result(status, output)

    def _put(self, content: bytes, path: str) -> None:
        try:
            text = content.decode() if len(content) <= _MOST_WRITTEN else None
        except UnicodeDecodeError:
            text = None
        if text is None:
            self._appliance.upload(content, path)
        else:
            self._call("write", path, text)

    def _follow(self) -> tuple[int, str]:
        """Start the program, log its output until it ends; return its exit status and the whole."""
        got, logged = bytearray(), 0
        status: int | None = None
        new, began = b"", False
        while status is None or len(new) == CHUNK:
            try:
                whole = status is None and len(new) < CHUNK
                status, new = self.tools.follow(len(got), wait=whole) if began else self.tools.start()
            except TimedOut as late:
                tail = "\n".join(got.decode("utf-8", "replace").splitlines()[-_TAIL:])
                raise TimedOut("the step did not end in time", tail=tail, hint="raise its 'timeout:'") from late
            began = True
            got += new
            end = len(got) if status is not None and len(new) < CHUNK else got.rfind(b"\n") + 1
            if end > logged:
                for line in got[logged:end].decode("utf-8", "replace").removesuffix("\n").split("\n"):
                    self._log(line.rstrip("\r"))
                logged = end
            if len(got) > _MOST_OUTPUT:
                raise StepFailed(f"a program wrote more than {_MOST_OUTPUT >> 20} MiB of output; send it to a file")
            if status is None and self._appliance.deadline is not None and time.monotonic() > self._appliance.deadline:
                raise TimedOut("the step did not end in time", hint="raise its 'timeout:'",
                               tail="\n".join(got.decode("utf-8", "replace").splitlines()[-_TAIL:]))  # fmt: skip
        return status, got.decode("utf-8", "replace")

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
