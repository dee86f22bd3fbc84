"""A disk that boots, from nothing: imagesmith, vmdb2 and mkosi, each to a raw image of the same suite and packages.

Nobody has anything cached, and all use the mirror that this host's apt uses. What differs is each program's own way:
imagesmith's disk boots under BIOS and UEFI, vmdb2's under BIOS, with the GRUB packages in it, and mkosi's under UEFI,
with an initramfs by dracut (it installs that itself, and Debian's initramfs-tools does not go with it).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import _mkosi, _stand_ins, _vmdb2
from benchmarks._measure import CommandFailed
from benchmarks._site import PACKAGES, Site
from benchmarks._table import Row, seconds
from imagesmith.bases._mirrors import host_mirrors
from imagesmith.bases.bootstrap import Bootstrap
from imagesmith.host import Host

FIGURE = "from nothing to a raw disk that boots"
TARGET = 1.0
SUITE = "bookworm"


def run(site: Site) -> list[Row]:
    """Take turns: ours, a peer once, ours, the other peer once, ours."""
    recipe = site.recipe("disk-maker", "outputs: [raw]\n")
    mirror = host_mirrors(Host(), "debian").archive
    base = Bootstrap(distribution="debian", suite=SUITE, packages=list(PACKAGES))
    # apt's patterns of packages that newer suites have: the others are given what this suite has of them
    packages = [*(name for name in base.wanted("amd64") if not name.startswith("?")), "systemd-resolved"]
    peers: dict[str, Callable[[], float]] = {
        "vmdb2": lambda: _vmdb2.build(site.folder, mirror, SUITE, packages),
        "mkosi": lambda: _mkosi.build(site.folder, mirror, SUITE, [x for x in packages if x != "initramfs-tools"]),
    }
    for name in _stand_ins.missing():
        site.say(f"image-makers: {name} lacks something here; a stand-in does the same work")
    rows, ours = list[Row](), [_ours(site, recipe)]
    for name, build in peers.items():
        if shutil.which(name) is None:
            site.say(f"image-makers: {name} is not installed, left out")
            continue
        site.say(f"image-makers: {name}, once")
        try:
            theirs = build()
        except CommandFailed as error:
            site.say(f"image-makers: {error}")
            rows.append(Row(FIGURE, seconds(ours), f"{name} failed"))
            continue
        site.say(f"image-makers: {name} {theirs:.1f}")
        ours.append(_ours(site, recipe))
        around = ours[-2:]
        ratio = theirs / median(around)
        rows.append(Row(f"{FIGURE} (before and after the peer)", seconds(around), f"{name} {theirs:.1f} s",
                        f"{ratio:.2f} times faster", f"> {TARGET:g} times", ratio > TARGET))  # fmt: skip
    return rows


def _ours(site: Site, recipe: Path) -> float:
    site.fresh_store()
    build = site.build(recipe, "--no-checks")
    site.say("image-makers: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items())
             + f"; whole {build.run.seconds:.2f}")  # fmt: skip
    return build.run.seconds
