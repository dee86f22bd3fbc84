"""ISOs in the layouts that distributions give theirs, made with xorriso: small stand-ins, or a real kernel to boot.

A layout is a mapping of paths to contents (``debian()``, ``fedora()`` …); ``plain``, ``isolinux_hybrid`` and
``grub_hybrid`` make an ISO of one. Sources of the layouts are named at each of them.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from imagesmith.host import Host
from imagesmith.probe import kernels

Tree = dict[str, bytes]
KERNEL, INITRD = b"a kernel\n", b"an initrd\n"
LAYOUTS = Path(__file__).parent / "layouts"
ISOLINUX = Path("/usr/lib/ISOLINUX")
SYSLINUX = Path("/usr/lib/syslinux/modules/bios")
GRUB_BIOS = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("normal", "iso9660", "fat", "part_gpt", "part_msdos", "search", "search_fs_file", "search_label",
                "configfile", "linux", "test", "echo", "serial", "terminal", "minicmd")  # fmt: skip
_host = Host()


def text(tree: Mapping[str, str]) -> Tree:
    return {name: content.encode() for name, content in tree.items()}


# -- layouts: the texts are in the folder layouts/, kernels and other large things are added here ---------------------


def _layout(name: str) -> Tree:
    folder = LAYOUTS / name
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def debian(kernel: bytes = KERNEL, initrd: bytes = INITRD) -> Tree:
    """A netinst of Debian 12 (debian-cd, tools/boot/bookworm/boot-x86; debian-installer, build/boot/x86)."""
    return _layout("debian") | {
        "install.amd/vmlinuz": kernel, "install.amd/initrd.gz": initrd, "install.amd/gtk/initrd.gz": initrd + b"gtk",
    }  # fmt: skip


def debian_mini(kernel: bytes = KERNEL, initrd: bytes = INITRD) -> Tree:
    """mini.iso (debian-installer, build/config/x86.cfg): all of it in the root."""
    return _layout("debian_mini") | {"linux": kernel, "initrd.gz": initrd}


def ubuntu(kernel: bytes = KERNEL, initrd: bytes = INITRD) -> Tree:
    """A live server of Ubuntu 24.04 (livecd-rootfs; Ubuntu's debian-cd, tools/boot/noble/boot-amd64)."""
    return _layout("ubuntu") | {
        "casper/vmlinuz": kernel, "casper/initrd": initrd,
        "casper/hwe-vmlinuz": kernel + b"hwe", "casper/hwe-initrd": initrd + b"hwe",
    }  # fmt: skip


def fedora(kernel: bytes = KERNEL, initrd: bytes = INITRD) -> Tree:
    """A DVD of Fedora's (lorax, share/templates.d/99-generic/); its label is Fedora-S-dvd-x86_64-40."""
    return _layout("fedora") | {"images/pxeboot/vmlinuz": kernel, "images/pxeboot/initrd.img": initrd}


def rhel7(kernel: bytes = KERNEL, initrd: bytes = INITRD) -> Tree:
    """CentOS 7: isolinux, blanks in its label, kernel and initrd in two places (lorax, the same templates)."""
    files = {"vmlinuz": kernel, "initrd.img": initrd}
    return _layout("rhel7") | {f"{place}/{name}": content for place in ("isolinux", "images/pxeboot")
                               for name, content in files.items()}  # fmt: skip


def coreos() -> Tree:
    """Fedora CoreOS (coreos-assembler, buildextend-live; fedora-coreos-config, live/): its GRUB is in the ESP alone."""
    return _layout("coreos") | {"images/pxeboot/vmlinuz": KERNEL, "images/pxeboot/initrd.img": INITRD,
                                "images/ignition.img": bytes(64)}  # fmt: skip


def opensuse() -> Tree:
    """openSUSE Leap 15 and SLES 15 (skelcd-control; what boots by itself is the hard disk)."""
    return _layout("opensuse") | {"boot/x86_64/loader/linux": KERNEL, "boot/x86_64/loader/initrd": INITRD}


def agama() -> Tree:
    """The installer of Leap 16 and SLES 16 (agama, live/config-cdroot/fix_bootconfig.x86_64; kiwi)."""
    return _layout("agama") | {"boot/x86_64/loader/linux": KERNEL, "boot/x86_64/loader/initrd": INITRD}


def alpine() -> Tree:
    """Alpine (aports, scripts/mkimg.base.sh and mkimg.standard.sh)."""
    return _layout("alpine") | {"boot/vmlinuz-virt": KERNEL, "boot/initramfs-virt": INITRD,
                                "apks/.boot_repository": b"", "apks/x86_64/APKINDEX.tar.gz": b""}  # fmt: skip


def arch() -> Tree:
    """Arch Linux (archiso, configs/releng/{syslinux,grub,efiboot})."""
    return _layout("arch") | {"arch/boot/x86_64/vmlinuz-linux": KERNEL,
                              "arch/boot/x86_64/initramfs-linux.img": INITRD}  # fmt: skip


def freebsd() -> Tree:
    """FreeBSD's disc1 (release/amd64/mkisoimages.sh): a root file system."""
    return _layout("freebsd") | {"boot/kernel/kernel": KERNEL, "boot/cdboot": b""}


def windows() -> Tree:
    """Windows Setup: UDF alone has the files."""
    names = ("bootmgr", "setup.exe", "sources/boot.wim", "sources/install.wim", "efi/boot/bootx64.efi",
             "boot/bootfix.bin")  # fmt: skip
    return {name: b"MSWIM" if name.endswith(".wim") else b"MZ" for name in names}


# -- ISOs ------------------------------------------------------------------------------------------------------------


def lay_out(tree: Tree, folder: Path) -> Path:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def plain(path: Path, tree: Tree, label: str = "ISO", *options: str) -> Path:
    """An ISO that boots nothing; with Rock Ridge and Joliet unless ``options`` of mkisofs say otherwise."""
    folder = lay_out(tree, path.with_suffix(".tree"))
    _xorriso(path, label, *(options or ("-r", "-J", "-joliet-long")), str(folder))
    shutil.rmtree(folder)
    return path


def udf(path: Path, tree: Tree, label: str) -> Path:
    """An ISO whose files are in UDF alone, as Windows has it: ISO 9660 holds a file that says so."""
    import pycdlib

    cd = pycdlib.PyCdlib()
    cd.new(interchange_level=3, vol_ident=label, udf="2.60")
    note = b"This disc contains a UDF file system.\r\n"
    cd.add_fp(io.BytesIO(note), len(note), iso_path="/README.TXT;1")
    folders: set[str] = set()
    for name, content in tree.items():
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                cd.add_directory(udf_path=f"/{folder}")
        cd.add_fp(io.BytesIO(content), len(content), udf_path=f"/{name}")
    cd.write(str(path))
    cd.close()
    return path


def isolinux_files(folder: str = "isolinux") -> Tree:
    """isolinux's programs."""
    names = ("ldlinux.c32", "libcom32.c32", "libutil.c32", "menu.c32", "vesamenu.c32")
    return {f"{folder}/{name}": (SYSLINUX / name).read_bytes() for name in names} | {
        f"{folder}/isolinux.bin": (ISOLINUX / "isolinux.bin").read_bytes()
    }  # fmt: skip


def isolinux_hybrid(path: Path, tree: Tree, label: str, *, folder: str = "isolinux", esp: Tree | None = None) -> Path:
    """isolinux for BIOS, GRUB's EFI program in an ESP's image inside the ISO, and a hybrid MBR and GPT: as Debian.

    The menus are the tree's own. GRUB reads ``boot/grub/grub.cfg`` of the ISO, or a ``EFI/BOOT/grub.cfg`` that ``esp``
    puts into the ESP (as Fedora).
    """
    root = lay_out(tree, path.with_suffix(".tree"))
    lay_out(isolinux_files(folder), root)
    (root / "boot/grub").mkdir(parents=True, exist_ok=True)
    _esp(root / "boot/grub/efi.img", root, esp)
    _xorriso(path, label, "-r", "-J", "-joliet-long", "-isohybrid-mbr", str(ISOLINUX / "isohdpfx.bin"),
             "-c", f"{folder}/boot.cat", "-b", f"{folder}/isolinux.bin", "-no-emul-boot", "-boot-load-size", "4",
             "-boot-info-table", "-eltorito-alt-boot", "-e", "boot/grub/efi.img", "-no-emul-boot",
             "-isohybrid-gpt-basdat", str(root))  # fmt: skip
    shutil.rmtree(root)
    return path


def grub_hybrid(path: Path, tree: Tree, label: str) -> Path:
    """GRUB for BIOS and UEFI, the ESP a partition behind the ISO, in a GPT: as Ubuntu since 20.10."""
    root = lay_out(tree, path.with_suffix(".tree"))
    (root / "boot/grub/i386-pc").mkdir(parents=True)
    core = root / "boot/grub/i386-pc/eltorito.img"
    _host.run(["grub-mkimage", "-O", "i386-pc-eltorito", "-p", "/boot/grub", "-o", core, "biosdisk", *GRUB_MODULES],
              purpose="make an ISO")  # fmt: skip
    esp = path.with_suffix(".esp")
    _esp(esp, root, None)
    _xorriso(path, label, "-r", "-J", "-joliet-long", "-partition_offset", "16", "--mbr-force-bootable",
             "--grub2-mbr", str(GRUB_BIOS / "boot_hybrid.img"), "-append_partition", "2",
             "28732ac11ff8d211ba4b00a0c93ec93b", str(esp), "-appended_part_as_gpt", "-c", "/boot.catalog",
             "-b", "/boot/grub/i386-pc/eltorito.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
             "--grub2-boot-info", "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:::", "-no-emul-boot",
             str(root))  # fmt: skip
    shutil.rmtree(root)
    esp.unlink()
    return path


def _esp(path: Path, root: Path, files: Tree | None) -> None:
    """A FAT image with GRUB in it."""
    work = path.with_suffix(".work")
    if files is None:
        first = b"search --file --set=root /.disk/info\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
        files = {}
    else:
        first = b"set prefix=($root)/EFI/BOOT\nconfigfile $prefix/grub.cfg\n"
    work.mkdir()
    (work / "first.cfg").write_bytes(first)
    program = work / "bootx64.efi"
    _host.run(["grub-mkimage", "-O", "x86_64-efi", "-c", work / "first.cfg", "-p", "/boot/grub", "-o", program,
               *GRUB_MODULES], purpose="make an ISO")  # fmt: skip
    path.write_bytes(bytes(3 << 20))
    run = ["mkfs.vfat", path], ["mmd", "-i", path, "::EFI", "::EFI/BOOT"], \
          ["mcopy", "-i", path, program, "::EFI/BOOT/BOOTX64.EFI"]  # fmt: skip
    for argv in run:
        _host.run(argv, purpose="make an ESP")
    folders = {str(parent) for name in files for parent in Path(name).parents} - {".", "EFI", "EFI/BOOT"}
    for folder in sorted(folders):
        _host.run(["mmd", "-i", path, f"::{folder}"], purpose="make an ESP")
    for name, content in files.items():
        (work / "file").write_bytes(content)
        _host.run(["mcopy", "-o", "-i", path, work / "file", f"::{name}"], purpose="make an ESP")
    shutil.rmtree(work)


def _xorriso(path: Path, label: str, *options: str) -> None:
    _host.run(["xorriso", "-as", "mkisofs", "-quiet", "-V", label, "-o", path, *options], purpose="make an ISO")


# -- something to boot -----------------------------------------------------------------------------------------------

INIT = """\
#!/busybox sh
/busybox mkdir /proc; /busybox mount -t proc proc /proc
/busybox dmesg -n 1  # nothing of the kernel's in between
/busybox echo "started with: $(/busybox cat /proc/cmdline)"
/busybox poweroff -f
"""
STARTED = re.compile(r"^started with: (.*)$", re.M)


def real(folder: Path) -> tuple[bytes, bytes]:
    """A kernel of this host and an initrd that says on the console what it was started with, and ends."""
    root = folder / "initrd"
    (root / "dev").mkdir(parents=True)
    shutil.copy(_host.require("busybox", "make an initrd"), root / "busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    packed = _host.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"], purpose="make an initrd", cwd=root,
                       input=b"dev\nbusybox\ninit\n").stdout  # fmt: skip
    shutil.rmtree(root)
    return kernels()[0].read_bytes(), packed
