"""The real debian-installer: from its ISO to a sealed image, and what is said when it cannot go on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """Print how long the nodes took, and the installer's phases."""
    for event in done.events:
        if event["event"] == "node-done":
            print(f"{event['seconds']:7.1f} s  {event['node']}")
        elif event["event"] == "node-log" and event["line"].startswith(("answer file read", "took: ", "installed ")):
            print(f"            {event['line']}")


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
    """The installer itself would ask, and wait for ever."""
    with Overlay(folder, HOST, without={"apt-mirror-setup"}) as lacking:
        done = build(command, folder, lacking)
        assert any("apt-mirror-setup" in path for path in lacking.asked)
    show(done)
    assert done.status == 1
    [failed] = [event for event in done.events if event["event"] == "node-failed"]
    told = json.dumps(failed)
    assert "a component of the installer could not be loaded" in told
    assert "apt-mirror-setup" in told
    assert "loading the installer's components" in told
