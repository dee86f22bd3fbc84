"""Builds whose processes are killed at random moments, that run out of space, and that meet in one store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from imagesmith.disk.attach import attached
from imagesmith.errors import GuestFailed
from imagesmith.host import Host
from imagesmith.machine.arguments import Drive, MachineSpec
from imagesmith.machine.qemu import Machine
from imagesmith.store import Store
from tests.conftest import Command, Golden
from tests.faults import Campaign, gone, started_by

SEED = int(os.environ.get("FAULT_SEED", "20261127"))
"""Another one tries other moments; it is printed."""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount what is to be looked at")


def test_a_build_that_is_killed_leaves_a_sound_store_and_then_the_same_image(command: Command, tmp_path: Path) -> None:
    figures = Campaign("small", tmp_path, seed=SEED, like=command.store).run(4)
    assert figures.findings == []
    assert figures.kills == {"build": 4}
    assert figures.images >= 1


@pytest.mark.slow
@root_only
@pytest.mark.parametrize(("kind", "kills"), [("tree", 20), ("mounted", 10), ("disk", 8), ("online", 12)])
def test_fifty_kills(command: Command, golden: Golden, tmp_path: Path, kind: str, kills: int) -> None:
    disk = None if kind == "tree" else golden.folder / "golden.qcow2"
    figures = Campaign(kind, tmp_path, seed=SEED, disk=disk, like=command.store).run(kills)
    assert figures.findings == []
    assert figures.kills.total() == kills


@pytest.mark.slow
@root_only
@pytest.mark.parametrize("kind", ["tree", "mounted"])
def test_no_space_left_at_any_point(command: Command, golden: Golden, tmp_path: Path, kind: str) -> None:
    """In a mount namespace of its own, so that nothing stays mounted."""
    more = [] if kind == "tree" else [golden.folder / "golden.qcow2"]
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.faults", f"full-{kind}", "8",
            str(SEED), tmp_path, *more]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert done.stdout.count(" KiB left: exit 1") >= 3, done.stdout


def test_a_guest_whose_disk_is_gone_is_given_up_at_once(tmp_path: Path) -> None:
    """It would wait for its disk, and we for it, until the deadline."""
    host, disk = Host(), tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "1M"], check=True)
    with pytest.raises(GuestFailed, match="storage daemon that holds the guest's disk was killed by SIGKILL"):
        _lose(host, disk, tmp_path)


def _lose(host: Host, disk: Path, folder: Path) -> None:
    with attached([disk], host, writable=True, nbd=True) as opened:
        spec = MachineSpec(drives=(Drive(opened.socket, "nbd"),), memory=64 << 20)
        with Machine(host, spec, folder / "console", lost=opened.lost) as machine:
            machine.check()
            daemon = started_by(os.getpid(), "qemu-storage-da")
            assert daemon is not None
            os.kill(daemon, signal.SIGKILL)
            machine.watch(lambda: None, within=60, doing="anything")


# -- several builds in one store ---------------------------------------------------------------------------------------

CROWD = """\
name: {name}
base: {{bootstrap: {{distribution: debian, suite: bookworm, kernel: none}}}}
steps:
  - shell: echo {stamp} > /srv/first; sleep 0.7
  - shell: echo {stamp} > /srv/second; sleep 0.7
  - shell: echo {name} > /srv/third
outputs: [{{tar: none}}]
"""


def test_builds_that_share_steps_make_each_node_once_though_one_is_killed(command: Command, tmp_path: Path) -> None:
    """Four processes, three recipes; the first is killed while it makes what the others wait for."""
    stamp, recipes = f"{time.time()}", []
    for name in ("one", "two", "three", "one"):
        recipes.append(tmp_path / f"{name}.yaml")
        recipes[-1].write_text(CROWD.format(name=name, stamp=stamp))
    mine = Command(command.store, tmp_path / "output")
    first = mine.start("build", recipes[0], "--log-format", "json")
    assert first.stderr is not None
    before = []
    for line in first.stderr:
        before.append(json.loads(line))
        if before[-1]["event"] == "node-start" and before[-1]["node"].startswith("1 "):
            break
    others = [mine.start("build", recipe, "--log-format", "json") for recipe in recipes[1:]]
    time.sleep(0.3)
    first.send_signal(signal.SIGKILL)
    _, rest = first.communicate(timeout=60)
    events = before + [json.loads(line) for line in rest.splitlines() if line.endswith("}")]
    for other in others:
        _, err = other.communicate(timeout=300)
        assert other.returncode == 0, err[-3000:]
        events += [json.loads(line) for line in err.splitlines()]
    made = Counter(event["key"] for event in events if event["event"] == "node-done")
    assert set(made.values()) == {1}
    shared = {event["key"] for event in events if event["event"] == "node-done" and event["node"][:2] in ("1 ", "2 ")}
    assert len(shared) == 2
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["one", "three", "two"]
    assert gone(tmp_path) == []
    with closing(Store(command.store)) as store, store.using():
        assert not [path for path in (store.root / "layers").iterdir() if path.suffix]
        for key in made:
            assert store.find(key) is not None


def test_a_build_beside_endless_collection_comes_through(command: Command, tmp_path: Path) -> None:
    """``cache gc --limit 0`` again and again takes nothing that the build needs; afterwards it takes all."""
    campaign = Campaign("small", tmp_path, seed=SEED, like=command.store)
    campaign.prepare()
    build = campaign.command.start("build", campaign.recipe, "--log-format", "json")
    assert build.stderr is not None
    assert "plan" in build.stderr.readline()
    collections = 0
    while build.poll() is None:
        campaign.command("cache", "gc", "--limit", "0")
        collections += 1
    _, err = build.communicate()
    assert build.returncode == 0, err[-3000:]
    assert collections > 1
    campaign.compare()
    assert campaign.figures.findings == []
    campaign.command("cache", "gc", "--limit", "0")
    assert list((campaign.command.store / "layers").iterdir()) == []


_HOLDS = """
import sys, tempfile, time
from pathlib import Path
from imagesmith.scratch import scratch
with scratch() as folder:
    Path(tempfile.mkdtemp(prefix="imagesmith-"), "key").write_text("secret")
    print(folder, flush=True)
    time.sleep(1000)
"""


def test_temporary_files_of_a_dead_build_go_with_the_next_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    (tmp_path / "imagesmith.not-ours").touch()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def holder() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen([sys.executable, "-c", _HOLDS], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (dead, left), (living, kept) = holder(), holder()
    dead.kill()
    dead.wait()
    assert len(list(left.glob("*/key"))) == 1
    third, _ = holder()
    try:
        assert not left.exists()
        assert len(list(kept.glob("*/key"))) == 1
        assert kept.stat().st_mode & 0o777 == 0o700
        third.send_signal(signal.SIGINT)
        third.wait(20)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept.name, "imagesmith.not-ours"])
    finally:
        for process in (living, third):
            process.kill()
            process.wait()
