"""Where the benchmarks work: a throw-away folder with a store of its own, the recipes, and imagesmith's command."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks._measure import Run, measure
from benchmarks._plot import Plot
from imagesmith.store import Store

PACKAGES = ("openssh-server", "sudo")
BASE = f"base: {{bootstrap: {{distribution: debian, suite: bookworm, packages: [{', '.join(PACKAGES)}]}}}}\n"
"""The base of every recipe here, so that it is made once."""
MACHINE = "machine: {cpus: 2, memory: 1G, disk: 4G, firmware: bios}\n"
STEPS = """
steps:
  - packages: [nginx-light]
  - user: {name: ops, shell: /bin/bash}
  - copy: {from: index.html, to: /var/www/html/}
"""
PAGE = "<p>It works</p>\n"
INSTALL_SECONDS = 1432.0
"""Debian's installer, from its ISO to the machine switched off, without KVM: tests/test_install_debian.py through
`imagesmith build`, two cores, load 5 to 11. Packer boots the same installer, and types its command line besides."""
_COMMAND = "from imagesmith.cli import main; main()"


@dataclass(frozen=True)
class Build:
    """One run of ``imagesmith build``: the measurements, and the events that it told."""

    run: Run
    events: tuple[Mapping[str, Any], ...]

    @property
    def nodes(self) -> dict[str, float]:
        """The nodes that ran, with their own seconds."""
        return {e["node"]: e["seconds"] for e in self.events if e["event"] == "node-done"}

    def until(self, node: str) -> float:
        """Seconds from the start of the command to the moment a node was done and flushed, all before it included."""
        [stamp] = [e["time"] for e in self.events if e["event"] == "node-done" and e["node"] == node]
        return datetime.fromisoformat(stamp).timestamp() - self.run.begun


@dataclass
class Site:
    """The throw-away folder. ``say`` takes a line on what is going on; ``most`` is the repetitions at most."""

    folder: Path
    say: Callable[[str], None]
    most: int
    install_seconds: float = INSTALL_SECONDS
    peaks: dict[str, int] = field(default_factory=dict)
    """The most memory that imagesmith's process took: what was built -> bytes."""
    plots: dict[str, Plot] = field(default_factory=dict)
    """Pictures by their file names, of the benchmark that runs."""
    store: Path = Path()

    def __post_init__(self) -> None:
        self.store = self.folder / "store1"
        (self.folder / "index.html").write_text(PAGE)

    def fresh_store(self) -> None:
        """Begin with an empty store; the earlier ones stay until the end."""
        free = (self.folder / f"store{number}" for number in itertools.count(2))
        self.store = next(folder for folder in free if not folder.exists())

    def branch(self) -> None:
        """Go on in a copy of the store without its artifacts, which new ones could be made of. Its files are links."""
        before = self.store
        self.fresh_store()
        measure(["cp", "--archive", "--link", before, self.store], cwd=self.folder)
        for index in self.store.glob("index.db*"):  # the only files that change in place
            index.unlink()
            shutil.copy2(before / index.name, index)
        store = Store(self.store)
        while artifacts := [layer for layer in store.layers() if layer.gives == "files"]:
            size = store.size()
            store.collect(size - sum(layer.size for layer in artifacts))  # artifacts go before layers
            if store.size() == size:
                raise AssertionError(f"the store keeps {artifacts}")

    def recipe(self, name: str, rest: str) -> Path:
        """Write a recipe on the common base."""
        path = self.folder / f"{name}.yaml"
        path.write_text(f"name: {name}\n" + MACHINE + BASE + rest)
        return path

    def plot(self, name: str, plot: Plot) -> None:
        """Leave a picture that goes with the rows."""
        self.plots[name] = plot

    def build(self, recipes: Path | Sequence[Path], *options: str, command: str = _COMMAND) -> Build:
        """Run ``imagesmith build``, or a Python ``command`` that does so. Raises CommandFailed."""
        paths = [recipes] if isinstance(recipes, Path) else recipes
        names = [path.name for path in paths]
        argv = [sys.executable, "-c", command, "build", *names, "--log-format", "json", *options]
        # A package that was installed has its byte code beside it; one that is run from its source has it here.
        compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode")}
        run = measure(argv, cwd=self.folder, env={"IMAGESMITH_CACHE": str(self.store), **compiled})
        told = tuple(json.loads(line) for line in run.stderr.splitlines() if line.startswith("{"))
        self.peaks[paths[-1].stem] = max(run.peak, self.peaks.get(paths[-1].stem, 0))
        return Build(run, told)
