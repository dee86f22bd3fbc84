"""What every minimal server is asked by its installer: the options that our templates share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field

from imagesmith.errors import BuildError
from imagesmith.interfaces import Medium
from imagesmith.kinds import Answer, PublicKeys

_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
"""What ends a line, or means something else than itself to whoever reads one."""


def _one_line(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("must be one line, without control characters")
    return value


def _word(value: str) -> str:
    if not value or re.search(r"\s", _one_line(value)):
        raise ValueError("must be one word, without spaces")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.-]{0,30}$")]
Line = Annotated[str, AfterValidator(_one_line)]
"""Text that a file of lines can hold."""
Word = Annotated[str, AfterValidator(_word)]
"""Text that a file of words can hold."""


class Account(Answer):
    """An answer file whose template gives a host a name and somebody who may log in."""

    hostname: str = Field("localhost", pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,62})$", description="The host's name.")
    user: Name | None = Field(
        None, description="A first user, who may do everything with sudo and is not asked for a password; none by "
        "default."
    )
    password: Line | None = Field(
        None, description="The password of that user, or of root where there is none: a hash as in /etc/shadow, or the "
        "password itself, best a secret. None by default."
    )
    ssh_keys: list[PublicKeys] = Field(
        [], description="Public keys that may log in as that user, or as root: keys, or files of them."
    )

    @property
    def keys(self) -> list[str]:
        """The public keys, one each."""
        return [line for entry in self.ssh_keys for line in entry.splitlines()]

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """See Options. Raises BuildError for a secret that our template cannot hold."""
        copy = super().revealed(secrets)
        if self.file is None:
            for name in ("password", "mirror"):
                if _CONTROL.search(getattr(copy, name, None) or ""):
                    raise BuildError(
                        f"the secret in '{name}' of '{type(self).name}' is no single line of text",
                        hint="does the file or variable that it comes from end in a line break?",
                    )
        return copy

    def expect(self, medium: Medium, *families: str) -> None:
        """Raise BuildError where the ISO is known to hold an installer that reads other answer files."""
        if medium.family and medium.family not in families:
            raise BuildError(
                f"the installer of {medium.path.name} ({medium.name or medium.family}) is {medium.family}, which does "
                f"not read a '{type(self).name}' file", hint="name another kind under 'answers'"
            )


class Server(Account):
    """An answer file whose template makes a minimal server."""

    packages: list[Word] = Field([], description="Packages to install besides a minimal system and an SSH server.")
    timezone: Word = Field("UTC", description="The time zone, such as Europe/Vienna.")
    locale: Word = Field("C.UTF-8", description="The system's locale.")
    keyboard: Word = Field("us", description="The keyboard's layout.")
    mirror: Annotated[str, AfterValidator(lambda value: value and _word(value))] = Field(
        "", description="Where packages come from; the distribution's own servers by default."
    )
    disk: Word = Field("/dev/vda", description="The disk to install to, which is erased.")
