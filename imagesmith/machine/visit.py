"""A booted copy, entered over SSH as one of its own users, with a key that only this copy lets in."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagesmith.errors import BuildError, TimedOut
from imagesmith.host import Host
from imagesmith.machine.guest import BootedGuest
from imagesmith.machine.ssh import Ssh
from imagesmith.machine.ssh_login import Credentials, make_key

NO_SERVER, NO_USER = 3, 4
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?")  # useradd(8), and what directories call their users
_SECONDS = 120.0
_HINT = "'--console' shows its serial console, which needs no network"

# Ordinary users have ids from 1000 to 60000 (login.defs(5), UID_MIN and UID_MAX); nobody is 65534.
ADMIT = f"""\
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || exit {NO_SERVER}
wanted={{user}} key={{key}} found=
while IFS=: read -r name _ uid gid _ home shell; do
    if [ -n "$wanted" ]; then [ "$name" = "$wanted" ] || continue
    else
        case $shell in */nologin|*/false) continue ;; esac
        [ "$uid" -ge 1000 ] && [ "$uid" -lt 60000 ] || continue
    fi
    found=$name; break
done </etc/passwd
if [ -z "$found" ]; then
    [ -z "$wanted" ] || exit {NO_USER}
    found=root uid=0 gid=0 home=/root
fi
umask 077
mkdir -p "$home/.ssh" && printf '%s\\n' "$key" >>"$home/.ssh/authorized_keys" || exit 1
chown "$uid:$gid" "$home/.ssh" "$home/.ssh/authorized_keys" || exit 1
if command -v restorecon >/dev/null; then restorecon -R "$home/.ssh"; fi
echo "$found"
"""
"""For the guest's shell: let a key in, and say for whom."""


@contextmanager
def visit(guest: BootedGuest, host: Host, *, user: str, within: float) -> Iterator[Ssh]:
    """Log in as ``user``, or as the first ordinary user that the guest has, or as root where it has none.

    Waits until the guest takes the key and the login, at most ``within`` seconds. Raises BuildError (also where there
    is no such user or no SSH server), TimedOut, GuestFailed, Interrupted.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as name:
        folder = Path(name)
        private, public = make_key(folder, host)
        try:
            guest.wait_ready(within)
        except TimedOut as late:
            raise TimedOut(late.message, tail=late.tail, hint=_HINT) from None
        done = guest.run(ADMIT.format(user=shlex.quote(user), key=shlex.quote(public)), timeout=_SECONDS)
        if done.status == NO_SERVER:
            raise BuildError("the guest has no SSH server", hint=_HINT)
        if done.status == NO_USER:
            raise BuildError(f"the guest has no user '{user}'", hint="name another one with --user")
        if done.status != 0:
            raise BuildError(f"cannot let you into the guest: {done.output.strip()}", hint=_HINT)
        who = (done.output.split() or [""])[-1]
        if not _NAME.fullmatch(who):  # ssh would take what it likes for an option
            raise BuildError(f"the guest says that its user is {who[:40]!a}, which is no name", hint=_HINT)
        with Ssh(host, guest.machine, Credentials(user=who, key=private), folder) as ssh:
            ssh.connect(max(_SECONDS, within - (time.monotonic() - begun)))
            yield ssh
