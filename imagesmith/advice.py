"""What to try: hints for failures that people meet again and again, known by what programs say of them."""

from __future__ import annotations

import re

_NETWORK = ("a server could not be reached: is the network there, and are the proxy settings right (https_proxy)? "
            "'retries: 2' at the step tries again")  # fmt: skip
_KNOWN = (
    # apt-pkg/cacheset.cc; dnf; zypper; apk; pacman
    (r"E: Unable to locate package (\S+)|No match for argument: (\S+)|Package '(\S+)' not found"
     r"|^ERROR: unable to select packages|target not found: (\S+)|has no installation candidate",
     "is the package called so in this release? It may be in a component or repository that the base does not name"),
    (r"NO_PUBKEY|is not signed|GPG (?:error|check FAILED)|invalid or corrupted package \(PGP",
     "the repository's key is not in the guest: a copy step can put it there, before the packages"),
    (r"Release file .* is not valid yet|Release file .* (?:has )?expired",
     "the host's clock is wrong, or the mirror is out of date"),
    (r"(?i)temporary failure (?:in name resolution|resolving)|could not resolve|name or service not known"
     r"|network is unreachable|connection timed out|connection refused|failed to fetch|no route to host", _NETWORK),
    (r"(?i)certificate (?:verify failed|verification failed)|SSL certificate problem|unable to get local issuer",
     "the guest does not know who signed the server's certificate: is ca-certificates installed in an earlier step?"),
    (r"No space left on device|You don't have enough free space",
     "the image is full: give it a larger 'disk' under 'machine'; for a tree, make room where the store is"),
    (r"System has not been booted with systemd|Failed to connect to bus|Running in chroot, ignoring",
     "the step works on the files of a guest that is not running: 'via: ssh' at the step runs it in the running guest"),
    (r"(?:^|: )(\S+): (?:command not found|not found$)",
     "the program is not in the guest: install the package that has it in an earlier step"),
    (r"Could not get lock /var/lib/(?:dpkg|apt)",
     "the guest's own start-up uses the package manager: wait for it in the step (cloud-init status --wait)"),
    (r"Exec format error", "the program is for another processor than the guest's ('arch')"),
    (r"Read-only file system", "the place is read-only in the guest while it is built"),
    (r"(?i)Out of memory|Cannot allocate memory|\boom-kill", "give the guest more 'memory' under 'machine'"),
)  # fmt: skip


def advice(message: str) -> str:
    """What to try about a failure, for what its message shows; nothing where it shows nothing that is known.

    The last line that is known counts: what programs say first is often what follows from nothing.
    """
    for line in reversed(message.splitlines()):
        for pattern, hint in _KNOWN:
            if re.search(pattern, line):
                return hint
    return ""
