"""Looking into installers' ISOs: which one it is, what its boot menu would start; and into ISOs that mean no good."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagesmith.errors import BuildError, Refused
from imagesmith.host import Host
from imagesmith.installer import menus
from imagesmith.installer.iso import Iso, write_volume
from imagesmith.installer.media import look, merged
from imagesmith.interfaces import Medium
from tests import isos

MEDIA: dict[str, tuple[isos.Tree, str, Medium]] = {
    "debian": (isos.debian(), "Debian 12.8.0 amd64 n", Medium(
        Path(), family="debian-installer", name='Debian GNU/Linux 12.8.0 "Bookworm"', arch="x86_64",
        kernel="/install.amd/vmlinuz", initrds=("/install.amd/initrd.gz",))),
    "debian-mini": (isos.debian_mini(), "ISOIMAGE-amd64", Medium(
        Path(), family="debian-installer", name="ISOIMAGE-amd64", arch="x86_64", kernel="/linux",
        initrds=("/initrd.gz",))),
    "ubuntu": (isos.ubuntu(), "Ubuntu-Server 24.04.1 LTS amd64", Medium(
        Path(), family="subiquity", name='Ubuntu-Server 24.04.1 LTS "Noble Numbat"', arch="x86_64",
        kernel="/casper/vmlinuz", initrds=("/casper/initrd",))),
    "mint": (isos.ubuntu() | {".disk/info": b'Linux Mint 22 "Wilma" - Release amd64 20240722'}, "Linux Mint 22", Medium(
        Path(), name='Linux Mint 22 "Wilma"', arch="x86_64", kernel="/casper/vmlinuz", initrds=("/casper/initrd",))),
    "fedora": (isos.fedora(), "Fedora-S-dvd-x86_64-40", Medium(
        Path(), family="anaconda", name="Fedora 40", arch="x86_64", kernel="/images/pxeboot/vmlinuz",
        initrds=("/images/pxeboot/initrd.img",), arguments=("inst.stage2=hd:LABEL=Fedora-S-dvd-x86_64-40",))),
    "centos-7": (isos.rhel7(), "CentOS 7 x86_64", Medium(
        Path(), family="anaconda", name="CentOS-7", arch="x86_64", kernel="/images/pxeboot/vmlinuz",
        initrds=("/images/pxeboot/initrd.img",), arguments=(r"inst.stage2=hd:LABEL=CentOS\x207\x20x86_64",))),
    "fedora-without-menu": (
        {name: content for name, content in isos.fedora().items() if "grub" not in name}, "Fedora 40", Medium(
            Path(), family="anaconda", name="Fedora 40", arch="x86_64", kernel="/images/pxeboot/vmlinuz",
            initrds=("/images/pxeboot/initrd.img",), arguments=(r"inst.stage2=hd:LABEL=Fedora\x2040",))),
    "coreos": (isos.coreos(), "fedora-coreos-39.20231101.3.0", Medium(
        Path(), family="coreos", name="fedora-coreos-39.20231101.3.0", kernel="/images/pxeboot/vmlinuz",
        initrds=("/images/pxeboot/initrd.img", "/images/pxeboot/rootfs.img", "/images/ignition.img"),
        arguments=("mitigations=auto,nosmt", "coreos.liveiso=fedora-coreos-39.20231101.3.0", "ignition.firstboot",
                   "ignition.platform.id=metal"))),
    "opensuse": (isos.opensuse(), "openSUSE-Leap-15.6-DVD-x86_64", Medium(
        Path(), family="yast", name="openSUSE-Leap", arch="x86_64", kernel="/boot/x86_64/loader/linux",
        initrds=("/boot/x86_64/loader/initrd",))),
    "agama": (isos.agama(), "Install-SLES-x86_64", Medium(
        Path(), family="agama", name="Install-SLES-x86_64", arch="x86_64", kernel="/boot/x86_64/loader/linux",
        initrds=("/boot/x86_64/loader/initrd",),
        arguments=("root=live:CDLABEL=Install-SLES-x86_64", "rd.live.image"))),
    "alpine": (isos.alpine(), "alpine-virt 3.20.3 x86_64", Medium(
        Path(), family="alpine", name="alpine-virt-3.20.3", arch="x86_64", kernel="/boot/vmlinuz-virt",
        initrds=("/boot/initramfs-virt",),
        arguments=("modules=loop,squashfs,sd-mod,usb-storage", "console=tty0", "console=ttyS0,115200"))),
    "arch": (isos.arch(), "ARCH_202411", Medium(
        Path(), family="arch", name="Arch Linux 2024.11.01", arch="x86_64", kernel="/arch/boot/x86_64/vmlinuz-linux",
        initrds=("/arch/boot/x86_64/initramfs-linux.img",),
        arguments=("archisobasedir=arch", "archisosearchuuid=2024-11-01-10-09-22-00"))),
    "freebsd": (isos.freebsd(), "14_1_RELEASE_AMD64_CD", Medium(
        Path(), family="freebsd", name="14_1_RELEASE_AMD64_CD", arch="x86_64")),
    "unknown": (isos.text({
        "isolinux/isolinux.cfg": "default live\nlabel live\n kernel /live/vmlinuz\n"
                                 " append initrd=/live/initrd.img boot=live splash quiet\n",
        "live/vmlinuz": "kernel", "live/initrd.img": "initrd"}), "d-live amd64", Medium(
            Path(), name="d-live amd64", arch="x86_64", kernel="/live/vmlinuz", initrds=("/live/initrd.img",),
            arguments=("boot=live",))),
    "pictures": (isos.text({"dcim/1.jpg": "a picture"}), "HOLIDAY", Medium(Path(), name="HOLIDAY")),
}  # fmt: skip


@pytest.mark.parametrize("name", MEDIA)
def test_installers_are_known_by_what_is_on_their_iso(tmp_path: Path, name: str) -> None:
    tree, label, expected = MEDIA[name]
    path = isos.plain(tmp_path / "medium.iso", tree, label)
    found = look(path)
    assert (found.path, found.label) == (path, label)
    for part in ("family", "name", "arch", "kernel", "initrds", "arguments"):
        assert getattr(found, part) == getattr(expected, part), part


def test_windows_is_known_though_its_files_are_in_udf_alone(tmp_path: Path) -> None:
    path = isos.udf(tmp_path / "medium.iso", isos.windows(), "SSS_X64FREE_EN-US_DV9")
    found = look(path)
    assert (found.family, found.arch, found.kernel) == ("windows", "x86_64", "")
    with Iso(path) as iso:
        assert iso.read("/SOURCES/BOOT.WIM") == b"MSWIM"


def test_the_real_menu_of_an_iso_that_boots_either_way(tmp_path: Path) -> None:
    hybrid = isos.isolinux_hybrid(tmp_path / "a.iso", isos.debian(), "Debian")
    assert look(hybrid).kernel == "/install.amd/vmlinuz"
    assert look(isos.grub_hybrid(tmp_path / "b.iso", isos.ubuntu(), "Ubuntu")).kernel == "/casper/vmlinuz"


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "more", "expected"), [
    ("a b", "c", "a b c"), ("a b=1 c", "-b d=2", "a c d=2"), ("a", "-a=1", "a"), ("a=1", "-a=1 a=2", "a=2"),
    ("a --- b", "c", "a c --- b"), ("", "a --- b", "a --- b"),
])  # fmt: skip
def test_arguments_go_behind_the_mediums_own_and_before_those_of_the_installed_system(
    own: str, more: str, expected: str
) -> None:
    assert merged(own.split(), more.split()) == expected.split()


@given(st.lists(st.sampled_from(["quiet", "splash", "---", "--", "vga=788", "a", "b=c", "rhgb"])))
def test_what_is_for_a_person_goes_and_the_rest_keeps_its_order(words: list[str]) -> None:
    kept = list(menus.for_a_machine(words))
    assert [word for word in kept if word in ("a", "b=c")] == [word for word in words if word in ("a", "b=c")]
    assert not {"quiet", "splash", "vga=788", "rhgb"} & set(kept)
    assert not kept or kept[-1] not in menus.SEPARATORS


# -- menus -----------------------------------------------------------------------------------------------------------


def offered(loader: menus.Loader, files: dict[str, str]) -> list[menus.Entry]:
    def names(folder: str) -> list[str]:
        return [name.removeprefix(folder + "/") for name in files if name.startswith(folder + "/")]

    return menus.entries_of(next(iter(files)), loader, files.get, names)


def test_grub_is_understood_as_far_as_installers_need_it() -> None:
    first, second = offered("grub", {
        "/boot/grub/grub.cfg": """
set linux=linux   # a comment { with a brace
set opts="inst.stage2=hd:LABEL=A B"; set default="two"
if [ "$grub_platform" = "efi" ]; then
  set linux=linuxefi
fi
function f { menuentry "no" { linux /no } }
menuentry 'One' --id one { $linux ($root)/vmlinuz a="b c" \\
   d ; initrd /one /two }
source ($root)/boot/grub/more.cfg
""",
        "/boot/grub/more.cfg": 'submenu "More" { menuentry "Two" --id=two {\nlinux16 /k ${opts} \'x;y\'\n'
                               "initrd16 /i\n} }",
    })  # fmt: skip
    assert (first.kernel, first.arguments, first.initrds) == ("/vmlinuz", ('"a=b c"', "d"), ("/one", "/two"))
    assert (second.title, second.kernel, second.initrds) == ("Two", "/k", ("/i",))
    assert second.arguments == ("inst.stage2=hd:LABEL=A", "B", "x;y")


def test_isolinux_boots_what_its_menu_says() -> None:
    one, two, three = offered("isolinux", {
        "/isolinux/isolinux.cfg": "DEFAULT two\nAPPEND common\nLABEL one\nKERNEL ../k1 x\nINITRD a,/b\nLABEL two\n"
                                  "LINUX k2\nAPPEND -\nINCLUDE more.cfg\nINCLUDE isolinux.cfg\n",
        "/isolinux/more.cfg": "label three\n kernel menu.c32\nlabel three\n menu label ^Three\n kernel k3\n"
                              " append initrd=x initrd=y z\n",
    })[:3]  # fmt: skip
    assert (one.kernel, one.arguments, one.initrds) == ("/k1", ("x", "common"), ("/isolinux/a", "/b"))
    assert (two.chosen, two.kernel, two.arguments) == (True, "/isolinux/k2", ())
    assert (three.title, three.initrds, three.arguments) == ("Three", ("/isolinux/y",), ("z",))


WORDS = st.sampled_from(["menuentry", "'a'", '"b', "{", "}", ";", "\n", "linux", "/k", "set", "a=$a", "${a", "\\", "'",
                         "label", "x", "kernel", "append", "initrd=i", "include", "/m", "source", "submenu", "#", "if",
                         "menu default", "text help", "--id", "default=9"])  # fmt: skip


@given(st.lists(WORDS, max_size=40), st.sampled_from(["grub", "isolinux", "systemd-boot"]))
def test_no_menu_is_too_strange(words: list[str], loader: menus.Loader) -> None:
    for entry in offered(loader, {"/m": " ".join(words), "/entries/x.conf": " ".join(words)}):
        assert entry.kernel.startswith("/")
        assert ".." not in entry.kernel.split("/")


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "names"), [
    (("-r",), "rr_path"), (("-J", "--norock"), "joliet_path"), (("--norock", "-iso-level", "1"), "iso_path"),
])  # fmt: skip
def test_files_are_found_by_whatever_names_there_are(tmp_path: Path, options: tuple[str, ...], names: str) -> None:
    tree = {"Folder/file.cfg": b"here", "big": bytes(range(256)) * 9000}
    path = isos.plain(tmp_path / "x.iso", tree, "X", *options)
    with Iso(path) as iso:
        assert iso.names == names
        assert sorted(name.lower() for name in iso.list()) == ["big", "folder"]
        for spelled in ("/Folder/file.cfg", "folder/FILE.CFG", "/./FOLDER//file.cfg"):
            assert spelled in iso
            assert iso.read(spelled) == b"here"
        assert iso.is_folder("FOLDER")
        assert "/folder/nothing" not in iso
        assert "/folder/file.cfg/below" not in iso
        iso.extract("/BIG", tmp_path / "big")
        with pytest.raises(Refused, match="more than the 1000"):
            iso.read("/big", 1000)
        with pytest.raises(FileNotFoundError):
            iso.read("/folder")
        with pytest.raises(FileNotFoundError):
            iso.extract("/nothing", tmp_path / "nothing")
    assert (tmp_path / "big").read_bytes() == tree["big"]
    assert not (tmp_path / "nothing").exists()


def test_links_stay_inside_and_end(tmp_path: Path) -> None:
    folder = isos.lay_out({"install/vmlinuz": b"kernel", "etc/passwd": b"the iso's own"}, tmp_path / "tree")
    for name, target in {"relative": "install/vmlinuz", "loop": "loop", "out": "../../../../etc/passwd",
                         "absolute": "/etc/passwd", "folder": "install", "ring-a": "ring-b", "ring-b": "ring-a",
                         "install/up": "../install/vmlinuz", "nowhere": "missing"}.items():  # fmt: skip
        (folder / name).symlink_to(target)
    Host().run(["xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", tmp_path / "x.iso", folder], purpose="make an ISO")
    with Iso(tmp_path / "x.iso") as iso:
        assert iso.read("/relative") == iso.read("/folder/vmlinuz") == iso.read("/install/up") == b"kernel"
        assert iso.read("/out") == iso.read("/absolute") == b"the iso's own"
        assert iso.real("/folder/vmlinuz") == "/install/vmlinuz"
        for name in ("/loop", "/ring-a", "/nowhere"):
            assert name not in iso


def test_a_volume_is_what_was_asked_for(tmp_path: Path) -> None:
    files = {"user-data": b"#cloud-config\n", "meta-data": b"", "a/b/Some Long Name.cfg": b"x" * 5000, "a/c": b"y"}
    write_volume(tmp_path / "seed.iso", "cidata", files)
    assert (tmp_path / "seed.iso").stat().st_mode & 0o777 == 0o600
    with Iso(tmp_path / "seed.iso") as iso:
        assert iso.label == "cidata"
        assert {name: iso.read(name) for name in files} == files
    said = Host().run(["blkid", "-o", "value", "-s", "LABEL", tmp_path / "seed.iso"], purpose="look").text
    assert said.strip() == "cidata"
    listed = Host().run(["xorriso", "-indev", tmp_path / "seed.iso", "-find", "/", "-type", "f"], purpose="look").text
    assert {line.strip("'/") for line in listed.splitlines() if line.startswith("'")} == set(files)


@pytest.mark.parametrize("label", ["", "a" * 17, "ä"])
def test_a_volume_has_a_name_that_fits(tmp_path: Path, label: str) -> None:
    with pytest.raises(BuildError, match="volume's name"):
        write_volume(tmp_path / "x.iso", label, {})


@pytest.mark.parametrize("name", ["../x", "a//b", "", "a/./b", "a\0b"])
def test_a_volumes_files_stay_on_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildError, match="no name for a file"):
        write_volume(tmp_path / "x.iso", "x", {name: b""})


# -- not trusting ----------------------------------------------------------------------------------------------------


def test_what_is_no_iso_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "page.iso").write_text("<html>404</html>" * 9000)
    with pytest.raises(Refused, match=r"page\.iso is not an ISO that can be read"):
        look(tmp_path / "page.iso")
    with pytest.raises(BuildError, match="cannot open"):
        look(tmp_path / "nothing.iso")


def test_an_iso_that_is_cut_short_is_told_so(tmp_path: Path) -> None:
    path = isos.plain(tmp_path / "x.iso", {"a": b"a", "install.amd/vmlinuz": b"k" * 500_000}, "X")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Iso(path) as iso, pytest.raises(Refused, match="cut short"):
        iso.extract("/install.amd/vmlinuz", tmp_path / "kernel")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("small")
    return isos.plain(folder / "x.iso", isos.debian(), "X").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_damage_is_refused_or_read_past(tmp_path_factory: pytest.TempPathFactory, small: bytes, seed: int,
                                        times: int) -> None:  # fmt: skip
    """Bytes are changed where the structures are: descriptors, path tables, folders."""
    chance = random.Random(seed)
    damaged = bytearray(small)
    end = len(damaged) - 1 if seed % 2 else 120 * 1024
    for _ in range(times):
        damaged[chance.randrange(16 * 2048, end)] = chance.choice((0, 1, 255, chance.randrange(256)))
    path = tmp_path_factory.getbasetemp() / "damaged.iso"
    path.write_bytes(damaged)
    try:
        look(path)
        with Iso(path) as iso:
            for name in iso.list("/"):
                if name in iso and not iso.is_folder(name):
                    iso.read(name, 1 << 20)
    except BuildError:
        pass
