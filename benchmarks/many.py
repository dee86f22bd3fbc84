"""Ten recipes that share their base and first steps: the time and the space of one, three and ten of them.

The recipes are files of their own; nothing in them says that they share something. The store begins empty and is not
emptied in between, so the time until three are there is that of the first build and of the one that adds two.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks._plot import Plot
from benchmarks._site import STEPS, Site
from benchmarks._table import Row

COUNTS = (1, 3, 10)
MIB = 2**20
_OWN = "  - shell: 'echo {number} > /etc/number'\noutputs: [qcow2]\n"


def run(site: Site) -> list[Row]:
    """Build them, a few more each time."""
    site.fresh_store()
    recipes = [site.recipe(f"many{number}", STEPS + _OWN.format(number=number)) for number in range(max(COUNTS))]
    taken, nodes = 0.0, list[str]()
    times, spaces = list[tuple[float, float]](), list[tuple[float, float]]()
    for count in COUNTS:
        site.say(f"many: {count} recipes")
        build = site.build(recipes[:count], "--no-checks")
        taken += build.run.seconds
        nodes += [str(event["node"]) for event in build.events if event["event"] == "node-done"]
        times.append((count, taken))
        spaces.append((count, allocated(site.store) / MIB))
    site.plot("many-time", Plot("Recipes that share a base and three steps", "recipes", "seconds until all are there", {
        "as built": times, "each on its own": [(count, count * times[0][1]) for count in COUNTS]}))  # fmt: skip
    site.plot("many-space", Plot("The store's size", "recipes", "MiB", {
        "as built": spaces, "each on its own": [(count, count * spaces[0][1]) for count in COUNTS]}))  # fmt: skip
    shared = [name for name in nodes if name.startswith(("base", "1 ", "2 ", "3 "))]
    rows = [Row(f"recipes of one base and three first steps, until all are there: {count}", f"{time:.1f} s",
                f"each on its own {count * times[0][1]:.1f} s", f"{time / times[0][1]:.2f} times one")
            for count, time in times]  # fmt: skip
    rows += [Row(f"  the store's size, outputs included, with {count}", f"{space:.0f} MiB",
                 f"each on its own {count * spaces[0][1]:.0f} MiB", f"{space / spaces[0][1]:.2f} times one")
             for count, space in spaces]  # fmt: skip
    return [*rows, Row("  how often the base and the first steps ran", f"{len(shared)} nodes",
                       target="4 nodes", reached=len(shared) == 4)]  # fmt: skip


def allocated(folder: Path) -> int:
    """The bytes that a folder's files take on the disk, each file once."""
    seen = {}
    for path in folder.rglob("*"):
        told = path.lstat()
        seen[told.st_dev, told.st_ino] = told.st_blocks * 512
    return sum(seen.values())
