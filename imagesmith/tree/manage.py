"""What else is done in the namespaces of trees: running a host program, removing layers, asking whether it works."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.errors import ImagesmithError
from imagesmith.host import Host
from imagesmith.interfaces import Log
from imagesmith.tree.mounts import OverlayMount
from imagesmith.tree.session import open_root


def inside(
    host: Host, argv: Sequence[str | Path], *, purpose: str, env: Mapping[str, str] | None = None, log: Log,
    timeout: float | None = None,
) -> None:  # fmt: skip
    """Run a host program as user 0 of a namespace, with subordinate ids and private mounts. Raises ToolFailed."""
    with open_root(host, None, epoch=0, log=log, timeout=timeout) as root:
        root.inside(argv, purpose=purpose, env=env)


def remove(host: Host, path: Path) -> None:
    """Remove a folder whose files belong to a guest's users. No error where it is not there."""
    if not path.exists() and not path.is_symlink():
        return
    argv = ["rm", "-rf", "--one-file-system", "--", str(path)]
    if os.geteuid() == 0:
        host.run(argv, purpose="remove a layer")
    else:
        inside(host, argv, purpose="remove a layer", log=lambda _: None)


def measure(host: Host, path: Path) -> int:
    """The bytes that a folder takes on its medium, whoever its files belong to."""
    lines: list[str] = []
    argv = ["du", "--summarize", "--block-size=1", "--one-file-system", "--", str(path)]
    inside(host, argv, purpose="measure a layer", log=lines.append)
    return int(lines[-1].split()[0])


def contents(host: Host, path: Path) -> str:
    """Name a folder by the bytes of its files, whoever they belong to (as ``store_files.contents_digest`` does)."""
    lines: list[str] = []
    names = "find . -type f ! -path ./layer.json -print0 | LC_ALL=C sort -z"
    script = f'cd "$1"; {names} | xargs -0r sha256sum -z -- | sha256sum'
    inside(host, ["sh", "-ec", script, "sh", str(path)], purpose="name a layer by its contents", log=lines.append)
    return lines[-1].split()[0]


def available(host: Host, folder: Path | None = None) -> str:
    """Why trees cannot be used on this host, in ``folder`` (by default that for temporary files); empty: they can."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place:
            names = [Path(place, name) for name in ("below", "upper", "work")]
            for name in names:
                name.mkdir(mode=0o755)
            below, upper, work = map(str, names)
            with open_root(host, OverlayMount((below,), upper, work), epoch=0, log=lambda _: None, timeout=30):
                pass
    except ImagesmithError as error:
        return error.message + (f"; {error.hint}" if error.hint else "")
    except OSError as error:
        return str(error)
    return ""
