"""From a recipe to checked images, end to end, as a user does it; one image serves all tests here."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests import consumers
from tests.conftest import Command, Golden
from tests.trees import tiny


def test_the_image_was_booted_and_checked_under_both_firmwares(golden: Golden) -> None:
    checks = golden.manifest["checks"]
    assert {c["firmware"] for c in checks} == {"bios", "uefi"}
    assert len(checks) == 22
    assert all(c["passed"] for c in checks)


def test_what_a_build_leaves(golden: Golden) -> None:
    names = {path.name for path in golden.folder.iterdir()}
    assert names == {
        "golden.qcow2", "golden.raw", "golden.ova", "golden.libvirt.box", "golden.oci.tar", "manifest.json",
        "SHA256SUMS", "logs", "inventory.json", "report.html",
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=golden.folder, check=True)
    logs = [path.name for path in (golden.folder / "logs").iterdir()]
    assert any("packages-nginx-light" in name for name in logs)
    assert any("check-uefi" in name for name in logs)
    manifest = golden.manifest
    assert manifest["variables"] == {"greeting": "hello", "admin": "vagrant"}
    assert {f["name"] for a in manifest["artifacts"] for f in a["files"]} == names - {
        "manifest.json", "SHA256SUMS", "logs", "inventory.json", "report.html"}  # fmt: skip
    assert manifest["host"]["tools"]["qemu-img"].startswith("qemu-img version")
    assert manifest["nodes"][0]["verb"] == "base"
    assert "golden.ova" in golden.ran.out
    assert "11 checks under bios, 11 checks under uefi" in golden.ran.out


def test_nothing_to_do_is_said_and_done(golden: Golden, command: Command, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in golden.folder.iterdir()}
    ran = command("build", golden.recipe, "--junit", tmp_path / "junit.xml")
    assert "golden: up to date" in ran.out
    suites = {suite.get("name"): suite.attrib for suite in ET.parse(tmp_path / "junit.xml").iter("testsuite")}
    assert set(suites) == {"golden.bios", "golden.uefi"}  # what was checked when it was made
    assert all((suite["tests"], suite["failures"]) == ("11", "0") for suite in suites.values())
    assert before == {path.name: path.stat().st_mtime_ns for path in golden.folder.iterdir()}


def test_where_nothing_can_be_written_is_told_before_anything_runs(command: Command, tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    for place, said in ((tmp_path, "this is a folder"), (tmp_path / "none/x.xml", "there is no folder")):
        ran = command("build", recipe, "--junit", place, expect=2)
        assert said in ran.err
        assert "start" not in ran.err


def test_a_change_runs_only_what_follows_it(golden: Golden, command: Command) -> None:
    planned = command("plan", golden.recipe, "--var", "greeting=goodbye").out.splitlines()
    assert [line.split()[0] for line in planned] == ["there"] * 7 + ["run"] * 11 + ["about"]
    assert planned[0].endswith(" ago)")
    assert " last time)" in planned[7]
    assert "run changed" in planned[7]
    assert "'7 leave a mark' runs" in planned[8]
    ran = command("build", golden.recipe, "--var", "greeting=goodbye", "--no-checks", "--only", "oci",
                  "--log-format", "json")  # fmt: skip
    events = [json.loads(line) for line in ran.err.splitlines()]
    done = [event["node"] for event in events if event["event"] == "node-done"]
    assert done[:2] == ["7 leave a mark", "8 cleanup"]
    assert sorted(done[2:]) == ["output oci", "take the inventory"]
    assert {"plan", "node-cached", "node-start", "node-log", "artifact", "summary"} <= {e["event"] for e in events}
    assert all(event["time"].endswith("Z") for event in events)
    command("build", golden.recipe)  # the shared image is as it was


def test_an_artifact_that_was_changed_or_lost_is_put_back(golden: Golden, command: Command) -> None:
    (golden.folder / "golden.qcow2").unlink()
    command("build", golden.recipe)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=golden.folder, check=True)


def test_a_failed_check_fails_the_build_and_leaves_the_good_result(
    golden: Golden, command: Command, tmp_path: Path
) -> None:
    recipe = tmp_path / "golden.yaml"
    text = f"""\
name: golden
base: {{recipe: {golden.recipe}}}
machine: {{memory: 1G}}
steps: [{{cleanup: false}}]
checks:
  - boot: {{within: 10m}}
  - file: {{path: /etc/mark, contains: never said}}
  - service: nginx
  - package: emacs
outputs: [qcow2]
"""
    recipe.write_text(text)
    before = (golden.folder / "manifest.json").read_bytes()
    report = tmp_path / "junit.xml"
    ran = command("test", recipe, "--junit", report, expect=1)
    message = ran.err[ran.err.index("imagesmith: check bios: 2 of 4 checks failed under bios") :].splitlines()
    assert message[1].startswith(f"  | {recipe}:7: file /etc/mark: ")
    assert "hello" in message[2]  # what was seen in the file
    assert message[3].startswith(f"  | {recipe}:9: package emacs: ")
    assert f"  at: {recipe}:7 (check)" in message
    assert any(line.startswith("  kept: ") and line.endswith("bios-console.log (what the guest's console showed)")
               for line in message)  # fmt: skip
    assert any(line.startswith(f"  shell: imagesmith shell {recipe} --after ") for line in message)
    cases = {case.get("name"): case for case in ET.parse(report).iter("testcase")}
    assert len(cases) == 4
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert sorted(failed) == ["file /etc/mark", "package emacs"]
    assert (golden.folder / "manifest.json").read_bytes() == before


def test_a_guest_that_never_boots_is_shown(golden: Golden, command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(f"""\
name: broken
base: {{recipe: {golden.recipe}}}
machine: {{memory: 512M}}
steps: [{{shell: rm /vmlinuz /boot/vmlinuz*}}, {{cleanup: false}}]
checks: [{{boot: {{within: 10m}}}}]
outputs: [raw]
""")
    ran = Command(command.store, tmp_path)("test", recipe, expect=1)
    assert "vmlinuz" in ran.err  # the boot loader's own words, from the console
    kept = {path.name for path in (tmp_path / "broken" / "failed").iterdir()}
    assert kept == {"check-bios.log", "bios-console.log", "bios-screen.png", "report.html"}


# -- the artifacts in their consumers ----------------------------------------------------------------------------


def test_raw_and_qcow2_hold_the_same_disk(golden: Golden) -> None:
    subprocess.run(["qemu-img", "check", "-q", golden.folder / "golden.qcow2"], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", golden.folder / "golden.qcow2",
                    golden.folder / "golden.raw"], check=True)  # fmt: skip


def test_the_appliance_is_read_by_virt_v2v(golden: Golden) -> None:
    said = consumers.v2v_print_source(golden.folder / "golden.ova")
    assert "golden" in said


def test_the_qcow2_boots(golden: Golden, command: Command, tmp_path: Path) -> None:
    ran = Command(command.store, tmp_path)("test", golden.folder / "golden.qcow2")
    assert "pass   bios: boot" in ran.err


@pytest.mark.slow
def test_the_raw_image_boots(golden: Golden, command: Command, tmp_path: Path) -> None:
    ran = Command(command.store, tmp_path)("test", golden.folder / "golden.raw")
    assert "pass   bios: boot" in ran.err


def test_the_container_image_is_sound_and_runs(golden: Golden, tmp_path: Path) -> None:
    archive = golden.folder / "golden.oci.tar"
    unpacked = consumers.validate_oci(archive, tmp_path / "oci")
    assert unpacked.config["architecture"] == "amd64"
    assert (unpacked.rootfs / "var/www/html/index.html").is_file()
    assert not list((unpacked.rootfs / "boot").iterdir())
    if os.geteuid() != 0:
        pytest.skip("a Docker daemon needs root")
    with tempfile.TemporaryDirectory(prefix="d-") as short, consumers.dockerd(Path(short)) as docker:
        image = docker.load(archive)
        assert docker.run(image) == "hello\n"
        assert "1.22" in docker.run(image, "dpkg-query", "-W", "nginx-light")


@pytest.mark.slow
def test_built_twice_from_nothing_it_is_the_same_file(golden: Golden, tmp_path: Path) -> None:
    again = Command(tmp_path / "store", tmp_path / "output")
    again("build", golden.recipe, "--no-checks")
    ours = (golden.folder / "SHA256SUMS").read_text()
    assert (tmp_path / "output" / "golden" / "SHA256SUMS").read_text() == ours
