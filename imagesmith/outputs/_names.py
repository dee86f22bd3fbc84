"""The host name of a system container: each container's own, put where the image's is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from imagesmith.interfaces import Files
from imagesmith.outputs._rootfs import read

_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def named_for(files: Files, name: str) -> Mapping[str, bytes]:
    """Return /etc/hostname and /etc/hosts (without the leading slash) with ``name`` instead of the image's own name."""
    own = (read(files, "/etc/hostname") or b"").decode("utf-8", "surrogateescape").strip()
    hosts = (read(files, "/etc/hosts") or _HOSTS.encode()).decode("utf-8", "surrogateescape")
    found = re.sub(rf"(?<=[\s]){re.escape(own)}(?=\s)", name, hosts) if own not in ("", "localhost") else hosts
    if not re.search(rf"\s{re.escape(name)}\s", found):
        found = f"127.0.1.1\t{name}\n" + found
    return {"etc/hostname": f"{name}\n".encode(), "etc/hosts": found.encode("utf-8", "surrogateescape")}
