"""The OCI output."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Files, Layered, Log, Maker
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._delta import Entry, changes, delta, noted, read_through, shared
from imagesmith.outputs._image import ARCHITECTURES, ContainerImage, Layer, reference, to_json, write_layer
from imagesmith.outputs._rootfs import APPLICATION, members, no_whiteouts, packed

_MEDIA = "application/vnd.oci.image."


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
            with (work / name).open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
                for folder in ("blobs", "blobs/sha256"):  # or skopeo makes them root's, and fails as another user
                    archive.directory(folder)
                for path, content in self._documents(maker, layers).items():
                    archive.data(path, content)
                for layer in layers:
                    archive.file(f"blobs/sha256/{layer.blob}", layer.path)
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

    def _documents(self, maker: Maker, layers: Sequence[Layer]) -> dict[str, bytes]:
        """Return the small files: the OCI layout, and Docker's manifest.json that points at the same blobs."""
        config = self.image(maker, layers)
        config_name = hashlib.sha256(config).hexdigest()
        manifest = to_json({
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}manifest.v1+json",
            "config": {"mediaType": f"{_MEDIA}config.v1+json", "digest": f"sha256:{config_name}", "size": len(config)},
            "layers": [
                {"mediaType": f"{_MEDIA}layer.v1.tar+gzip", "digest": f"sha256:{layer.blob}", "size": layer.size}
                for layer in layers
            ],
        })  # fmt: skip
        manifest_name = hashlib.sha256(manifest).hexdigest()
        repository, tag = reference(maker)
        index = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}index.v1+json",
            "manifests": [{
                "mediaType": f"{_MEDIA}manifest.v1+json",
                "digest": f"sha256:{manifest_name}",
                "size": len(manifest),
                "platform": {**ARCHITECTURES[maker.arch], "os": "linux"},
                "annotations": {
                    "org.opencontainers.image.ref.name": tag,
                    "io.containerd.image.name": f"docker.io/library/{repository}:{tag}",
                },
            }],
        }  # fmt: skip
        docker = [{
            "Config": f"blobs/sha256/{config_name}",
            "RepoTags": [f"{repository}:{tag}"],
            "Layers": [f"blobs/sha256/{layer.blob}" for layer in layers],
        }]  # fmt: skip
        return {
            "oci-layout": to_json({"imageLayoutVersion": "1.0.0"}),
            "index.json": to_json(index),
            "manifest.json": to_json(docker),
            f"blobs/sha256/{config_name}": config,
            f"blobs/sha256/{manifest_name}": manifest,
        }
