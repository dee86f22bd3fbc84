"""Bootstrapping and sealing against mmdebstrap alone: the same packages, suite and mirror, empty stores."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median

from benchmarks._measure import measure
from benchmarks._site import PACKAGES, Site
from benchmarks._table import Row, seconds
from imagesmith.bases._mirrors import host_mirrors, sources
from imagesmith.bases.bootstrap import Bootstrap
from imagesmith.host import Host

TARGET = 1.25
SEALED = "assemble the disk"


def run(site: Site) -> list[Row]:
    """Take turns. The last store stays, with the base in it."""
    recipe = site.recipe("bootstrapped", "outputs: [qcow2]\n")
    sealed, packed, alone = list[float](), list[float](), list[float]()
    for number in range(site.most):
        site.say(f"bootstrap: imagesmith, {number + 1} of {site.most}")
        site.fresh_store()
        build = site.build(recipe, "--only", "qcow2", "--no-checks")
        [cleaned] = [name for name in build.nodes if name.endswith("cleanup")]
        sealed.append(build.until(SEALED))
        packed.append(build.until(cleaned))
        site.say("bootstrap: " + ", ".join(f"{name} {taken:.2f}" for name, taken in build.nodes.items()))
        site.say(f"bootstrap: mmdebstrap, {number + 1} of {site.most}")
        alone.append(_mmdebstrap(site))
    peer = f"mmdebstrap {seconds(alone)}"
    whole, bare = median(sealed) / median(alone), median(packed) / median(alone)
    return [
        Row(f"bootstrap, cleanup and assembled disk ({len(alone)} runs each)", seconds(sealed), peer,
            f"{whole:.2f} times", f"<= {TARGET:g} times", whole <= TARGET),
        Row("  without assembling the disk", seconds(packed), peer, f"{bare:.2f} times"),
    ]  # fmt: skip


def _mmdebstrap(site: Site) -> float:
    """Alone, and with the same settings for speed as imagesmith gives it: no translations, no fsync a file."""
    base = Bootstrap(distribution="debian", suite="bookworm", packages=list(PACKAGES))
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    lines = sources("debian", "bookworm", host_mirrors(Host(), "debian"), ["main"], keyring)
    tree = site.folder / "mmdebstrap"
    argv: list[str | Path] = [
        "mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", "--architectures=amd64",
        '--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io",
        *(f"--include={name}" for name in base.wanted("amd64")), "bookworm", tree, *lines,
    ]  # fmt: skip
    try:
        return measure(argv, cwd=site.folder, env={"SOURCE_DATE_EPOCH": "1704067200"}).seconds
    finally:
        shutil.rmtree(tree, ignore_errors=True)
