"""Users."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from imagesmith.archive import Archive, archive_of
from imagesmith.errors import BuildError
from imagesmith.interfaces import Root
from imagesmith.kinds import PublicKeys, Step
from imagesmith.password import hashed
from imagesmith.steps._files import GuestPath, first_found, read_or_empty

Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]{0,30}\$?$")]


class User(Step, name="user", version=1, shorthand="name"):
    """Make a user, or change one that is there.

    A password is best given as a hash (`$6$…`, as `mkpasswd` prints) or as a secret; in clear it stands in the recipe.
    Without one, the user cannot log in with a password. Groups must be there; the user is added to them.
    """

    login: Name = Field(alias="name", description="The login name.")
    uid: int | None = Field(None, ge=0, le=65533, description="The user's number; the next free one by default.")
    groups: list[Name] = Field([], description="Groups besides the user's own.")
    shell: GuestPath | None = Field(None, description="The login shell; /bin/bash, or /bin/sh, for a new user.")
    password: str | None = Field(None, description="A hash as in /etc/shadow, or the password itself (a secret).")
    ssh_keys: list[PublicKeys] = Field(
        [], description="Public keys that may log in: the keys, or files of them relative to the recipe."
    )
    sudo: Literal["nopasswd", "password"] | None = Field(
        None, description="Whether the user may do everything with sudo, and is asked for the password."
    )
    home: GuestPath | None = Field(None, description="The home directory; /home/NAME for a new user.")
    system: bool = Field(False, description="Whether a new user is a system's user: low number, no home, no login.")

    def describe(self) -> str:
        """Name it."""
        return self.login

    def apply(self, root: Root) -> None:
        """Do it."""
        if self._entry(root) is None:
            self._add(root)
        else:
            self._change(root)
        if self.password is not None:
            root.run(["chpasswd", "-e"], input=f"{self.login}:{hashed(self.password, self.login)}\n".encode())
        if first_found(root, "/usr/bin/chage"):  # the day of the last change must not be the day of the build
            root.run(["chage", "-d", str(root.epoch // 86400), self.login])
        root.unpack(archive_of(lambda archive: self._files(archive, root), epoch=root.epoch))

    def _entry(self, root: Root) -> list[str] | None:
        lines = (line.split(":") for line in root.read("/etc/passwd").decode("utf-8", "replace").splitlines())
        return next((line for line in lines if line[0] == self.login and len(line) >= 7), None)

    def _add(self, root: Root) -> None:
        if self.system:
            shell = self.shell or first_found(root, "/usr/sbin/nologin", "/sbin/nologin") or "/bin/false"
        else:
            shell = self.shell or first_found(root, "/bin/bash", "/usr/bin/bash") or "/bin/sh"
        home = self.home or f"/home/{self.login}"
        number = [] if self.uid is None else ["-u", str(self.uid)]
        if first_found(root, "/usr/sbin/useradd"):
            kind = ["--system"] if self.system else []
            groups = ["-G", ",".join(self.groups)] if self.groups else []
            make = "-M" if self.system and self.home is None else "-m"
            root.run(["useradd", "--no-log-init", *kind, make, "-d", home, "-s", shell, *number, *groups, self.login])
        else:  # busybox
            kind = ["-S", "-H"] if self.system and self.home is None else ["-S"] if self.system else []
            root.run(["adduser", "-D", *kind, "-h", home, "-s", shell, *number, self.login])
            for group in self.groups:
                root.run(["addgroup", self.login, group])

    def _change(self, root: Root) -> None:
        if first_found(root, "/usr/sbin/usermod"):
            options = [*([] if self.uid is None else ["-u", str(self.uid)]),
                       *(["-aG", ",".join(self.groups)] if self.groups else []),
                       *([] if self.shell is None else ["-s", self.shell]),
                       *([] if self.home is None else ["-d", self.home])]  # fmt: skip
            if options:
                root.run(["usermod", *options, self.login])
        elif self.uid is not None or self.shell is not None or self.home is not None:
            raise BuildError(f"user {self.login} is there, and the guest has no usermod to change it",
                             hint="install the package that holds usermod (shadow)")  # fmt: skip
        else:
            for group in self.groups:
                root.run(["addgroup", self.login, group])

    def _files(self, archive: Archive, root: Root) -> None:
        if self.ssh_keys:
            entry = self._entry(root)
            assert entry is not None
            uid, gid, folder = int(entry[2]), int(entry[3]), f"{entry[5].rstrip('/')}/.ssh"
            here = read_or_empty(root, f"{folder}/authorized_keys").decode("utf-8", "replace").splitlines()
            new = [line for key in self.ssh_keys for line in key.strip().splitlines()]
            lines = list(dict.fromkeys([*here, *new]))
            archive.directory(folder, mode=0o700, uid=uid, gid=gid)
            archive.data(f"{folder}/authorized_keys", "".join(f"{line}\n" for line in lines).encode(), mode=0o600,
                         uid=uid, gid=gid)  # fmt: skip
        if self.sudo is not None:
            if not root.exists("/etc/sudoers.d"):
                raise BuildError(f"user {self.login} is to use sudo, which the guest does not have",
                                 hint="install it in a step before this one: packages: [sudo]")  # fmt: skip
            tag = "NOPASSWD: " if self.sudo == "nopasswd" else ""
            file = "/etc/sudoers.d/90-" + re.sub(r"[^A-Za-z0-9_-]", "_", self.login)
            archive.data(file, f"{self.login} ALL=(ALL:ALL) {tag}ALL\n".encode(), mode=0o440)
