"""Planning alone: a thousand recipe files of twenty steps, read, checked and planned by one process that keeps all.

Every recipe differs from the others in its variables, which a third of the steps uses, so hardly any text is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks._measure import measure
from benchmarks._site import Site
from benchmarks._table import Row, seconds

COUNT, STEPS = 1000, 20
MOST_SECONDS, MOST_BYTES = 10.0, 500 * 2**20
_PLANNED = (
    "import sys; from pathlib import Path; from imagesmith import cli_build as parts; "
    "plans = parts.plans_of([Path(word) for word in sys.argv[1:]], parts.overrides_of()); "
    "print(sum(len(plan.spine) for plan in plans))"
)
_RECIPE = """\
name: planned{number}
variables: {{number: {number}, host: "host{number}", listen: "{{{{ host }}}}:80{number}"}}
machine: {{memory: 1G, disk: 4G}}
base: {{bootstrap: {{distribution: debian, suite: bookworm, packages: [openssh-server]}}}}
steps:
  - shell: echo {{{{ host }}}} > /etc/hostname
  - service: {{enable: [nginx]}}
  - packages: [nginx-light, curl]
  - user: {{name: ops, sudo: nopasswd}}
"""
_FOUR = """\
  - name: configure part {step}
    shell: echo {{{{ listen }}}} part {step} > /etc/part{step}
  - copy: {{from: motd, to: /etc/motd{step}, mode: "0644"}}
  - template: {{from: part.j2, to: /etc/template{step}}}
  - shell: {{run: "echo part {step} of {number}", env: {{NUMBER: "{{{{ number }}}}"}}}}
"""


def run(site: Site) -> list[Row]:
    """Plan them, as often as is asked for."""
    folder = site.folder / "planning"
    paths = recipes(folder, COUNT)
    times, processors, peak = list[float](), list[float](), 0
    for _ in range(site.most):
        site.say(f"planning: {COUNT} recipes of {STEPS} steps")
        done = measure([sys.executable, "-c", _PLANNED, *(path.name for path in paths)], cwd=folder,
                       env={"IMAGESMITH_CACHE": str(site.store)})  # fmt: skip
        times.append(done.seconds)
        processors.append(done.processors)
        peak = max(peak, done.peak)
    return [
        Row(f"{COUNT} recipes of {STEPS} steps, read and planned", seconds(times),
            target=f"< {MOST_SECONDS:.0f} s", reached=max(times) < MOST_SECONDS),
        Row("  the processor's time in it", seconds(processors)),
        Row("  its memory", f"{peak / 2**20:.0f} MiB", target="< 500 MB", reached=peak < MOST_BYTES),
    ]  # fmt: skip


def recipes(folder: Path, count: int) -> list[Path]:
    """Write the recipes, and the files that they name."""
    folder.mkdir(exist_ok=True)
    (folder / "motd").write_text("welcome\n")
    (folder / "part.j2").write_text("This is {{ host }}, {{ listen }}.\n")
    paths = [folder / f"planned{number}.yaml" for number in range(count)]
    for number, path in enumerate(paths):
        parts = [_FOUR.format(step=step, number=number) for step in range((STEPS - 4) // 4)]
        path.write_text(_RECIPE.format(number=number) + "".join(parts))
    return paths
