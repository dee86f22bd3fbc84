"""Memory of the imagesmith process itself, while it builds, boots, checks and writes every output."""

from __future__ import annotations

from pathlib import Path

from benchmarks._site import STEPS, Site
from benchmarks._table import Row

TARGET = 150 * 2**20
REST = """
checks:
  - boot: {within: 15m}
  - http: {path: /, contains: It works}
  - user: ops
outputs: [qcow2, raw, ova, {vagrant: {provider: libvirt}}, oci]
"""


def recipe(site: Site) -> Path:
    """The recipe with everything in it."""
    return site.recipe("everything", STEPS + REST)


def run(site: Site) -> list[Row]:
    """Build everything; then look at all builds that any benchmark has done so far."""
    site.say("memory: building, checking and writing everything")
    site.build(recipe(site))
    name, most = max(site.peaks.items(), key=lambda item: item[1])
    return [Row(f"memory of imagesmith's own process, most of all builds ({name})", f"{most / 2**20:.0f} MiB",
                target="< 150 MB", reached=most < TARGET)]  # fmt: skip
