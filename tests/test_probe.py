"""What this host can do: KVM or TCG, and what doctor finds. Asks the real host, whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagesmith import doctor, probe
from imagesmith.errors import RecipeError
from imagesmith.host import Host


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
    assert findings.keys() >= {"qemu", "qemu-img", "kvm", "firmware uefi", "user namespaces", "mmdebstrap", "guestfs",
                               "fuse", "disk space", "memory", "apt mirror"}  # fmt: skip
    assert findings["qemu"].ok
    assert all(finding.detail for finding in findings.values())


def test_doctor_names_the_package_of_a_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "find", lambda self, tool: None)
    findings = {finding.name: finding for finding in doctor.examine(Host(), tmp_path)}
    assert findings["mmdebstrap"].ok is False
    assert "mmdebstrap" in findings["mmdebstrap"].mend
    assert findings["qemu"].ok is False
    assert findings["qemu"].mend
