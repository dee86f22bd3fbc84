"""What every minimal server is asked by its installer: the options that our templates share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.kinds import Answer, PublicKeys

Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]{0,30}$")]


class Server(Answer):
    """An answer file whose template makes a minimal server."""

    hostname: str = Field("localhost", pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62})$", description="The host's name.")
    user: Name | None = Field(None, description="A first user, who may do everything with sudo; none by default.")
    password: str | None = Field(
        None, description="The password of that user, or of root where there is none; best a secret. None by default."
    )
    ssh_keys: list[PublicKeys] = Field(
        [], description="Public keys that may log in as that user, or as root: keys, or files of them."
    )
    packages: list[str] = Field([], description="Packages to install besides a minimal system and an SSH server.")
    timezone: str = Field("UTC", description="The time zone, such as Europe/Vienna.")
    locale: str = Field("C.UTF-8", description="The system's locale.")
    keyboard: str = Field("us", description="The keyboard's layout.")
    mirror: str = Field("", description="Where packages come from; the distribution's own servers by default.")
    disk: str = Field("/dev/vda", description="The disk to install to, which is erased.")

    @property
    def keys(self) -> list[str]:
        """The public keys, one each."""
        return [line for entry in self.ssh_keys for line in entry.splitlines()]
