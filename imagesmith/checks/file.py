"""A file in the guest is there, or not, and is what it should be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import ask, quote, shown
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check, Mode

_ABSENT = 44


class File(Check, name="file", version=1, shorthand="path"):
    """A file or directory exists (or not), with the expected content, mode and owner. Links are followed."""

    path: Annotated[str, Field(pattern="^/", description="Its absolute name in the guest.")]
    exists: Annotated[bool, Field(description="Whether it must be there.")] = True
    contains: Annotated[str, Field(description="Text that it must contain.")] = ""
    mode: Annotated[Mode | None, Field(description='Its mode, in octal and in quotes: "0644".')] = None
    owner: Annotated[str, Field(description="Its owner: user, user:group, or numbers.")] = ""

    def describe(self) -> str:
        """See Kind."""
        return self.path

    def check(self, guest: Guest) -> str:
        """See Check."""
        path = quote(self.path)
        result = ask(guest, f"[ -e {path} ] || exit {_ABSENT}\nstat -L -c '%a %U:%G %u:%g %F' -- {path}")
        if result.status == _ABSENT:
            if self.exists:
                raise CheckFailed(f"expected {self.path} to be there, but it is not")
            return "is not there"
        if not self.exists:
            raise CheckFailed(f"expected {self.path} not to be there, but it is")
        fields = result.output.strip().split(" ", 3)
        if result.status != 0 or len(fields) != 4:
            raise CheckFailed(f"cannot look at {self.path} in the guest:\n{shown(result.output)}")
        mode, names, numbers, kind = fields
        if self.mode is not None and int(mode, 8) != self.mode:
            raise CheckFailed(f"expected mode {self.mode:04o} of {self.path}, got {int(mode, 8):04o}")
        self._check_owner(names, numbers)
        if self.contains:
            self._check_content(guest)
        return f"{kind}, mode {int(mode, 8):04o}, {names}"

    def _check_owner(self, names: str, numbers: str) -> None:
        # Each half may be given as a name or as a number.
        for wanted, *has in zip(self.owner.split(":", 1), names.split(":"), numbers.split(":"), strict=False):
            if wanted and wanted not in has:
                raise CheckFailed(f"expected owner {self.owner} of {self.path}, got {names} ({numbers})")

    def _check_content(self, guest: Guest) -> None:
        path, text = quote(self.path), quote(self.contains)
        if "\n" not in self.contains:
            script = f"grep -qaF -e {text} -- {path}"
        else:  # grep would take each line as a pattern of its own
            program = '{ all = all $0 "\\n" } END { exit !index(all, ENVIRON["wanted"]) }'
            script = f"head -c 1048576 -- {path} | wanted={text} awk {quote(program)}"
        if ask(guest, script).status != 0:
            start = ask(guest, f"head -c 2000 -- {path}").output
            raise CheckFailed(f"expected '{self.contains}' in {self.path}, which begins with:\n{shown(start)}")
