"""Every format from one sealed image, against the three slowest of them alone; and the room that it takes at most."""

from __future__ import annotations

import os
import threading
from statistics import median

from benchmarks._site import STEPS, Build, Site
from benchmarks._table import Row, seconds
from imagesmith.room import needed
from imagesmith.store import Store

TARGET = 1.5
OUTPUTS = {
    "qcow2": "qcow2", "raw.zst": "{raw: {compression: zstd}}", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vhd",
    "vhdx": "vhdx",
    "ova": "ova", "ovf": "ovf", "libvirt.box": "vagrant", "virtualbox.box": "{vagrant: virtualbox}",
    "vmware_desktop.box": "{vagrant: vmware_desktop}", "hyperv.box": "{vagrant: hyperv}", "oci": "oci",
    "docker-archive": "docker-archive", "container-disk": "container-disk", "lxc": "lxc", "incus": "incus",
    "nspawn": "nspawn", "wsl": "wsl", "tar": "tar", "squashfs": "squashfs", "firecracker": "firecracker", "xen": "xen",
    "libvirt": "libvirt", "bhyve": "bhyve", "quickemu": "quickemu", "netboot": "netboot", "iso": "iso", "gce": "gce",
    "azure": "azure",
}  # fmt: skip
_MIB = 1 << 20


def run(site: Site) -> list[Row]:
    """All at once, then the three slowest of these alone: each time the store has the sealed image and no artifact."""
    site.say("formats: the image")
    recipe = site.recipe("formats", STEPS + "outputs: [raw]\n")
    site.build(recipe, "--no-checks")
    sealed = site.store
    room = _Room(site)
    with room:
        together = _outputs(site)
    nodes = together.nodes.items()
    times = {name.removeprefix("output "): taken for name, taken in nodes if name.startswith("output ")}
    slowest = sorted(times, key=lambda name: times[name])[-3:]
    alone = {}
    for name in slowest:
        site.store = sealed
        site.branch()
        alone[name] = _outputs(site, "--only", name).nodes[f"output {name}"]
    site.store = sealed
    whole = together.run.seconds
    ratio = whole / sum(alone.values())
    data = sum(layer.size for layer in Store(sealed).layers() if layer.gives in ("tree", "disk"))
    stated = sum(needed(list(OUTPUTS), data, {}, os.cpu_count() or 1))
    return [
        Row(f"all {len(times)} formats of one image, published", f"{whole:.1f} s",
            "the three slowest alone: " + ", ".join(f"{name} {taken:.1f} s" for name, taken in alone.items()),
            f"{ratio:.2f} times", f"<= {TARGET:g} times", ratio <= TARGET),
        Row("  their processor time over the processors", seconds([together.run.processors / (os.cpu_count() or 1)]),
            f"median of one {median(times.values()):.1f} s"),
        Row("  room that the store took at most meanwhile", f"{room.most / _MIB:,.0f} MiB",
            f"stated before {stated / _MIB:,.0f} MiB", f"{room.most / stated:.2f} times", "<= 1 times",
            room.most <= stated),
    ]  # fmt: skip


def _outputs(site: Site, *options: str) -> Build:
    listed = "".join(f"- {entry}\n" for entry in OUTPUTS.values())
    return site.build(site.recipe("formats", f"{STEPS}outputs:\n{listed}"), "--no-checks", *options)


class _Room:
    """The most that the file system of the store lost while the block ran."""

    def __init__(self, site: Site) -> None:
        self._place, self.most = site.folder, 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def _free(self) -> int:
        found = os.statvfs(self._place)
        return found.f_bfree * found.f_frsize

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self._begin - self._free())

    def __enter__(self) -> None:
        self._begin = self._free()
        self._watcher.start()

    def __exit__(self, *args: object) -> None:
        self._over.set()
        self._watcher.join()
