"""`build --verify-reproducible`, and the room that outputs need."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith.errors import StoreError
from imagesmith.reproduce import difference
from imagesmith.room import check, needed
from tests.conftest import Command, Golden

MIB = 1 << 20


def tar(path: Path, members: dict[str, bytes], *, mtime: int = 0, compress: bool = False) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), mtime
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
    return path


def test_an_image_whose_artifacts_are_the_same_twice_is_told_so(golden: Golden, command: Command) -> None:
    ran = command("build", golden.recipe, "--verify-reproducible")
    assert ran.err.count("written once more") == len(golden.manifest["artifacts"])


@given(first=st.binary(min_size=1, max_size=300), at=st.integers(0, 299))
def test_the_first_byte_that_differs_is_named(tmp_path_factory: pytest.TempPathFactory, first: bytes, at: int) -> None:
    folder = tmp_path_factory.mktemp("d")
    at %= len(first)
    second = bytearray(first)
    second[at] ^= 1
    (folder / "a").write_bytes(first)
    (folder / "b").write_bytes(second)
    assert difference(folder / "a", folder / "a") == ""
    assert difference(folder / "a", folder / "b") == f"at byte {at:,}"
    (folder / "b").write_bytes(first + b"x")
    assert difference(folder / "a", folder / "b") == f"at byte {len(first):,}"


@pytest.mark.parametrize("compress", [False, True])
def test_in_an_archive_the_member_is_named(tmp_path: Path, compress: bool) -> None:
    one = tar(tmp_path / "one", {"a": b"same", "disk": bytes(MIB) + b"x" + bytes(9)}, compress=compress)

    def other(members: dict[str, bytes], mtime: int = 0) -> str:
        return difference(one, tar(tmp_path / "other", members, mtime=mtime, compress=compress))

    assert other({"a": b"same", "disk": bytes(MIB) + b"y" + bytes(9)}) == f"disk, at byte {MIB:,} of it"
    assert other({"a": b"same"}) == "disk is in one of the archives only"
    assert other({"b": b"same"}) == "the archive has a where it had b"
    assert other({"a": b"same"}, mtime=1) == "a: mtime is 0 and 1"


def test_no_more_room_is_asked_for_than_the_data_takes() -> None:
    made, besides = needed(["qcow2", "ova", "oci"], 700 * MIB, {"ova": 200 * MIB}, 2)
    assert made == (700 + 250 + 700 + 3 * 16) * MIB
    assert besides == (700 + 700 + 2 * 16) * MIB


def test_too_little_room_is_told_before_the_work(tmp_path: Path) -> None:
    check(["qcow2"], MIB, {}, 2, tmp_path, tmp_path / "not/there/yet")
    said = r"qcow2 and ova may need [0-9,]+ MiB in .*, and [0-9,]+ MiB are free"
    with pytest.raises(StoreError, match=said) as caught:
        check(["qcow2", "ova"], 1 << 60, {}, 2, tmp_path, None)
    assert "--only" in caught.value.hint
    with pytest.raises(StoreError, match=r"oci may need"):
        check(["oci"], MIB, {}, 2, tmp_path, None, packed=1 << 60)
