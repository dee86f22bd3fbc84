"""``python -m benchmarks [--runs N] [NAME...]``: run the benchmarks (all of them without a name), print one table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import (
    bootstrap,
    chains,
    changed_step,
    checkpoints,
    convert,
    formats,
    image_makers,
    installer,
    many,
    memory,
    offline_steps,
    online,
    outputs,
    planning,
    provision,
    ssh_steps,
    unchanged,
)
from benchmarks._measure import CommandFailed
from benchmarks._results import Result, host, write
from benchmarks._site import INSTALL_SECONDS, Site
from benchmarks._table import show

BENCHMARKS = {
    "image-makers": image_makers.run,
    "bootstrap": bootstrap.run,
    "chains": chains.run,
    "many": many.run,  # these three each begin with an empty store and leave one with the base in it
    "provision": provision.run,
    "outputs": outputs.run,
    "convert": convert.run,
    "formats": formats.run,
    "changed-step": changed_step.run,
    "offline-steps": offline_steps.run,
    "ssh-steps": ssh_steps.run,
    "online": online.run,
    "checkpoints": checkpoints.run,
    "unchanged": unchanged.run,
    "planning": planning.run,
    "installer": installer.run,
    "memory": memory.run,  # last: it looks at all builds
}


def main() -> int:
    """Run what was asked for. 1 where a target was missed or a command failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, default=3, help="repetitions of what is quick (3); slow peers run once")
    parser.add_argument("--keep", type=Path, help="work in this folder, with the store in it, and leave it")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the results there: docs/performance.md")
    parser.add_argument("--install-seconds", type=float, default=INSTALL_SECONDS,
                        help="what an installation from the ISO takes here (%(default)g), for `online`")  # fmt: skip
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: {', '.join(BENCHMARKS)}")
    if os.geteuid() != 0:
        print("benchmarks: not root: mmdebstrap is run in mode root and will fail", file=sys.stderr)
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        return _all(given.keep.absolute(), given)
    with tempfile.TemporaryDirectory(prefix="imagesmith-bench-", ignore_cleanup_errors=True) as folder:
        return _all(Path(folder), given)


def _all(folder: Path, given: argparse.Namespace) -> int:
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s, load {_load():.1f}] {text}", file=sys.stderr, flush=True)

    site = Site(folder, say, max(1, given.runs), given.install_seconds)
    results, failed, where = list[Result](), False, host(folder)
    for name, run in BENCHMARKS.items():
        if given.names and name not in given.names:
            continue
        before, begun, site.plots = _load(), time.monotonic(), {}
        try:
            rows = run(site)
        except CommandFailed as error:
            failed = True
            say(f"{name}: {error}")
            continue
        results.append(Result(name, rows, site.plots, (before, _load()), time.monotonic() - begun))
        if given.write:
            write(given.write, results[-1:], where, list(BENCHMARKS))
    rows = [row for result in results for row in result.rows]
    print(show(rows))
    print(f"\n{where}")
    for result in results:
        print(f"{result.name}: load {result.load[0]:.1f} before, {result.load[1]:.1f} after, {result.seconds:.0f} s")
    return 1 if failed or any(row.reached is False for row in rows) else 0


def _load() -> float:
    """Of the last minute: runnable and waiting threads, on average."""
    return os.getloadavg()[0]


if __name__ == "__main__":
    sys.exit(main())
