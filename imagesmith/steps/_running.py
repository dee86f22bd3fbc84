"""What the steps that need a running guest share."""

from __future__ import annotations

from typing import cast

from imagesmith.errors import BuildError
from imagesmith.interfaces import Root, Running


def running(root: Root) -> Running:
    """The running guest that a root is of. Raises BuildError where it is at rest (a plan does not let that happen)."""
    if not root.online:
        raise BuildError("this needs a running guest, and the guest is at rest")
    return cast(Running, root)
