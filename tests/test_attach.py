"""Chains of layers as raw disks: what is written where, what is refused, and that nothing outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imagesmith.disk.attach import attached, chain_of, exported, layer_files, make_overlay, read_header
from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host

MIB = 1 << 20
HOST = Host()


def layer(folder: Path, size: str = "64M") -> Path:
    folder.mkdir()
    file = folder / "disk.qcow2"
    HOST.run(["qemu-img", "create", "-q", "-f", "qcow2", file, size], purpose="make a test disk")
    return file


def write(raw: Path, at: int, content: bytes) -> None:
    with raw.open("r+b", buffering=0) as disk:
        disk.seek(at)
        disk.write(content)


def read(files: list[Path], at: int, size: int) -> bytes:
    with attached(files, HOST, writable=False) as disk, disk.path.open("rb") as raw:
        raw.seek(at)
        return raw.read(size)


def is_sound(file: Path) -> bool:
    return HOST.run(["qemu-img", "check", "-q", file], purpose="check a test disk", ok=(0, 1, 2, 3)).status == 0


def test_each_layer_holds_what_was_written_while_it_was_open_though_finished_ones_are_renamed(tmp_path: Path) -> None:
    base = layer(tmp_path / "base")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    make_overlay(base, tmp_path / "one/disk.qcow2", HOST)
    with attached([base, tmp_path / "one/disk.qcow2"], HOST, writable=True) as disk:
        assert disk.path.stat().st_size == 64 * MIB
        write(disk.path, MIB, b"first")
        disk.flush()
        assert is_sound(tmp_path / "one/disk.qcow2"), "a flushed layer is complete while it is still open"
        (tmp_path / "one").rename(tmp_path / "uno")
        make_overlay(tmp_path / "uno/disk.qcow2", tmp_path / "two/disk.qcow2", HOST)
        disk.advance(tmp_path / "two/disk.qcow2", below=tmp_path / "uno/disk.qcow2")
        write(disk.path, MIB, b"other")
    assert read_header(tmp_path / "two/disk.qcow2").backing == "../uno/disk.qcow2"
    files = layer_files([tmp_path / "base", tmp_path / "uno", tmp_path / "two"])
    assert [read(files[: n + 1], MIB, 5) for n in range(3)] == [bytes(5), b"first", b"other"]
    assert all(map(is_sound, files))
    assert chain_of(files[-1])[-1] == files[-1]


def test_what_is_discarded_leaves_the_layer(tmp_path: Path) -> None:
    file = layer(tmp_path / "base")
    with exported(file, HOST, writable=True) as raw:
        write(raw, 0, b"x" * 20 * MIB)
    full = file.stat().st_blocks
    with exported(file, HOST, writable=True) as raw:
        HOST.run(["fallocate", "--punch-hole", "--offset", "0", "--length", "20M", raw], purpose="discard")
    assert file.stat().st_blocks < full / 10


def test_a_disk_is_read_only_unless_asked(tmp_path: Path) -> None:
    file = layer(tmp_path / "base")
    before = file.read_bytes()
    with exported(file, HOST, writable=False) as raw, pytest.raises(OSError, match=r"Permission|Read-only"):  # noqa: PT012
        fd = os.open(raw, os.O_WRONLY)
        os.write(fd, b"x" * 512)
    assert file.read_bytes() == before


def foreign(path: Path, *options: str) -> Path:
    HOST.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "16M"], purpose="make a hostile disk")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda d: foreign(d / "x", "-u", "-F", "qcow2", "-b", "/etc/passwd"), "/etc/passwd is no qcow2"),
        (lambda d: foreign(d / "x", "-o", f"data_file={d}/elsewhere"), "keeps its data in another file"),
        (lambda d: foreign(d / "x", "-u", "-F", "qcow2", "-b", "x"), "never end"),
        (lambda d: [(d / "x").write_bytes(b"#!/bin/sh\n" * 99), d / "x"][1], "no qcow2"),
        (lambda d: [(d / "x").write_bytes(b"QFI\xfb"), d / "x"][1], "only the beginning"),
    ],
    ids=["backing file elsewhere", "data file", "stands on itself", "a script", "cut off"],
)
def test_a_hostile_image_is_refused(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    path = make(tmp_path)
    with pytest.raises(Refused, match=said), exported(path, HOST, writable=False):
        pass


def test_a_layer_that_stands_on_another_than_it_should_is_refused(tmp_path: Path) -> None:
    base, other = layer(tmp_path / "base"), layer(tmp_path / "other")
    (tmp_path / "top").mkdir()
    make_overlay(other, tmp_path / "top/disk.qcow2", HOST)
    with pytest.raises(Refused, match=r"should stand on \.\./base/disk.qcow2"):
        layer_files([base.parent, tmp_path / "top"])
    with pytest.raises(BuildError, match="never written twice"):
        make_overlay(base, tmp_path / "top/disk.qcow2", HOST)
    with pytest.raises(BuildError, match="cannot open the disk layer"):
        layer_files([tmp_path / "nowhere"])


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    file = layer(tmp_path / "base")
    with file.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"\xff" * 8)  # where the L1 table is
    with pytest.raises(BuildError, match="cannot open the disk layer") as caught, exported(file, HOST, writable=False):
        pass
    assert str(file) in caught.value.message


KILLED = """
import os, signal, sys
from pathlib import Path
from imagesmith.disk.attach import exported
from imagesmith.host import Host
with exported(Path(sys.argv[1]), Host(), writable=True) as raw:
    with raw.open("r+b", buffering=0) as disk:
        disk.write(b"x" * 4096)
    print(raw.parts[2], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_nothing_is_left_when_we_are_killed(tmp_path: Path) -> None:
    file = layer(tmp_path / "base")
    mounts = Path("/proc/self/mountinfo").read_text()
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).iterdir())
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert wait_until(lambda: ended(int(done.stdout)))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert not {p for p in set(Path(os.environ.get("TMPDIR", "/tmp")).iterdir()) - before if "imagesmith" in p.name}
    assert is_sound(file)
    with exported(file, HOST, writable=True) as raw:
        write(raw, 0, b"works")
