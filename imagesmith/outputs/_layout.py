"""An OCI image layout in a tar, with Docker's manifest.json on the same blobs, so that old Dockers load it, too.

Source: OCI image specification 1.0, image-layout.md, image-index.md and manifest.md; Docker image
specification 1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from imagesmith.archive import Archive
from imagesmith.interfaces import Maker
from imagesmith.outputs._image import ARCHITECTURES, Layer, to_json

_MEDIA = "application/vnd.oci.image."


def write_layout(target: Path, config: bytes, layers: Sequence[Layer], maker: Maker, name: tuple[str, str]) -> None:
    """Write the archive: an image of one platform, called ``name`` (repository and tag), with its layers."""
    with target.open("wb") as out, Archive(out, epoch=maker.epoch) as archive:
        for folder in ("blobs", "blobs/sha256"):  # or skopeo makes them root's, and fails as another user
            archive.directory(folder)
        for path, content in _documents(config, layers, maker, name).items():
            archive.data(path, content)
        for layer in layers:
            archive.file(f"blobs/sha256/{layer.blob}", layer.path)


def _documents(config: bytes, layers: Sequence[Layer], maker: Maker, name: tuple[str, str]) -> dict[str, bytes]:
    """Return the small files: the OCI layout, and Docker's manifest.json that points at the same blobs."""
    config_name = hashlib.sha256(config).hexdigest()
    manifest = to_json({
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}manifest.v1+json",
        "config": {"mediaType": f"{_MEDIA}config.v1+json", "digest": f"sha256:{config_name}", "size": len(config)},
        "layers": [
            {"mediaType": _media_type(layer), "digest": f"sha256:{layer.blob}", "size": layer.size} for layer in layers
        ],
    })  # fmt: skip
    manifest_name = hashlib.sha256(manifest).hexdigest()
    repository, tag = name
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


def _media_type(layer: Layer) -> str:
    return f"{_MEDIA}layer.v1.tar" + ("" if layer.blob == layer.diff_id else "+gzip")
