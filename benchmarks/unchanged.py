"""A recipe of fifty steps with no change: from the command to "up to date", with all outputs and checks in the plan."""

from __future__ import annotations

from benchmarks import memory
from benchmarks._site import STEPS, Site
from benchmarks._table import Row, seconds

TARGET = 1.0
COUNT = 50


def run(site: Site) -> list[Row]:
    """Build once, then again without a change."""
    more = "".join(f"  - shell: 'echo {number} > /etc/step{number}'\n" for number in range(4, COUNT + 1))
    recipe = site.recipe("fifty", STEPS + more + memory.REST)
    site.say("unchanged: the first build")
    site.build(recipe)
    runs = []
    for _ in range(site.most + 2):
        again = site.build(recipe)
        if "up to date" not in again.run.stdout:
            raise AssertionError(again.run.stdout)
        runs.append(again.run)
    taken = [run.seconds for run in runs]
    return [Row(f"recipe of {COUNT} steps with no change ({len(taken)} runs)", seconds(taken),
                f"processors {seconds([run.processors for run in runs])}", target=f"< {TARGET:g} s",
                reached=max(taken) < TARGET)]  # fmt: skip
