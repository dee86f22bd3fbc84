"""What this host can do: KVM or TCG, and what doctor finds. Asks the real host, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagesmith import doctor, probe
from imagesmith.errors import RecipeError
from imagesmith.host import Host
from tests.conftest import Command


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(probe.OVERRIDE, raising=False)


def quiet(line: str) -> None:
    return None


def test_the_verdict_is_remembered_and_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    first = probe.accelerator(Host(), tmp_path / "cache", lines.append)
    assert len(lines) == (first.name == "tcg")
    if first.name == "tcg":
        assert first.reason in lines[0]
    monkeypatch.setattr(probe, "_try", lambda *_: pytest.fail("tried again"))
    assert probe.accelerator(Host(), tmp_path / "cache", quiet) == first
    kept = tmp_path / "cache" / "accelerator.json"
    if kept.exists():  # without /dev/kvm there is nothing to try
        assert kept.stat().st_mode & 0o777 == 0o600


def test_verdicts_of_an_earlier_boot_of_the_host_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_KVM", tmp_path / "kvm")
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(probe, "_try", lambda *_: probe.Accelerator("kvm", "boots"))
    kept = tmp_path / "accelerator.json"
    old = "another-boot|7.2|/boot/vmlinuz|1|2"
    kept.write_text(json.dumps({old: {"name": "tcg", "reason": "x", "mend": ""}}))
    assert probe._decide(Host(), tmp_path, "x86_64", [Path(__file__)]).name == "kvm"
    assert old not in json.loads(kept.read_text())


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"a": 1}', '{"a": {"nom": "kvm"}}'])
def test_a_damaged_note_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "accelerator.json").write_text(content)
    assert probe._read(tmp_path / "accelerator.json") == {}


def test_the_user_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("kvm", "tcg"):
        monkeypatch.setenv(probe.OVERRIDE, word)
        assert probe.accelerator(Host(), tmp_path, quiet).name == word
    monkeypatch.setenv(probe.OVERRIDE, "turbo")
    with pytest.raises(RecipeError, match="turbo"):
        probe.accelerator(Host(), tmp_path, quiet)


def test_guests_of_another_architecture_run_under_tcg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.platform, "machine", lambda: "riscv64")
    found = probe.accelerator(Host(), tmp_path, quiet)
    assert found.name == "tcg"
    assert "riscv64" in found.reason


def test_doctor_looks_at_everything_and_says_how_to_mend_what_is_missing(tmp_path: Path) -> None:
    findings = {finding.name: finding for finding in doctor.examine(Host(), tmp_path / "not" / "yet")}
    assert findings.keys() >= {"cpu", "qemu", "qemu-img", "kvm", "firmware uefi", "user namespaces", "mmdebstrap",
                               "shellcheck", "guestfs", "fuse", "disk space", "temporary files", "memory", "network",
                               "apt mirror"}  # fmt: skip
    assert findings["qemu"].ok
    assert all(finding.detail for finding in findings.values())


def test_doctor_names_the_package_of_a_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "find", lambda self, tool: None)
    findings = {finding.name: finding for finding in doctor.examine(Host(), tmp_path)}
    assert findings["mmdebstrap"].ok is False
    assert "mmdebstrap" in findings["mmdebstrap"].mend
    assert findings["qemu"].ok is False
    assert findings["qemu"].mend


@pytest.mark.parametrize(("setting", "value", "mend"), [
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
    ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
])  # fmt: skip
def test_doctor_names_the_setting_that_keeps_users_from_namespaces(
    setting: str, value: str, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_PROC", tmp_path)
    for other in ("kernel/apparmor_restrict_unprivileged_userns", "user/max_user_namespaces"):
        (tmp_path / "sys" / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / other).write_text("0\n" if "apparmor" in other else "9999\n")
    (tmp_path / "sys" / setting).write_text(f"{value}\n")
    why, command = doctor._refused()
    assert setting.replace("/", ".") in why
    assert command == mend


@pytest.mark.parametrize(("flags", "why", "mend"), [
    ("fpu vmx", "its module is not loaded", "sudo modprobe kvm_intel"),
    ("fpu svm hypervisor", "its module is not loaded", "sudo modprobe kvm_amd"),
    ("fpu hypervisor", "its host does not pass virtualisation on", ""),
    ("fpu", "its firmware switches it off", ""),
])  # fmt: skip
def test_the_reason_for_the_lack_of_kvm_comes_from_the_processors_flags(flags: str, why: str, mend: str) -> None:
    found = probe._absent(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert why in found.reason
    assert found.mend == mend


def test_doctor_tells_a_machine_without_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_PROC", tmp_path)
    (tmp_path / "net").mkdir()
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    (tmp_path / "net" / "route").write_text(f"{head}eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n")
    assert doctor._network().ok is None
    (tmp_path / "net" / "route").write_text(f"{head}eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n")
    assert doctor._network().ok
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert "https_proxy" in doctor._network().detail


def test_doctor_fails_only_where_nothing_can_be_built(command: Command, tmp_path: Path) -> None:
    tcg = {"IMAGESMITH_ACCEL": "tcg"}
    assert json.loads(command("doctor", "--json", env=tcg).out)
    ran = command("doctor", env={**tcg, "PATH": str(tmp_path)}, expect=1)
    assert "MISSING  mmdebstrap" in ran.out
    assert "mend: sudo apt-get install mmdebstrap" in ran.out
    assert "mend: sudo apt-get install util-linux" in ran.out
    assert "nothing can be built here: mmdebstrap" in ran.err


def test_one_way_of_building_is_enough() -> None:
    missing = doctor.Finding("mmdebstrap", False, "is not installed")
    assert not doctor.hopeless([missing])
    assert not doctor.hopeless([doctor.Finding("zstd", False, ""), doctor.Finding("qemu", False, "")])
    assert doctor.hopeless([missing, doctor.Finding("qemu", False, "")]) == "mmdebstrap, qemu"
    assert doctor.hopeless([doctor.Finding("disk space", False, "")]) == "disk space"
