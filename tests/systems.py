"""Programs that boot system containers, started by the test and ended by it. All need root."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imagesmith.errors import ToolFailed
from imagesmith.host import Host
from tests.consumers import ask

Inside = Callable[..., str]
"""Runs a program in the container and gives its output. Raises ToolFailed."""
_LXC = "lxc.net.0.type = empty\nlxc.apparmor.profile = unconfined\n"
_LXD = """\
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {path: /, pool: default, type: disk}}}]
"""


def started_up(inside: Inside, *, within: float = 180) -> tuple[str, set[str]]:
    """Wait until systemd says that start-up is complete; its word on it, and the units that failed."""
    deadline, state = time.monotonic() + within, ""
    while state not in {"running", "degraded"}:
        assert time.monotonic() < deadline, f"start-up is not complete: {state}"
        time.sleep(0.5)
        try:
            state = inside("sh", "-c", "systemctl is-system-running || :").strip()
        except ToolFailed:  # not even an init that answers
            continue
    return state, {line.split()[1] for line in inside("systemctl", "--failed", "--no-legend").splitlines()}


@contextmanager
def booted_by_nspawn(archive: Path, folder: Path) -> Iterator[Inside]:
    """Import a tar and boot it, without a network."""
    ask("/lib/systemd/systemd-import", "tar", archive, "system", f"--image-root={folder}")
    with (folder / "console").open("wb") as console, Host().start(
        ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "--private-network", "-b", "-D", folder / "system"],
        purpose="boot a container", stdout=console, stderr=console,
    ) as nspawn:  # fmt: skip
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        deadline = time.monotonic() + 60
        while not children.read_text().split():
            assert nspawn.poll() is None, (folder / "console").read_text()
            assert time.monotonic() < deadline, "no container was started"
            time.sleep(0.1)
        leader = children.read_text().split()[0]
        yield lambda *argv: ask("nsenter", "-t", leader, "-m", "-u", "-i", "-n", "-p", "-C", "--", *argv)


@contextmanager
def started_by_lxc(metadata: Path, root: Path, folder: Path) -> Iterator[Inside]:
    """Make a container with LXC's template for local files, and start it, without a network."""
    (folder / "base").write_text(_LXC)
    at = ["-P", folder / "lxc", "-n", "c1"]
    ask("lxc-create", *at, "-f", folder / "base", "-t", "local", "--", "-m", metadata, "-f", root)
    ask("lxc-start", *at, "-d", "-o", folder / "log")
    try:
        yield lambda *argv: ask("lxc-attach", *at, "--", *argv)
    finally:
        ask("lxc-stop", *at, "-k")


class Lxd:
    """A daemon of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._env = {"LXD_DIR": str(folder), "HOME": str(folder)}

    def __call__(self, *argv: str | Path) -> str:
        """Say something to it."""
        return ask("lxc", *argv, env=self._env)

    @contextmanager
    def launched(self, image: str) -> Iterator[Inside]:
        """Start a container, without a network."""
        self("launch", "-q", image, "c1")
        try:
            yield lambda *argv: self("exec", "c1", "--", *argv)
        finally:
            self("delete", "-f", "c1")


@contextmanager
def lxd() -> Iterator[Lxd]:
    """Start LXD in namespaces for mounts and processes; it and all that it started end with the block.

    Its folder can be passed by everybody: an unprivileged container's root has no rights in others.
    """
    folder = Path(tempfile.mkdtemp(prefix="lxd-", dir="/var/tmp"))
    folder.chmod(0o711)
    env = {"LXD_DIR": str(folder), "HOME": str(folder)}
    try:
        with (folder / "out").open("wb") as out, Host().start(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "lxd", "--group", "root"],
            purpose="run LXD", env=env, stdout=out, stderr=out,
        ):  # fmt: skip
            ask("lxd", "waitready", "--timeout", "120", env=env)
            Host().run(["lxd", "init", "--preseed"], purpose="set LXD up", env=env, input=_LXD.encode())
            yield Lxd(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def needs_root() -> bool:
    """Whether nobody but root can do it, and we are somebody else."""
    return os.geteuid() != 0
