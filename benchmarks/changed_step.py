"""A changed last step on a cached base: what the build takes on top of the step's own time, without the output.

The step sleeps for two seconds, so its own time is known exactly and is not what imagesmith says it was.
"""

from __future__ import annotations

import uuid
from statistics import median

from benchmarks._site import STEPS, Build, Site
from benchmarks._table import Row, seconds

TARGET = 3.0
SLEEP = 2
_REST = f"""  - {{name: last, shell: "sleep {SLEEP}; echo '{{{{ word }}}}' > /etc/motd"}}
variables: {{word: first}}
outputs: [qcow2]
"""


def run(site: Site) -> list[Row]:
    """Build once, then each time with a word that was never there."""
    recipe = site.recipe("changed", STEPS + _REST)
    options = ("--only", "qcow2", "--no-checks")
    site.say("changed step: the first build")
    site.build(recipe, *options)
    builds = [site.build(recipe, *options, "--var", f"word={uuid.uuid4()}") for _ in range(site.most)]
    for build in builds:
        site.say("changed step: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items())
                 + f"; whole {build.run.seconds:.2f}")  # fmt: skip
        if [name for name in build.nodes if name.startswith(("base", "1 ", "2 ", "3 "))]:
            raise AssertionError(f"more ran than what changed: {build.nodes}")
    over = [_over(build) for build in builds]
    return [
        Row(f"changed last step, over the step's own time, without the output ({len(over)} runs)", seconds(over),
            target=f"<= {TARGET:g} s", reached=median(over) <= TARGET),
        *(Row(f"  of that: {name}", seconds([build.nodes[name] for build in builds]))
          for name in builds[0].nodes if not name.startswith(("output", "4 "))),
        Row("  until the assembled disk is in the store",
            seconds([build.until("assemble the disk") - SLEEP for build in builds])),
        Row("  the output, not counted", seconds([build.nodes["output qcow2"] for build in builds])),
    ]  # fmt: skip


def _over(build: Build) -> float:
    return build.run.seconds - build.nodes["output qcow2"] - SLEEP
