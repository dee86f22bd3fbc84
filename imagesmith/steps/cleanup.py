"""Removing what must not be in an image."""

from __future__ import annotations

from typing import ClassVar

from imagesmith.archive import Archive, archive_of, guest_file
from imagesmith.interfaces import Root
from imagesmith.kinds import Step
from imagesmith.steps._files import first_found

_UNIT = "/etc/systemd/system/imagesmith-ssh-host-keys.service"
_WANTED = "/etc/systemd/system/multi-user.target.wants/imagesmith-ssh-host-keys.service"
_MAKES_KEYS = (
    _UNIT, "/usr/lib/systemd/system/sshd-keygen.target", "/usr/lib/systemd/system/sshdgenkeys.service",
    "/usr/lib/systemd/system/sshd-keygen@.service",
)  # fmt: skip
"""What already sees to it that host keys are made at boot: ours, and those of Fedora, Arch and openSUSE. cloud-init
does so only where it finds a seed."""


class Cleanup(Step, name="cleanup", version=2):
    """Remove what must not be in an image: what tells one machine from another, and what the build left.

    The machine's identity (machine-id, SSH host keys, random seeds, DHCP leases, cloud-init's state and the network
    configuration that it made, persistent names of network cards), logs, caches and lists of package managers and
    others, temporary files, core dumps, histories of shells, and back-ups of passwd, dpkg, debconf and LVM. Users,
    mail, cron jobs and keys in home directories stay.
    Where sshd is there and nothing else makes host keys at boot, a small unit that does is added.

    It runs by itself as the last step; `cleanup: false` leaves it out.
    """

    automatic: ClassVar[bool] = True

    def apply(self, root: Root) -> None:
        """Do it."""
        if root.online:  # journald would go on writing to what is removed (journalctl(1))
            root.run(["sh", "-c", "! command -v journalctl >/dev/null || journalctl --relinquish-var"], check=False)
        root.run(["sh", "-eu"], input=guest_file("cleanup.sh"))
        sshd = first_found(root, "/usr/sbin/sshd")
        if sshd and root.exists("/etc/systemd/system") and not first_found(root, *_MAKES_KEYS):

            def build(archive: Archive) -> None:
                archive.data(_UNIT, guest_file("ssh-host-keys.service"))
                archive.link(_WANTED, _UNIT)

            root.unpack(archive_of(build, epoch=root.epoch))
