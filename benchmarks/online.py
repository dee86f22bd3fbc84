"""Five shell steps over SSH on an installed disk, the last one changed, to a compressed qcow2: imagesmith and Packer.

Both begin with the same disk. imagesmith goes on from the checkpoint of the fourth step; Packer boots the disk and runs
all five. Packer's users begin with the ISO instead, so the second figure adds an installation's time to Packer's, once.
"""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import datetime
from pathlib import Path
from statistics import median

from benchmarks import _packer
from benchmarks._measure import CommandFailed
from benchmarks._site import MACHINE, Build, Site
from benchmarks._table import Row, seconds
from benchmarks.provision import peer_base

TARGET, TARGET_ISO = 10, 50
FIGURE = "last of five online steps changed, to compressed qcow2"
LAST = "{name: last, shell: 'echo {{ word }} > /root/last', via: ssh}"
COMMANDS = [f"echo step {number} > /root/step{number}" for number in range(1, 5)]


def run(site: Site) -> list[Row]:
    """Ours, the peer, ours."""
    base = peer_base(site)
    recipe = _recipe(site, base)
    site.say("online: the first build, from the disk")
    first = _build(site, recipe)
    ours = [_again(site, recipe) for _ in range(site.most)]
    awake = [_told(build, "going on from the checkpoint after") for build in ours]
    kept = [_told(build, "checkpoint:") for build in ours]
    entered = [_connected(_over_ssh(site, base)) for _ in range(site.most)]
    booted = _connected(first)
    rows = [
        Row(f"{FIGURE} ({len(ours)} runs)", seconds([build.run.seconds for build in ours])),
        *(Row(f"  of that: {name}", seconds([build.nodes[name] for build in ours])) for name in ours[0].nodes),
        Row("  the guest awake and entered", seconds(awake),
            f"booted and entered {booted:.1f} s"),
        Row(f"  from the checkpoint to a working SSH connection, 1 GiB ({len(entered)} runs)", seconds(entered),
            f"from power-on {booted:.1f} s", f"{booted / median(entered):.0f} times sooner", "< 8 s",
            median(entered) < 8),
        Row("  a step's checkpoint", seconds(kept), target="<= 3 s", reached=median(kept) <= 3),
    ]  # fmt: skip
    if shutil.which("packer") is None:
        site.say("online: packer is not installed, left out")
        return rows
    site.say("online: packer, once")
    shell = {"type": "shell", "execute_command": "sudo sh -c '{{ .Vars }} sh {{ .Path }}'"}
    commands = [*COMMANDS, "echo last > /root/last"]
    steps: list[dict[str, object]] = [{**shell, "inline": [command]} for command in commands]
    try:
        whole = sum(_packer.build(site.folder, base, steps).values())
    except CommandFailed as error:
        site.say(f"online: {error}")
        return [*rows, Row(FIGURE, rows[0].ours, "packer failed", reached=False)]
    after = _again(site, recipe).run.seconds
    around = [ours[-1].run.seconds, after]
    ratio = whole / median(around)
    from_iso = whole + site.install_seconds
    far = from_iso / median(around)
    return [
        *rows,
        Row(f"{FIGURE} (before and after the peer)", seconds(around), f"packer {whole:.1f} s",
            f"{ratio:.1f} times faster", f">= {TARGET} times", ratio >= TARGET),
        Row("  the same, the peer from the ISO", seconds(around),
            f"packer {whole:.1f} s + an installation {site.install_seconds:.0f} s, not in this run",
            f"{far:.0f} times faster", f">= {TARGET_ISO} times", far >= TARGET_ISO),
    ]  # fmt: skip


def _over_ssh(site: Site, base: Path) -> Build:
    """The last step is a file too large for the shell that waits in the guest: it goes over SSH."""
    (site.folder / "large").write_bytes(os.urandom(2 << 20))
    return _again(site, _recipe(site, base, "online-large", "{copy: {from: large, to: /root/}, via: ssh}"))


def _recipe(site: Site, base: Path, name: str = "online", last: str = LAST) -> Path:
    steps = "".join(f"  - {{shell: '{command}', via: ssh}}\n" for command in COMMANDS)
    path = site.folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\n{MACHINE}variables: {{word: first}}\nbase: {{disk: {{path: {base}, trusted: true}}}}\n"
        f"steps:\n{steps}  - {last}\noutputs: [qcow2]\n"
    )
    return path


def _build(site: Site, recipe: Path) -> Build:
    return site.build(recipe, "--no-checks", "--var", f"word={uuid.uuid4()}")


def _again(site: Site, recipe: Path) -> Build:
    build = _build(site, recipe)
    if any("booting" in str(event.get("line")) for event in build.events):
        raise AssertionError(f"it did not go on from its checkpoint: {build.nodes}")
    site.say("online: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items())
             + f"; whole {build.run.seconds:.2f}")  # fmt: skip
    return build


def _connected(build: Build) -> float:
    """Seconds from the start of the node in which the guest was started, or woken, until SSH was connected."""
    told = [event for event in build.events if str(event.get("line")).startswith("connected after")]
    [begun] = [event for event in build.events if event["event"] == "node-start" and event["node"] == told[0]["node"]]
    start, end = (datetime.fromisoformat(event["time"]) for event in (begun, told[0]))
    return (end - start).total_seconds()


def _told(build: Build, words: str) -> float:
    """The seconds at the end of the first line of a node's log that begins with these words."""
    [line, *_] = [str(event["line"]) for event in build.events if str(event.get("line")).startswith(words)]
    return float(line.removesuffix(" s").rpartition(" ")[2])
