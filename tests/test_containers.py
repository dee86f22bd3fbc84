"""Root file systems for containers, and plain ones: what is in them, what is not, and who takes them."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.kinds import FilesOutput, known
from imagesmith.outputs import lxc
from imagesmith.outputs._incus import metadata, os_release
from imagesmith.outputs._squeeze import Compression, squeezed
from imagesmith.outputs.wsl import distribution_conf, wsl_conf
from tests.conftest import HERE
from tests.consumers import ask
from tests.test_oci import NET_RAW, SmallRoot
from tests.test_outputs import MAKER, make_disk, write

GOLDEN = Path(__file__).parent / "golden/outputs"
SYSTEM = {
    "sbin/init": "../bin/busybox", "lib/systemd/systemd": b"systemd", "lib/systemd/systemd-resolved": b"resolved",
    "etc/hostname": b"small\n", "etc/hosts": b"127.0.0.1\tlocalhost\n127.0.1.1 small small.example\n",
    "etc/machine-id": b"0123456789abcdef0123456789abcdef\n", "etc/systemd/system/tmp.mount": b"[Mount]\n",
}  # fmt: skip
FILES_OUTPUTS: list[tuple[str, Mapping[str, object], list[str]]] = [
    ("oci", {}, ["web-golden.oci.tar"]),
    ("docker-archive", {}, ["web-golden.docker.tar"]),
    ("tar", {}, ["web-golden.rootfs.tar.zst"]),
    ("tar", {"compression": "none"}, ["web-golden.rootfs.tar"]),
    ("tar", {"compression": "gzip"}, ["web-golden.rootfs.tar.gz"]),
    ("tar", {"compression": "xz", "whole": True}, ["web-golden.machine.tar.xz"]),
    ("squashfs", {}, ["web-golden.squashfs"]),
    ("squashfs", {"compression": "xz"}, ["web-golden.squashfs"]),
    ("nspawn", {}, ["web-golden.nspawn.tar.xz"]),
    ("lxc", {}, ["web-golden.lxc.rootfs.tar.xz", "web-golden.lxc.meta.tar.xz"]),
    ("incus", {}, ["web-golden.incus.tar.xz", "web-golden.incus.squashfs"]),
    ("incus", {"layout": "unified"}, ["web-golden.incus-unified.tar.xz"]),
    ("wsl", {"user": "web"}, ["web-golden.wsl"]),
]  # fmt: skip


def system_root(**more: bytes | str) -> SmallRoot:
    """A root file system that seems to boot."""
    return SmallRoot(noise=1 << 18, more={**SYSTEM, **more})


def write_files(
    name: str,
    options: Mapping[str, object],
    directory: Path,
    files: SmallRoot | None = None,
    log: list[str] = [],  # noqa: B006
) -> list[Path]:
    """Make one output of a root file system."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = known("outputs")[name].model_validate(options)
    assert isinstance(kind, FilesOutput)
    return list(kind.write(files or system_root(), MAKER, directory, Host(), log.append))


def members(path: Path) -> dict[str, tarfile.TarInfo]:
    """What is in a tar, however it is compressed."""
    if path.suffix == ".zst":
        ask("zstd", "-q", "-d", path, "-o", path.with_suffix(""))
        path = path.with_suffix("")
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def text(path: Path, member: str) -> str:
    """A file in a tar."""
    with tarfile.open(path) as tar:
        stream = tar.extractfile(member)
        assert stream is not None
        return stream.read().decode()


@pytest.mark.parametrize(("name", "options", "files"), FILES_OUTPUTS)
def test_written_twice_it_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: Mapping[str, object], files: list[str]
) -> None:
    first = write_files(name, options, tmp_path / "first")
    assert [path.name for path in first] == files
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    second = write_files(name, options, tmp_path / "second")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert sorted(first) == sorted((tmp_path / "first").iterdir()), "something else was left"


@pytest.mark.parametrize("compression", ["xz", "zstd", "gzip"])
def test_compressed_on_any_number_of_cores_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: Compression
) -> None:
    data = b"".join(f"{number:08} lines that are much the same\n".encode() for number in range(40_000))
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        with squeezed(tmp_path / str(cores), compression, Host()) as sink:
            for _ in range(25):  # 38 MB: several blocks, jobs and writes
                sink.write(data)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_labels_tell_files_apart() -> None:
    kinds = [known("outputs")[name].model_validate(options) for name, options, _ in FILES_OUTPUTS]
    assert len({kind.label for kind in kinds if isinstance(kind, FilesOutput)}) == len(FILES_OUTPUTS) - 1  # 2 squashfs


# -- what is in them ----------------------------------------------------------------------------------------------


def test_a_plain_tar_keeps_what_files_have_and_leaves_out_what_only_a_machine_needs(tmp_path: Path) -> None:
    (path,) = write_files("tar", {"compression": "none"}, tmp_path)
    found = members(path)
    inside = [name for name in found if name.startswith(("boot/", "dev/", "lib/modules/", "proc/", "run/", "tmp/"))]
    assert not inside
    assert not {"vmlinuz", "initrd.img"} & set(found)
    assert found["etc/fstab"].size == found["etc/machine-id"].size == 0
    assert found["etc/machine-id"].mode == 0o444
    assert (found["var/web"].uid, found["var/web"].gid, found["var/web"].uname) == (33, 33, "")
    assert found["var/web"].mtime == MAKER.epoch
    assert found["bin/cat"].islnk()
    assert found["bin/ping"].mode == 0o4755
    assert found["bin/ping"].pax_headers["SCHILY.xattr.security.capability"].encode() == NET_RAW
    assert list(found) == sorted(found)


def test_a_whole_tar_has_kernel_and_fstab(tmp_path: Path) -> None:
    (path,) = write_files("tar", {"compression": "none", "whole": True}, tmp_path)
    found = members(path)
    assert {"boot/vmlinuz-6.1", "lib/modules/6.1/x.ko", "vmlinuz"} <= set(found)
    assert text(path, "etc/fstab") == "UUID=1 / ext4\n"
    assert not [name for name in found if name.startswith(("tmp/", "run/"))]


@pytest.mark.parametrize(
    ("target", "fillers", "stays"),
    [
        ("/run/systemd/resolve/stub-resolv.conf", ["lib/systemd/systemd-resolved"], True),
        ("../run/systemd/resolve/stub-resolv.conf", ["usr/lib/systemd/systemd-resolved"], True),
        ("../run/systemd/resolve/resolv.conf", [], False),
        ("/var/run/NetworkManager/resolv.conf", ["lib/systemd/systemd-resolved"], False),
        ("../usr/lib/resolv.conf", [], True),
    ],
)
def test_a_resolver_that_nobody_makes_is_an_empty_file(
    tmp_path: Path, target: str, fillers: list[str], stays: bool
) -> None:
    root = SmallRoot(more={"etc/resolv.conf": target, **dict.fromkeys(fillers, b"program")})
    found = members(write_files("tar", {"compression": "none"}, tmp_path, root)[0])["etc/resolv.conf"]
    assert found.issym() is stays
    assert stays or (found.isreg() and (found.size, found.mode) == (0, 0o644))


def test_a_resolver_that_is_written_down_stays(tmp_path: Path) -> None:
    root = SmallRoot(more={"etc/resolv.conf": b"nameserver 192.0.2.1\n"})
    (path,) = write_files("tar", {"compression": "none"}, tmp_path, root)
    assert text(path, "etc/resolv.conf") == "nameserver 192.0.2.1\n"


def test_a_squashfs_holds_the_same_as_the_tar(tmp_path: Path) -> None:
    (image,) = write_files("squashfs", {}, tmp_path)
    (path,) = write_files("tar", {"compression": "none"}, tmp_path)
    listed = ask("unsquashfs", "-lln", "-UTC", image).splitlines()
    assert listed[0].split()[:2] == ["drwxr-xr-x", "0/0"]
    assert {line.split()[-1] for line in listed[:1]} == {"squashfs-root"}
    names = {line.partition("squashfs-root/")[2].partition(" -> ")[0] for line in listed[1:]}
    inside = set(members(path))
    assert names == inside | {str(folder) for name in inside for folder in Path(name).parents} - {"."}
    assert all("2023-11-14" in line for line in listed)
    assert "Creation or last append time Tue Nov 14 22:13:20 2023" in ask("unsquashfs", "-s", "-UTC", image)
    if os.geteuid() == 0:
        ask("unsquashfs", "-q", "-n", "-d", tmp_path / "root", image)
        assert os.getxattr(tmp_path / "root/bin/ping", "security.capability") == NET_RAW
        assert (tmp_path / "root/var/web").stat().st_uid == 33
        assert (tmp_path / "root/bin/cat").samefile(tmp_path / "root/bin/busybox")


# -- what is made for each ----------------------------------------------------------------------------------------


def golden(name: str, found: str) -> None:
    assert found == (GOLDEN / name).read_text()


def test_lxc_metadata_is_the_golden_one(tmp_path: Path) -> None:
    root, about = write_files("lxc", {}, tmp_path)
    found = {name: text(about, name) for name in members(about)}
    golden("lxc.txt", "".join(f"== {name}\n{content}" for name, content in found.items()))
    assert text(root, "etc/hostname") == "LXC_NAME\n"
    assert text(root, "etc/hosts") == "127.0.0.1\tlocalhost\n127.0.1.1 LXC_NAME small.example\n"
    assert b"aarch64" in lxc.metadata(replace(MAKER, arch="aarch64"))["config"]


@pytest.mark.parametrize("layout", ["split", "unified"])
def test_incus_metadata_is_the_golden_one(tmp_path: Path, layout: str) -> None:
    root = system_root(**{"etc/os-release": b'ID=debian\nNAME="Debian GNU/Linux"\nVERSION_CODENAME=bookworm\n'})
    about = write_files("incus", {"layout": layout}, tmp_path, root)[0]
    golden("incus.yaml", text(about, "metadata.yaml"))
    assert text(about, "templates/hostname.tpl") == "{{ container.name }}\n"
    assert text(about, "templates/hosts.tpl") == "127.0.0.1\tlocalhost\n127.0.1.1 {{ container.name }} small.example\n"
    found = members(about)
    assert next(iter(found)) == "metadata.yaml"
    assert ("rootfs/etc/passwd" in found) is (layout == "unified")
    if layout == "unified":
        assert found["rootfs/bin/cat"].linkname == "rootfs/bin/busybox"


def test_an_os_release_is_read_as_a_shell_would() -> None:
    assert os_release("# x\nID=arch\nNAME='A B'\nVERSION_ID=\"12\"\nEMPTY=\n") == {
        "ID": "arch", "NAME": "A B", "VERSION_ID": "12", "EMPTY": "",
    }  # fmt: skip


def test_an_incus_virtual_machine_is_metadata_and_a_disk(tmp_path: Path) -> None:
    disk = replace(make_disk(tmp_path / "disk"), firmware=("uefi",))
    about, image = write("incus-vm", {}, disk, tmp_path / "out")
    assert (about.name, image.name) == ("web-golden.incus-vm.tar.xz", "web-golden.incus-vm.qcow2")
    assert text(about, "metadata.yaml") == metadata(MAKER, {}, {}).decode()
    ask("qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk.path, image)


def test_an_incus_virtual_machine_needs_uefi() -> None:
    kind = known("outputs")["incus-vm"]()
    with pytest.raises(BuildError, match="UEFI, and this disk boots with BIOS alone"):
        kind.fit("x86_64", ("bios",))  # type: ignore[attr-defined]
    kind.fit("x86_64", ("bios", "uefi"))  # type: ignore[attr-defined]


def test_a_wsl_distribution_has_its_configuration_and_no_troublesome_units(tmp_path: Path) -> None:
    log: list[str] = []
    root = system_root(**{"etc/shadow": b"root:*:1::::::\nweb:$y$j9T$x:1::::::\n"})
    (path,) = write_files("wsl", {"user": "web"}, tmp_path, root, log)
    assert text(path, "etc/wsl.conf") == wsl_conf("web", True).decode()
    assert text(path, "etc/wsl-distribution.conf") == "[oobe]\ndefaultName=web-golden\ndefaultUid=33\n"
    golden("wsl.conf", wsl_conf("web", True).decode())
    found = members(path)
    assert "etc/resolv.conf" not in found
    assert found["etc/systemd/system/tmp.mount"].linkname == "/dev/null"
    assert found["etc/systemd/system/systemd-networkd.service"].linkname == "/dev/null"
    assert found["etc/wsl.conf"].mode == 0o644
    assert "web has a password" in log[0]


def test_a_wsl_distribution_without_systemd_masks_nothing(tmp_path: Path) -> None:
    (path,) = write_files("wsl", {"systemd": False}, tmp_path, SmallRoot())
    assert text(path, "etc/wsl.conf") == "[boot]\nsystemd=false\n"
    assert not [name for name in members(path) if name.startswith("etc/systemd")]
    assert distribution_conf("My image", None) == b"[oobe]\ndefaultName=My-image\n"


def test_a_wsl_conf_of_the_image_stays(tmp_path: Path) -> None:
    root = system_root(**{"etc/wsl.conf": b"[automount]\nenabled=false\n"})
    (path,) = write_files("wsl", {}, tmp_path, root)
    assert text(path, "etc/wsl.conf") == "[automount]\nenabled=false\n"
    with pytest.raises(BuildError, match=r"the image has its own /etc/wsl\.conf"):
        write_files("wsl", {"user": "web"}, tmp_path, root)


def test_a_wsl_user_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no user 'nobody-here'") as caught:
        write_files("wsl", {"user": "nobody-here"}, tmp_path)
    assert "user: {name: nobody-here}" in caught.value.hint


@pytest.mark.parametrize("name", ["lxc", "incus", "nspawn", "wsl"])
def test_an_image_without_an_init_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="the image has none") as caught:
        write_files(name, {}, tmp_path, SmallRoot())
    assert "systemd-sysv" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_docker_archive_is_as_docker_save_writes_it(tmp_path: Path) -> None:
    (path,) = write_files("docker-archive", {"cmd": ["/bin/cat", "/etc/os-release"]}, tmp_path)
    (image,) = json.loads(text(path, "manifest.json"))
    assert image["RepoTags"] == ["web-golden:2026.11"]
    config = json.loads(text(path, image["Config"]))
    layer = image["Layers"][0].removesuffix("/layer.tar")
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer}"]
    assert config["config"]["Cmd"] == ["/bin/cat", "/etc/os-release"]
    said = json.loads(ask("skopeo", "inspect", f"docker-archive:{path}"))
    assert said["Layers"] == [f"sha256:{layer}"]
    ask("skopeo", "copy", "-q", f"docker-archive:{path}", f"dir:{tmp_path / 'dir'}")


# -- their consumers ----------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="containers are started by root")


@needs_root
def test_systemd_imports_the_tar_and_runs_a_command(tmp_path: Path) -> None:
    (path,) = write_files("nspawn", {}, tmp_path)
    ask("/lib/systemd/systemd-import", "tar", path, "small", f"--image-root={tmp_path}/machines")
    said = ask("systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", tmp_path / "machines/small",
               "/bin/sh", "-c", "cat /etc/os-release; echo $$")  # fmt: skip
    assert said.split() == ["ID=small", "1"]


@needs_root
def test_lxc_makes_a_container_of_it(tmp_path: Path) -> None:
    root, about = write_files("lxc", {}, tmp_path)
    said = ask("lxc-create", "-P", tmp_path / "lxc", "-n", "c1", "-f", "/dev/null", "-t", "local", "--",
               "-m", about, "-f", root)  # fmt: skip
    assert "You just created a container of web-golden 2026.11." in said
    made = tmp_path / "lxc/c1"
    assert "lxc.include = /usr/share/lxc/config/common.conf\nlxc.arch = x86_64\n" in (made / "config").read_text()
    assert (made / "rootfs/etc/hostname").read_text() == "c1\n"
    assert "127.0.1.1 c1 small.example" in (made / "rootfs/etc/hosts").read_text()
    assert (made / "rootfs/var/web").stat().st_uid == 33


FULL = """
import sys
from pathlib import Path
from imagesmith.errors import BuildError
from tests.test_containers import SYSTEM, write_files
from tests.test_oci import SmallRoot
out = Path(sys.argv[1])
for name in ("docker-archive", "tar", "squashfs", "nspawn", "wsl"):
    try:
        write_files(name, {}, out, SmallRoot(noise=9 << 20, more=SYSTEM))
    except BuildError as error:
        print("\\n" + name, error, error.hint, sorted(p.name for p in out.iterdir()), sep=" | ")
"""


def test_no_space_left_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """On a file system of 8 MiB, in a mount namespace of its own."""
    said = ask(
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
        'mount -t tmpfs -o size=8m none "$0" && exec "$1" -c "$2" "$0"',
        tmp_path, sys.executable, FULL, cwd=HERE.parent,
    )  # fmt: skip
    lines = [line for line in said.splitlines() if " | " in line]
    assert [line.split(" | ")[0] for line in lines] == ["docker-archive", "tar", "squashfs", "nspawn", "wsl"]
    for line in lines:
        assert "no space left on device: cannot write web-golden" in line
        assert line.endswith("[]")
