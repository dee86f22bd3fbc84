"""KubeVirt's containerDisk: an image with one file, that registries, Docker and the validators take."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.interfaces import Disk
from tests.consumers import ask, dockerd, image_info, same_disk, validate_oci
from tests.test_outputs import MAKER, MIB, make_disk, write

GOLDEN = Path(__file__).parent / "golden/outputs"
AS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return make_disk(tmp_path_factory.mktemp("disk"), size=64 * MIB)


@pytest.fixture(scope="module")
def archive(disk: Disk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write("container-disk", {}, disk, tmp_path_factory.mktemp("container"))
    return path


def test_every_validator_takes_it_and_it_holds_the_disk_and_nothing_else(
    disk: Disk, archive: Path, tmp_path: Path
) -> None:
    assert archive.name == "web-golden.container-disk.tar"
    unpacked = validate_oci(archive, tmp_path)
    inside = sorted(path.relative_to(unpacked.rootfs).as_posix() for path in unpacked.rootfs.rglob("*"))
    assert inside == ["disk", "disk/web-golden.qcow2"]
    image = unpacked.rootfs / "disk/web-golden.qcow2"
    same_disk(disk.path, image, "qcow2")
    assert "backing-filename" not in image_info(image, "qcow2")


def test_qemu_of_kubevirt_may_read_it(archive: Path, tmp_path: Path) -> None:
    ask("tar", "-xf", archive, "-C", tmp_path)
    (manifest,) = json.loads((tmp_path / "manifest.json").read_text())
    with tarfile.open(tmp_path / manifest["Layers"][0]) as layer:
        found = [(m.name, m.type, m.mode, m.uid, m.gid, m.uname, m.mtime) for m in layer]
    assert found == [
        ("disk", tarfile.DIRTYPE, 0o555, 107, 107, "", MAKER.epoch),
        ("disk/web-golden.qcow2", tarfile.REGTYPE, 0o440, 107, 107, "", MAKER.epoch),
    ]


@pytest.mark.parametrize(("arch", "golden"), [
    ("x86_64", "container-disk.json"), ("aarch64", "container-disk-arm.json")
])  # fmt: skip
def test_the_configuration_is_the_golden_one(disk: Disk, tmp_path: Path, arch: str, golden: str) -> None:
    (made,) = write("container-disk", {}, disk, tmp_path, replace(MAKER, arch=arch))
    config = json.loads(ask("skopeo", "inspect", "--config", f"oci-archive:{made}"))
    (layer,) = config["rootfs"].pop("diff_ids")  # of qemu's zstd, whose version is no matter here
    assert layer.startswith("sha256:")
    assert json.dumps(config, indent=2) + "\n" == (GOLDEN / golden).read_text()


@pytest.mark.skipif(not AS_ROOT, reason="dockerd needs root")
def test_docker_loads_it_and_gives_the_disk_back(disk: Disk, archive: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="d-") as short, dockerd(Path(short)) as docker:
        name = docker.load(archive)
        assert name == "web-golden-disk:2026.11"
        container = docker("create", name, "none").strip()
        docker("cp", f"{container}:/disk/web-golden.qcow2", tmp_path / "out.qcow2")
        assert any(image.endswith("web-golden-disk:2026.11") for image in docker.ctr_import(archive).split())
    same_disk(disk.path, tmp_path / "out.qcow2", "qcow2")
