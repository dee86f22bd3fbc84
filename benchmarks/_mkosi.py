"""The same system with mkosi 14 (https://github.com/systemd/mkosi): a GPT disk that boots under UEFI."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _stand_ins
from benchmarks._measure import measure

_FORMAT = """\
[Distribution]
Distribution=debian
Release={suite}
Mirror={mirror}

[Output]
Format=gpt_ext4
Bootable=yes
Output=mkosi.raw
ManifestFormat=

[Partitions]
RootSize=3G

[Content]
WithDocs=yes
Packages={packages}
"""


def build(folder: Path, mirror: str, suite: str, packages: Sequence[str]) -> float:
    """Build once, in a fresh folder; return the seconds. Raises CommandFailed."""
    work = folder / "mkosi"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    text = _FORMAT.format(suite=suite, mirror=mirror, packages=",".join(packages))
    (work / "mkosi.default").write_text(text)
    try:
        return measure(["mkosi", "build"], cwd=work, env=_stand_ins.path(folder)).seconds
    finally:
        shutil.rmtree(work, ignore_errors=True)
