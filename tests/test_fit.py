"""An output that the guest cannot run on is refused: when the recipe is planned, or else before a byte is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagesmith.disk.bootable import boots_with
from imagesmith.host import Host
from tests.consumers import ask

MIB = 1 << 20
ESP, LINUX = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0fc63daf-8483-4772-8e79-3d69d8477de4"
BOOT_CODE = b"\xeb\x63\x90"


def make_disk(folder: Path, table: str, *, code: bytes = b"") -> Path:
    """A qcow2, with a backing file, of a disk that sfdisk has partitioned."""
    raw, base, disk = folder / "disk.raw", folder / "base.qcow2", folder / "disk.qcow2"
    with raw.open("wb") as stream:
        stream.write(code)
        stream.truncate(64 * MIB)
    if table:
        Host().run(["sfdisk", "--quiet", raw], purpose="partition a disk", input=table.encode())
    ask("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base)
    ask("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, disk)
    return disk


@pytest.mark.parametrize(("table", "code", "firmware"), [
    (f"label: gpt\nsize=8MiB, type={ESP}\ntype={LINUX}\n", b"", ("uefi",)),
    (f"label: gpt\nsize=8MiB, type={ESP}\ntype={LINUX}\n", BOOT_CODE, ("bios", "uefi")),
    (f"label: gpt\ntype={LINUX}\n", BOOT_CODE, ("bios",)),
    ("label: dos\nsize=8MiB, type=ef\ntype=83\n", b"", ("uefi",)),
    ("label: dos\ntype=83, bootable\n", BOOT_CODE, ("bios",)),
    ("label: dos\ntype=83\n", b"", ("bios", "uefi")),
    ("", b"", ("bios", "uefi")),
])  # fmt: skip
def test_a_disks_table_tells_what_it_boots_with(
    tmp_path: Path, table: str, code: bytes, firmware: tuple[str, ...]
) -> None:
    assert boots_with(make_disk(tmp_path, table, code=code), Host()) == firmware
