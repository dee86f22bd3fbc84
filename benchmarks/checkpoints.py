"""What a checkpoint costs: five steps over SSH in a guest of 1 GiB that has at least 200 MB in use.

In use is what cannot be dropped: ``MemTotal - MemFree - Buffers - Cached + Shmem`` of /proc/meminfo. How well memory
packs is a matter of what is in it, so there are two fillings: a heap, of a Perl process that has read the system's text
files into lists of words, and code, the guest's own programs and libraries copied into a tmpfs. The counted steps do
nothing.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks._site import MACHINE, Build, Site
from benchmarks._table import Row, seconds
from benchmarks.provision import peer_base

TARGET, PART = 3.0, 1 / 3
STEPS = 5
IN_USE_KB = 200_000
_USED = """\
used() { awk '{ v[$1] = $2 }
END { print v["MemTotal:"] - v["MemFree:"] - v["Buffers:"] - v["Cached:"] + v["Shmem:"] }' /proc/meminfo; }
"""
_HEAP = r"""cat >/root/heap.pl <<'PERL'
sub used {
    open my $told, '<', '/proc/meminfo';
    my %v = map { /^(\w+):\s+(\d+)/ ? ($1, $2) : () } <$told>;
    return $v{MemTotal} - $v{MemFree} - $v{Buffers} - $v{Cached} + $v{Shmem};
}
for my $file (split /\n/, `find /usr/share /usr/lib /var/lib/dpkg -type f`) {
    next unless -T $file && open my $text, '<', $file;
    push @lines, map { [split] } <$text>;
    last if used() >= IN_USE;
}
open my $done, '>', '/run/heap.ready';
print $done $$;
close $done;
sleep;
PERL
setsid perl /root/heap.pl </dev/null >/dev/null 2>&1 &
until [ -s /run/heap.ready ]; do sleep 1; done
""".replace("IN_USE", str(IN_USE_KB))
_CODE = f"""kill "$(cat /run/heap.ready)"
mkdir -p /dev/shm/fill
for file in $(find /usr/lib /usr/bin /usr/sbin -type f -size +100k); do
    [ "$(used)" -lt {IN_USE_KB} ] || break
    cp "$file" "/dev/shm/fill/$(echo "$file" | tr / _)"
done
"""
FILLINGS = {"heap": _HEAP, "code": _CODE}
_SAID = re.compile(r"^checkpoint: (\d+) MiB in ([\d.]+) s")


def run(site: Site) -> list[Row]:
    """Build once without checkpoints and once with them: what they add is the difference of the steps' times."""
    disk = peer_base(site)
    site.say("checkpoints: without")
    bare = _build(site, disk, "--no-checkpoints")
    site.say("checkpoints: with")
    build = _build(site, disk)
    rows = list[Row]()
    for filling in FILLINGS:
        alone, kept = _seconds(bare, filling), _seconds(build, filling)
        said = [found for line in _lines(build, filling) if (found := _SAID.match(line))]
        [in_use] = [int(line.split()[1]) * 1024 for line in _lines(build, filling) if line.startswith("used ")]
        size = median(int(found[1]) for found in said) * 2**20
        site.say(f"checkpoints: {filling}: without {alone}, with {kept}, told {[found[0] for found in said]}")
        over = [taken - median(alone) for taken in kept]
        rows += [
            Row(f"what a checkpoint adds to a step over SSH, memory in use: {filling} ({STEPS} steps)",
                seconds(over), f"a step without {seconds(alone)}", target=f"< {TARGET:g} s",
                reached=median(over) < TARGET),
            Row("  by its own account", seconds([float(found[2]) for found in said])),
            Row("  its size", f"{size / 1e6:.0f} MB", f"in use {in_use / 1e6:.0f} MB", f"{size / in_use:.2f} of that",
                "< 0.33", size / in_use < PART),
        ]  # fmt: skip
    count = STEPS * len(FILLINGS) + len(FILLINGS) - 1
    each = (_span(build) - _span(bare)) / count
    return [*rows, Row(f"a checkpoint's share of the session, packing included ({count} steps)", f"{each:.2f} s",
                       f"the session without {_span(bare):.1f} s")]  # fmt: skip


def _recipe(site: Site, disk: Path) -> Path:
    run, steps = uuid.uuid4(), ""
    for filling, script in FILLINGS.items():
        steps += _block(f"fill with {filling}", f"# {run}\n{_USED}{script}")
        steps += "".join(_block(f"{filling} {number}", f"true # {number}") for number in range(1, STEPS))
        steps += _block(f"{filling} {STEPS}", f'{_USED}echo used "$(used)"')
    path = site.folder / "checkpoints.yaml"
    base = f"base: {{disk: {{path: {disk}, trusted: true}}}}\n"
    path.write_text(f"name: checkpoints\n{MACHINE}{base}steps:\n{steps}outputs: [{{qcow2: none}}]\n")
    return path


def _block(name: str, script: str) -> str:
    lines = "".join(f"      {line}\n" for line in script.splitlines())
    return f"  - name: {name}\n    via: ssh\n    shell: |\n{lines}"


def _build(site: Site, disk: Path, *options: str) -> Build:
    return site.build(_recipe(site, disk), "--no-checks", *options)


def _counted(node: str, filling: str) -> bool:
    return re.search(rf" {filling} \d+$", node) is not None


def _seconds(build: Build, filling: str) -> list[float]:
    return [taken for name, taken in build.nodes.items() if _counted(name, filling)]


def _span(build: Build) -> float:
    """Seconds from the first counted step's start until the guest was let go of: until the next session's start."""
    return _started(build, " cleanup") - _started(build, f" {next(iter(FILLINGS))} 1")


def _started(build: Build, name: str) -> float:
    [stamp] = [event["time"] for event in build.events
               if event["event"] == "node-start" and str(event["node"]).endswith(name)]  # fmt: skip
    return datetime.fromisoformat(stamp).timestamp()


def _lines(build: Build, filling: str) -> Sequence[str]:
    """What the counted steps logged."""
    return [str(event["line"]) for event in build.events
            if event["event"] == "node-log" and _counted(str(event["node"]), filling)]  # fmt: skip
