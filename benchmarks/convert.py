"""A disk of layers as a compressed qcow2, whole, and when an earlier one of the same recipe is there; against qemu-img.

Both read the same chain of layers from the page cache. Ours ends with ``qemu-img check`` of the result; qemu-img's time
is that of the conversion alone. Then a Vagrant box for libvirt, of the same chain, against ``tar`` and ``zstd -T0`` of
its parts, where the disk is an uncompressed qcow2 that is there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks._measure import measure
from benchmarks._site import Site
from benchmarks._table import Row, seconds
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Earlier, Maker
from imagesmith.kinds import DiskOutput, known
from imagesmith.outputs._common import write_qcow2
from imagesmith.store import Store

TARGET = 1.0
_RECIPE = """\
name: convert
base: {disk: {path: output/ground/ground.qcow2, trusted: true}}
variables: {word: first}
steps:
  - packages: [nginx-light]
  - {name: last, shell: "echo '{{ word }}' > /etc/motd"}
outputs: [qcow2]
"""


def run(site: Site) -> list[Row]:
    """Build twice, with another last step; then convert the two disks, each in turn with qemu-img."""
    site.say("convert: the disks")
    site.build(site.recipe("ground", "outputs: [{qcow2: none}]\n"), "--no-checks")
    recipe = site.folder / "convert.yaml"
    recipe.write_text(_RECIPE)
    first, second = (_sealed(site, recipe, word) for word in ("first", "second"))
    target, theirs = site.folder / "ours.qcow2", site.folder / "theirs.qcow2"
    artifact = site.folder / "earlier.qcow2"
    _write(first, artifact)
    disk = Disk(second, 0)
    changed = replace(disk, earlier=Earlier([artifact], first))
    whole, again, peer = list[float](), list[float](), list[float]()
    for _ in range(site.most):
        whole.append(_timed(lambda: _write(disk, target)))
        size, bytes_whole = target.stat().st_size, target.read_bytes()
        peer.append(_convert(second, theirs, site))
        again.append(_timed(lambda: _write(changed, target)))
        if target.read_bytes() != bytes_whole:
            raise AssertionError("what was used again made a difference")
        site.say(f"convert: whole {whole[-1]:.2f}, qemu-img {peer[-1]:.2f}, changed {again[-1]:.2f}")
    ratio, less = (median(ours) / median(peer) for ours in (whole, again))
    words = f"qemu-img convert -c -m 16, zstd: {seconds(peer)}, {theirs.stat().st_size >> 20} MiB"
    return [
        Row(f"a whole disk as a zstd qcow2 of {size >> 20} MiB ({len(whole)} runs)", seconds(whole), words,
            f"{ratio:.2f} times", f"<= {TARGET:g} times", ratio <= TARGET),
        Row("the same with another last step, and the earlier image", seconds(again), words, f"{less:.2f} times"),
        _box(site, second),
    ]  # fmt: skip


def _box(site: Site, sealed: Path) -> Row:
    """The whole box, and its parts packed by others."""
    parts, ours, peer = site.folder / "parts", list[float](), list[float]()
    parts.mkdir()
    measure(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", sealed, parts / "box.img"], cwd=site.folder)
    (parts / "metadata.json").write_text('{"provider": "libvirt", "format": "qcow2", "virtual_size": 4}\n')
    kind = cast(DiskOutput, known("outputs")["vagrant"].model_validate({"provider": "libvirt"}))
    maker = Maker("convert", "", "", "x86_64", 0, "0" * 64, 2, 1 << 30, ("bios",))
    for number in range(site.most):
        into = site.folder / f"box{number}"
        into.mkdir()
        start = time.monotonic()
        kind.write(Disk(sealed, 4 << 30), maker, into, Host(), lambda line: None)
        ours.append(time.monotonic() - start)
        peer.append(measure(["sh", "-c", "tar c box.img metadata.json | zstd -q -T0 -f -o ../theirs.box"],
                            cwd=parts).seconds)  # fmt: skip
        site.say(f"convert: box {ours[-1]:.2f}, tar and zstd {peer[-1]:.2f}")
    ratio = median(ours) / median(peer)
    size, theirs = next(into.iterdir()).stat().st_size >> 20, (site.folder / "theirs.box").stat().st_size >> 20
    return Row(f"a Vagrant box for libvirt of {size} MiB", seconds(ours),
               f"tar and zstd -T0 of its parts: {seconds(peer)}, {theirs} MiB", f"{ratio:.2f} times",
               f"<= {TARGET:g} times", ratio <= TARGET)  # fmt: skip


def _sealed(site: Site, recipe: Path, word: str) -> Path:
    """Build with this last step; the disk that the output is made of."""
    site.build(recipe, "--no-checks", "--var", f"word={word}")
    store = Store(site.store)
    try:
        made = max((layer for layer in store.layers() if layer.gives == "disk"), key=lambda layer: layer.used)
    finally:
        store.close()
    return made.folder / "disk.qcow2"


def _write(disk: Disk | Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    disk = Disk(disk, 0) if isinstance(disk, Path) else disk
    write_qcow2(disk, target, Host(), lambda line: None, compression="zstd")


def _convert(disk: Path, target: Path, site: Site) -> float:
    return measure(["qemu-img", "convert", "-c", "-m", "16", "-f", "qcow2", "-O", "qcow2",
                    "-o", "compression_type=zstd", disk, target], cwd=site.folder).seconds  # fmt: skip


def _timed(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start
