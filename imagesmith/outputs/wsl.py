"""The wsl output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._rootfs import is_there, need_init, read, system, with_files, write_tar

_CONF = "etc/wsl.conf"
_DISTRIBUTION = "etc/wsl-distribution.conf"
_TROUBLE = (
    "systemd-resolved.service", "systemd-networkd.service", "NetworkManager.service",
    "systemd-tmpfiles-setup.service", "systemd-tmpfiles-clean.service", "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev-early.service", "systemd-tmpfiles-setup-dev.service", "tmp.mount",
)  # fmt: skip
"""Units that "are known to cause issues in WSL distributions" (as named in ``write``, "Systemd recommendations")."""


class Wsl(FilesOutput, name="wsl", version=1, shorthand="user"):
    """A distribution for the Windows Subsystem for Linux: `wsl --install --from-file X.wsl`, or a double click.

    It holds /etc/wsl.conf (whether systemd runs, who is logged in) and /etc/wsl-distribution.conf (its name). Windows
    brings kernel, network and resolver: the contents of /boot, kernel modules, firmware and resolv.conf stay out, and
    with systemd those of its units are masked that trouble WSL. Needs WSL 2.4.4; older ones take the same file with
    `wsl --import`.
    """

    user: str = Field("", pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\$?$|^$",
                      description="Who is logged in: a user of the image; root where nobody is named")  # fmt: skip
    systemd: bool = Field(True, description="Whether systemd is started")

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the tar.gz (Microsoft, "Build a custom Linux distribution for WSL").

        Raises BuildError where systemd or the user is not in the image, and where a wsl.conf is that the options may
        contradict.
        """
        content = with_files(system(files), self._configuration(files, maker), drop=["etc/resolv.conf"])
        if self.systemd:
            need_init(files, "WSL with `systemd: true`", ("/lib/systemd/systemd", "/usr/lib/systemd/systemd"))
            content = replace(content, masked=tuple(f"etc/systemd/system/{unit}" for unit in _TROUBLE))
        for user, *rest in _fields(read(files, "/etc/shadow") or b""):
            if rest and rest[0].startswith("$"):
                log(f"{user} has a password in the image: all who install it will have the same")
        name = f"{maker.name}.wsl"
        with workspace(directory, name) as work:
            size = write_tar(files, content, work / name, host, epoch=maker.epoch, compression="gzip")
            log(f"{name}: {size // MIB} MiB in its files")
            return finish(work, directory, [name])

    def _configuration(self, files: Files, maker: Maker) -> Mapping[str, bytes]:
        """Return the two files, each unless the image has its own."""
        found: dict[str, bytes] = {}
        uid = self._uid(files) if self.user else None
        if not is_there(files, f"/{_CONF}"):
            found[_CONF] = wsl_conf(self.user, self.systemd)
        elif self.user or not self.systemd:
            raise BuildError(f"the image has its own /{_CONF}, which the output's options would contradict",
                             hint="leave the options out, or the file")  # fmt: skip
        if not is_there(files, f"/{_DISTRIBUTION}"):
            found[_DISTRIBUTION] = distribution_conf(maker.name, uid)
        return found

    def _uid(self, files: Files) -> int:
        users = _fields(read(files, "/etc/passwd") or b"")
        found = next((parts[2] for parts in users if len(parts) > 2 and parts[0] == self.user), None)
        if found is None:
            raise BuildError(f"wsl: the image has no user '{self.user}'",
                             hint=f"make one in a step: `user: {{name: {self.user}}}`")  # fmt: skip
        return int(found)


def wsl_conf(user: str, systemd: bool) -> bytes:
    """Return /etc/wsl.conf (Microsoft, "Advanced settings configuration in WSL", wsl.conf)."""
    text = f"[boot]\nsystemd={'true' if systemd else 'false'}\n"
    return (text + (f"\n[user]\ndefault={user}\n" if user else "")).encode()


def distribution_conf(name: str, uid: int | None) -> bytes:
    """Return /etc/wsl-distribution.conf: a double click needs the name."""
    word = re.sub("[^A-Za-z0-9._-]+", "-", name)
    return (f"[oobe]\ndefaultName={word}\n" + ("" if uid is None else f"defaultUid={uid}\n")).encode()


def _fields(table: bytes) -> list[list[str]]:
    return [line.split(":") for line in table.decode("utf-8", "replace").splitlines()]
