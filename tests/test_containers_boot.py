"""A real system in each system container's own program, started to the end of its start-up."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import HERE, Command
from tests.consumers import ask
from tests.systems import Inside, booted_by_nspawn, lxd, needs_root, started_by_lxc, started_up
from tests.test_oci import layers_of
from tests.test_outputs import make_disk, write

pytestmark = [pytest.mark.slow, pytest.mark.skipif(needs_root(), reason="containers are started by root")]


RECIPE = """
name: {name}
base: {{disk: {{path: {path}, trusted: {trusted}}}}}
steps: [{{shell: echo new > /etc/new}}, {{cleanup: false}}]
outputs: [{{tar: {{compression: none}}}}, {{oci: {{split: true}}}}]
"""


@pytest.fixture(scope="module")
def system(command: Command) -> Path:
    """The folder with all that is made of a Debian with systemd, sshd and nginx."""
    command("build", HERE / "recipes/containers.yaml")
    return command.output / "system"


def sound(inside: Inside, name: str) -> None:
    """Hold a container against what every one must be: started, itself, with a resolver and no machine's rests."""
    state, failed = started_up(inside)
    # none of these has a network that it could wait for
    assert state == "running" or failed == {"systemd-networkd-wait-online.service"}
    assert inside("systemctl", "is-active", "nginx", "ssh").split() == ["active", "active"]
    assert inside("hostname").strip() == name
    assert len(inside("cat", "/etc/machine-id").strip()) == 32
    assert "nameserver 127.0.0.53" in inside("cat", "/etc/resolv.conf")
    assert inside("sh", "-c", "cat /etc/fstab; ls -A /boot /lib/modules | grep -v :$ || :").split() == []
    assert inside("stat", "-c", "%u %a", "/var/lib/nginx", "/root").split() == ["0", "755", "0", "700"]


@pytest.mark.parametrize("trusted", ["true", "false"], ids=["mounted", "by the appliance"])
def test_a_disk_gives_the_same_files_as_the_tree_that_it_was_made_of(
    system: Path, command: Command, tmp_path: Path, trusted: str
) -> None:
    name = f"disk-{trusted}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(name=name, path=system / "system.qcow2", trusted=trusted))
    command("build", recipe)
    tree, disk = (contents(path) for path in (system / "system.rootfs.tar",
                                              command.output / name / f"{name}.rootfs.tar"))  # fmt: skip
    new = disk.pop("etc/new")
    assert new[-1] == hashlib.sha256(b"new\n").hexdigest()
    assert disk == tree
    steps = layers_of(command.output / name / f"{name}.oci.tar")[1]
    assert {"etc", "etc/new"} <= set(steps)
    assert not [entry for entry in steps if entry.startswith(("usr", "etc/ssh"))]


def contents(path: Path) -> dict[str, tuple[object, ...]]:
    """What a tar says of its members, with their contents' digests; without access control lists, which not every way
    of packing keeps (docs/formats.md, "Not tried"), and the remark that there is something binary like them."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            content = "" if stream is None else hashlib.sha256(stream.read()).hexdigest()
            more = sorted(item for item in member.pax_headers.items()
                          if "acl" not in item[0] and item[0] != "hdrcharset")  # fmt: skip
            found[member.name] = (member.type, member.mode, member.uid, member.gid, member.mtime, member.linkname,
                                  more, content)  # fmt: skip
    return found


def test_systemd_nspawn_boots_it(system: Path, tmp_path: Path) -> None:
    with booted_by_nspawn(system / "system.nspawn.tar.gz", tmp_path) as inside:
        sound(inside, "debian")


def test_lxc_starts_it(system: Path, tmp_path: Path) -> None:
    with started_by_lxc(system / "system.lxc.meta.tar.xz", system / "system.lxc.rootfs.tar.xz", tmp_path) as inside:
        sound(inside, "c1")
        assert "127.0.1.1\tc1\n" in inside("cat", "/etc/hosts")


def test_lxd_imports_and_launches_split_and_unified_images_and_imports_a_virtual_machine(
    system: Path, tmp_path: Path
) -> None:
    with lxd() as daemon:
        daemon("image", "import", system / "system.incus.tar.xz", system / "system.incus.squashfs", "--alias", "split")
        daemon("image", "import", system / "system.incus-unified.tar.xz", "--alias", "unified")
        for image in ("split", "unified"):
            with daemon.launched(image) as inside:
                sound(inside, "c1")
                assert "127.0.1.1\tc1\n" in inside("cat", "/etc/hosts")
        said = daemon("image", "info", "split")
        assert "os: Debian" in said
        assert "release: bookworm" in said
        disk = replace(make_disk(tmp_path / "disk"), firmware=("uefi",))
        about, image = write("incus-vm", {}, disk, tmp_path / "out")
        daemon("image", "import", about, image, "--alias", "vm")
        assert "Type: virtual-machine" in daemon("image", "info", "vm")


def test_systemd_nspawn_runs_a_command_in_the_squashfs(system: Path, tmp_path: Path) -> None:
    ask("unsquashfs", "-q", "-n", "-d", tmp_path / "root", system / "system.squashfs")
    said = ask("systemd-nspawn", "-q", "--register=no", "--keep-unit", "-D", tmp_path / "root", "nginx", "-v")
    assert "nginx/" in said
