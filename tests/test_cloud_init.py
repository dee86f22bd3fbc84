"""cloud-init for real: Debian's, in an image of Debian's packages, seeded, sealed and looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from imagesmith.answers._schema import rules
from imagesmith.host import Host
from tests.conftest import HERE, Command, Ran
from tests.test_answers_cloud import Without, made

RECIPES = HERE / "recipes" / "cloud"


@pytest.fixture(scope="module")
def image(command: Command) -> Path:
    """The image with cloud-init, as a distribution would publish it."""
    command("build", RECIPES / "image.yaml")
    return command.output / "cloud" / "cloud.qcow2"


@pytest.fixture(scope="module")
def seeded(command: Command, image: Path) -> Ran:
    """The same, set up by cloud-init, sealed and checked."""
    return command("build", RECIPES / "seeded.yaml", "--var", f"image={image}", "-v")


def test_a_seeded_image_does_what_the_seed_says_and_is_sealed(seeded: Ran, command: Command) -> None:
    for phase in ("looks for its seed", "files, users, keys", "configuration", "packages and scripts"):
        assert phase in seeded.err
    assert "answer file read" in seeded.err
    manifest = json.loads((command.output / "seeded" / "manifest.json").read_text())
    assert all(check["passed"] for check in manifest["checks"])


def test_a_seed_is_worked_through_once(seeded: Ran, image: Path, command: Command) -> None:
    planned = command("plan", RECIPES / "seeded.yaml", "--var", f"image={image}").out
    assert planned.startswith("there  base cloud-image"), planned
    other = command("plan", RECIPES / "seeded.yaml", "--var", f"image={image}", "--var", "greeting=servus").out
    assert other.startswith("run    base cloud-image"), other


@pytest.fixture(scope="module")
def asks(image: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host that has cloud-init: the one in the image's tree."""
    module = next(store.glob("layers/*/upper/usr/lib/python3/dist-packages/cloudinit")).parent
    program = tmp_path_factory.mktemp("bin") / "cloud-init"
    program.write_text(
        f"#!/bin/sh\nexec env PYTHONPATH={module} {sys.executable} {module.parents[2]}/bin/cloud-init \"$@\"\n"
    )
    program.chmod(0o755)

    class WithCloudInit(Host):
        def find(self, tool: str) -> str | None:
            return str(program) if tool == "cloud-init" else super().find(tool)

    return WithCloudInit()


def test_cloud_init_itself_has_nothing_to_say_against_our_template(asks: Host, tmp_path: Path) -> None:
    for options in ({}, {"user": "ops", "password": "x'\"", "ssh_keys": ["ssh-ed25519 AAAA it's me"],
                         "packages": ["nginx"], "hostname": "web", "timezone": "Europe/Vienna"}):  # fmt: skip
        assert made("cloud-init", tmp_path, **options).lint(asks) == []


def test_cloud_init_is_asked_and_its_complaints_are_at_their_lines(asks: Host, tmp_path: Path) -> None:
    (tmp_path / "u").write_text("#cloud-config\n{# a comment #}\nruncmd: {a: b}\npackages:\n  - [x, y, z, w]\n"
                                "users:\n  - name: a\n    lock_passwd: 3\n")  # fmt: skip
    found = made("cloud-init", tmp_path, file="u").lint(asks)
    places = {(remark.line, remark.message.split(":")[0]) for remark in found}
    assert places >= {(3, "runcmd"), (5, "packages.0")}, found
    assert any(remark.line == 7 and remark.message.startswith("users.0") for remark in found), found
    (tmp_path / "u").write_text("#cloud-config\na: [\n")
    assert [remark.line for remark in made("cloud-init", tmp_path, file="u").lint(asks)] == [3]


def test_our_own_schema_complains_only_where_cloud_init_does(asks: Host, tmp_path: Path) -> None:
    wrong = {"array": "x", "boolean": "maybe", "object": "x", "string": [1]}
    keys = {key: said["type"] for key, said in rules("cloud-config")["properties"].items()}
    document = {key: wrong[kind] if isinstance(kind, str) else 7 for key, kind in keys.items()}
    (tmp_path / "u").write_text("#cloud-config\n" + json.dumps(document))
    answer = made("cloud-init", tmp_path, file="u")
    ours, theirs = ({remark.message.split(":")[0].split(".")[0] for remark in answer.lint(host)}
                    for host in (Without(), asks))  # fmt: skip
    assert ours, theirs
    assert ours <= theirs


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "message"), [
    ("#cloud-config\nruncmd:\n  - exit 7\n", "cloud-init could not do all of it"),
    ("#cloud-config-archive\n- type: text/cloud-config\n  content: '{'\n", "cloud-init cannot read the user data"),
])  # fmt: skip
def test_what_cloud_init_cannot_do_ends_the_build(seed: str, message: str, image: Path, command: Command,
                                                  tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "seed").write_text(seed)
    (tmp_path / "wrong.yaml").write_text(
        f"name: wrong\nmachine: {{memory: 1G, disk: 2G}}\nbase:\n  cloud-image: {{path: {image}, trusted: true, "
        "seed: seed}\noutputs: [raw]\n"
    )
    assert message in command("build", tmp_path / "wrong.yaml", expect=1).err


@pytest.mark.slow
def test_on_its_users_machines_cloud_init_runs_again(seeded: Ran, command: Command, tmp_path: Path) -> None:
    image = command.output / "seeded" / "seeded.qcow2"
    (tmp_path / "seed").write_text("#!/bin/sh\necho again > /etc/again\n")
    (tmp_path / "again.yaml").write_text(
        f"name: again\nmachine: {{memory: 1G, disk: 2G}}\nbase:\n  cloud-image: {{path: {image}, trusted: true, "
        "seed: seed}\nsteps:\n  - shell: grep again /etc/again && grep hello /etc/seeded\noutputs: [raw]\n"
    )
    command("build", tmp_path / "again.yaml")
