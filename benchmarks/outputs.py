"""Four outputs of one sealed image: each alone, then all of them at once, published ones included.

They are made side by side, and what they share they share; but compressing takes processors, so all four cannot take
less than their processor time together divided by the processors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks._site import STEPS, Build, Site
from benchmarks._table import Row, seconds

TARGET = 1.3
OUTPUTS = {"qcow2": "qcow2", "ova": "ova", "vagrant": "{vagrant: {provider: libvirt}}", "oci": "oci"}


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of processors."""

    clock: list[float]
    processors: list[float]


def run(site: Site) -> list[Row]:
    """Take turns. Each time the store has the sealed image and no artifact of it, not even one to make a new one of."""
    site.say("outputs: the image")
    site.build(_recipe(site, "outputs: [raw]\n"), "--no-checks")
    sealed = site.store
    took = {name: Took([], []) for name in (*OUTPUTS, "all four")}
    for _ in range(site.most):
        for name, one in took.items():
            site.store = sealed
            site.branch()
            build = _outputs(site, *([] if name == "all four" else ["--only", name]))
            one.clock.append(build.run.seconds)
            one.processors.append(build.run.processors)
    site.store = sealed
    together = took.pop("all four")
    slowest = max(took, key=lambda name: median(took[name].clock))
    alone = median(took[slowest].clock)
    ratio = median(together.clock) / alone
    bound = median(together.processors) / (os.cpu_count() or 1)
    return [
        *(Row(f"{name} alone ({len(one.clock)} runs)", seconds(one.clock), f"processors {seconds(one.processors)}")
          for name, one in took.items()),
        Row("all four at once", seconds(together.clock), f"{slowest} alone {alone:.2f} s", f"{ratio:.2f} times",
            f"<= {TARGET:g} times", ratio <= TARGET),
        Row(f"  their processor time over {os.cpu_count()} processors", f"{bound:.2f} s",
            f"{slowest} alone {alone:.2f} s", f"{bound / alone:.2f} times"),
    ]  # fmt: skip


def _recipe(site: Site, outputs: str) -> Path:
    return site.recipe("four", STEPS + outputs)


def _outputs(site: Site, *options: str) -> Build:
    recipe = _recipe(site, f"outputs: [{', '.join(OUTPUTS.values())}]\n")
    build = site.build(recipe, "--no-checks", *options)
    site.say("outputs: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items())
             + f"; whole {build.run.seconds:.2f}, processors {build.run.processors:.2f}")  # fmt: skip
    if wrong := [name for name in build.nodes if not name.startswith("output")]:
        raise AssertionError(f"more ran than outputs: {wrong}")
    return build
