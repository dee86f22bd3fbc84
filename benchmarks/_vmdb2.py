"""The same system with vmdb2 (https://vmdb2.liw.fi): a GPT disk that boots under BIOS, as its manual writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import _stand_ins
from benchmarks._measure import measure


def spec(mirror: str, suite: str, packages: Sequence[str]) -> dict[str, object]:
    """The steps. The kernel and what else has dependencies come by its apt step, which runs under eatmydata.

    systemd-resolved comes last: it takes over the resolver's configuration, which apt needs in the chroot.
    """
    output = "{{ output }}"
    late = [name for name in packages if name == "systemd-resolved"]
    return {"steps": [
        {"mkimg": output, "size": "4G"},
        {"mklabel": "gpt", "device": output},
        {"mkpart": "primary", "device": output, "start": "1MiB", "end": "2MiB", "tag": "grub"},
        {"mkpart": "primary", "device": output, "start": "2MiB", "end": "100%", "tag": "rootfs"},
        {"set_part_flag": output, "tag": "grub", "flag": "bios_grub", "state": "enabled"},
        {"kpartx": output},
        {"mkfs": "ext4", "partition": "rootfs", "label": "root"},
        {"mount": "rootfs"},
        {"debootstrap": suite, "mirror": mirror, "target": "rootfs", "variant": "minbase"},
        {"apt": "install", "packages": [name for name in packages if name not in late], "tag": "rootfs",
         "recommends": False},
        {"fstab": "rootfs"},
        {"grub": "bios", "tag": "rootfs", "console": "serial"},
        *([{"apt": "install", "packages": late, "tag": "rootfs", "recommends": False}] if late else []),
    ]}  # fmt: skip


def build(folder: Path, mirror: str, suite: str, packages: Sequence[str]) -> float:
    """Build once; return the seconds. Raises CommandFailed."""
    image = folder / "vmdb2.img"
    image.unlink(missing_ok=True)
    (folder / "vmdb2.yaml").write_text(json.dumps(spec(mirror, suite, packages), indent=2))
    argv: list[str | Path] = ["vmdb2", "--output", image, "--log", folder / "vmdb2.log", "vmdb2.yaml"]
    try:
        return measure(argv, cwd=folder, env=_stand_ins.path(folder)).seconds
    finally:
        image.unlink(missing_ok=True)
