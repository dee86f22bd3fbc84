"""What apt knows of repositories: where a Release file is, and how apt calls its copy."""

from __future__ import annotations

import re
from dataclasses import dataclass

_QUOTED = re.compile(r"[\\|{}\[\]<>\"^~_=!@#$%&*]")
"""apt: methods and lists, URItoFileName() in apt-pkg/contrib/strutl.cc; then a slash becomes an underscore."""


@dataclass(frozen=True, order=True)
class Release:
    """A repository's signed list of what it holds (Debian repository format, "InRelease")."""

    url: str

    @property
    def file(self) -> str:
        """The name of apt's copy in ``/var/lib/apt/lists``."""
        bare = re.sub(r"^[a-z+]+://([^/@]*@)?", "", self.url)
        return _QUOTED.sub(lambda found: f"%{ord(found[0]):02x}", bare).replace("/", "_")


def release(uri: str, suite: str) -> Release:
    """The InRelease file of a suite at a mirror; a suite that ends with a slash is a flat repository's folder."""
    folder = suite if suite.endswith("/") else f"dists/{suite}/"
    bare = re.sub(r"^([a-z+]+://)[^/@]*@", r"\1", uri)  # whoever may log in there is nobody's business
    return Release(f"{bare.rstrip('/')}/{folder.lstrip('/')}InRelease")
