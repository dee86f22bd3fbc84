"""Root file systems in namespaces: what steps can rely on, and what they can never do to the host."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imagesmith import tree
from imagesmith.archive import Archive, archive_of
from imagesmith.drivers.native_tree import NativeTree
from imagesmith.errors import BuildError, Interrupted, StepFailed, TimedOut, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Root
from tests.trees import EPOCH, small_tree

LINES: list[str] = []


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory)


class Layers:
    """Makes one layer after the other on the small tree."""

    def __init__(self, small: Path, folder: Path) -> None:
        self.host, self.below, self.folder = Host(), [small], folder

    def __call__(self, work: Callable[[Root], object], *, timeout: float | None = None) -> Path:
        into = self.folder / f"layer{len(self.below)}"
        into.mkdir()
        LINES.clear()
        with (
            NativeTree(self.host).session(self.below, epoch=EPOCH, log=LINES.append) as session,
            session.layer(into, below=self.below[-1], log=LINES.append, timeout=timeout) as root,
        ):
            work(root)
        self.below.append(into)
        return into / "upper"

    @property
    def mount(self) -> tree.OverlayMount:
        return tree.OverlayMount(tuple(str(folder / "upper") for folder in self.below))


@pytest.fixture
def layers(small: Path, tmp_path: Path) -> Layers:
    return Layers(small, tmp_path)


def names(upper: Path) -> list[str]:
    return sorted(str(path.relative_to(upper)) for path in upper.rglob("*"))


def sh(script: str) -> Callable[[Root], object]:
    return lambda root: root.run(["sh", "-eu"], input=script.encode())


def tar(**files: str) -> io.BytesIO:
    def build(archive: Archive) -> None:
        for name, content in files.items():
            archive.data(name, content.encode())

    return archive_of(build, epoch=EPOCH)  # type: ignore[return-value]


def running(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


# -- programs --------------------------------------------------------------------------------------------------------


def test_output_comes_line_by_line_and_whole(layers: Layers) -> None:
    def work(root: Root) -> None:
        result = root.run(["sh", "-c", "echo one; echo two >&2; printf three; exit 3"], check=False)
        assert (result.status, result.output) == (3, "one\ntwo\nthree")

    layers(work)
    assert LINES == ["one", "two", "three"]


def test_a_failed_program_is_reported_with_its_last_lines(layers: Layers) -> None:
    with pytest.raises(StepFailed, match=r"sh -c .*failed \(exit status 7\)") as caught:
        layers(lambda root: root.run(["sh", "-c", "echo broken; exit 7"]))
    assert (caught.value.status, caught.value.tail) == (7, "broken")


def test_a_program_that_is_not_there_is_named(layers: Layers) -> None:
    with pytest.raises(StepFailed, match="no-such-program: cannot be run: No such file"):
        layers(lambda root: root.run(["no-such-program"]))


def test_programs_get_a_fixed_environment_and_stdin(layers: Layers) -> None:
    def work(root: Root) -> None:
        script = 'echo "$HOME $LANG $SOURCE_DATE_EPOCH $DEBIAN_FRONTEND $SECRET"; cat; id -u; pwd; umask; env'
        output = root.run(["sh", "-c", script], env={"SECRET": "s3cret"}, input=b"input\n").output
        assert output.startswith(f"/root C.UTF-8 {EPOCH} noninteractive s3cret\ninput\n0\n/\n0022\n")
        assert "VIRTUAL_ENV" not in output
        assert "PYTEST" not in output

    layers(work)


def test_large_input_and_output_pass(layers: Layers) -> None:
    data = os.urandom(1 << 19).hex().encode() * 8
    seen = []
    layers(lambda root: seen.append(root.run(["cat"], input=data).output))
    assert seen == [data.decode()]


def test_a_step_has_devices_processes_and_a_resolver_of_its_own(layers: Layers) -> None:
    def work(root: Root) -> None:
        sh("echo x > /dev/null; head -c 4 /dev/urandom | wc -c; test -c /dev/tty; test -d /dev/pts")(root)
        sh("test -d /sys/class; mkdir /run/mine; grep -q . /proc/self/status")(root)
        processes = root.run(["sh", "-c", "ls -d /proc/[0-9]*"]).output.split()
        assert len(processes) < 6
        assert root.run(["cat", "/etc/resolv.conf"]).output == Path("/etc/resolv.conf").read_text()
        assert root.run(["sh", "-c", "/usr/sbin/policy-rc.d; echo $?"]).output == "101\n"
        assert root.run(["hostname"]).output == "debian\n"

    assert names(layers(work)) == []


@pytest.mark.parametrize("place", ["/proc/sys/kernel/hostname", "/sys/kernel/profiling", "/proc/sysrq-trigger"])
def test_the_hosts_settings_cannot_be_changed(layers: Layers, place: str) -> None:
    layers(lambda root: root.run(["sh", "-c", f"! echo 1 2>/dev/null > {place}"]))


# -- files stay inside -----------------------------------------------------------------------------------------------


def test_no_link_of_the_guest_leads_to_the_host(layers: Layers, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("the host's")

    def work(root: Root) -> None:
        def links(archive: Archive) -> None:
            archive.link("file", f"{outside}/secret")
            archive.link("folder", str(outside))

        root.unpack(archive_of(links, epoch=EPOCH))
        assert not root.exists("/file")
        with pytest.raises(FileNotFoundError):
            root.read("/file")
        with pytest.raises(FileNotFoundError):
            root.read("/folder/secret")
        root.remove(["/folder/*", f"{outside}/*", "/../../../folder/*"])
        root.run(["mkdir", "-p", str(outside)])
        root.unpack(tar(**{"folder/secret": "the guest's", "../../escape": "x"}))
        assert root.read(f"{outside}/secret") == b"the guest's"
        assert root.read("/escape") == b"x"

    upper = layers(work)
    assert (outside / "secret").read_text() == "the host's"
    assert (upper / str(outside).lstrip("/") / "secret").read_text() == "the guest's"


def test_unpacking_keeps_directories_and_replaces_files(layers: Layers) -> None:
    def build(archive: Archive) -> None:
        archive.directory("tmp", mode=0o700)
        archive.directory("srv/new", mode=0o750, uid=33, gid=33)
        archive.data("bin/through-a-link", b"x", mode=0o4755)
        archive.data("etc/hostname", b"other\n", mode=0o600, uid=1, gid=2)
        archive.data("a/b/c", b"deep")

    upper = layers(lambda root: root.unpack(archive_of(build, epoch=EPOCH)))
    assert "tmp" not in names(upper)
    assert (upper / "usr/bin/through-a-link").stat().st_mode & 0o7777 == 0o4755
    assert not (upper / "bin").exists()
    if os.geteuid() == 0:
        found = (upper / "etc/hostname").stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime) == (0o600, 1, 2, EPOCH)
        found = (upper / "srv/new").stat()
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime) == (0o750, 33, 33, EPOCH)
    assert (upper / "a").stat().st_mode & 0o7777 == 0o755


def test_removing_expands_wildcards_and_minds_nothing_that_is_missing(layers: Layers) -> None:
    def work(root: Root) -> None:
        sh("mkdir -p /srv/a/b; touch /srv/a/b/c /srv/x1 /srv/x2 /srv/keep /srv/.hidden")(root)
        root.remove(["/srv/a", "/srv/x?", "/srv/none*", "/nowhere/*"])

    assert names(layers(work)) == ["srv", "srv/.hidden", "srv/keep"]
    with pytest.raises(BuildError, match="will not be removed"):
        layers(lambda root: root.remove(["/"]))


# -- what a layer holds ----------------------------------------------------------------------------------------------


def test_a_layer_holds_only_what_the_step_did(layers: Layers) -> None:
    assert names(layers(sh("true"))) == []
    assert names(layers(sh("echo a > /root/a; echo b > /run/b"))) == ["root", "root/a"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("echo nameserver 192.0.2.1 > /etc/resolv.conf", "nameserver 192.0.2.1\n"),
        ("rm -f /etc/resolv.conf", None),
        ("ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf", None),
    ],
)
def test_the_hosts_resolver_is_lent_and_taken_back(layers: Layers, before: str, after: str | None) -> None:
    layers(sh(before))
    upper = layers(lambda root: root.run(["cmp", "/etc/resolv.conf", "-"], input=Path("/etc/resolv.conf").read_bytes()))
    assert names(upper) == []
    with tree.open_root(layers.host, layers.mount, epoch=EPOCH, log=print) as root:
        if after is None:
            with pytest.raises(FileNotFoundError):
                root.read("/etc/resolv.conf")
        else:
            assert root.read("/etc/resolv.conf").decode() == after


def test_what_a_step_writes_about_names_stays(layers: Layers) -> None:
    layers(sh("echo nameserver 192.0.2.1 > /etc/resolv.conf"))
    upper = layers(sh("echo options edns0 >> /etc/resolv.conf"))
    assert (upper / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\noptions edns0\n"
    upper = layers(sh("ln -sf /run/elsewhere /etc/resolv.conf"))
    assert (upper / "etc/resolv.conf").readlink() == Path("/run/elsewhere")


def test_times_do_not_tell_when_it_was_built(layers: Layers) -> None:
    upper = layers(sh("mkdir /srv/d; echo x > /srv/d/f; ln -s f /srv/d/l; touch -d @1234567890 /srv/old; rm /etc/issue")
                   )  # fmt: skip
    times = {name: os.lstat(upper / name).st_mtime for name in names(upper)}
    assert times.pop("srv/old") == 1234567890
    assert set(times.values()) == {EPOCH}


def test_what_a_layer_removes_is_gone_and_may_come_back_in_another_form(layers: Layers) -> None:
    layers(sh("rm -r /usr/share/doc; rm /etc/issue"))
    layers(sh("test ! -e /usr/share/doc; test ! -e /etc/issue; mkdir /etc/issue; echo doc > /usr/share/doc"))
    with tree.open_root(layers.host, layers.mount, epoch=EPOCH, log=print) as root:
        assert root.read("/usr/share/doc") == b"doc\n"
        assert root.exists("/etc/issue/.")


def test_a_failed_step_leaves_the_session_at_the_layer_before(layers: Layers, tmp_path: Path) -> None:
    into = [tmp_path / name for name in "abc"]
    for folder in into:
        folder.mkdir()
    with NativeTree(layers.host).session(layers.below, epoch=EPOCH, log=print) as session:
        with session.layer(into[0], below=layers.below[-1], log=print) as root:
            sh("echo a > /srv/a")(root)
        with pytest.raises(StepFailed), session.layer(into[1], below=into[0], log=print) as root:
            sh("echo b > /srv/b; false")(root)
        tree.remove(layers.host, into[1])
        assert not into[1].exists()
        into[0].rename(tmp_path / "renamed")
        with session.layer(into[2], below=tmp_path / "renamed", log=print) as root:
            assert root.exists("/srv/a")
            assert not root.exists("/srv/b")


def test_hundreds_of_layers_fit(small: Path, tmp_path: Path) -> None:
    folders = [small]
    for number in range(200):
        folder = tmp_path / f"a-layer-with-a-rather-long-name-{number:064}"
        (folder / "upper/srv").mkdir(parents=True)
        (folder / f"upper/srv/{number}").write_text("")
        folders.append(folder)
    mount = tree.OverlayMount(tuple(str(folder / "upper") for folder in folders))
    with tree.open_root(Host(), mount, epoch=EPOCH, log=print) as root:
        assert root.run(["sh", "-c", "ls /srv | wc -l"]).output == "200\n"


# -- reading a finished tree -----------------------------------------------------------------------------------------


def test_a_packed_root_is_sorted_whole_and_always_the_same(layers: Layers) -> None:
    layers(sh("""
        mkdir -p /srv/z /srv/a; echo x > /srv/a/f; ln /srv/a/f /srv/z/hard; ln -s nowhere /srv/a/soft
        chown 33:34 /srv/a/f; chmod 4711 /srv/a/f; rm -r /usr/share/doc; mkdir /usr/share/doc; echo "$(date)" > /tmp/now
    """))  # fmt: skip
    packed = []
    for _ in range(2):
        with tree.open_root(layers.host, layers.mount, epoch=EPOCH, log=print) as root:
            root.run(["true"])  # what programs are lent must not be seen afterwards
            out = io.BytesIO()
            root.pack(out, exclude=["/tmp", "/usr/share/locale"])
            packed.append(out.getvalue())
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0])) as archive:
        members = {member.name: member for member in archive}
    assert not [name for name in members if name.startswith((".", "/"))]
    assert [name.split("/") for name in members] == sorted(name.split("/") for name in members)
    assert (members["srv/a/f"].uid, members["srv/a/f"].gid, members["srv/a/f"].mode) == (33, 34, 0o4711)
    assert (members["srv/z/hard"].linkname, members["srv/a/soft"].linkname) == ("srv/a/f", "nowhere")
    assert "tmp" in members
    assert not [n for n in members if n.startswith(("tmp/", "proc/", "dev/", "usr/share/locale/", "usr/share/doc/"))]
    kept = {key for member in members.values() for key in member.pax_headers}
    assert not [key for key in kept if "overlay" in key or key in {"atime", "ctime"}]


def test_file_capabilities_survive_layers_and_packing(layers: Layers) -> None:
    value = "bytes.fromhex('0100000200200000' + '00' * 12)"  # cap_net_raw=ep
    python = f"import os; os.setxattr('/srv/ping', 'security.capability', {value})"
    with tree.open_root(layers.host, tree.OverlayMount(*_upper(layers)), epoch=EPOCH, log=print) as root:
        root.run(["cp", "/bin/true", "/srv/ping"])
        root.inside([sys.executable, "-c", python.replace("/srv", f"{root.mountpoint}/srv")], purpose="set it")
    layers.below.append(layers.folder / "caps")
    with tree.open_root(layers.host, layers.mount, epoch=EPOCH, log=print) as root:
        out = io.BytesIO()
        root.pack(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        assert "SCHILY.xattr.security.capability" in archive.getmember("srv/ping").pax_headers


def _upper(layers: Layers) -> tuple[tuple[str, ...], str, str]:
    folder = layers.folder / "caps"
    for name in ("upper", "work"):
        (folder / name).mkdir(parents=True)
    return layers.mount.layers, str(folder / "upper"), str(folder / "work")


def test_host_programs_see_the_root_as_it_is(layers: Layers, tmp_path: Path) -> None:
    layers(sh("chown 1000:1001 /srv"))
    with tree.open_root(layers.host, layers.mount, epoch=EPOCH, log=LINES.append) as root:
        root.run(["true"])
        LINES.clear()
        root.inside(["stat", "-c", "%u:%g", f"{root.mountpoint}/srv"], purpose="look")
        root.inside(["ls", f"{root.mountpoint}/proc", f"{root.mountpoint}/dev"], purpose="look")
        root.inside(["touch", str(tmp_path / "made")], purpose="write to the host")
        with pytest.raises(ToolFailed, match="Read-only file system"):
            root.inside(["touch", f"{root.mountpoint}/srv/x"], purpose="write")
        with pytest.raises(StepFailed, match="Read-only file system"):
            root.run(["touch", "/srv/x"])
    assert LINES[0] == "1000:1001"
    assert (tmp_path / "made").stat().st_uid == os.geteuid()


# -- nothing stays behind --------------------------------------------------------------------------------------------


def test_what_a_step_started_ends_with_it(layers: Layers) -> None:
    layers(sh("setsid sleep 98761 > /dev/null 2>&1 & sleep 98761 &"))
    assert running("98761") == []


def test_a_step_that_hangs_is_ended_at_its_deadline(layers: Layers) -> None:
    with pytest.raises(TimedOut, match="last words") as caught:
        layers(sh("echo last words; sleep 98762"), timeout=2)
    assert "last words" in caught.value.tail
    assert running("98762") == []


def test_cancelling_ends_a_step_at_once(layers: Layers) -> None:
    def work(root: Root) -> None:
        import threading

        threading.Timer(1, layers.host.cancel).start()
        root.run(["sleep", "98763"])

    with pytest.raises(Interrupted):
        layers(work)
    assert running("98763") == []


def test_nothing_survives_when_we_are_killed(small: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from imagesmith.drivers.native_tree import NativeTree\n"
        "from imagesmith.host import Host\n"
        "small, into = map(Path, sys.argv[1:])\n"
        "with NativeTree(Host()).session([small], epoch=0, log=print) as session:\n"
        "    with session.layer(into, below=small, log=print) as root:\n"
        "        root.run(['sh', '-c', 'echo x > /srv/x; setsid sleep 98764 & exec sleep 98764'])\n"
    )
    into = tmp_path / "into"
    into.mkdir()
    process = subprocess.Popen([sys.executable, "-c", script, str(small), str(into)])
    deadline = time.monotonic() + 20
    while len(running("98764")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(running("98764")) == 2
    assert str(into) not in Path("/proc/self/mounts").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while running("98764") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running("98764") == []
    tree.remove(Host(), into)
    assert not into.exists()


# -- disks, and hosts that will not ----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk's file system")
def test_a_block_image_is_mounted_at_an_offset(tmp_path: Path) -> None:
    disk, host = tmp_path / "disk", Host()
    offset, size = 1 << 20, 32 << 20
    with disk.open("wb") as out:
        out.truncate(offset + size)
    host.run(["mke2fs", "-q", "-t", "ext4", "-E", f"offset={offset}", str(disk), f"{size >> 10}k"], purpose="test")
    with tree.open_root(host, tree.BlockMount(str(disk), offset, size, "ext4"), epoch=EPOCH, log=print) as root:
        root.unpack(tar(**{"srv/file": "content"}))
        root.settle()
        with root.frozen():
            pass
    assert str(disk) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=False).stdout
    mount = tree.BlockMount(str(disk), offset, size, "ext4", read_only=True)
    with tree.open_root(host, mount, epoch=EPOCH, log=print) as root:
        assert root.read("/srv/file") == b"content"
        with pytest.raises(BuildError, match="Read-only"):
            root.remove(["/srv/file"])
    shutil.copyfile(disk, tmp_path / "copy")
    with pytest.raises(BuildError, match="Invalid argument"), tree.open_root(
        host, tree.BlockMount(str(disk), 0, size, "ext4"), epoch=EPOCH, log=print
    ):  # fmt: skip
        pass


def test_it_works_here(tmp_path: Path) -> None:
    assert tree.available(Host(), tmp_path) == ""


def test_a_host_that_forbids_namespaces_is_told_what_to_do(tmp_path: Path) -> None:
    script = "from imagesmith import tree; from imagesmith.host import Host; print(tree.available(Host()))"
    command = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(["unshare", "-Ur", "sh", "-c", command, "sh", sys.executable, "-c", script],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert "forbids user namespaces" in done.stdout
    assert "sudo sysctl -w user.max_user_namespaces=" in done.stdout


def test_a_step_cannot_reach_the_host_by_leaving_its_root(layers: Layers, tmp_path: Path) -> None:
    mark = tmp_path / "mark-of-the-host"
    mark.write_text("here")
    out = 'mkdir "/x"; chroot "/x"; chdir ".." for 1..64; chroot "."; print -e $ARGV[0] ? "out" : "in"'
    looks = f'for place in /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/fd/*; do test ! -e "$place{mark}"; done'
    seen: list[str] = []

    def work(root: Root) -> None:
        seen.append(root.run(["perl", "-e", out, str(mark)]).output)
        seen.append(root.run(["sh", "-ec", f"{looks}; echo in"]).output)
        seen.append(root.run(["nsenter", "--mount=/proc/1/ns/mnt", "ls", str(mark)], check=False).output)
        seen.append(root.run(["cat", "/proc/self/mountinfo"]).output)

    layers(work)
    assert [text.strip() for text in seen[:2]] == ["in", "in"]
    assert "ermission denied" in seen[2]
    assert str(tmp_path) not in "".join(line.split(" - ")[0] for line in seen[3].splitlines())
