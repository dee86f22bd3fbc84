"""The OCI output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Files, Layered, Log, Maker
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._delta import Entry, changes, delta, noted, read_through, shared
from imagesmith.outputs._image import ContainerImage, Layer, reference, write_layer
from imagesmith.outputs._layout import write_layout
from imagesmith.outputs._rootfs import APPLICATION, members, no_whiteouts, packed


class Oci(ContainerImage, name="oci", version=1):
    """A container image in one file: an OCI layout that ``docker load`` takes, too, as do podman, ctr and skopeo.

    The root file system is one layer, without what only a machine needs: the contents of /boot, kernel modules and
    firmware, /dev, /proc, /run, /sys and /tmp; fstab and resolv.conf are empty. With `split` it is two layers: what the
    base gave, and what the steps changed, so that images of one base share its layer. What steps remove of the base is
    still in the first layer for all to read, apart from host keys, logs and caches.
    """

    split: bool = Field(False, description="One layer for the base and one for the steps")

    def write(self, files: Layered, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the layer, then the archive around it."""
        name = f"{maker.name}.oci.tar"
        with workspace(directory, name) as work:
            layers = self._split(files, maker, work) if self.split else [self._whole(files, maker, work)]
            for layer in layers:
                log(f"{name}: {layer.made_by}: {layer.plain // MIB} MiB, {layer.size // MIB} MiB compressed")
            write_layout(work / name, self.image(maker, layers), layers, maker, reference(maker))
            return finish(work, directory, [name])

    def _whole(self, files: Files, maker: Maker, work: Path) -> Layer:
        with packed(files, APPLICATION) as source:
            found = no_whiteouts(members(source, APPLICATION, maker.epoch))
            return write_layer(work / "layer.tar.gz", found, made_by="imagesmith")

    def _split(self, files: Layered, maker: Maker, work: Path) -> list[Layer]:
        """Write two layers, or one where the steps changed nothing; the whole is packed to a file and read twice."""
        before: dict[str, Entry] = {}
        after: dict[str, Entry] = {}
        whole = work / "whole.tar"
        with whole.open("wb") as out:
            files.pack(out, exclude=APPLICATION.leave_out)
        with whole.open("rb") as source:
            read_through(noted(no_whiteouts(members(source, APPLICATION, maker.epoch)), after))
        with files.base() as base, packed(base, APPLICATION) as source:
            found = noted(shared(no_whiteouts(members(source, APPLICATION, maker.epoch))), before)
            layers = [write_layer(work / "base.tar.gz", found, made_by="imagesmith: base")]
        names, gone = changes(before, after)
        if names or gone:
            with whole.open("rb") as source:
                found = delta(members(source, APPLICATION, maker.epoch), names, gone, epoch=maker.epoch)
                layers.append(write_layer(work / "steps.tar.gz", found, made_by="imagesmith: steps"))
        whole.unlink()
        return layers
