"""What a checkpoint costs: five steps over SSH in a guest of 1 GiB that has at least 200 MB in use.

A step fills a tmpfs with copies of the guest's own programs and libraries, until ``MemTotal - MemAvailable`` of
/proc/meminfo is that much: what a service has in memory packs about as well as its program does. The steps that are
counted do nothing. In use is what cannot be dropped; beside it the page cache is told, which QEMU sees no less of.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from statistics import median

from benchmarks._site import MACHINE, Build, Site
from benchmarks._table import Row, seconds
from benchmarks.provision import peer_base

TARGET, PART = 3.0, 1 / 3
STEPS = 5
IN_USE_KB = 200_000
_FILL = f"""\
used() {{ awk '/^MemTotal|^MemAvailable/ {{ v[$1] = $2 }} END {{ print v["MemTotal:"] - v["MemAvailable:"] }}' \
/proc/meminfo; }}
mkdir -p /dev/shm/fill
for file in $(find /usr/lib /usr/bin /usr/sbin -type f -size +100k); do
    [ "$(used)" -lt {IN_USE_KB} ] || break
    cp "$file" "/dev/shm/fill/$(echo "$file" | tr / _)"
done
[ "$(used)" -ge {IN_USE_KB} ]
"""
_TELL = r"""awk '/^(MemTotal|MemFree|MemAvailable):/ { v[$1] = $2 } END { print "memory", v["MemTotal:"],
v["MemFree:"], v["MemAvailable:"] }' /proc/meminfo
"""
_SAID = re.compile(r"^checkpoint: (\d+) MiB in ([\d.]+) s")


def run(site: Site) -> list[Row]:
    """Build once with checkpoints and once without: what they add is the difference of the steps' times."""
    recipe = _recipe(site, peer_base(site))
    site.say("checkpoints: without")
    bare = _steps(_build(site, recipe, "--no-checkpoints"))
    site.say("checkpoints: with")
    build = _build(site, recipe)
    kept = _steps(build)
    said = [found for line in lines(build) if (found := _SAID.match(line))][-STEPS:]
    [told] = [line.split()[1:] for line in lines(build) if line.startswith("memory ")]
    total, free, available = (int(word) * 1024 for word in told)
    size = median(int(found[1]) for found in said) * 2**20
    part = size / (total - available)
    site.say(f"checkpoints: without {bare}, with {kept}, told {[found[0] for found in said]}")
    over = [taken - median(bare) for taken in kept]
    return [
        Row(f"a checkpoint, by its own account ({len(said)} steps)", seconds([float(found[2]) for found in said])),
        Row("what it adds to a step over SSH", seconds(over), f"a step without {seconds(bare)}",
            target=f"< {TARGET:g} s", reached=median(over) < TARGET),
        Row("its size", f"{size / 1e6:.0f} MB", f"in use {(total - available) / 1e6:.0f} MB, "
            f"with the page cache {(total - free) / 1e6:.0f} MB", f"{part:.2f} of what is in use", "< 0.33",
            part < PART),
    ]  # fmt: skip


def _recipe(site: Site, disk: Path) -> Path:
    def block(name: str, script: str) -> str:
        return f"  - name: {name}\n    via: ssh\n    shell: |\n" + "".join(f"      {x}\n" for x in script.splitlines())

    steps = block("fill", f"# {uuid.uuid4()}\n{_FILL}") + block("tell", _TELL)
    steps += "".join(f"  - {{name: step {number}, shell: 'true # {number}', via: ssh}}\n" for number in range(STEPS))
    path = site.folder / "checkpoints.yaml"
    path.write_text(f"name: checkpoints\n{MACHINE}base: {{disk: {{path: {disk}, trusted: true}}}}\n"
                    f"variables: {{word: first}}\nsteps:\n{steps}outputs: [{{qcow2: none}}]\n")  # fmt: skip
    return path


def _build(site: Site, recipe: Path, *options: str) -> Build:
    return site.build(recipe, "--no-checks", "--from", "fill", *options)


def _steps(build: Build) -> list[float]:
    return [taken for name, taken in build.nodes.items() if " step " in f" {name}"]


def lines(build: Build) -> list[str]:
    """What the nodes logged."""
    return [str(event["line"]) for event in build.events if event["event"] == "node-log"]
