"""``python -m benchmarks [--runs N] [NAME...]``: run the benchmarks (all of them without a name), print one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import bootstrap, changed_step, installer, memory, online, provision, ssh_steps, unchanged
from benchmarks._measure import CommandFailed
from benchmarks._site import Site
from benchmarks._table import Row, show

BENCHMARKS = {
    "bootstrap": bootstrap.run,  # first: it leaves a store with the base in it
    "provision": provision.run,
    "changed-step": changed_step.run,
    "ssh-steps": ssh_steps.run,
    "online": online.run,
    "unchanged": unchanged.run,
    "installer": installer.run,
    "memory": memory.run,  # last: it looks at all builds
}


def main() -> int:
    """Run what was asked for. 1 where a target was missed or a command failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, default=3, help="repetitions of what is quick (3); slow peers run once")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it, instead of a temporary one")
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        print("benchmarks: not root: mmdebstrap is run in mode root and will fail", file=sys.stderr)
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        return _all(given.keep.absolute(), given.names, max(1, given.runs))
    with tempfile.TemporaryDirectory(prefix="imagesmith-bench-", ignore_cleanup_errors=True) as folder:
        return _all(Path(folder), given.names, max(1, given.runs))


def _all(folder: Path, names: list[str], runs: int) -> int:
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s, load {os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)

    site, rows, failed = Site(folder, say, runs), list[Row](), False
    before = os.getloadavg()[0]
    for name, run in BENCHMARKS.items():
        if names and name not in names:
            continue
        try:
            rows += run(site)
        except CommandFailed as error:
            failed = True
            say(f"{name}: {error}")
    print(show(rows))
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load "
          f"{before:.1f} before and {os.getloadavg()[0]:.1f} at the end; {time.monotonic() - start:.0f} s")  # fmt: skip
    return 1 if failed or any(row.reached is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
