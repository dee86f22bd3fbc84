"""A user of the guest exists, with groups and shell."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import ask, quote
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check


class User(Check, name="user", version=1, shorthand="name"):
    """A user exists, is in these groups, and has this shell."""

    called: Annotated[
        str, Field(alias="name", pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*\$?$", description="The user's name.")
    ]
    groups: Annotated[tuple[str, ...], Field(description="Groups that the user must be in (the main one counts).")] = ()
    shell: Annotated[str, Field(description="The login shell, such as /bin/bash.")] = ""

    def describe(self) -> str:
        """See Kind."""
        return self.called

    def check(self, guest: Guest) -> str:
        """See Check."""
        name = quote(self.called)
        result = ask(guest, f"getent passwd -- {name} || grep '^'{name}: /etc/passwd || exit 1\nid -Gn -- {name}")
        lines = result.output.strip().splitlines()
        fields = lines[0].split(":") if lines else []
        if result.status != 0 or len(fields) < 7:
            raise CheckFailed(f"expected a user {self.called}, but there is none")
        groups, shell = (lines[1].split() if len(lines) > 1 else []), fields[6]
        absent = sorted(set(self.groups) - set(groups))
        if absent:
            raise CheckFailed(f"expected {self.called} in {', '.join(absent)}, but the user's groups are "
                              f"{', '.join(groups) or 'none'}")  # fmt: skip
        if self.shell and shell != self.shell:
            raise CheckFailed(f"expected the shell {self.shell} of {self.called}, got {shell or 'none'}")
        return f"uid {fields[2]}, groups {', '.join(groups)}, shell {shell}"
