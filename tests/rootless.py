"""Runs part of the tests as an ordinary user with subordinate ids, without changing anything on this machine.

In a mount namespace of its own, the files that name users are replaced by others that know one more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UID = 23456
_SCRIPT = """
set -eu
for file in passwd group subuid subgid; do touch /etc/$file; mount --bind "$1/$file" /etc/$file; done
mount --bind "$2" /mnt
mount --bind "$3" /media
shift 3
cd /mnt
exec setpriv --reuid 23456 --regid 23456 --clear-groups --inh-caps=-all "$@"
"""


@contextmanager
def home() -> Iterator[Path]:
    """A new folder that belongs to the user."""
    folder = Path(tempfile.mkdtemp(prefix="rootless-", dir="/var/tmp"))
    os.chown(folder, UID, UID)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run(home: Path, code: str, *, subordinate: int = 65536) -> subprocess.CompletedProcess[str]:
    """Run Python code as the user; the project and its environment are seen under /mnt and /media."""
    project = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        name = "somebody"
        for file, line in (
            ("passwd", f"{name}:x:{UID}:{UID}::{home}:/bin/sh"), ("group", f"{name}:x:{UID}:"),
            ("subuid", f"{name}:300000:{subordinate}"), ("subgid", f"{name}:300000:{subordinate}"),
        ):  # fmt: skip
            here = Path("/etc", file)
            kept = here.read_text() if here.exists() and not file.startswith("sub") else ""
            Path(scratch, file).write_text(f"{kept.rstrip()}\n{line}\n".lstrip())
        python = ["env", "-i", f"HOME={home}", f"TMPDIR={home}", f"USER={name}", "PATH=/usr/local/bin:/usr/bin:/bin",
                  "PYTHONPATH=/mnt", f"/media/bin/{Path(sys.executable).name}", "-B", "-c", code]  # fmt: skip
        Path(scratch).chmod(0o755)
        argv = ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", scratch, str(project), sys.prefix, *python]
        return subprocess.run(argv,
                              capture_output=True, text=True, check=False, timeout=600)  # fmt: skip
