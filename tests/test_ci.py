"""The files for CI systems: right by their schemas, and their commands run, one after the other, on a small recipe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagesmith.host import Host
from tests.trees import tiny

CI = Path(__file__).parent.parent / "docs/ci"
LINES = "{extends: default, rules: {line-length: {max: 120}, comments: {min-spaces-from-content: 1}}}"


def steps_of_github() -> list[tuple[str, str]]:
    steps: list[dict[str, Any]] = yaml.safe_load((CI / "github-actions.yml").read_text())["jobs"]["images"]["steps"]
    return [(step["name"], step["run"]) for step in steps if "run" in step]


def steps_of_gitlab() -> list[tuple[str, str]]:
    jobs = yaml.safe_load((CI / "gitlab-ci.yml").read_text())
    return [(name, line) for name in jobs["stages"] for job in [jobs.get(name) or jobs["images"]]
            for line in job["script"]]  # fmt: skip


def steps_of_jenkins() -> list[tuple[str, str]]:
    found = re.findall(r"stage\('([^']*)'\) \{.*?sh (?:'''(.*?)'''|'([^']*)')", (CI / "Jenkinsfile").read_text(), re.S)
    return [(name, long or short) for name, long, short in found]


class Runner:
    """A machine of a CI system: a folder to work in, a store, a web server's folder for boxes."""

    def __init__(self, home: Path) -> None:
        self.home, self.work, self.boxes = home, home / "work", home / "www"
        (home / "bin").mkdir()
        self.boxes.mkdir()
        (home / "bin/imagesmith").write_text(f'#!/bin/sh\nexec {sys.executable} -m imagesmith.cli "$@"\n')
        (home / "bin/sudo").write_text('#!/bin/sh\nexec "$@"\n')
        for program in (home / "bin").iterdir():
            program.chmod(0o755)
        self.checkout()

    def checkout(self) -> None:
        """Begin anew, as for each run."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "recipes").mkdir(parents=True)
        tiny(self.work / "recipes")

    def __call__(self, steps: list[tuple[str, str]], **env: str) -> dict[str, str]:
        """Run steps as the systems do; what each wrote."""
        said = {}
        for name, script in steps:
            if "ublish" in name:  # what a build with a catalog leaves
                (self.work / "recipes/boxes/1.0-libvirt.box").write_text("a box")
                (self.work / "recipes/boxes/metadata.json").write_text("{}")
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=self.work, text=True, capture_output=True, check=False, timeout=300,
                env={**os.environ, "RECIPE": "recipes/tiny.yaml", "BOXES": str(self.boxes),
                     "PATH": f"{self.home}/bin:{os.environ['PATH']}", "IMAGESMITH_CACHE": str(self.home / "store"),
                     "PYTHONPATH": str(CI.parent.parent), **env},
            )  # fmt: skip
            assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"
            said[name] = said.get(name, "") + done.stdout + done.stderr
        return said


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def published(runner: Runner) -> set[str]:
    return {path.name for path in runner.boxes.iterdir()}


def test_github_builds_and_finds_the_store_again(runner: Runner) -> None:
    of_the_machine = ("Install imagesmith", "Let this user open KVM and make user namespaces")
    steps = [(name, run) for name, run in steps_of_github() if name not in of_the_machine]
    assert len(steps) == 6
    said = runner(steps, REFRESH="")
    assert "recipes/tiny.yaml: fine" in said["Validate"]
    assert published(runner) == {"1.0-libvirt.box", "metadata.json"}
    ET.parse(runner.work / "junit.xml")
    first = (runner.work / "output/tiny/SHA256SUMS").read_text()

    store = (runner.work / "store.tar").rename(runner.home / "store.tar")
    shutil.rmtree(runner.home / "store")
    runner.checkout()
    shutil.copy(store, runner.work)
    said = runner(steps, REFRESH="7d")
    assert "FAILED" not in said["Build, boot and check"]
    assert (runner.work / "output/tiny/SHA256SUMS").read_text() == first
    plan = runner([("plan", "imagesmith plan recipes/tiny.yaml")])["plan"]
    assert "there  output" in plan
    assert "run  " not in plan


def test_gitlab_builds(runner: Runner) -> None:
    assert "tiny: built in" in runner(steps_of_gitlab(), CI_PIPELINE_SOURCE="schedule")["build"]
    assert published(runner) == {"1.0-libvirt.box", "metadata.json"}


def test_jenkins_builds(runner: Runner) -> None:
    said = runner(steps_of_jenkins())
    assert "tiny: built in" in said["Build, boot and check"]
    assert "tiny: up to date" in said["Build what has moved on"]
    assert published(runner) == {"1.0-libvirt.box", "metadata.json"}


def test_the_files_are_what_their_systems_read() -> None:
    host, programs = Host(), Path(sys.executable).parent
    for schema, name in (("github-workflows", "github-actions.yml"), ("gitlab-ci", "gitlab-ci.yml")):
        host.run([programs / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", CI / name], purpose="test")
        host.run([programs / "yamllint", "--strict", "-d", LINES, CI / name], purpose="test")
    text = (CI / "Jenkinsfile").read_text()
    assert text.count("{") == text.count("}")
    assert text.count("'''") % 2 == 0
