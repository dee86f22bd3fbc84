"""Where the boot loaders' configuration templates are, and how their ``@NAME@`` marks are filled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def template_path(name: str) -> Path:
    """A file of ``templates/``, installed inside the package or beside it in a clone."""
    package = Path(__file__).parent.parent
    inside = package / "templates" / name
    return inside if inside.exists() else package.parent / "templates" / name


def fill(name: str, values: Mapping[str, str]) -> str:
    """A template's text with every ``@NAME@`` replaced; a line whose only mark is empty goes. Raises KeyError."""
    lines = []
    for line in template_path(name).read_text(encoding="utf-8").splitlines():
        filled = re.sub("@([A-Z]+)@", lambda mark: values[mark.group(1)], line)
        if filled.strip() or not line.strip():
            lines.append(filled)
    return "\n".join(lines) + "\n"
