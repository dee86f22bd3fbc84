"""Whole installations of a small installer's (small_installer.py): each way, each failure, and a build of it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from imagesmith import recipe
from imagesmith.errors import BuildError, GuestFailed, ImagesmithError, Interrupted, TimedOut
from imagesmith.host import Host
from imagesmith.installer.install import Hardware, install
from imagesmith.interfaces import Delivery, Installation, Signs
from imagesmith.machine.arguments import MachineSpec
from imagesmith.machine.qemu import Machine
from tests.conftest import Command
from tests.small_installer import Kit, Style, iso, kit

HARDWARE = Hardware("x86_64", "tcg", "", 1, 256 << 20, 64 << 20, "bios")
ANSWERS: dict[Style, tuple[str, str, str]] = {  # kind, file, text
    "debian": ("preseed", "preseed.cfg", "d-i netcfg/get_hostname string {}\n"
               "d-i debian-installer/exit/poweroff boolean true\n"),
    "fedora": ("kickstart", "ks.cfg", "network --bootproto=dhcp --hostname={}\npoweroff\n"),
    "ubuntu": ("autoinstall", "user-data", "#cloud-config\nautoinstall:\n  version: 1\n  shutdown: poweroff\n"
               "  identity:\n    hostname: {}\n    username: u\n    password: x\n"),
}  # fmt: skip


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """What small installers are made of."""
    return kit(tmp_path_factory.mktemp("installer"), Host())


@dataclass
class Site:
    """A base's workshop that installs: as workbench.Shop, without a store."""

    folder: Path
    host: Host = field(default_factory=Host)
    lines: list[str] = field(default_factory=list)
    hardware: Hardware = HARDWARE
    change: Callable[[Installation], Installation] = lambda installation: installation

    @property
    def disk(self) -> Path:
        return self.folder / "disk.qcow2"

    @property
    def keep(self) -> Path:
        return self.folder / "guest"

    def log(self, line: str) -> None:
        self.lines.append(line)

    def install(self, installation: Installation, into: Path) -> None:
        install(self.change(installation), into, self.hardware, self.host, self.log, keep=self.keep)


def write_recipe(folder: Path, small: Kit, style: Style, name: str, **options: object) -> Path:
    """A recipe whose base installs from the small ISO of that style; ``name`` is the host name in the answers."""
    kind, file, text = ANSWERS[style]
    (folder / file).write_text(text.format(name))
    lines = [f"    {option}: {value}\n" for option, value in options.items()]
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: small\nmachine: {{memory: 256M, disk: 64M}}\nbase:\n  iso:\n    path: {iso(small, style, Host())}\n"
        f"    answers: {{{kind}: {file}}}\n{''.join(lines)}steps:\n  - cleanup: false\n"
    )
    return path


def run(folder: Path, small: Kit, style: Style, name: str, site: Site | None = None, **options: object) -> Site:
    site = site or Site(folder)
    loaded = recipe.load(write_recipe(folder, small, style, name, **options))
    loaded.base.make(site.disk, site)  # type: ignore[arg-type]
    return site


def failure(folder: Path, small: Kit, style: Style, name: str, **options: object) -> BuildError:
    with pytest.raises(BuildError) as caught:
        run(folder, small, style, name, **options)
    assert not [entry.name for entry in folder.iterdir() if entry.name.startswith("install-")]
    return caught.value


def boots(disk: Path, name: str, folder: Path) -> None:
    """Boot what was installed as a cloud image is, with a seed: it says its name and switches itself off."""
    site = Site(folder)
    shutil.copyfile(disk, site.disk)
    seed = Delivery("volume", {"user-data": b"#cloud-config\n"}, label="cidata")
    signs = Signs(phases=((r"installed system: (\S+) is up", r"\1"),), done="installed system")
    site.install(Installation(None, lambda medium: [seed], signs=signs), site.disk)
    assert site.lines[0] == "the disk: user-data on a second volume 'cidata'; booting the disk"
    assert any(line.startswith(f"phase: {name} (") for line in site.lines)


# -- each way ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "way", "said"),
    [
        ("debian", "http", "by HTTP"),
        ("debian", "medium", "in a copy of the ISO"),
        ("fedora", "volume", "on a second volume 'OEMDRV'"),
        pytest.param("fedora", "initrd", "appended to its initial RAM disk", marks=pytest.mark.slow),
        ("ubuntu", "volume", "on a second volume 'cidata'"),
        pytest.param("ubuntu", "http", "by HTTP", marks=pytest.mark.slow),
    ],
)
def test_an_answer_file_gets_there(style: Style, way: str, said: str, small: Kit, tmp_path: Path) -> None:
    site = run(tmp_path, small, style, "good", deliver=way)
    text = "\n".join(site.lines)
    assert said in site.lines[0]
    for line in ("answer file read (after ", "phase: partitioning (after ", "took: partitioning: ", "installed in "):
        assert line in text
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["disk.qcow2", "recipe.yaml", ANSWERS[style][1]])


@pytest.mark.parametrize("way", ["floppy", "fw_cfg"])
def test_an_answer_file_gets_there_by_a_device(way: str, small: Kit, tmp_path: Path) -> None:
    text = ANSWERS["debian"][2].format("good").encode()
    deliveries = {
        "floppy": Delivery("floppy", {"preseed.cfg": text}, ("preseed/file=/media/preseed.cfg",), "ANSWERS"),
        "fw_cfg": Delivery("fw_cfg", {"opt/preseed.cfg": text}, ("preseed/file=fw_cfg",)),
    }
    site = Site(tmp_path, change=lambda made: replace(made, deliver=lambda medium: [deliveries[way]]))
    run(tmp_path, small, "debian", "good", site)
    assert any(line.startswith("answer file read") for line in site.lines)


@pytest.mark.slow
def test_a_boot_command_is_typed_at_the_isos_own_prompt(small: Kit, tmp_path: Path) -> None:
    typed = '["<waitFor \\"boot:\\" 2m>install preseed/url={url}preseed.cfg console=ttyS0", "<enter>"]'
    site = run(tmp_path, small, "debian", "good", deliver="http", boot_command=typed)
    assert "'boot:' is on the console after" in "\n".join(site.lines)
    assert any(line.startswith("answer file read") for line in site.lines)


def test_a_build_installs_once_and_the_image_boots(small: Kit, command: Command, tmp_path: Path) -> None:
    written = write_recipe(tmp_path, small, "debian", "golden-name", deliver="initrd")
    written.write_text(written.read_text() + "outputs: [qcow2, raw]\n")
    ran = command("build", written)
    assert "phase: installing the base system (after " in ran.err
    boots(command.output / "small" / "small.qcow2", "golden-name", tmp_path)
    written.write_text(written.read_text().replace("[qcow2, raw]", "[raw]"))
    assert "phase:" not in command("build", written).err


# -- each failure ------------------------------------------------------------------------------------------------


def test_a_build_that_fails_says_why_and_keeps_what_was_seen_but_no_secret(
    small: Kit, command: Command, tmp_path: Path
) -> None:
    written, word = write_recipe(tmp_path, small, "debian", "full"), "s3cret-w0rd"
    written.write_text(written.read_text() + "variables: {word: {secret: {env: THE_WORD}}}\n")
    with (tmp_path / "preseed.cfg").open("a") as file:
        file.write("d-i passwd/user-fullname string {{ word }}\n")
    ran = command("build", written, expect=1, env={"THE_WORD": word})
    assert "the base system could not be installed; it was last at: installing the base system" in ran.err
    assert "No space left on device" in ran.err
    assert "base-installer: error: exiting on error base-installer/debootstrap-failed" in ran.err
    kept = command.output / "small" / "failed"
    assert {"install-console.log", "installer.log", "screen.png"} <= {path.name for path in kept.iterdir()}
    assert "debootstrap-failed" in (kept / "installer.log").read_text()
    assert "user-fullname string ***" in (kept / "install-console.log").read_text()
    places = [path for folder in (kept, command.store) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in places if word.encode() in path.read_bytes()]
    assert word not in ran.err + ran.out


def test_a_file_that_is_not_fetched(small: Kit, tmp_path: Path) -> None:
    error = failure(tmp_path, small, "fedora", "good", deliver="http", boot="[-inst.ks]", read_within="12s")
    assert isinstance(error, TimedOut)
    assert error.message == "the installer did not ask for ks.cfg within 12 s"


def test_the_wrong_file(small: Kit, tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    error = failure(tmp_path, small, "ubuntu", "good", boot="[-autoinstall]")
    assert "the kernel was not told 'autoinstall'" in error.message
    written = write_recipe(tmp_path / "wrong", small, "debian", "good")
    written.write_text(written.read_text().replace("preseed:", "kickstart:"))
    site = Site(tmp_path / "wrong")
    with pytest.raises(BuildError, match="does not read a 'kickstart' file"):
        recipe.load(written).base.make(site.disk, site)  # type: ignore[arg-type]


def test_a_question(small: Kit, tmp_path: Path) -> None:
    error = failure(tmp_path, small, "debian", "question")
    assert "asks a question that the answer file does not answer" in error.message
    assert "Which country do you live in?" in error.message


def test_a_hang(small: Kit, tmp_path: Path) -> None:
    error = failure(tmp_path, small, "fedora", "hang", stall="30s")
    assert isinstance(error, TimedOut)
    assert "the installation hangs: nothing moved for 30 s" in error.message
    assert "installer:about to stand still" in error.message


def test_a_kernel_panic(small: Kit, tmp_path: Path) -> None:
    error = failure(tmp_path, small, "fedora", "panic", boot="[panic=-1]")
    assert isinstance(error, GuestFailed)
    assert "the installer's kernel panicked: sysrq triggered crash" in error.message


@pytest.mark.parametrize(
    ("name", "did"), [("reboot", "restarted the machine"), ("nothing", "switched the machine off")]
)
def test_an_end_without_a_system(name: str, did: str, small: Kit, tmp_path: Path) -> None:
    error = failure(tmp_path, small, "fedora", name)
    assert error.message.startswith(f"the installer {did} after ")
    assert "without having installed a system: the disk has no partition table" in error.message


def qemus() -> Sequence[int]:
    """The QEMUs that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[1] == str(os.getpid()) and "qemu-system" in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_qemu_is_killed(small: Kit, tmp_path: Path) -> None:
    def kill() -> None:
        while not (found := qemus()):
            time.sleep(0.1)
        time.sleep(2)
        os.kill(found[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    error = failure(tmp_path, small, "debian", "good")
    thread.join()
    assert "because QEMU was killed by SIGKILL" in error.message


def test_an_interruption_leaves_nothing_running(small: Kit, tmp_path: Path) -> None:
    site = Site(tmp_path)
    threading.Timer(3, site.host.cancel).start()
    with pytest.raises(Interrupted):
        run(tmp_path, small, "debian", "good", site)
    assert not qemus()
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("install-")]


@pytest.mark.slow
def test_an_installer_that_is_done_and_waits_is_switched_off(small: Kit, tmp_path: Path) -> None:
    site = run(tmp_path, small, "debian", "waits", stall="1m")
    assert "the installer is done, and waits; switching the machine off" in site.lines
    (tmp_path / "boot").mkdir()
    boots(site.disk, "waits", tmp_path / "boot")


@pytest.mark.slow
def test_under_uefi_the_firmwares_memory_stays_beside_the_disk(small: Kit, tmp_path: Path) -> None:
    site = Site(tmp_path, hardware=replace(HARDWARE, firmware="uefi"))
    with pytest.raises(GuestFailed, match="the disk has no EFI system partition"):
        run(tmp_path, small, "debian", "good", site)
    assert any(line.startswith("answer file read") for line in site.lines)
    assert [path.stat().st_size for path in tmp_path.glob("*.fd")] > [0]


@pytest.mark.slow
def test_a_machine_that_may_not_restart_itself_is_started_again(small: Kit, tmp_path: Path) -> None:
    spec = MachineSpec(kernel=small.kernel, append="console=ttyS0 quiet panic=5", network=False)
    with Machine(Host(), spec, tmp_path / "console.log") as machine:
        machine.watch(lambda: "VFS: Unable" in machine.console.text or None, within=200, doing="panic",
                      fault=lambda text: None)  # fmt: skip
        machine.start_again()
        deadline = time.monotonic() + 200
        while not machine.ended and time.monotonic() < deadline:
            time.sleep(0.1)
        assert machine.ended == "reset"
    assert (tmp_path / "console.log").read_text().count("not syncing: VFS: Unable") == 2


# -- disks that set themselves up --------------------------------------------------------------------------------

RESTARTS = bytes.fromhex("bad90cb006ee f4".replace("d9", "f9"))
"""mov dx, 0xcf9; mov al, 6; out dx, al; hlt: ICH9's reset control register (Intel, ICH9 datasheet, 13.7.5)."""


def test_a_disk_that_restarts_again_and_again(tmp_path: Path) -> None:
    site, sector = Site(tmp_path), tmp_path / "raw"
    sector.write_bytes(RESTARTS.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    site.host.run(["qemu-img", "convert", "-O", "qcow2", sector, site.disk], purpose="test")
    seed = Delivery("volume", {"user-data": b""}, label="cidata")
    with pytest.raises(ImagesmithError, match="restarts itself again and again"):
        site.install(Installation(None, lambda medium: [seed]), site.disk)
