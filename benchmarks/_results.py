"""docs/performance.md: the last results of each benchmark. A run replaces the sections of what it ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks._plot import Plot
from benchmarks._table import Row, show
from imagesmith import __version__
from imagesmith.host import Host
from imagesmith.probe import accelerator

_HEAD = """\
# Performance

The last results of each benchmark, as `python -m benchmarks --write` put them here. [benchmarks.md](benchmarks.md) says
what is compared, and what bounds the figures. Times belong to the load that stands beside them (of the last minute,
before and after): what else runs on the host takes its part.
"""
_PACKAGES = ("qemu-system-x86", "mmdebstrap", "libguestfs0", "packer", "vmdb2", "mkosi", "debootstrap")
_SECTION = re.compile(r"^## (.*)$", re.M)


@dataclass(frozen=True)
class Result:
    """One benchmark's rows, its pictures by their file names, and the load before and after it."""

    name: str
    rows: Sequence[Row]
    plots: Mapping[str, Plot]
    load: tuple[float, float]
    seconds: float


def section(result: Result, where: str, pictures: str) -> str:
    """The section's text. ``where`` tells day, host and versions; ``pictures`` is their folder, as the page sees it."""
    before, after = result.load
    told = f"{where} Load {before:.1f} before, {after:.1f} after; {result.seconds:.0f} s."
    lines = [f"## {result.name}", "", told, "", show(result.rows)]
    for name, plot in result.plots.items():
        lines += ["", f"![{plot.title}]({pictures}/{name}.svg)"]
    return "\n".join(lines) + "\n"


def merged(page: str, sections: Mapping[str, str], order: Sequence[str]) -> str:
    """Put new sections in the place of old ones; the others stay, all in the benchmarks' order."""
    parts = _SECTION.split(page)[1:]  # head, text, head, text …
    found = {head: f"## {head}\n\n{text.strip()}\n" for head, text in zip(parts[::2], parts[1::2], strict=True)}
    found |= sections
    return "\n".join([_HEAD, *(found[name] for name in order if name in found)])


def write(page: Path, results: Sequence[Result], where: str, order: Sequence[str]) -> None:
    """Write sections and pictures (beside the page, in ``performance/``). ``where`` is what ``host`` says."""
    pictures = page.with_suffix("")
    for result in results:
        for name, plot in result.plots.items():
            pictures.mkdir(exist_ok=True)
            (pictures / f"{name}.svg").write_text(plot.svg())
    today = f"{datetime.now(UTC):%Y-%m-%d}, {where}."
    new = {result.name: section(result, today, pictures.name) for result in results}
    page.write_text(merged(page.read_text() if page.exists() else "", new, order))


def host(folder: Path) -> str:
    """The machine, and the versions of what is measured. ``folder`` takes the verdict on KVM, which takes seconds."""
    kvm = "KVM" if accelerator(Host(), folder, lambda line: None).name == "kvm" else "no working KVM"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GiB, {kvm}"
    programs = [f"imagesmith {__version__}", f"Python {platform.python_version()}", *_versions()]
    return f"{machine}; {', '.join(programs)}"


def _versions() -> list[str]:
    argv = ["dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n", *_PACKAGES]
    try:
        told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return [line.rpartition(" ")[0] for line in told.splitlines() if line.endswith(" installed")]
