"""Digests of large files are remembered for as long as the files stay as they are."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

import pytest

from imagesmith import digests


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "_file", None)
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    file = tmp_path / "disk"
    file.write_bytes(b"a" * (2 << 20))
    return file


def test_a_file_that_is_as_it_was_is_not_read_again(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "digests.json"
    digests.remember_in(kept)
    found = digests.sha256(large)
    assert found == hashlib.sha256(large.read_bytes()).hexdigest()
    assert kept.stat().st_mode & 0o777 == 0o600

    monkeypatch.setattr(digests, "_known", {})  # another process
    monkeypatch.setattr(digests, "_file", None)
    digests.remember_in(kept)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
    assert digests.sha256(large) == found


def test_a_change_is_seen_whatever_was_done_to_hide_it(large: Path, tmp_path: Path) -> None:
    digests.remember_in(tmp_path / "digests.json")
    before, first = large.stat(), digests.sha256(large)
    with large.open("r+b") as stream:
        stream.seek(1 << 20)
        stream.write(b"b")
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digests.sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest() != first


def test_a_change_by_a_program_that_has_mapped_the_file_is_seen(large: Path, tmp_path: Path) -> None:
    with large.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        for byte in (66, 67):
            mapped[0] = byte
            assert digests.sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest()
            assert digests._known


def test_what_has_just_changed_is_not_remembered(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED", 60.0)
    digests.remember_in(tmp_path / "digests.json")
    digests.sha256(large)
    assert not digests._known
    assert not (tmp_path / "digests.json").exists()


@pytest.mark.parametrize("content", ["", "nonsense", "[]"])
def test_a_damaged_note_is_as_good_as_none(large: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "digests.json").write_text(content)
    digests.remember_in(tmp_path / "digests.json")
    assert digests.sha256(large) == hashlib.sha256(large.read_bytes()).hexdigest()
