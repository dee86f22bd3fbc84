"""A package is installed in the guest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from imagesmith.checks._ask import ask, quote, shown
from imagesmith.errors import CheckFailed
from imagesmith.interfaces import Guest
from imagesmith.kinds import Check

# Each manager says the version, or ends with 1; 70: none of them is there. dpkg-query knows removed packages as well,
# hence the state. Debian has an rpm that manages nothing: so dpkg's database is looked for first.
_SCRIPT = """\
if [ -e /var/lib/dpkg/status ]; then
    set -- $(dpkg-query -W -f '${{db:Status-Status}} ${{Version}}\\n' {name} | grep '^installed ' | head -n 1)
    [ "$1" = installed ] && echo "$2"
elif command -v apk >/dev/null; then
    apk info -e {name} >/dev/null && apk list --installed {name} | head -n 1
elif command -v pacman >/dev/null; then
    pacman -Q {name}
elif command -v rpm >/dev/null; then
    rpm -q --whatprovides {name}
else
    exit 70
fi
"""


class Package(Check, name="package", version=1, shorthand="name"):
    """A package is installed, by the guest's own manager: dpkg, apk, pacman or rpm."""

    called: Annotated[
        str, Field(alias="name", pattern=r"^[A-Za-z0-9][A-Za-z0-9+._:@-]*$", description="The package's name.")
    ]

    def describe(self) -> str:
        """See Kind."""
        return self.called

    def check(self, guest: Guest) -> str:
        """See Check."""
        result = ask(guest, _SCRIPT.format(name=quote(self.called)))
        if result.status == 70:
            raise CheckFailed("the guest has none of the package managers dpkg, apk, pacman and rpm")
        if result.status != 0:
            raise CheckFailed(f"expected package {self.called} to be installed, but it is not:\n{shown(result.output)}")
        return f"installed: {result.output.strip().splitlines()[0]}" if result.output.strip() else "installed"
