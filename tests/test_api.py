"""Images built from Python: what docs/reference/python.md says is run, and holds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import imagesmith
from imagesmith.errors import StepFailed
from imagesmith.host import Host
from tests.trees import TINY, tiny

PAGE = Path(__file__).parent.parent / "docs/reference/python.md"
BLOCKS = re.findall(r"^```python run\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a store of its own."""
    monkeypatch.setenv("IMAGESMITH_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    tiny(tmp_path)
    return tmp_path


def test_the_documentation_runs(here: Path) -> None:
    (here / "web.yaml").write_text(TINY.replace("name: tiny", "name: web").replace("word:", "greeting:")
                                   .replace("{{ word }}", "{{ greeting }}"))  # fmt: skip
    (here / "wrong.yaml").write_text("name: wrong\nbaze: {}\n")
    said = Host().run([sys.executable, "-c", "\n".join(BLOCKS)], purpose="test").text
    assert "['base container tiny.tar', " in said
    assert "echo 'Hello' > /etc/motd" in said
    assert re.search(r"^output/web/web\.rootfs\.tar\S* \S+ \d+ [0-9a-f]{64} not booted$", said, re.M)
    assert re.search(r"^output rootfs\.tar\.zst: \d+\.\d s$", said, re.M)
    assert re.search(r"^wrong\.yaml:2:1: baze: .*did you mean 'base'", said, re.M)


def test_a_build_tells_what_the_command_tells(here: Path) -> None:
    plan = imagesmith.make_plan(imagesmith.load("tiny.yaml", variables={"word": "moin"}))
    events: list[imagesmith.Event] = []
    result = imagesmith.build(plan, listen=events.append, jobs=1)
    told = [event.event for event in events if event.event != "node-log"]
    assert told[:2] == ["plan", "node-start"]
    assert told[-1] == "summary"
    assert set(result.ran) == {event.node for event in events if event.event == "node-done"}
    manifest = json.loads((here / "output/tiny/manifest.json").read_text())
    made, = result.artifacts
    assert manifest["artifacts"][0]["files"] == [{"name": made.path.name, "size": made.size, "sha256": made.sha256}]
    assert manifest["variables"] == {"word": "moin"}


def test_what_fails_says_where(here: Path) -> None:
    (here / "tiny.yaml").write_text(TINY.replace("echo '{{ word }}' > /etc/motd", "echo no; exit 3"))
    with pytest.raises(StepFailed, match="exit status 3") as caught:
        imagesmith.build(imagesmith.make_plan(imagesmith.load(here / "tiny.yaml")))
    error = caught.value
    assert isinstance(error, imagesmith.BuildError)
    assert error.place.endswith("tiny.yaml:7:5")
    assert error.node.endswith("echo no; exit 3")
    assert error.kept is not None
    assert [file.read_text() for file in error.kept.glob("*.log")] == ["no\n"]


def test_the_import_brings_nothing_with_it() -> None:
    code = "import sys, imagesmith; print([name for name in sys.modules if name.split('.')[0] in " \
           "('imagesmith', 'pydantic', 'rich', 'typer', 'yaml')]); imagesmith.build; print('pydantic' in sys.modules)"
    assert Host().run([sys.executable, "-c", code], purpose="test").text == "['imagesmith']\nTrue\n"
