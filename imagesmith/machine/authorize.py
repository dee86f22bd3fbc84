"""Lets a session's key into a guest that has not booted yet, without mounting its disk; and takes it out again.

As in inject.py, debugfs(8) works in the ext4 root of the disk, shown as a raw file. Root's own ``.ssh`` is only moved
aside, as it is, so that putting it back restores contents, owners, modes and times of what is in it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from imagesmith.disk.attach import exported
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.machine.inject import debugfs, places

_ASIDE = "/root/.ssh.imagesmith"
_SERVERS = ("/usr/sbin/sshd", "/usr/bin/sshd")
_NEEDS = "steps over SSH need an ext4 root file system on a partition of its own"

RESTORE = f"""\
rm -rf /root/.ssh || exit 1
if [ -e {_ASIDE} ] || [ -L {_ASIDE} ]; then mv {_ASIDE} /root/.ssh; fi
"""
"""For the guest's shell, once the key has served: root's ``.ssh`` as it was."""


def authorize(overlay: Path, public_key: str, host: Host) -> None:
    """Let ``public_key`` (one line) log in as root into the system on the qcow2 ``overlay``.

    Raises BuildError where no SSH server is installed, or where debugfs cannot write the root file system.
    """
    with exported(overlay, host, writable=True) as raw:
        device = _root(raw, host)
        before = debugfs(device, ["stat /root/.ssh"], host)
        there = "Type: " in before
        with tempfile.NamedTemporaryFile("w", prefix="imagesmith-") as file:
            file.write(public_key.strip() + "\n")
            file.flush()
            # A second name for root's own folder, and the first one gone: a rename. Modes and owners of what debugfs
            # makes would be the host files' own.
            commands = [*([f"ln /root/.ssh {_ASIDE}", "unlink /root/.ssh"] if there else []), "mkdir /root/.ssh",
                        f"write {file.name} /root/.ssh/authorized_keys"]  # fmt: skip
            for path, mode in (("/root/.ssh", "040700"), ("/root/.ssh/authorized_keys", "0100600")):
                commands += [f"sif {path} mode {mode}", f"sif {path} uid 0", f"sif {path} gid 0"]
            said = debugfs(device, commands, host, write=True)
            size = len(public_key.strip()) + 1
        written = f"Size: {size}\n" in debugfs(device, ["stat /root/.ssh/authorized_keys"], host)
        moved = _inode(debugfs(device, [f"stat {_ASIDE}"], host)) == _inode(before)
        if not written or not moved:
            raise BuildError(f"debugfs did not write the session's key into the guest:\n{said.strip()}",
                             hint="is the image's root file system full or damaged (e2fsck)?")  # fmt: skip


def _root(raw: Path, host: Host) -> str:
    for place in places(raw, host):
        device = f"{raw}?offset={place.offset}"
        said = debugfs(device, ["stats", "stat /etc"], host)
        if "Type: directory" not in said:
            continue
        if "needs_recovery" in said:
            raise BuildError("cannot put a key into the guest: its root file system was not unmounted, and its journal "
                             "must be replayed first", hint="a step with 'via: guestfs' does that")  # fmt: skip
        if not any(kind in debugfs(device, [f"stat {path}"], host) for path in _SERVERS
                   for kind in ("Type: regular", "Type: symlink")):  # fmt: skip
            raise BuildError(
                "no SSH server is installed in the guest, so no step can reach it with 'via: ssh'",
                hint="add 'packages: [openssh-server]' (its name on Debian, Ubuntu and Fedora) before that step",
            )
        if "Type: directory" not in debugfs(device, ["stat /root"], host):
            raise BuildError("cannot put a key into the guest: it has no folder /root on its root file system")
        return device
    raise BuildError(f"cannot put a key into the guest: {_NEEDS}", hint="use 'via: guestfs'")


def _inode(said: str) -> str:
    found = re.search(r"^Inode: (\d+)", said, re.M)
    return found[1] if found else ""
