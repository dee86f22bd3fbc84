"""What a system is made of, and what differs between two: read from ext4, tars and a squashfs; kept; compared."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith import inventory
from imagesmith.cli_diff import _told
from imagesmith.compare import difference
from imagesmith.errors import BuildError, ImagesmithError
from imagesmith.host import Host
from imagesmith.inventory import File, Inventory
from imagesmith.look.ext4 import Ext4Reader
from imagesmith.look.inventory import of_disk, of_tar, take
from imagesmith.look.reader import TarReader
from imagesmith.look.squashfs import SquashfsReader
from tests.conftest import Command, Golden
from tests.consumers import ask

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file, some of them awkward."""
    root = tmp_path_factory.mktemp("tree") / "root"
    (root / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").write_bytes(b"\x7fELF")
    (root / "many").mkdir()
    for number in range(1500):  # more than a folder's first blocks hold
        (root / f"many/a file with a rather long name, number {number}").write_text(str(number))
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nada:x:1000:1000:Ada,,,:/home/ada:/bin/bash\n")
    (root / "etc/shadow").write_text("root:*:1::::::\nada:$y$j9T$salt$hash:1::::::\n")
    (root / "etc/group").write_text("root:x:0:\nsudo:x:27:ada,bob\n")
    (root / "etc/shadow").chmod(0o640)
    (root / "etc/systemd/system/multi-user.target.wants/ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    (root / "etc/systemd/system/cups.service").symlink_to("/dev/null")
    (root / "large").write_bytes(random.Random(1).randbytes(1_500_000))
    with (root / "sparse").open("wb") as file:
        file.seek(700_000)
        file.write(b"in the middle")
        file.truncate(2_000_000)
    (root / "empty").touch()
    (root / "twice").write_text("two names")
    os.link(root / "twice", root / "again")
    (root / "short").symlink_to("large")
    (root / "long").symlink_to("../" * 60 + "far/away")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"no utf-8 \xff")).write_text("odd")
    (root / "set").write_text("#!")
    (root / "set").chmod(0o4755)
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(root / "large", 1234, 70_000)
    return root


def expected(root: Path) -> dict[str, File]:
    """What lstat(2) says."""
    found, first = {}, dict[int, str]()
    for path in sorted(root.rglob("*"), key=str):
        status, name = path.lstat(), "/" + str(path.relative_to(root))
        what, size = "", 0
        if path.is_symlink():
            what = str(path.readlink())
        elif path.is_file():
            leader = first.setdefault(status.st_ino, name)
            what = f"= {leader}" if leader != name else hashlib.sha256(path.read_bytes()).hexdigest()
            size = status.st_size if leader == name else 0
        elif path.is_char_device():
            what = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        found[name] = File(status.st_mode, status.st_uid, status.st_gid, size, what)
    return found


@pytest.mark.parametrize("options", [
    ["-t", "ext4"], ["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"],
    ["-t", "ext2", "-b", "1024", "-I", "128"],
], ids=["ext4", "ext4 of old", "ext2"])  # fmt: skip
def test_everything_in_an_ext_file_system_is_seen(tree: Path, tmp_path: Path, options: list[str]) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(64 << 20)
    ask("mke2fs", "-q", *options, "-E", "offset=1048576", "-d", tree, raw, "40000k")
    with Ext4Reader(raw, 1 << 20) as reader:
        found = reader.files()
    found.pop("/lost+found")
    assert found == expected(tree)


def test_a_damaged_file_system_is_told_and_nothing_else_happens(tree: Path, tmp_path: Path) -> None:
    raw, dice = tmp_path / "raw", random.Random(2)
    ask("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-d", tree, raw, "16000k")
    whole = raw.read_bytes()
    outcomes = set()
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(40):
            data[dice.randrange(1024, 700_000)] = dice.randrange(256)
        raw.write_bytes(data if dice.random() < 0.8 else data[: dice.randrange(len(data))])
        try:
            with Ext4Reader(raw, 0) as reader:
                reader.files()
            outcomes.add("read")
        except BuildError:
            outcomes.add("told")
    assert "told" in outcomes


def test_a_table_that_lies_beyond_every_disk_is_told(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    ask("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "64bit", raw, "8000k")
    data = bytearray(raw.read_bytes())
    data[2048 + 0x28 : 2048 + 0x2C] = b"\xff" * 4  # bg_inode_table_hi
    raw.write_bytes(data)
    with Ext4Reader(raw, 0) as reader, pytest.raises(BuildError, match="cannot be read"):
        reader.files()


def archive(tree: Path) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(tree.rglob("*"), key=str):
            tar.add(path, str(path.relative_to(tree)), recursive=False)
    buffer.seek(0)
    return buffer


def test_a_tar_and_a_squashfs_of_the_same_files_are_the_same(tree: Path, tmp_path: Path) -> None:
    found = TarReader([archive(tree)]).files()
    assert found == expected(tree)
    ask("mksquashfs", tree, tmp_path / "image", "-quiet", "-no-progress", "-comp", "zstd", "-Xcompression-level", "1")
    assert SquashfsReader(tmp_path / "image", tmp_path, Host()).files() == found


def test_services_users_and_groups_are_told(tree: Path) -> None:
    found = of_tar(archive(tree))
    assert found.init == "systemd"
    assert found.services == {"cups.service": "masked", "ssh.service": "enabled"}
    assert found.users == {"root": "uid 0, gid 0, /root, /bin/sh, no password",
                           "ada": "uid 1000, gid 1000, /home/ada, /bin/bash, password set"}  # fmt: skip
    assert found.groups == {"root": "gid 0", "sudo": "gid 27: ada, bob"}
    openrc = TarReader([archive_of({"sbin/openrc": "", "etc/runlevels/default/sshd": ""})])
    assert take(openrc).services == {"sshd": "enabled"}


def test_odd_names_are_names() -> None:
    found = of_tar(archive_of({"/etc/hostname": "odd", "lib/modules/5²/modules.dep": "nvme.ko:", "a\u2028b": ""}))
    assert (found.hostname, found.kernels) == ("odd", ["5²"])
    assert set(found.files) == {"/etc/hostname", "/lib/modules/5²/modules.dep", "/a\u2028b"}


def archive_of(files: dict[str, str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    buffer.seek(0)
    return buffer


def test_a_disk_that_cannot_be_looked_into_fails_no_build(tmp_path: Path) -> None:
    ask("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "empty.qcow2", "16M")
    found = of_disk(tmp_path / "empty.qcow2", Host())
    assert found.files == {}
    assert "was not looked at" in found.notes[0]


def test_what_is_published_lets_nobody_guess_at_secrets(tree: Path) -> None:
    files = of_tar(archive(tree)).public().files
    assert files["/etc/shadow"].what == ""
    assert files["/etc/passwd"].what != ""


def test_what_is_in_a_closed_folder_is_not_for_everybody() -> None:
    whole = Inventory(files={
        "/root": File(0o40700, 0, 0, 0, ""), "/root/bin": File(0o40755, 0, 0, 0, ""),
        "/root/bin/token": File(0o100644, 0, 0, 8, "a" * 64), "/rooted": File(0o100644, 0, 0, 8, "b" * 64),
    })  # fmt: skip
    files = whole.public().files
    assert files["/root/bin/token"].what == ""
    assert files["/rooted"].what == "b" * 64


_NAMES = st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=12)
_FILES = st.builds(File, st.sampled_from([0o100644, 0o100640, 0o40755, 0o120777]), st.integers(0, 1 << 32),
                   st.integers(0, 9), st.integers(0, 1 << 50), st.sampled_from(["", "a" * 64, "b" * 64]))  # fmt: skip
_INVENTORIES = st.builds(
    Inventory, system=_NAMES, kernels=st.lists(_NAMES, max_size=2),
    packages=st.dictionaries(_NAMES, _NAMES, max_size=4),
    services=st.dictionaries(_NAMES, _NAMES, max_size=3), users=st.dictionaries(_NAMES, _NAMES, max_size=3),
    files=st.dictionaries(_NAMES.map("/{}".format), _FILES, max_size=5),
)  # fmt: skip


@given(found=_INVENTORIES)
def test_what_is_written_is_read_again(found: Inventory, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "inventory.json"
    found.write(file)
    assert inventory.read(file) == found
    assert len(file.read_text().splitlines()) >= len(found.files)


@given(before=_INVENTORIES, after=_INVENTORIES)
def test_differences_are_the_same_from_both_sides(before: Inventory, after: Inventory) -> None:
    there, back = difference(before, after), difference(after, before)
    assert [(c.path, c.before, c.after) for c in there.files] == [(c.path, c.after, c.before) for c in back.files]
    assert [(c.name, c.before, c.after) for c in there.packages] == [(c.name, c.after, c.before) for c in back.packages]
    assert there.same == back.same
    assert difference(before, before).same
    if there.same:
        assert before.packages == after.packages


def _system(**more: object) -> Inventory:
    files = {
        "/etc/motd": File(0o100644, 0, 0, 10, "a" * 64), "/etc/sudoers": File(0o100440, 0, 0, 900, ""),
        "/usr/bin/tool": File(0o100755, 0, 0, 5_000_000, "b" * 64),
        "/vmlinuz": File(0o120777, 0, 0, 0, "boot/vmlinuz-1"), "/srv": File(0o40755, 0, 0, 0, ""),
    }  # fmt: skip
    plain: dict[str, object] = {
        "system": "Debian GNU/Linux 12 (bookworm)", "init": "systemd", "kernels": ["6.1.0-1"], "files": files,
        "packages": {"bash": "5.2-1", "nginx": "1.22.1-9", "tzdata": "2024a"}, "services": {"ssh.service": "enabled"},
        "users": {"root": "uid 0"}, "groups": {"root": "gid 0"},
    }  # fmt: skip
    return Inventory(**(plain | more))  # type: ignore[arg-type]


def test_people_are_told_what_differs() -> None:
    before = _system()
    files = dict(before.files)
    files["/etc/motd"] = File(0o100640, 0, 4, 12, "c" * 64)
    files["/usr/bin/tool"] = File(0o104755, 0, 0, 5_000_000, "b" * 64)
    files["/vmlinuz"] = File(0o120777, 0, 0, 0, "boot/vmlinuz-2")
    files["/srv/x"] = File(0o100644, 0, 0, 7_000_000, "d" * 64)
    del files["/srv"]
    after = _system(
        kernels=["6.1.0-2"], files=dict(sorted(files.items())),
        packages={"bash": "5.2-2", "nginx": "1.22.1-9", "curl": "7.88"},
        services={"ssh.service": "masked", "nginx.service": "enabled"}, users={"root": "uid 0", "ada": "uid 1000"},
    )  # fmt: skip
    said = "\n".join(_told(difference(before, after), (0, 0), None)) + "\n"
    golden = GOLDEN / "diff.txt"
    if os.environ.get("GOLDEN"):
        golden.write_text(said)
    assert said == golden.read_text()
    assert next(iter(_told(difference(before, before), (0, 0), None))).startswith("the same: ")


def test_long_lists_are_cut_and_say_so() -> None:
    many = _system(packages={f"p{number:02}": "1" for number in range(50)})
    said = "\n".join(_told(difference(_system(packages={}), many), (0, 0), 20))
    assert "packages: 50 added" in said
    assert "+ … and 30 more (--all shows them)" in said


def test_a_folder_that_came_or_went_stands_for_what_is_in_it() -> None:
    file, folder = File(0o100644, 0, 0, 1000, "a" * 64), File(0o40755, 0, 0, 0, "")
    more = {"/opt": folder, "/opt/tool": folder, **{f"/opt/tool/{n}": file for n in range(30)}, "/srv/x": file}
    found = difference(_system(), _system(files=dict(_system().files) | more))
    assert list(_told(found, (0, 0), 20))[1:3] == ["  + /opt and 31 in it", "  + /srv/x"]
    assert "  + /opt/tool/7" in list(_told(found, (0, 0), None))


def test_images_and_folders_are_compared(golden: Golden, command: Command, tmp_path: Path) -> None:
    ran = command("diff", golden.folder, golden.folder / "golden.libvirt.box")
    assert "the same: packages, files, modes" in ran.out
    found = json.loads(command("diff", golden.folder / "golden.oci.tar", golden.folder, "--json", expect=1).out)
    assert found["kernels"] != []
    assert found["packages"] == found["users"] == found["services"] == []
    outside = [file["path"] for file in found["files"] if not file["path"].startswith(("/boot", "/usr/lib/modules/"))]
    assert len(outside) < 12
    assert "/etc/fstab" in outside
    for wrong in (tmp_path, tmp_path / "nothing.qcow2"):
        assert "imagesmith:" in command("diff", golden.folder, wrong, expect=2).err


def test_an_inventory_that_is_none_is_told(tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    for text in ("", "[]", "{}", '{"inventory": 1}', '{"inventory": 7}', '{"inventory": 1, "files": {"/a": [1]}}',
                 '{"inventory": 1, "packages": [], "files": {}}', '{"inventory": 1, "kernels": [1], "files": {}}',
                 "[" * 100_000):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ImagesmithError):
            inventory.read(file)
