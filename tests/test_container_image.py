"""imagesmith in a container: the image that it builds of itself; in Docker the quick part of the tests passes in it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagesmith.host import Host
from tests.conftest import Command
from tests.consumers import Docker, dockerd
from tests.trees import tiny

ROOT = Path(__file__).parent.parent
QUICK = """
set -e
mkdir /src && tar -xf /given/source.tar -C /src && cd /src
ln -s /opt/imagesmith .venv
.venv/bin/pip install --quiet --no-index --find-links /given/wheels 'imagesmith[dev]'
touch .venv/.imagesmith-dev
make test-quick
"""
# What --privileged gives, as far as a build needs it: hosts that are containers themselves cannot give all of it.
RIGHTS = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
          "--device", "/dev/fuse"]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="Docker's daemon needs root")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels of imagesmith, of what it needs, and of what its tests need."""
    folder = tmp_path_factory.mktemp("given") / "wheels"
    Host().run([sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", folder, f"{ROOT}[dev]"],
               purpose="test", env=dict(os.environ))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    folder = Path("/var/tmp") / f"is-docker-{os.getpid()}"  # a short path
    try:
        with dockerd(folder) as daemon:
            yield daemon
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(wheels: Path, command: Command, docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built by imagesmith and loaded; its name."""
    own = tmp_path_factory.mktemp("own")
    Host().run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--find-links", wheels,
                "--wheel-dir", own, "imagesmith"], purpose="test")  # fmt: skip
    command("build", ROOT / "recipes/imagesmith.yaml", "--var", f"wheels={own}")
    return docker.load(command.output / "imagesmith/imagesmith.oci.tar")


def test_doctor_is_content_in_it(image: str, docker: Docker) -> None:
    said = docker.run(image, "-c", "imagesmith doctor || true", options=[*RIGHTS, "--entrypoint", "sh"])
    missing = [line for line in said.splitlines() if line.startswith("MISSING") and "apt mirror" not in line]
    assert not missing, said
    assert "qemu-system-x86_64" in said or "qemu: version" in said


def test_it_builds(image: str, docker: Docker, tmp_path: Path) -> None:
    tiny(tmp_path)
    docker.run(image, "build", "tiny.yaml", options=[
        *RIGHTS, "-v", f"{tmp_path}:/work", "-v", f"{tmp_path / 'store'}:/var/cache/imagesmith"])  # fmt: skip
    assert (tmp_path / "output/tiny/tiny.rootfs.tar.zst").exists()


def test_the_quick_part_of_the_tests_passes_in_it(image: str, docker: Docker, wheels: Path) -> None:
    Host().run(["tar", "-C", ROOT, "-cf", wheels.parent / "source.tar", "--exclude-vcs", "--exclude=./.venv",
                "--exclude=./output", "--exclude=./dist", "--exclude=__pycache__", "--exclude=./.*_cache", "."],
               purpose="test")  # fmt: skip
    said = docker.run(image, "-c", QUICK, options=[*RIGHTS, "--entrypoint", "sh", "-v",
                                                   f"{wheels.parent}:/given:ro"])  # fmt: skip
    assert " passed" in said
    assert " failed" not in said
