"""The docker-archive output."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._image import ContainerImage, reference, to_json, write_layer
from imagesmith.outputs._rootfs import APPLICATION, members, no_whiteouts, packed


class DockerArchive(ContainerImage, name="docker-archive", version=1):
    """A container image as ``docker save`` writes it, for programs that take nothing newer. See `oci` for the others.

    The root file system is one layer, not compressed, without what only a machine needs: the contents of /boot,
    kernel modules and firmware, /dev, /proc, /run, /sys and /tmp; fstab and resolv.conf are empty.
    """

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the layer, then the archive (Docker image specification 1.2, "Combined Image JSON + Filesystem")."""
        name = f"{maker.name}.docker.tar"
        with workspace(directory, name) as work:
            with packed(files, APPLICATION) as source:
                found = no_whiteouts(members(source, APPLICATION, maker.epoch))
                layer = write_layer(work / "layer.tar", found, made_by="imagesmith", compress=False)
            log(f"{name}: {layer.plain // MIB} MiB in one layer")
            config = self.image(maker, [layer])
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            repository, tag = reference(maker)
            manifest = [{
                "Config": config_name,
                "RepoTags": [f"{repository}:{tag}"],
                "Layers": [f"{layer.diff_id}/layer.tar"],
            }]  # fmt: skip
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
                archive.data("manifest.json", to_json(manifest))
                archive.data(config_name, config)
                archive.directory(layer.diff_id)
                archive.file(f"{layer.diff_id}/layer.tar", layer.path)
            return finish(work, directory, [name])
