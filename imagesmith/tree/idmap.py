"""Whose ids the guest's ids are: identity maps of user namespaces (user_namespaces(7), newuidmap(1), subuid(5))."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from imagesmith.errors import BuildError
from imagesmith.host import Host

_IDS = 65536
_RESTRICTIONS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=65536"),
)


def write_maps(host: Host, pid: int) -> None:
    """Map the ids of the user namespace that process ``pid`` has just entered.

    As root: every id is itself, so that a layer's files have the owners that the guest sees. As another user: 0 is
    that user, the others are the user's subordinate ids. Raises BuildError with what to do.
    """
    if os.geteuid() == 0:
        for kind in ("uid", "gid"):
            count = _own_range(Path(f"/proc/self/{kind}_map").read_text())
            try:
                Path(f"/proc/{pid}/{kind}_map").write_text(f"0 0 {count}\n")
            except OSError as error:
                raise forbidden(error.strerror or "") from error
        return
    uid, gid = os.geteuid(), os.getegid()
    for kind, own in (("uid", uid), ("gid", gid)):
        start, count = _subordinate(kind, uid)
        host.run(
            [f"new{kind}map", str(pid), "0", str(own), "1", "1", str(start), str(min(count, _IDS - 1))],
            purpose="own files as the guest's users do, without being root",
        )


def _own_range(text: str) -> int:
    """How many ids, from 0 on, there are here (fewer than all inside of some containers)."""
    for line in text.splitlines():
        inside, _, count = map(int, line.split())
        if inside == 0:
            return min(count, _IDS)
    raise BuildError("this container has no user id 0 to work with")


def _subordinate(kind: str, uid: int) -> tuple[int, int]:
    """Return the largest range of subordinate ids that /etc/subuid or /etc/subgid grants the user."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    file = Path(f"/etc/sub{kind}")
    ranges = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        parts = line.strip().split(":")
        if len(parts) == 3 and parts[0] in {name, str(uid)} and parts[1].isdigit() and parts[2].isdigit():
            ranges.append((int(parts[1]), int(parts[2])))
    best = max(ranges, key=lambda found: found[1], default=(0, 0))
    if best[1] < 1000:
        raise BuildError(
            f"user {name} has no subordinate ids in {file}; a guest's files cannot have their owners without them",
            hint=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}",
        )
    return best


def forbidden(why: str) -> BuildError:
    """The error for a host on which user namespaces cannot be used, with what is known to forbid them."""
    for name, value, setting in _RESTRICTIONS:
        try:
            set_to = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if set_to == value:
            return BuildError(f"this host forbids user namespaces ({name.replace('/', '.')} is {value}): {why}",
                              hint=f"sudo sysctl -w {setting}")  # fmt: skip
    return BuildError(
        f"this host does not allow a root file system to be opened in a user namespace: {why}",
        hint="in a container, start it with --privileged, or with --security-opt seccomp=unconfined, "
        "--security-opt apparmor=unconfined and --security-opt systempaths=unconfined; after chroot(8) the kernel "
        "allows none (pivot_root(8) instead, as systemd-nspawn does)",
    )
