"""Lets a session's key into a guest that has not booted yet, and into one that runs; and takes it out again.

As in inject.py, debugfs(8) works in the ext4 root of the disk, shown as a raw file, without mounting it. What debugfs
cannot write (xfs, btrfs, LVM, a journal that must be replayed) is left to whoever can: ``authorize_in`` does the same
to a root file system that somebody else has opened. Root's own ``.ssh`` is only moved aside, as it is, so that putting
it back restores contents, owners, modes and times of what is in it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from imagesmith.disk.attach import exported
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Root
from imagesmith.machine.inject import debugfs, places

_ASIDE = "/root/.ssh.imagesmith"
_SERVERS = ("/usr/sbin/sshd", "/usr/bin/sshd")
_NO_SERVER = "no SSH server is installed in the guest, so no step can reach it with 'via: ssh'"
_GET_SERVER = "add 'packages: [openssh-server]' (its name on Debian, Ubuntu and Fedora) before that step"
_LABEL = "system_u:object_r:ssh_home_t:s0"
"""What SELinux's reference policy calls root's .ssh (policy/modules/services/ssh.fc); files made from outside have no
label, and an enforcing guest's sshd may not read such ones."""

RESTORE = f"""\
rm -rf /root/.ssh || exit 1
if [ -e {_ASIDE} ] || [ -L {_ASIDE} ]; then mv {_ASIDE} /root/.ssh; fi
"""
"""For the guest's shell, once the key has served: root's ``.ssh`` as it was."""


_AUTHORIZE = f"""\
[ -d /root ] || {{ echo "it has no folder /root" >&2; exit 1; }}
if [ -e /root/.ssh ] || [ -L /root/.ssh ]; then mv /root/.ssh {_ASIDE} || exit 1; fi
mkdir -m 700 /root/.ssh && cat > /root/.ssh/authorized_keys && chmod 600 /root/.ssh/authorized_keys || exit 1
[ -e /etc/selinux/config ] || exit 0
for path in /root/.ssh /root/.ssh/authorized_keys; do
    setfattr -n security.selinux -v {_LABEL} "$path" || chcon {_LABEL} "$path"
done
exit 0
"""

# While the guest runs, its own keys stay where they are, because a step may be about to change them; ours is added.
ADMIT = f"""\
umask 077; cd /root && rm -rf {_ASIDE} && mkdir {_ASIDE} || exit 1
IFS= read -r key
keys=.ssh/authorized_keys
if [ -d .ssh ]; then touch -r .ssh {_ASIDE}/stamp; else mkdir .ssh || exit 1; fi
if [ -e $keys ]; then
    cp -p $keys {_ASIDE}/copy && mv $keys {_ASIDE}/keys && mv {_ASIDE}/copy $keys || exit 1
    if [ -n "$(tail -c 1 $keys)" ]; then echo >> $keys; fi
fi
printf '%s\\n' "$key" >> $keys || exit 1
if command -v restorecon >/dev/null; then restorecon -R .ssh; fi
exit 0
"""
"""For the guest's shell, with the key on stdin: let it in once more."""
DISMISS = f"""\
umask 077; cd /root || exit 1
IFS= read -r key
keys=.ssh/authorized_keys
[ -d {_ASIDE} ] || exit 0
if [ -e $keys ]; then
    grep -vxF "$key" $keys > {_ASIDE}/rest
    same() {{
        [ "$(cat {_ASIDE}/rest)" = "$(cat "$1")" ] && [ "$(stat -c '%a %u %g' $keys)" = "$(stat -c '%a %u %g' "$1")" ]
    }}
    if [ -e {_ASIDE}/keys ] && same {_ASIDE}/keys; then mv {_ASIDE}/keys $keys || exit 1
    elif [ ! -s {_ASIDE}/rest ] && [ ! -e {_ASIDE}/keys ]; then rm $keys || exit 1
    else cat {_ASIDE}/rest > $keys || exit 1; fi
fi
if [ -e {_ASIDE}/stamp ]; then touch -r {_ASIDE}/stamp .ssh; else rmdir .ssh 2>/dev/null; fi
rm -rf {_ASIDE}
"""
"""For the guest's shell, with the key on stdin: root's ``.ssh`` without it; what a step has changed there stays."""


class Unwritable(BuildError):
    """Debugfs cannot write the disk's root file system."""


def authorize(overlay: Path, public_key: str, host: Host) -> None:
    """Let ``public_key`` (one line) log in as root into the system on the qcow2 ``overlay``.

    Raises BuildError where no SSH server is installed, and Unwritable where debugfs cannot write the root file system.
    """
    with exported(overlay, host, writable=True) as raw:
        device = _root(raw, host)
        before = debugfs(device, ["stat /root/.ssh"], host)
        there = "Type: " in before
        labelled = "Type: regular" in debugfs(device, ["stat /etc/selinux/config"], host)
        with tempfile.NamedTemporaryFile("w", prefix="imagesmith-") as file:
            file.write(public_key.strip() + "\n")
            file.flush()
            # A second name for root's own folder, and the first one gone: a rename. Modes and owners of what debugfs
            # makes would be the host files' own.
            commands = [*([f"ln /root/.ssh {_ASIDE}", "unlink /root/.ssh"] if there else []), "mkdir /root/.ssh",
                        f"write {file.name} /root/.ssh/authorized_keys"]  # fmt: skip
            for path, mode in (("/root/.ssh", "040700"), ("/root/.ssh/authorized_keys", "0100600")):
                commands += [f"sif {path} mode {mode}", f"sif {path} uid 0", f"sif {path} gid 0"]
                commands += [f"ea_set {path} security.selinux {_LABEL}"] if labelled else []
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
            raise Unwritable("its root file system was not unmounted, and its journal must be replayed first")
        if not any(kind in debugfs(device, [f"stat {path}"], host) for path in _SERVERS
                   for kind in ("Type: regular", "Type: symlink")):  # fmt: skip
            raise BuildError(_NO_SERVER, hint=_GET_SERVER)
        if "Type: directory" not in debugfs(device, ["stat /root"], host):
            raise Unwritable("it has no folder /root on its root file system")
        return device
    raise Unwritable("it has no ext4 root file system on a partition of its own")


def authorize_in(root: Root, public_key: str) -> None:
    """Let ``public_key`` (one line) log in as root into the system at rest that ``root`` is. Raises BuildError."""
    if not any(root.exists(path) for path in _SERVERS):
        raise BuildError(_NO_SERVER, hint=_GET_SERVER)
    done = root.run(["sh", "-c", _AUTHORIZE], input=public_key.strip().encode() + b"\n", check=False)
    if done.status != 0:
        raise BuildError(f"cannot put a key into the guest: {done.output.strip()}")


def _inode(said: str) -> str:
    found = re.search(r"^Inode: (\d+)", said, re.M)
    return found[1] if found else ""
