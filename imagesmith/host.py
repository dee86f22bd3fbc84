"""The machine that builds: the only place that starts programs.

Every program is started with a known environment, in a process group of its own, and dies with us (Linux:
prctl(2), PR_SET_PDEATHSIG). ``Host.cancel`` ends whatever is running, from any thread.
"""

from __future__ import annotations

import ctypes
import io
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from imagesmith.errors import BuildError, Interrupted, MissingTool, TimedOut, ToolFailed

PACKAGES: dict[str, tuple[str, str, str]] = {
    # tool: (Debian and Ubuntu, Fedora, Arch)
    "ansible-playbook": ("ansible-core", "ansible-core", "ansible-core"),
    "blkid": ("util-linux", "util-linux", "util-linux"),
    "cp": ("coreutils", "coreutils", "coreutils"),
    "debugfs": ("e2fsprogs", "e2fsprogs", "e2fsprogs"),
    "dpkg-deb": ("dpkg", "dpkg", "dpkg"),
    "e2fsck": ("e2fsprogs", "e2fsprogs", "e2fsprogs"),
    "fusermount3": ("fuse3", "fuse3", "fuse3"),
    "gpgv": ("gpgv", "gnupg2", "gnupg"),
    "grub-mkimage": ("grub-common", "grub2-tools", "grub"),
    "losetup": ("mount", "util-linux", "util-linux"),
    "lz4": ("lz4", "lz4", "lz4"),
    "lzop": ("lzop", "lzop", "lzop"),
    "mcopy": ("mtools", "mtools", "mtools"),
    "mke2fs": ("e2fsprogs", "e2fsprogs", "e2fsprogs"),
    "mkfs.vfat": ("dosfstools", "dosfstools", "dosfstools"),
    "mksquashfs": ("squashfs-tools", "squashfs-tools", "squashfs-tools"),
    "mmd": ("mtools", "mtools", "mtools"),
    "mmdebstrap": ("mmdebstrap", "mmdebstrap", "mmdebstrap (AUR)"),
    "mount": ("mount", "util-linux", "util-linux"),
    "newgidmap": ("uidmap", "shadow-utils", "shadow"),
    "newuidmap": ("uidmap", "shadow-utils", "shadow"),
    "qemu-img": ("qemu-utils", "qemu-img", "qemu-img"),
    "qemu-storage-daemon": ("qemu-system-common", "qemu-storage-daemon", "qemu-base"),
    "qemu-system-aarch64": ("qemu-system-arm", "qemu-system-aarch64", "qemu-system-aarch64"),
    "qemu-system-x86_64": ("qemu-system-x86", "qemu-system-x86", "qemu-system-x86"),
    "sfdisk": ("fdisk", "util-linux", "util-linux"),
    "openssl": ("openssl", "openssl", "openssl"),
    "shellcheck": ("shellcheck", "ShellCheck", "shellcheck"),
    "sftp": ("openssh-client", "openssh-clients", "openssh"),
    "ssh": ("openssh-client", "openssh-clients", "openssh"),
    "ssh-keygen": ("openssh-client", "openssh", "openssh"),
    "supermin": ("supermin", "supermin", "supermin"),
    "swtpm": ("swtpm", "swtpm", "swtpm"),
    "tar": ("tar", "tar", "tar"),
    "unshare": ("util-linux", "util-linux", "util-linux"),
    "xorriso": ("xorriso", "xorriso", "libisoburn"),
    "xz": ("xz-utils", "xz", "xz"),
    "zstd": ("zstd", "zstd", "zstd"),
}

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
"""For ``Host.start``: connect this stream with us."""
Process = subprocess.Popen[bytes]
"""What ``Host.start`` gives."""
ProcessTimeout = subprocess.TimeoutExpired
"""What ``Process.wait`` raises when its time is up."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)
_PASSED_ON = ("HOME", "LOGNAME", "USER", "TMPDIR", "XDG_RUNTIME_DIR", "http_proxy", "https_proxy", "no_proxy",
              "SSL_CERT_FILE", "LIBGUESTFS_PATH", "SUPERMIN_KERNEL", "SUPERMIN_MODULES")  # fmt: skip


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Finished:
    """What a program left: exit status (negative: a signal), and its output where it was not sent elsewhere."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Stdout as text."""
        return self.stdout.decode("utf-8", "replace")


def missing(tool: str, purpose: str) -> MissingTool:
    """The error for a program that is not here: what it is for, and the packages that hold it."""
    names = PACKAGES.get(tool)
    hint = "" if names is None else "install it: Debian/Ubuntu {}, Fedora {}, Arch {}".format(*names)
    return MissingTool(f"'{tool}' is not installed; it is needed to {purpose}", hint=hint)


class Host:
    """Starts programs on this machine and ends them again."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._cancelled = False

    # -- finding programs ------------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """PATH with the administrator's folders, which users on Debian do not have."""
        here = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")
        return ":".join([here, *(d for d in ("/usr/local/sbin", "/usr/sbin", "/sbin") if d not in here.split(":"))])

    def find(self, tool: str) -> str | None:
        """The full name of a program, or None."""
        return shutil.which(tool, path=self.path)

    def require(self, tool: str, purpose: str) -> str:
        """The full name of a program. Raises MissingTool with the packages that hold it."""
        found = self.find(tool)
        if found is None:
            raise missing(tool, purpose)
        return found

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """What every program gets: a fixed locale and time zone, our PATH, proxies, and ``extra``."""
        base = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return {**base, "PATH": self.path, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}

    # -- running programs ------------------------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        purpose: str,
        input: bytes | None = None,
        stdin: BinaryIO | None = None,
        stdout: BinaryIO | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float | None = None,
        log: Callable[[str], None] | None = None,
        ok: Collection[int] = (0,),
    ) -> Finished:
        """Run a program to its end. ``purpose`` completes "needed to …".

        With ``log``, stdout and stderr go there line by line as they come (and stdout is not returned); with
        ``stdout``, stdout goes to that file. ``timeout`` is in seconds. Raises MissingTool, ToolFailed, TimedOut,
        Interrupted.
        """
        if log is not None:
            return self._run_logged(argv, purpose, input, env, cwd, timeout, log, ok)
        with self.start(
            argv, purpose=purpose, env=env, cwd=cwd,
            stdin=stdin if stdin is not None else (subprocess.PIPE if input is not None else subprocess.DEVNULL),
            stdout=stdout if stdout is not None else subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                raise TimedOut(f"{argv[0]} did not end within {timeout:g} s (to {purpose})") from None
        return self._judge(argv, purpose, Finished(process.returncode, out or b"", err or b""), ok)

    def _run_logged(
        self, argv: Sequence[str | Path], purpose: str, input: bytes | None, env: Mapping[str, str] | None,
        cwd: Path | None, timeout: float | None, log: Callable[[str], None], ok: Collection[int],
    ) -> Finished:  # fmt: skip
        tail: deque[str] = deque(maxlen=40)

        def pump(stream: IO[bytes]) -> None:
            for text in io.TextIOWrapper(stream, "utf-8", "replace"):  # a lone \r (progress) ends a line, too
                line = text.rstrip("\n")
                tail.append(line)
                log(line)

        with self.start(
            argv, purpose=purpose, env=env, cwd=cwd,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            reader = threading.Thread(target=pump, args=(process.stdout,), daemon=True)
            reader.start()
            if input is not None:
                assert process.stdin is not None
                try:
                    process.stdin.write(input)
                    process.stdin.close()
                except BrokenPipeError:
                    pass
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise TimedOut(f"{argv[0]} did not end within {timeout:g} s (to {purpose})",
                               tail="\n".join(tail)) from None  # fmt: skip
            reader.join(5)
        return self._judge(argv, purpose, Finished(process.returncode, b"", "\n".join(tail).encode()), ok)

    def _judge(self, argv: Sequence[str | Path], purpose: str, done: Finished, ok: Collection[int]) -> Finished:
        if self._cancelled:
            raise Interrupted()
        if done.status in ok:
            return done
        tail = "\n".join((done.stderr or done.stdout).decode("utf-8", "replace").splitlines()[-20:])
        how = f"signal {-done.status}" if done.status < 0 else f"exit status {done.status}"
        raise ToolFailed(
            f"{Path(argv[0]).name} failed ({how}) to {purpose}" + (f":\n{tail}" if tail else ""),
            status=done.status, tail=tail, hint="the command was: " + shlex.join(map(str, argv)),
        )  # fmt: skip

    @contextmanager
    def start(
        self,
        argv: Sequence[str | Path],
        *,
        purpose: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a program and end it when the block ends (its whole process group: TERM, then KILL after 5 s)."""
        program = self.require(str(argv[0]), purpose)
        with self._lock:
            if self._cancelled:
                raise Interrupted()
            try:
                process = subprocess.Popen(
                    [program, *map(str, argv[1:])], env=self.environment(env), cwd=cwd, stdin=stdin, stdout=stdout,
                    stderr=stderr, pass_fds=pass_fds, process_group=0, preexec_fn=_die_with_parent,  # noqa: PLW1509 (one prctl, no locks)
                )  # fmt: skip
            except OSError as error:
                raise BuildError(f"cannot start {program} to {purpose}: {error.strerror}") from error
            self._running.add(process)
        try:
            yield process
        finally:
            self._end(process)
            with self._lock:
                self._running.discard(process)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        pass

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        _signal(process, signal.SIGKILL)
        process.wait()

    def cancel(self) -> None:
        """End every program that runs, and refuse to start another: the answer to Ctrl-C, from any thread."""
        with self._lock:
            self._cancelled = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._cancelled


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass
