"""The metadata of Incus' and LXD's images.

Source: Incus documentation, reference/image_format; LXD 5.0's is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from imagesmith.interfaces import Maker

ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch64"}
_OS_RELEASE = re.compile(r"""^(\w+)=(?:"([^"]*)"|'([^']*)'|(\S*))$""", re.M)


def os_release(text: str) -> dict[str, str]:
    """Return what an os-release file says (os-release(5))."""
    return {m[1]: m[2] or m[3] or m[4] or "" for m in _OS_RELEASE.finditer(text)}


def metadata(maker: Maker, about: Mapping[str, str], templates: Mapping[str, str]) -> bytes:
    """Return ``metadata.yaml``. ``about`` is the guest's os-release; ``templates`` name a file of ``templates/`` each.

    A template is applied when an instance is made, copied or renamed. What is in quotes is JSON, as YAML takes it.
    """
    system = about.get("NAME", "").removesuffix(" GNU/Linux")
    release = about.get("VERSION_CODENAME") or about.get("VERSION_ID", "")
    properties = {
        "architecture": ARCHITECTURES[maker.arch],
        "description": maker.description or " ".join(part for part in (maker.name, maker.version) if part),
        "name": maker.name,
        "os": system,
        "release": release,
        "serial": maker.version,
    }
    lines = [
        f"architecture: {ARCHITECTURES[maker.arch]}",
        f"creation_date: {maker.epoch}",
        "properties:",
        *(f"  {key}: {_quoted(value)}" for key, value in properties.items() if value),
    ]
    if templates:
        lines.append("templates:")
    for path, template in templates.items():
        lines += [f"  {path}:", "    when: [create, copy, rename]", f"    template: {template}"]
    return ("\n".join(lines) + "\n").encode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
