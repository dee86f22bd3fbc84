"""Kinds of another package: the example is installed and built with; what is broken is named, and breaks no other."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from imagesmith.host import Host
from tests.conftest import Command
from tests.trees import tiny

EXAMPLE = Path(__file__).parent.parent / "docs/examples/imagesmith-example"
RECIPE = """\
base: {folder: files}
steps:
  - stamp: made here
  - cleanup: false
outputs: [listing]
"""
INSTALL = """\
base: {iso: {path: some.iso, checksum: "sha256:%s", answers: {notes: {hostname: one}}}}
checks: [stamped: made here]
""" % ("0" * 64)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What makes the example a package that is installed: without a network, into a folder."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    Host().run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                "--target", folder / "site", folder / "source"], purpose="test")  # fmt: skip
    return {"PYTHONPATH": str(folder / "site")}


def test_the_example_is_in_the_reference(installed: dict[str, str], command: Command) -> None:
    listed = command("kinds", env=installed)
    assert listed.err == ""
    for name in ("folder", "notes", "stamp", "stamped", "listing"):
        assert f"\n  {name} " in listed.out
    assert "(step)\n## stamp\n\nLeave a line of text in /etc/stamp." in command("kinds", "stamp", env=installed).out
    schema = json.loads(command("schema", env=installed).out)
    steps = [form["properties"].keys() for form in schema["properties"]["steps"]["items"]["anyOf"][1:]]
    assert any("stamp" in names for names in steps)
    assert any("notes" in form["properties"] for form in schema["$defs"]["answers"]["oneOf"])


def test_the_example_builds(installed: dict[str, str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/hello").write_text("hello\n")
    recipe = tmp_path / "plug.yaml"
    recipe.write_text(RECIPE)
    assert f"{recipe}: fine" in command("validate", recipe, env=installed).out
    command("build", recipe, env=installed)
    listing = (command.output / "plug/plug.listing.txt").read_text().splitlines()
    assert [line.split()[-1].removeprefix("./") for line in listing if " 0:0 " in line][-3:] == [
        "etc", "etc/stamp", "hello"]  # fmt: skip
    assert any(line.startswith("0644 0:0 10 ") for line in listing)
    assert "up to date" in command("build", recipe, env=installed).out
    assert "unknown base 'folder'" in command("validate", recipe, expect=2).out


def test_its_answer_file_and_check_are_read(installed: dict[str, str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "some.iso").touch()
    recipe = tmp_path / "install.yaml"
    recipe.write_text(INSTALL)
    assert f"{recipe}: fine" in command("validate", recipe, env=installed).out
    recipe.write_text(INSTALL.replace("hostname", "hostnam"))
    assert "did you mean 'hostname'" in command("validate", recipe, env=installed, expect=2).out


def broken(site: Path, name: str, code: str, requires: str = "") -> None:
    """A package that is installed, of one module."""
    module = name.replace("-", "_")
    info = site / f"{module}-2.0.dist-info"
    info.mkdir(parents=True)
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n{needs}")
    (info / "entry_points.txt").write_text(f"[imagesmith.kinds]\nall = {module}\n")
    (site / f"{module}.py").write_text(code)


KIND = '''
from imagesmith.kinds import Step
class Mine(Step, name="NAME", version=1):
    """A step."""
'''


def test_a_broken_package_is_named_and_breaks_nothing_else(
    installed: dict[str, str], command: Command, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    broken(site, "bad-import", KIND.replace("NAME", "early") + "import nonsense\n")
    broken(site, "bad-syntax", "def:\n")
    broken(site, "gives-up", "import sys\nsys.exit(0)\n")
    broken(site, "good", KIND.replace("NAME", "good"), "imagesmith>=9; extra == 'later'")
    broken(site, "takes-a-name", KIND.replace("NAME", "cleanup"))
    broken(site, "takes-another-name", KIND.replace("NAME", "stamp"))
    broken(site, "too-new", KIND.replace("NAME", "late"), "imagesmith (>=9)")
    env = {"PYTHONPATH": f"{installed['PYTHONPATH']}:{site}"}
    listed = command("kinds", env=env)
    said = [line.removeprefix("imagesmith: the kinds of ") for line in listed.err.splitlines()]
    assert said == [
        "bad-import 2.0 are left out: ModuleNotFoundError: No module named 'nonsense' "
        f"({site}/bad_import.py, line 5)",
        f"bad-syntax 2.0 are left out: invalid syntax ({site}/bad_syntax.py, line 1)",
        f"gives-up 2.0 are left out: SystemExit: 0 ({site}/gives_up.py, line 2)",
        "takes-a-name 2.0 are left out: ValueError: step 'cleanup': there is one of that name already, in "
        f"imagesmith.steps.cleanup ({site}/takes_a_name.py, line 3)",
        "takes-another-name 2.0 are left out: ValueError: step 'stamp': there is one of that name already, in "
        f"imagesmith_example.step ({site}/takes_another_name.py, line 3)",
        "too-new 2.0 are left out: it needs imagesmith >=9, and this is 0.1.0",
    ]  # fmt: skip
    assert "\n  stamp " in listed.out
    assert "\n  early " not in listed.out
    assert "\n  good " in listed.out
    recipe = tiny(tmp_path)
    assert command("validate", recipe, env=env).err == ""
    recipe.write_text(recipe.read_text().replace("shell:", "late:"))
    said_of_late = command("validate", recipe, env=env, expect=2).out
    assert "unknown step 'late'" in said_of_late
    assert "; the kinds of too-new 2.0 are left out: it needs imagesmith >=9" in said_of_late
