"""What the steps that put files into a guest share: owners, places, programs' names."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from imagesmith.archive import owner_ids
from imagesmith.errors import BuildError
from imagesmith.interfaces import Root


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value or "/../" in value + "/":
        raise ValueError("must be an absolute path in the guest, without '..'")
    return value


GuestPath = Annotated[str, AfterValidator(_absolute)]
"""An absolute path in the guest."""
Owner = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")]
"""``user``, ``user:group``, or numbers; a user alone stands for the user's own group, too."""


def read_or_empty(root: Root, path: str) -> bytes:
    """A file's bytes; none where it is not there."""
    try:
        return root.read(path)
    except FileNotFoundError:
        return b""


def ids(root: Root, owner: str) -> tuple[int, int]:
    """The numbers of ``owner`` in the guest. Raises BuildError where the guest does not know it."""
    if owner in {"root", "root:root"}:
        return 0, 0
    try:
        return owner_ids(owner, read_or_empty(root, "/etc/passwd"), read_or_empty(root, "/etc/group"))
    except KeyError as error:
        raise BuildError(f"the guest has no user or group '{error.args[0]}' to own the files",
                         hint="make it in a step before this one: a package's, or `user`") from None  # fmt: skip


def first_found(root: Root, *paths: str) -> str:
    """The first of the guest's files that is there, or nothing."""
    return next((path for path in paths if root.exists(path)), "")
