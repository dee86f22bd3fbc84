"""Debian 12, nginx-light, a user and a file, to a compressed qcow2: imagesmith, Packer and virt-customize.

All begin with the same base. imagesmith has it in its store; the others get it as a qcow2 that imagesmith made, with a
user that has a key and sudo. Everything is done anew each time: only the base is cached.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import _packer, _virt_customize
from benchmarks._measure import CommandFailed, measure
from benchmarks._site import STEPS, Site
from benchmarks._table import Row, seconds

TARGETS = {"packer": 10, "virt-customize": 7}


def run(site: Site) -> list[Row]:
    """Take turns: ours, a peer once, ours, the other peer once, ours. The load of a shared host drifts: each peer
    is compared with ours just before and just after it.
    """
    base = peer_base(site)
    recipe = site.recipe("web", STEPS + "outputs: [qcow2]\n")
    site.say("provision: the first build")
    site.build(recipe, "--no-checks")
    peers: dict[str, Callable[[], dict[str, float]]] = {
        "packer": lambda: _packer.build(site.folder, base, _packer.web(site.folder)),
        "virt-customize": lambda: _virt_customize.build(site.folder, base),
    }
    rows, ours = list[Row](), [_ours(site, recipe)]
    for name, build in peers.items():
        if shutil.which(name) is None:
            site.say(f"provision: {name} is not installed, left out")
            continue
        site.say(f"provision: {name}, once")
        try:
            parts = build()
        except CommandFailed as error:
            site.say(f"provision: {error}")
            rows.append(Row("nginx, user, file to compressed qcow2", seconds(ours), f"{name} failed", reached=False))
            continue
        site.say(f"provision: {name}: " + ", ".join(f"{part} {taken:.1f}" for part, taken in parts.items()))
        ours.append(_ours(site, recipe))
        around, whole, least = ours[-2:], sum(parts.values()), TARGETS[name]
        ratio = whole / median(around)
        rows.append(Row("nginx, user, file to compressed qcow2 (before and after the peer)", seconds(around),
                        f"{name} {whole:.1f} s", f"{ratio:.1f} times faster", f">= {least} times",
                        ratio >= least))  # fmt: skip
    return rows


def _ours(site: Site, recipe: Path) -> float:
    build = site.build(recipe, "--no-checks", "--from", "1")
    if [name for name in build.nodes if name.startswith("base")] or "output qcow2" not in build.nodes:
        raise AssertionError(f"not what was to be measured: {build.nodes}")
    site.say("provision: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items())
             + f"; whole {build.run.seconds:.2f}")  # fmt: skip
    return build.run.seconds


def peer_base(site: Site) -> Path:
    """The common base as a disk, uncompressed so that nobody has to unpack it."""
    key = site.folder / "key"
    if not key.exists():
        measure(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", key], cwd=site.folder)
    rest = (
        f"steps:\n  - user: {{name: {_packer.USER}, shell: /bin/bash, sudo: nopasswd, ssh_keys: [key.pub]}}\n"
        "outputs: [{qcow2: none}]\n"
    )
    site.say("provision: the base for the others")
    site.build(site.recipe("peer-base", rest), "--no-checks")
    return site.folder / "output/peer-base/peer-base.qcow2"
