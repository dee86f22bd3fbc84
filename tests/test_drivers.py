"""Drivers that reach disks: the same steps leave the same files through each of them, one layer a step."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imagesmith import tree
from imagesmith.archive import Archive, archive_of
from imagesmith.disk.attach import attached, exported, layer_files
from imagesmith.disk.partitions import Partition
from imagesmith.drivers import finding
from imagesmith.drivers.guestfs import Guestfs, inject, open_files
from imagesmith.drivers.native_disk import NativeDisk, inner_mounts, open_disk
from imagesmith.drivers.native_disk import open_files as native_files
from imagesmith.drivers.native_tree import NativeTree
from imagesmith.drivers.packed import PackedDisks
from imagesmith.drivers.placing import place
from imagesmith.drivers.sorting import PackedFiles
from imagesmith.errors import BuildError, Interrupted, StepFailed, TimedOut
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Driver, Root
from tests.test_attach import ended, wait_until

EPOCH = 1_700_000_000
HOST = Host()
BUSYBOX = HOST.find("busybox") or "/bin/busybox"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
FILES = {
    "etc/os-release": 'ID=testing\nNAME="A small guest"\nVERSION_ID=1\n', "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "small\n", "etc/fstab": "", "etc/resolv.conf": "nameserver 192.0.2.1\n",
    "etc/passwd": "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/srv:/bin/false\n", "etc/group": "root:x:0:\nwww:x:33:\n",
    "etc/shadow": "root:*:1::::::\n", "var/cache/a": "a", "var/cache/b": "b", "var/cache/.hidden": "h",
}  # fmt: skip
LINKS = {
    "var/run": "/run", "srv/www": "/var/www", "etc/out": "/../../../../var/www",
    **{f"bin/{name}": "busybox" for name in ("sh", "ls", "cat", "id", "sleep", "env", "mkdir", "chmod",
                                             "chown", "ln", "rm", "tr", "head", "touch", "echo")},
}  # fmt: skip


def guest(folder: Path) -> None:
    """A guest's root file system: busybox, and links that lead astray where they are not followed inside the guest."""
    for name in ("bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr/sbin", "var/cache", "var/www"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    (folder / "bin/busybox").write_bytes(Path(BUSYBOX).read_bytes())
    (folder / "bin/busybox").chmod(0o755)
    (folder / "root").chmod(0o700)


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree") / "base"
    guest(folder / "upper")
    return folder


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory, small_tree: Path) -> Path:
    """The guest on the second partition of a disk."""
    folder = tmp_path_factory.mktemp("disk") / "base"
    folder.mkdir()
    raw = folder.parent / "raw"
    HOST.run(["truncate", "--size", "96M", raw], purpose="make a test disk")
    table = b"label: gpt\nstart=1MiB, size=1MiB\nstart=8MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    HOST.run(["sfdisk", "--quiet", raw], purpose="make a test disk", input=table)
    HOST.run(["mke2fs", "-q", "-t", "ext4", "-d", small_tree / "upper", "-E", f"offset={8 << 20}", raw, "80M"],
             purpose="make a test disk")  # fmt: skip
    HOST.run(["qemu-img", "convert", "-O", "qcow2", raw, folder / "disk.qcow2"], purpose="make a test disk")
    raw.unlink()
    return folder


# -- one list of steps, three drivers --------------------------------------------------------------------------------


def copy(root: Root) -> None:
    def build(archive: Archive) -> None:
        archive.directory("srv/site", mode=0o750, uid=33, gid=33)
        archive.data("srv/site/index.html", b"hello\n", uid=33, gid=33)
        archive.data("srv/www/through-a-link", b"in /var/www\n")
        archive.data("var/run/gone", b"on a file system that is not kept\n")
        archive.data("etc/hosts", b"127.0.0.1 replaced\n", mode=0o600)
        archive.data("opt/new/deep/tool", b"#!/bin/sh\necho tool\n", mode=0o4755)
        archive.link("srv/link", "/etc")

    root.unpack(archive_of(build, epoch=EPOCH))


def user(root: Root) -> None:
    root.run(["sh", "-c", "echo ann:x:1000:1000::/home/ann:/bin/sh >>/etc/passwd; echo ann:x:1000: >>/etc/group;"
              "mkdir -p /home/ann && chown ann:ann /home/ann && chmod 700 /home/ann"])  # fmt: skip
    owner = archive_of(lambda a: a.data("home/ann/.profile", b"umask 022\n", uid=1000, gid=1000), epoch=EPOCH)
    root.unpack(owner)


def shell(root: Root) -> None:
    script = b"""
        set -e
        umask; id -u; pwd; echo "$SECRET"; cat /proc/self/cmdline >/dev/null; echo >/dev/null; ls /run /proc/self/exe
        env >/root/env; rm -f /root/env.new; cat /etc/resolv.conf >/dev/null
        echo made >/srv/link/made; mkdir -p /srv/more; chmod 2775 /srv/more; chown 33:33 /srv/more
        ln /srv/site/index.html /srv/second; sleep 600 &
        mkdir /srv/inner; ln /bin/busybox /srv/inner/busybox
        busybox chroot /srv/inner /busybox sh -c "exec 3>/held; exec /busybox sleep 600" &
        until [ -e /srv/inner/held ]; do sleep 0.1; done
        cat /usr/sbin/policy-rc.d
    """
    said = root.run(["sh", "-s"], input=script, env={"SECRET": "it's \"quoted\" $HOME\n and long"})
    assert said.output.splitlines()[:5] == ["0022", "0", "/", "it's \"quoted\" $HOME", " and long"]
    assert "exit 101" in said.output, "nothing may start services"
    assert root.run(["sh", "-c", "echo out; echo err >&2; exit 7"], check=False).status == 7
    assert root.run(["no-such-program"], check=False).status == 127
    with pytest.raises(StepFailed, match="exit status 3") as failed:
        root.run(["sh", "-c", "echo the reason; exit 3"])
    assert failed.value.status == 3
    assert "the reason" in failed.value.tail


def look_and_remove(root: Root) -> None:
    assert root.exists("/srv/link/made")
    assert root.exists("/etc/out/through-a-link"), "a link cannot lead out of the guest"
    assert not root.exists("/srv/nothing")
    assert root.read("/srv/link/made") == b"made\n"
    with pytest.raises(FileNotFoundError):
        root.read("/srv/nothing")
    root.remove(["/var/cache/*", "/nothing/*", "/srv/link/hostname", "/srv/more"])
    assert root.read("/etc/passwd").startswith(b"root:")


STEPS = (copy, user, shell, look_and_remove)


def build(driver: Driver, base: Path, into: Path) -> tuple[list[Path], list[str]]:
    """Run the steps; return the layers' folders, and all lines that were logged."""
    below, lines = [base], list[str]()
    with driver.session(below, epoch=EPOCH, log=lines.append) as session:
        for number, step in enumerate(STEPS):
            folder = base.parent / f"{into.name}-{number}.part"
            folder.mkdir()
            with session.layer(folder, log=lines.append, timeout=300, below=below[-1]) as root:
                step(root)
            below.append(folder.rename(folder.with_suffix("")))
    return below, lines


@contextmanager
def opened(layers: Sequence[Path]) -> Iterator[tree.TreeRoot]:
    """The result of layers of either sort, by the host's own means."""
    if (layers[0] / "upper").exists():
        mount = tree.OverlayMount(tuple(str(layer / "upper") for layer in layers))
        with tree.open_root(HOST, mount, epoch=EPOCH, log=print) as root:
            yield root
    else:
        with (
            attached(layer_files(layers), HOST, writable=True) as disk,
            open_disk(disk.path, HOST, epoch=EPOCH, log=print) as root,
        ):
            yield root


def listing(packed: bytes) -> dict[str, tuple[object, ...]]:
    """What a tar says of each file but for its time."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            content = stream.read() if stream else b""
            found[member.name.rstrip("/")] = (member.type, oct(member.mode), member.uid, member.gid, member.linkname,
                                              content)  # fmt: skip
    return {name: what for name, what in found.items() if name not in {"lost+found", "."}}


def files_of(layers: Sequence[Path]) -> dict[str, tuple[object, ...]]:
    out = io.BytesIO()
    with opened(layers) as root:
        root.pack(out)
    return listing(out.getvalue())


@pytest.fixture(scope="module")
def by_tree(small_tree: Path) -> dict[str, tuple[object, ...]]:
    layers, _ = build(NativeTree(HOST), small_tree, Path("native"))
    return files_of(layers)


@pytest.fixture(scope="module")
def by_guestfs(small_disk: Path) -> tuple[list[Path], list[str]]:
    return build(Guestfs(HOST, accelerator="tcg"), small_disk, Path("guestfs"))


@as_root
def test_a_trusted_disk_gets_the_files_that_a_tree_gets(
    small_disk: Path, by_tree: dict[str, tuple[object, ...]]
) -> None:
    layers, _ = build(NativeDisk(HOST), small_disk, Path("native"))
    assert files_of(layers) == by_tree
    for layer in layers:
        HOST.run(["qemu-img", "check", "-q", layer / "disk.qcow2"], purpose="check a layer")


@as_root
def test_a_foreign_disk_gets_the_files_that_a_tree_gets(
    by_guestfs: tuple[list[Path], list[str]], by_tree: dict[str, tuple[object, ...]]
) -> None:
    layers, _ = by_guestfs
    assert files_of(layers) == by_tree
    for layer in layers:
        HOST.run(["qemu-img", "check", "-q", layer / "disk.qcow2"], purpose="check a layer")
    with exported(layers[-1] / "disk.qcow2", HOST, writable=False) as raw:
        # A clean file system, as after an orderly unmount.
        said = HOST.run(["dumpe2fs", "-h", f"{raw}?offset={8 << 20}"], purpose="look at a file system")
        assert b"needs_recovery" not in said.stdout


def test_output_of_a_foreign_disk_is_logged_and_its_files_come_out_sorted(
    by_guestfs: tuple[list[Path], list[str]], request: pytest.FixtureRequest
) -> None:
    layers, lines = by_guestfs
    assert "the reason" in lines
    assert not [line for line in lines if "imagesmith/" in line]
    disk = Disk(layers[-1] / "disk.qcow2", 96 << 20)
    out, told, disks = io.BytesIO(), list[str](), PackedDisks(HOST)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(disks.files, disk, accelerator=lambda: "tcg", log=told.append) for _ in range(2)]
    assert len(told) == 1, "one appliance serves both"
    first, second = (one.result() for one in asked)
    assert first.read("/srv/link/made") == b"made\n"
    with pytest.raises(FileNotFoundError):
        first.read("/srv/nothing")
    second.pack(out, exclude=["/var/cache", "/opt/new"])
    found = listing(out.getvalue())
    assert list(found) == sorted(found)
    assert {"var/cache", "opt/new", "srv/site/index.html", "etc/passwd", "root"} <= found.keys()
    assert not {"var/cache/.hidden", "opt/new/deep", "srv/more", "usr/sbin/policy-rc.d"} & found.keys()
    if os.geteuid() == 0:  # otherwise the test's own disk has the user's files
        expected = request.getfixturevalue("by_tree")
        assert found == {n: what for n, what in expected.items() if not n.startswith(("var/cache/", "opt/new/"))}


def test_a_step_that_hangs_is_ended_and_the_next_goes_on_from_the_last_layer(
    by_guestfs: tuple[list[Path], list[str]]
) -> None:
    below, _ = by_guestfs
    folder = below[0].parent
    lost, kept = folder / "lost", folder / "kept"
    lost.mkdir()
    kept.mkdir()
    with Guestfs(HOST, accelerator="tcg").session(below, epoch=EPOCH, log=print) as session:
        with pytest.raises(TimedOut) as late, session.layer(lost, log=print, timeout=6) as root:
            root.run(["sh", "-c", "echo begun; touch /lost; sleep 1000"])
        assert "begun" in late.value.tail
        with session.layer(kept, log=print) as root:
            assert not root.exists("/lost")
            assert root.run(["sh", "-c", "head -c 1500000 /dev/zero | tr '\\0' x"]).output == "x" * 1_500_000
            root.run(["busybox", "mount", "-t", "tmpfs", "none", "/srv/site"])
            root.run(["sh", "-c", "echo left >/run/left; echo left >/srv/site/left"])
        for after in ("after", "last"):
            (folder / after).mkdir()
            with session.layer(folder / after, log=print) as root:
                assert not root.exists("/run/left"), "each step begins with an empty /run"
                assert not root.exists("/srv/site/left"), "each step begins without what the one before mounted"
                root.run(["sh", "-c", "echo left >/run/left; ls -l /dev/null /proc/1/stat; : >/dev/null"])
                assert root.read("/usr/sbin/policy-rc.d") == b"#!/bin/sh\nexit 101\n"
    if os.geteuid() == 0:
        assert set(files_of([*below, kept, folder / "after", folder / "last"])) == set(files_of(below))
    with exported(kept / "disk.qcow2", HOST, writable=False) as raw:
        assert raw.stat().st_size == 96 << 20


def test_an_interrupted_launch_ends_at_once(small_disk: Path, tmp_path: Path) -> None:
    host, lines = Host(), list[str]()
    into = small_disk.parent / "interrupted"
    into.mkdir()
    timer = threading.Timer(3, host.cancel)
    timer.start()
    with Guestfs(host, accelerator="tcg").session([small_disk], epoch=EPOCH, log=lines.append) as session:
        with pytest.raises(Interrupted), session.layer(into, log=lines.append):
            pass
        assert not [pid for pid in children(os.getpid()) if program(pid).startswith("qemu")]


@pytest.mark.slow
def test_a_disk_without_a_system_is_refused(tmp_path: Path) -> None:
    base, into = tmp_path / "base", tmp_path / "into"
    base.mkdir()
    into.mkdir()
    HOST.run(["qemu-img", "create", "-q", "-f", "qcow2", base / "disk.qcow2", "64M"], purpose="make a test disk")
    with (
        Guestfs(HOST, accelerator="tcg").session([base], epoch=EPOCH, log=print) as session,
        pytest.raises(BuildError, match="no operating system"),
        session.layer(into, log=print),
    ):
        pass


@pytest.mark.slow
def test_files_can_be_put_into_a_throw_away_copy_of_any_disk(small_disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "copy.qcow2"
    HOST.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", small_disk / "disk.qcow2", overlay],
             purpose="make a copy")  # fmt: skip
    put = {"/etc/new/unit": (b"[Unit]\n", 0o644), "/srv/www/tool": (b"#!/bin/sh\n", 0o755)}
    inject(overlay, put, {"/etc/wants/unit": "../new/unit"}, HOST, accelerator="tcg")
    with open_files(Disk(overlay, 96 << 20), HOST, accelerator="tcg") as files:
        assert files.read("/etc/wants/unit") == b"[Unit]\n"
        assert files.read("/var/www/tool") == b"#!/bin/sh\n"


# -- partitions of a disk ---------------------------------------------------------------------------------------------


def two_partitions(tmp_path: Path, point: str, *, linked: bool = False) -> Path:
    """A disk whose guest has a second file system, with a kernel in it, at this mount point.

    ``linked``: its fstab is a link, as NixOS has it.
    """
    raw, base = tmp_path / "raw", tmp_path / "base"
    guest(tmp_path / "tree")
    (tmp_path / "tree" / point).mkdir(parents=True)
    there = tmp_path / "tree/etc/static" if linked else tmp_path / "tree/etc"
    there.mkdir(exist_ok=True)
    (tmp_path / "tree/etc/fstab").unlink()
    if linked:
        (tmp_path / "tree/etc/fstab").symlink_to("/etc/static/fstab")
    (there / "fstab").write_bytes(
        f"# f\xfcr alle\nLABEL=start /{point} ext4 defaults 0 2\nUUID=not-here /data ext4\n".encode("latin-1")
    )
    for folder in (base, tmp_path / "boot"):
        folder.mkdir()
    (tmp_path / "boot/kernel").write_text("a kernel")
    HOST.run(["truncate", "--size", "160M", raw], purpose="make a test disk")
    table = b"label: gpt\nstart=1MiB, size=32MiB\nstart=40MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    HOST.run(["sfdisk", "--quiet", raw], purpose="make a test disk", input=table)
    for name, at, size, label in (("boot", 1, 32, "start"), ("tree", 40, 112, "root")):
        HOST.run(["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", tmp_path / name, "-E", f"offset={at << 20}", raw,
                  f"{size}M"], purpose="make a test disk")  # fmt: skip
    HOST.run(["qemu-img", "convert", "-O", "qcow2", raw, base / "disk.qcow2"], purpose="make a test disk")
    return base


@as_root
@pytest.mark.parametrize(("point", "linked"), [("boot", True), ("var/lib/deep", False)])
def test_partitions_that_belong_below_the_root_are_mounted_there(tmp_path: Path, point: str, linked: bool) -> None:
    base, into = two_partitions(tmp_path, point, linked=linked), tmp_path / "into"
    into.mkdir()
    with NativeDisk(HOST).session([base], epoch=EPOCH, log=print) as session, session.layer(into, log=print) as root:
        assert root.read(f"/{point}/kernel") == b"a kernel"
        root.run(["sh", "-c", f"echo newer >/{point}/kernel"])
    with exported(into / "disk.qcow2", HOST, writable=False) as disk:
        said = HOST.run(["debugfs", "-R", "cat /kernel", f"{disk}?offset={1 << 20}"], purpose="look")
    assert said.text == "newer\n"
    before = (into / "disk.qcow2").read_bytes()
    packed = io.BytesIO()
    with native_files([base, into], HOST, epoch=EPOCH, log=print) as files:
        files.pack(packed)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        stream = tar.extractfile(f"{point}/kernel")
        assert stream is not None
        assert stream.read() == b"newer\n"
    assert (into / "disk.qcow2").read_bytes() == before, "an output wrote to a layer"


@pytest.mark.slow
@pytest.mark.parametrize("linked", [True, False])
def test_the_appliance_mounts_partitions_below_the_root_too(tmp_path: Path, linked: bool) -> None:
    below = [two_partitions(tmp_path, "boot", linked=linked)]
    with Guestfs(HOST, accelerator="tcg").session(below, epoch=EPOCH, log=print) as session:
        for number in (1, 2):
            below.append(tmp_path / f"layer{number}")
            below[-1].mkdir()
            with session.layer(below[-1], log=print) as root:
                assert root.read("/boot/kernel") == (b"a kernel" if number == 1 else b"newer1\n")
                root.run(["sh", "-c", f"echo newer{number} >/boot/kernel"])
    for number in (1, 2):
        with exported(below[number] / "disk.qcow2", HOST, writable=False) as disk:
            name = f"{disk}?offset={1 << 20}"
            assert HOST.run(["debugfs", "-R", "cat /kernel", name], purpose="look").text == f"newer{number}\n"
            assert "needs_recovery" not in HOST.run(["dumpe2fs", "-h", name], purpose="look").text


@as_root
def test_what_the_kernel_must_not_mount_is_left_to_the_appliance(tmp_path: Path) -> None:
    base, into = tmp_path / "base", tmp_path / "into"
    base.mkdir()
    into.mkdir()
    HOST.run(["qemu-img", "create", "-q", "-f", "qcow2", base / "disk.qcow2", "64M"], purpose="make a test disk")
    with exported(base / "disk.qcow2", HOST, writable=True) as raw:
        HOST.run(["mke2fs", "-q", "-t", "ext2", "-F", raw], purpose="make a test disk")
    with (
        NativeDisk(HOST).session([base], epoch=EPOCH, log=print) as session,
        pytest.raises(BuildError, match="ext2") as refused,
        session.layer(into, log=print),
    ):
        pass
    assert "guestfs" in refused.value.hint


def test_an_fstab_tells_what_belongs_below_the_root() -> None:
    boot = Partition(1, 0, 1, label="b", uuid="1-2", guid="aa")
    efi = Partition(2, 1, 1, uuid="AB-CD")
    fstab = """
        # UUID=1-2 /commented ext4 defaults
        UUID=AB-CD /boot/efi vfat umask=0077 0 1
        PARTUUID=aa\t/boot ext4 defaults 0 2
        LABEL=b /other ext4 noauto 0 0
        UUID=1-2 none swap sw
        /dev/sdb1 /elsewhere ext4
    """
    assert inner_mounts(fstab, [boot, efi]) == [("/boot", boot), ("/boot/efi", efi)]


# -- tars -------------------------------------------------------------------------------------------------------------


class Known:
    """A guest's folders: /lib is a link to /usr/lib, /out leads nowhere."""

    def entries(self, folder: str) -> dict[str, str]:
        known = {"/": {"usr": "d", "lib": "l", "out": "l"}, "/usr": {"lib": "d"}, "/usr/lib": {"old": "d"}}
        return known.get(folder, {})

    def folder_behind(self, link: str) -> str | None:
        return {"/lib": "/usr/lib"}.get(link)


def names_placed(*names: str) -> list[str]:
    archive = archive_of(lambda a: [a.data(name, b"x") for name in names] and None, epoch=1)
    out = io.BytesIO()
    place(archive, out, Known(), epoch=1)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as placed:
        return placed.getnames()


def test_names_in_a_tar_become_what_the_guests_links_lead_to() -> None:
    assert names_placed("lib/old/f", "lib/new/g") == ["usr/lib/old/f", "usr/lib/new", "usr/lib/new/g"]
    assert names_placed("../../lib/f") == ["usr/lib/f"]
    long = "d" * 120
    assert names_placed("lib/é", f"lib/{long}/f") == ["usr/lib/é", f"usr/lib/{long}", f"usr/lib/{long}/f"]
    with pytest.raises(IsADirectoryError):
        names_placed("lib/old")
    with pytest.raises(FileExistsError):
        names_placed("out/f")


@pytest.fixture
def unsorted() -> Iterator[PackedFiles]:
    """Files as a tar that is packed as it comes, with links and a file with two names."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, kind, target in (("./", b"5", ""), ("./z", b"0", ""), ("./b", b"1", "./z"), ("./a", b"5", ""),
                                       ("./a/up", b"2", "../l"), ("./l", b"2", "/a/../b"), ("./loop", b"2", "loop")):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, target, 3 if kind == b"0" else 0
                archive.addfile(member, io.BytesIO(b"abc"))
        file.flush()
        yield PackedFiles(file)


def test_a_sorted_tar_may_go_into_a_pipe(unsorted: PackedFiles) -> None:
    end, start = os.pipe()
    with os.fdopen(start, "wb") as out:
        unsorted.pack(out)
    with os.fdopen(end, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        assert tar.getnames() == ["a", "a/up", "b", "l", "loop", "z"]


def test_an_unsorted_tar_is_sorted_and_keeps_files_with_several_names(unsorted: PackedFiles) -> None:
    out = io.BytesIO()
    unsorted.pack(out, exclude=["/a"])
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert [(m.name, m.type, m.linkname) for m in archive if not m.issym()] == [
            ("a", b"5", ""), ("b", b"0", ""), ("z", b"1", "b")]  # fmt: skip
        stream = archive.extractfile("z")
        assert stream is not None
        assert stream.read() == b"abc"


def test_files_of_a_tar_are_read_by_the_links_in_it(unsorted: PackedFiles) -> None:
    for path in ("/z", "/b", "/a/up", "/a/../../l", "l"):
        assert unsorted.read(path) == b"abc", path
    for path in ("/a", "/loop", "/nothing", "/z/../nothing", "/"):
        with pytest.raises(FileNotFoundError):
            unsorted.read(path)


# -- the end ----------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from imagesmith.drivers.guestfs import Guestfs
from imagesmith.drivers.native_disk import NativeDisk
from imagesmith.host import Host
driver = NativeDisk(Host()) if sys.argv[1] == "native" else Guestfs(Host(), accelerator="tcg")
into = Path(tempfile.mkdtemp(dir=Path(sys.argv[2]).parent))
with driver.session([Path(sys.argv[2])], epoch=1, log=print) as session, session.layer(into, log=print) as root:
    root.run(["sh", "-c", "touch /x; echo working; sleep 1000"])
"""


def children(pid: int) -> set[int]:
    """All processes that descend from one."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except (FileNotFoundError, ProcessLookupError):
        return ""


def loops() -> str:
    return HOST.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], purpose="look").text


@pytest.mark.parametrize("driver", [pytest.param("native", marks=as_root), "guestfs"])
def test_nothing_is_left_when_we_are_killed_in_the_middle_of_a_step(
    small_disk: Path, driver: str, tmp_path: Path
) -> None:
    mounts, attached_loops = Path("/proc/self/mountinfo").read_text(), loops()
    with subprocess.Popen([sys.executable, "-u", "-c", KILLED, driver, str(small_disk)], stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "TMPDIR": str(tmp_path)}) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if "working" in line or "starting the libguestfs" in line:
                break
        if driver == "guestfs":
            assert wait_until(lambda: any(program(pid).startswith("qemu-system") for pid in children(process.pid)))
        busy = children(process.pid)
        assert busy
        process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: all(map(ended, busy)))
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert wait_until(lambda: loops() == attached_loops)
    if os.geteuid() == 0:  # what a user's appliance leaves there, the next one removes
        assert not list(tmp_path.iterdir())


def test_the_root_is_called_as_libguestfs_calls_it_whatever_the_kernel_of_the_appliance_does() -> None:
    """Which of its two disks the kernel finds first is chance, and a session may start an appliance twice."""
    assert finding.own_name("/dev/sdb2", ["/dev/sda"]) == "/dev/sda2"
    assert finding.own_name("/dev/sda", ["/dev/sda"]) == "/dev/sda"
    assert finding.own_name("/dev/mapper/system-root", ["/dev/sda"]) == "/dev/mapper/system-root"
