"""Recipes of 1, 10, 50 and 200 steps on a tree and on a disk: what a step costs, and what reads the whole chain.

Each recipe begins with the steps of the shorter one, so that only what is new is made. The steps do next to nothing.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks._plot import Plot
from benchmarks._site import BASE, Build, Site
from benchmarks._table import Row, seconds

COUNTS = (1, 10, 50, 200)
LAST = 9
"""Of so many steps at a recipe's end, the median counts."""
TARGET = 1.5
_MACHINE = "machine: {cpus: 2, memory: 1G, firmware: bios, disk: 4G}\n"
_CHECK = "checks:\n  - command: {run: 'test $(tail -n 1 /etc/n) = COUNT'}\n"


def run(site: Site) -> list[Row]:
    """Build them, the shortest first."""
    site.fresh_store()
    tree = {count: _recipe(site, "tree", BASE, count, "") for count in COUNTS}
    built = {count: _built(site, recipe) for count, recipe in tree.items()}
    image = site.folder / "output" / tree[1].stem / f"{tree[1].stem}.raw"
    base = f"base: {{disk: {{path: {image}, trusted: true}}}}\n"
    disk = {count: _recipe(site, "disk", base, count, _CHECK.replace("COUNT", str(count))) for count in COUNTS}
    booted = {count: _built(site, recipe) for count, recipe in disk.items()}
    steps = {"tree": {c: _step(b) for c, b in built.items()}, "disk": {c: _step(b) for c, b in booted.items()}}
    site.plot("chains", Plot("What a step costs that does nothing", "steps before it", "seconds", {
        f"on a {name}": list(found.items()) for name, found in steps.items()}))  # fmt: skip
    rows = []
    for name, found in steps.items():
        rows += [Row(f"a step that does nothing on a {name}, after {count}", seconds([taken])) for count, taken in
                 found.items()]  # fmt: skip
        ratio = found[200] / found[10]
        rows.append(Row(f"  on a {name}, after 200 over after 10", f"{ratio:.2f} times", target=f"<= {TARGET:g} times",
                        reached=ratio <= TARGET))  # fmt: skip
    rows += [Row(f"assembling a tree of {c} steps", seconds([b.nodes["assemble the disk"]])) for c, b in built.items()]
    for what, node in (("a raw image", "output raw"), ("a booted check", "check bios")):
        rows += [Row(f"{what} of a disk of {c} steps", seconds([b.nodes[node]])) for c, b in booted.items()]
    return rows + [_unchanged(site, name, found[200]) for name, found in (("tree", tree), ("disk", disk))]


def _recipe(site: Site, name: str, base: str, count: int, checks: str) -> Path:
    steps = "".join(f"  - shell: 'echo {number} >> /etc/n'\n" for number in range(1, count + 1))
    path = site.folder / f"{name}-of-{count}.yaml"
    path.write_text(f"name: {path.stem}\n{_MACHINE}{base}steps:\n{steps}{checks}outputs: [raw]\n")
    return path


def _built(site: Site, recipe: Path) -> Build:
    site.say(f"chains: {recipe.stem}")
    build = site.build(recipe)
    if not build.nodes:
        raise AssertionError(build.run.stdout)
    return build


def _step(build: Build) -> float:
    """Seconds from the beginning of one step to that of the next, in the middle of the last ones."""
    begun = [
        datetime.fromisoformat(event["time"]).timestamp()
        for event in build.events
        if event["event"] == "node-start" and (" shell " in event["node"] or event["node"].endswith(" cleanup"))
    ]
    return median(after - before for before, after in list(pairwise(begun))[-LAST:])


def _unchanged(site: Site, name: str, recipe: Path) -> Row:
    again = [site.build(recipe).run.seconds for _ in range(site.most)]
    return Row(f"200 steps on a {name} with no change ({len(again)} runs)", seconds(again), target="< 1 s",
               reached=max(again) < 1)  # fmt: skip
