"""Where packages come from: the mirrors that the host itself uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagesmith.errors import BuildError
from imagesmith.host import Host

_FORMAT = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)"
_SUITES = {
    "debian": ("bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing", "oldstable", "unstable"),
    "ubuntu": ("focal", "jammy", "noble", "plucky", "questing", "resolute"),
}
"""Names that tell a distribution where apt has not fetched its lists yet, and so does not know the origin."""


@dataclass(frozen=True)
class Mirrors:
    """The addresses of a distribution's archive and of its security updates (or none)."""

    archive: str
    security: str


def parse_targets(distribution: str, lines: Sequence[str]) -> Mirrors | None:
    """Find the mirrors in what ``apt-get indextargets`` prints; None where the host has none of the distribution."""
    archive, security = "", ""
    for line in lines:
        origin, release, uri = ([*line.split("|"), "", "", ""])[:3]
        suite = re.split(r"[-/]", release)[0]
        known = origin.lower() == distribution or (origin in {"", "$(ORIGIN)"} and suite in _SUITES[distribution])
        if not known or not uri:
            continue
        if re.search(r"[-/](security|updates)$", release) and "security" in release + uri:
            security = security or uri
        elif "-" not in release:
            archive = archive or uri
    return Mirrors(archive.rstrip("/"), security.rstrip("/")) if archive else None


def host_mirrors(host: Host, distribution: str) -> Mirrors:
    """The host's own mirrors of a distribution. Raises BuildError where it has none."""
    found = None
    if host.find("apt-get") is not None:
        argv = ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
        done = host.run(argv, purpose="learn which mirrors this host uses")
        found = parse_targets(distribution, done.text.splitlines())
    if found is None:
        raise BuildError(
            f"this host uses no mirror of {distribution.capitalize()} that could be used for the image, too",
            hint="name one in the recipe: bootstrap: {mirror: http://…}",
        )
    return found


def sources(
    distribution: str, suite: str, mirrors: Mirrors, components: Sequence[str], keyring: str
) -> tuple[str, ...]:
    """The lines of sources.list: the suite, its updates, and its security updates where it has them."""
    parts = " ".join(components)
    head = f"deb [signed-by={keyring}]"
    lines = [f"{head} {mirrors.archive} {suite} {parts}"]
    if suite in {"sid", "unstable", "experimental"}:
        return tuple(lines)
    lines.append(f"{head} {mirrors.archive} {suite}-updates {parts}")
    security = mirrors.security or (mirrors.archive if distribution == "ubuntu" else "")
    if security:
        lines.append(f"{head} {security} {suite}-security {parts}")
    return tuple(lines)
