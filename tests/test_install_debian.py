"""The real debian-installer: from its ISO to a sealed image, and what is said when it cannot go on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from imagesmith.host import Host
from tests import consumers
from tests.conftest import Command
from tests.debian_installer import iso
from tests.debian_installer.mirror import Overlay

HOST = Host()
RECIPE = Path(__file__).parent / "debian_installer/recipe.yaml"
HOURS = 3 * 3600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the installer, its packages and the ISO are kept."""
    return tmp_path_factory.mktemp("debian-installer")


@pytest.fixture(scope="module")
def overlay(folder: Path) -> Iterator[Overlay]:
    with Overlay(folder, HOST) as served:
        yield served


@dataclass(frozen=True)
class Build:
    """A build that ended."""

    status: int
    out: str
    events: Sequence[dict[str, Any]]
    err: str

    def nodes(self, event: str) -> list[str]:
        return [found["node"] for found in self.events if found["event"] == event]


def build(command: Command, folder: Path, mirror: Overlay, *options: str) -> Build:
    given = {"iso": iso.build(folder, HOST), "port": mirror.port, "mirror": mirror.upstream}
    variables = [word for name, value in given.items() for word in ("--var", f"{name}={value}")]
    with command.start("build", RECIPE, *variables, *options, "--log-format", "json") as process:
        try:
            out, err = process.communicate(timeout=HOURS)
        except subprocess.TimeoutExpired:
            process.terminate()
            raise
    assert "Traceback" not in err, err[-6000:]
    return Build(process.returncode, out, [json.loads(ln) for ln in err.splitlines() if ln.startswith("{")], err)


def show(done: Build) -> None:
    """Print what was done when, the installer's phases among it."""
    start = None
    for event in done.events:
        at = datetime.fromisoformat(event["time"])
        start = start or at
        if event["event"] in {"node-start", "node-done", "check", "artifact"} or event.get("phase"):
            told = {name: value for name, value in event.items() if name not in {"time", "recipe", "key"}}
            print(f"{(at - start).total_seconds():7.1f} s  {json.dumps(told)[:200]}")


@pytest.mark.slow
def test_from_the_iso_to_a_sealed_image(command: Command, folder: Path, overlay: Overlay, tmp_path: Path) -> None:
    first = build(command, folder, overlay)
    show(first)
    assert first.status == 0, first.err[-6000:]
    made = command.output / "debian-installed"
    manifest = json.loads((made / "manifest.json").read_text())
    assert all(check["passed"] for check in manifest["checks"])
    assert len(manifest["checks"]) == 8
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=made, check=True)
    HOST.run(["qemu-img", "check", "-q", made / "debian-installed.qcow2"], purpose="test")
    assert "debian-installed" in consumers.add_box(made / "debian-installed.libvirt.box", "debian-installed", tmp_path)
    # Another last step: what was installed is there already, and so are the other steps.
    asked = len(overlay.asked)
    second = build(command, folder, overlay, "--var", "word=second", "--no-checks", "--only", "qcow2")
    show(second)
    assert second.status == 0, second.err[-6000:]
    assert [name for name in second.nodes("node-done") if not name.startswith("output")] == [
        "3 leave a mark", "4 cleanup"]  # fmt: skip
    assert len(overlay.asked) == asked


def test_a_component_that_cannot_be_had_ends_it_at_once(command: Command, folder: Path) -> None:
    with Overlay(folder, HOST, without={"apt-mirror-setup"}) as lacking:
        done = build(command, folder, lacking)
        assert any("apt-mirror-setup" in path for path in lacking.asked)
    assert done.status == 1
    assert "apt-mirror-setup" in done.err
