"""What a step costs that does nothing, offline: opening and closing its layer, by each of the three ways to a guest."""

from __future__ import annotations

import uuid
from pathlib import Path
from statistics import median

from benchmarks._plot import Plot
from benchmarks._site import MACHINE, Site
from benchmarks._table import Row, seconds
from benchmarks.provision import peer_base

TARGET = 1.5
STEPS = 30
WAYS = {"tree": "a tree", "native": "a disk, mounted", "guestfs": "a disk, in an appliance"}


def run(site: Site) -> list[Row]:
    """Build once by each way: many steps in one session. The session's opening is in the first step."""
    disk = peer_base(site)
    rows, lines = [], {}
    for via, words in WAYS.items():
        site.say(f"offline steps: {words}")
        site.build(_recipe(site, via, disk, steps=0), "--no-checks")  # the base, and the disk's way into the store
        build = site.build(_recipe(site, via, disk, steps=STEPS), "--no-checks")
        taken = [seconds for name, seconds in build.nodes.items() if " step " in f" {name}"]
        if len(taken) != STEPS:
            raise AssertionError(f"not {STEPS} steps: {build.nodes}")
        lines[words] = [(number, one) for number, one in enumerate(taken, 1)]
        late, early = median(taken[-10:]), median(taken[1:11])
        rows.append(Row(f"a step that does nothing, on {words} ({len(taken) - 1} steps)", seconds(taken[1:]),
                        f"the first, which opens the session, {taken[0]:.2f} s", f"last ten {late / early:.2f} times",
                        f"< {TARGET:g} s", median(taken[1:]) < TARGET))  # fmt: skip
    site.plot("offline-steps", Plot("Steps that do nothing, in one session", "step", "seconds", lines))
    return rows


def _recipe(site: Site, via: str, disk: Path, *, steps: int) -> Path:
    run = uuid.uuid4()
    lines = [f"  - {{name: step {number}, shell: 'true # {number} {run}'{'' if via == 'tree' else f', via: {via}'}}}\n"
             for number in range(1, steps + 1)]  # fmt: skip
    rest = ("steps:\n" + "".join(lines) if lines else "") + "outputs: [{qcow2: none}]\n"
    if via == "tree":
        return site.recipe("offline-tree", rest)
    path = site.folder / f"offline-{via}.yaml"
    path.write_text(f"name: offline-{via}\n{MACHINE}base: {{disk: {{path: {disk}, trusted: true}}}}\n{rest}")
    return path
