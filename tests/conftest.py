"""What the tests share: the command, one store, one image that is built once, and no silent skips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("imagesmith", deadline=None)  # no test depends on what else the machine does
settings.load_profile("imagesmith")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    status: int
    out: str
    err: str


class Command:
    """Runs imagesmith as a user does: another process, with a store of its own."""

    def __init__(self, store: Path, output: Path) -> None:
        self.store, self.output = store, output

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IMAGESMITH_VAR_")}
        return {**kept, "IMAGESMITH_CACHE": str(self.store), **more}

    def argv(self, *args: str | Path) -> list[str]:
        more = ["--output", str(self.output)] if args[0] in ("build", "test") else []
        return [sys.executable, "-m", "imagesmith.cli", *map(str, args), *more]

    def __call__(self, *args: str | Path, expect: int = 0, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(self.argv(*args), capture_output=True, text=True, env=self.environment(**(env or {})),
                              check=False, timeout=1800)  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr[-6000:]
        assert done.returncode == expect, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr[-6000:]}"
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(self.argv(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=self.environment())  # fmt: skip


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the tests share, so that each base is made once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def command(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command, with the shared store."""
    return Command(store, tmp_path_factory.mktemp("output"))


@dataclass(frozen=True)
class Golden:
    """The shared image, built once through the command."""

    recipe: Path
    folder: Path
    manifest: dict[str, Any]
    ran: Ran


@pytest.fixture(scope="session")
def golden(command: Command) -> Golden:
    """Build the shared image: bootstrap, steps, assembly, checks under both firmwares, all outputs."""
    recipe = HERE / "recipes" / "golden.yaml"
    ran = command("build", recipe)
    folder = command.output / "golden"
    return Golden(recipe, folder, json.loads((folder / "manifest.json").read_text()), ran)


# -- skips -------------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """CI fails for whatever was skipped: all that the tests need can be installed."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("CI") == "true":
        terminalreporter.write_line(f"{len(skipped)} tests were skipped in CI: that is a failure", red=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """See pytest_terminal_summary."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("CI") == "true" and exitstatus == 0:
        session.exitstatus = 1
