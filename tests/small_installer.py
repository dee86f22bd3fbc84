"""A small installer: a Debian kernel, a busybox, and the manners of three real ones.

It boots from an ISO laid out as Debian's, Fedora's or Ubuntu's, finds its answer file where the real one would look
(initrd, volume, floppy, web server), says what it does as the real one would (console, syslog, virtio-serial port),
makes a partition and a file system, unpacks a system, installs GRUB, and switches the machine off. The host name that
its answer file asks for makes it misbehave: ``hang``, ``panic``, ``reboot``, ``nothing``, ``full`` (the disk is),
``question``, ``waits`` (at its end), ``chatter``; any other name is installed.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagesmith.disk.grub import core_image, find_platform, patch_boot_sector, patch_core
from imagesmith.host import Host
from imagesmith.probe import kernels
from tests.isos import isolinux_files

Style = Literal["debian", "fedora", "ubuntu"]
LABELS: Mapping[Style, str] = {
    "debian": "Debian 12.5.0 amd64 n", "fedora": "Fedora-S-dvd-x86_64-40", "ubuntu": "Ubuntu-Server 24.04 LTS amd64",
}  # fmt: skip
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "ahci", "sr_mod", "isofs", "floppy", "vfat",
            "qemu_fw_cfg", "nls_ascii", "nls_cp437", "nls_iso8859_1", "nls_utf8", "ext4", "crc32c_generic")  # fmt: skip
_INSTALLED_MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
_PURPOSE = "make a small installer"

_COMMON = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /mnt /cdrom /target /etc
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    [ $module = floppy ] || insmod /modules/$module.ko 2>/dev/null  # that looks for a drive for seconds
done
"""
_INSTALLED = _COMMON + """\
mount -t ext4 /dev/vda1 /target || { echo "no root"; poweroff -f; }
exec switch_root /target /sbin/init
"""
_SYSTEM = """\
#!/bin/busybox sh
echo "installed system: $(cat /etc/hostname) is up"
mount -o remount,ro /
/bin/busybox poweroff -f
"""
_INIT = _COMMON + r"""
style=$(cat /style)
arg() { for word in $(cat /proc/cmdline); do case $word in "$1"=*) echo "${word#*=}"; return ;; esac; done; }
ifconfig lo 127.0.0.1; ifconfig eth0 10.0.2.15 netmask 255.255.255.0; route add default gw 10.0.2.2
if [ -n "$(arg log_host)" ]; then
    syslogd -R "$(arg log_host):$(arg log_port)"; sleep 0.2
fi
port=
for name in /sys/class/virtio-ports/*/name; do
    case $(cat $name 2>/dev/null) in *.log.0) port=/dev/$(basename $(dirname $name)) ;; esac
done
# what it does: to its log where it has one, as debian-installer does, or to the console
say() {
    if [ -n "$(arg log_host)" ]; then logger -t "$1" "$2"
    elif [ -n "$port" ]; then echo "$1:$2" > $port
    else echo "$1: $2"; fi
}
label() { dd if=$1 bs=1 skip=32808 count=32 2>/dev/null | sed 's/ *$//'; }
volume() {
    for device in /dev/sr* /dev/vd?; do
        [ "$(label $device)" = "$1" ] && mount -t iso9660 -o ro $device /mnt 2>/dev/null && return
    done
    return 1
}
medium() {
    for device in /dev/sr*; do
        mount -t iso9660 -o ro $device /cdrom 2>/dev/null && [ -f /cdrom/pool/root.tar.gz ] && return
        umount /cdrom 2>/dev/null
    done
}
medium
answers=
fetch() { wget -q -O /run/answers "$1" && answers=/run/answers; }
case $style in
debian)
    [ -f /preseed.cfg ] && answers=/preseed.cfg
    [ -n "$(arg preseed/url)" ] && fetch "$(arg preseed/url)"
    [ "$(arg preseed/file)" = fw_cfg ] && answers=/sys/firmware/qemu_fw_cfg/by_name/opt/preseed.cfg/raw
    case $(arg preseed/file) in
        /media/preseed.cfg)
            insmod /modules/floppy.ko; mount -t vfat -o ro /dev/fd0 /mnt && answers=/mnt/preseed.cfg ;;
        /cdrom/*) answers=$(arg preseed/file) ;;
    esac
    ;;
fedora)
    case $(arg inst.ks) in
        http*) fetch "$(arg inst.ks)" ;;
        file:*) answers=$(arg inst.ks); answers=/${answers#file:}; answers=/${answers#//} ;;
        *) volume OEMDRV && answers=/mnt/ks.cfg ;;
    esac
    ;;
ubuntu)
    case $(cat /proc/cmdline) in
        *"ds=nocloud-net;s=http"*) fetch "$(sed 's/.*ds=nocloud-net;s=\([^ ]*\).*/\1/' /proc/cmdline)user-data" ;;
        *) volume cidata && answers=/mnt/user-data ;;
    esac
    ;;
esac
stop() { sleep 0.3; sync; poweroff -f; }
ask() { printf "$1"; read -r line < /dev/console; sleep 100000; }
[ -f "$answers" ] || ask "Which answer file shall be used? "
case $style in
debian)
    grep -q '^d-i ' $answers || { say preseed "error: $answers is no preseed file"; ask "Error while preseeding: "; }
    say preseed "successfully loaded preseed file from file://$answers"
    host=$(sed -n 's,^d-i netcfg/get_hostname string *,,p' $answers) ;;
fedora)
    grep -q '^network' $answers || { echo "Unknown command in the kickstart file"; ask "Press ENTER to exit"; }
    say anaconda "INFO:Parsing kickstart: $answers"
    host=$(sed -n 's,^network .*--hostname=\([^ ]*\).*,\1,p' $answers) ;;
ubuntu)
    grep -q '^#cloud-config' $answers || { echo "user-data is no cloud-config"; ask "Continue? (yes|no) "; }
    say subiquity "finish: subiquity/Autoinstall/load_autoinstall_config: SUCCESS"
    grep -qw autoinstall /proc/cmdline || ask "Continue with autoinstall? (yes|no)"
    host=$(sed -n 's,^ *hostname: *,,p' $answers | tr -d "\"'") ;;
esac
case $host in
hang) say installer "about to stand still"; exec sleep 100000 ;;
panic) echo c > /proc/sysrq-trigger ;;
reboot) reboot -f ;;
nothing) stop ;;
question) echo "Which country do you live in?"; ask "Prompt: '?' for help> " ;;
chatter) while :; do echo "still here"; sleep 1; done ;;
esac
case $style in
debian) say main-menu "INFO: Menu item 'partman-base' selected" ;;
fedora) echo "Creating ext4 on /dev/vda1" ;;
ubuntu) say subiquity "executing curtin install partitioning step" ;;
esac
printf 'o\nn\np\n1\n2048\n\na\n1\nw\n' | fdisk -u /dev/vda > /dev/null 2>&1
blockdev --rereadpt /dev/vda 2>/dev/null; sleep 0.2
mke2fs -L root /dev/vda1 > /dev/null
mount -t ext4 /dev/vda1 /target
case $style in
debian) say main-menu "INFO: Menu item 'bootstrap-base' selected" ;;
fedora) echo "Installing busybox.x86_64 (1/1)" ;;
ubuntu) say subiquity "executing curtin install extract step" ;;
esac
[ "$host" = full ] && cat $answers && dd if=/dev/zero of=/target/full bs=1M 2>/dev/null
if ! tar -xz -C /target -f /cdrom/pool/root.tar.gz; then
    sleep 1; say base-installer "error: exiting on error base-installer/debootstrap-failed"
    ask "Go back? "
fi
echo $host > /target/etc/hostname
case $style in
debian) say main-menu "INFO: Menu item 'grub-installer' selected" ;;
fedora) echo "Installing boot loader" ;;
ubuntu) say subiquity "executing curtin install curthooks step" ;;
esac
umount /target
dd if=/cdrom/pool/boot.img of=/dev/vda bs=440 count=1 conv=notrunc 2>/dev/null
dd if=/cdrom/pool/core.img of=/dev/vda bs=512 seek=1 conv=notrunc 2>/dev/null
case $style in
debian) say main-menu "INFO: Menu item 'finish-install' selected" ;;
fedora) echo "Storing configuration files and kickstarts" ;;
ubuntu) say subiquity "finish: subiquity/Install/install: SUCCESS" ;;
esac
[ "$host" = waits ] && sync && exec sleep 100000
stop
"""


@dataclass(frozen=True)
class Kit:
    """What installers are made of, made once."""

    folder: Path
    kernel: Path
    initrd: bytes
    """Of the installer, without its style; an archive."""


def kit(folder: Path, host: Host) -> Kit:
    """Make it in ``folder``."""
    kernel, modules = _kernel(folder, host)
    installed = _cpio({"init": _INSTALLED.encode(), **_parts(modules, _INSTALLED_MODULES)}, folder / "installed", host)
    root = folder / "root"
    files = {
        "sbin/init": _SYSTEM.encode(), "bin/busybox": Path("/bin/busybox").read_bytes(), "etc/hostname": b"none\n",
        "etc/os-release": b'ID=small\nPRETTY_NAME="A small system"\n', "boot/vmlinuz": kernel.read_bytes(),
        "boot/initrd": installed,
    }  # fmt: skip
    _tree(root, files)
    for name in ("sh", "cat", "mount", "ls", "rm", "mkdir"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("proc", "sys", "dev", "run", "tmp", "var"):
        (root / name).mkdir()
    pool = folder / "pool"
    pool.mkdir()
    host.run(["tar", "-C", root, "--owner=0", "--group=0", "-czf", pool / "root.tar.gz", "."], purpose=_PURPOSE)
    shutil.rmtree(root)
    menu = ("set root=(hd0,msdos1)\nlinux /boot/vmlinuz console=ttyS0 quiet panic=5\ninitrd /boot/initrd\nboot\n")
    core_image("i386-pc", menu, pool / "core.img", host, epoch=0)
    (pool / "core.img").write_bytes(patch_core((pool / "core.img").read_bytes(), 1))
    (pool / "boot.img").write_bytes(patch_boot_sector((find_platform("i386-pc", host) / "boot.img").read_bytes(), 1))
    return Kit(folder, kernel, _cpio({"init": _INIT.encode(), **_parts(modules, _MODULES)}, folder / "parts", host))


def iso(kit: Kit, style: Style, host: Host) -> Path:
    """The installer's ISO, as that distribution lays it out; made once."""
    made = kit.folder / f"{style}.iso"
    if made.exists():
        return made
    tree = kit.folder / style
    own = _cpio({"style": style.encode()}, kit.folder / f"{style}-style", host)
    packed, kernel = gzip.compress(kit.initrd, 1, mtime=0), kit.kernel.read_bytes()
    initrd = packed + bytes(-len(packed) % 4) + own
    grub = "menuentry 'Install' {{\n  linux {} {}\n  initrd {}\n}}\n"
    layouts: dict[Style, dict[str, bytes]] = {
        "debian": {
            **isolinux_files(), ".disk/info": b'Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 NETINST 20240210\n',
            "install.amd/vmlinuz": kernel, "install.amd/initrd.gz": initrd,
            "isolinux/isolinux.cfg": b"default install\nprompt 1\ntimeout 0\nlabel install\n  menu label ^Install\n"
            b"  kernel /install.amd/vmlinuz\n  append vga=788 initrd=/install.amd/initrd.gz --- quiet\n",
        },
        "fedora": {
            ".discinfo": b"1713000000.0\n40\nx86_64\n",
            ".treeinfo": b"[general]\narch = x86_64\nfamily = Fedora\nname = Fedora 40\nversion = 40\n"
            b"[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n",
            "images/pxeboot/vmlinuz": kernel, "images/pxeboot/initrd.img": initrd,
            "boot/grub2/grub.cfg": grub.format("/images/pxeboot/vmlinuz", f"inst.stage2=hd:LABEL={LABELS['fedora']}"
                                               " quiet", "/images/pxeboot/initrd.img").encode(),
        },
        "ubuntu": {
            ".disk/info": b'Ubuntu-Server 24.04 LTS "Noble Numbat" - Release amd64 (20240423)\n',
            "casper/vmlinuz": kernel, "casper/initrd": initrd,
            "boot/grub/grub.cfg": grub.format("/casper/vmlinuz", " ---", "/casper/initrd").encode(),
        },
    }  # fmt: skip
    _tree(tree, layouts[style])
    shutil.copytree(kit.folder / "pool", tree / "pool")
    boot = ["-c", "isolinux/boot.cat", "-b", "isolinux/isolinux.bin", "-no-emul-boot", "-boot-load-size", "4",
            "-boot-info-table"] if style == "debian" else []  # fmt: skip
    host.run(["xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", LABELS[style], *boot, "-o", made, tree],
             purpose=_PURPOSE)  # fmt: skip
    shutil.rmtree(tree)
    return made


def _tree(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)


def _cpio(files: Mapping[str, bytes], folder: Path, host: Host) -> bytes:
    _tree(folder, files)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    made = host.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"], purpose=_PURPOSE, cwd=folder,
                    input="".join(name + "\n" for name in names).encode()).stdout  # fmt: skip
    shutil.rmtree(folder)
    return made


# -- kernel and modules ------------------------------------------------------------------------------------------


def _kernel(folder: Path, host: Host) -> tuple[Path, Path]:
    """A kernel with drivers for a PC's CD and floppy drives, and the folder of its modules: the host's, or Debian's.

    Kernels for clouds have neither.
    """
    for kernel in kernels():
        modules = Path("/lib/modules", kernel.name.removeprefix("vmlinuz-"))
        if any(modules.glob("kernel/drivers/ata/ahci.ko*")) and any(modules.glob("kernel/drivers/block/floppy.ko*")):
            return kernel, modules
    said = host.run(["apt-cache", "depends", "linux-image-amd64"], purpose=_PURPOSE).text
    name = re.findall(r"Depends: (linux-image-\S+)", said)[0]
    host.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", name], purpose=_PURPOSE, cwd=folder)
    package = next(folder.glob("linux-image-*.deb"))
    with (folder / "kernel.tar").open("wb") as out:
        host.run(["dpkg-deb", "--fsys-tarfile", package], purpose=_PURPOSE, stdout=out)
    host.run(["tar", "-C", folder, "-xf", folder / "kernel.tar", "--wildcards", "./boot/vmlinuz-*",
              *(f"./lib/modules/*/kernel/{place}" for place in ("drivers/ata", "drivers/scsi/s*_mod*",
                "drivers/scsi/scsi_common*", "drivers/cdrom", "drivers/block/floppy*", "drivers/block/virtio*",
                "drivers/virtio", "drivers/net/virtio*", "drivers/net/net_failover*", "drivers/char/virtio*",
                "drivers/firmware/qemu*",
                "net/core", "fs", "lib", "crypto", "arch/x86/crypto"))],
             purpose=_PURPOSE)  # fmt: skip
    (folder / "kernel.tar").unlink()
    package.unlink()
    return next(folder.glob("boot/vmlinuz-*")), next(folder.glob("lib/modules/*"))


def _parts(root: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """A busybox, and modules with those that they need, in the order in which they can be loaded."""
    files = {path.name.partition(".")[0].replace("-", "_"): path for path in root.rglob("*.ko*")}
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name not in files:  # what is not there is in the kernel
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        elif files[name].suffix == ".zst":
            content = Host().run(["zstd", "-dcq", files[name]], purpose=_PURPOSE).stdout
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in (depends[1].decode().split(",") if depends else ()):
            add(needed.replace("-", "_"))
        found[name] = content

    for name in wanted:
        add(name)
    order = "".join(f"{name}\n" for name in found).encode()
    return {"bin/busybox": Path("/bin/busybox").read_bytes(), "modules/order": order,
            **{f"modules/{name}.ko": content for name, content in found.items()}}  # fmt: skip
