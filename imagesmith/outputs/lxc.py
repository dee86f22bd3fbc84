"""The lxc output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._names import named_for
from imagesmith.outputs._rootfs import need_init, system, with_files, write_small_tar, write_tar

_CONFIG = """\
lxc.include = LXC_TEMPLATE_CONFIG/common.conf
lxc.arch = {arch}
"""
_CONFIG_USER = """\
lxc.include = LXC_TEMPLATE_CONFIG/common.conf
lxc.include = LXC_TEMPLATE_CONFIG/userns.conf
lxc.arch = {arch}
"""
_MESSAGE = """\
You just created a container of {what}.
"""
_TEMPLATES = ("etc/hostname", "etc/hosts")
_NAME = "LXC_NAME"


class Lxc(FilesOutput, name="lxc", version=1):
    """A system container for LXC: `lxc-create -n NAME -t local -- -m X.lxc.meta.tar.xz -f X.lxc.rootfs.tar.xz`.

    It boots the image's own init. Its host name is the container's. Without what only a machine needs: the contents of
    /boot, kernel modules and firmware; fstab and machine-id are empty.
    """

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write root file system and metadata. Raises BuildError for an image without /sbin/init."""
        need_init(files, "LXC", ("/sbin/init",))
        root, about = f"{maker.name}.lxc.rootfs.tar.xz", f"{maker.name}.lxc.meta.tar.xz"
        with workspace(directory, root) as work:
            content = with_files(system(files), named_for(files, _NAME))
            size = write_tar(files, content, work / root, host, epoch=maker.epoch, compression="xz")
            log(f"{root}: {size // MIB} MiB in its files")
            write_small_tar(work / about, host, metadata(maker), epoch=maker.epoch)
            return finish(work, directory, [root, about])


def metadata(maker: Maker) -> Mapping[str, bytes]:
    """Return the files that LXC's template wants (lxc 5.0, templates/lxc-local.in).

    It replaces LXC_NAME, LXC_TEMPLATE_CONFIG and the like in ``config`` and in the files that ``templates`` names.
    """
    what = " ".join(part for part in (maker.name, maker.version) if part)
    message = _MESSAGE.format(what=what) + (f"{maker.description}\n" if maker.description else "")
    found = {
        "config": _CONFIG.format(arch=maker.arch),
        "config-user": _CONFIG_USER.format(arch=maker.arch),
        "create-message": message,
        "templates": "".join(f"/{name}\n" for name in _TEMPLATES),
    }
    return {name: text.encode() for name, text in found.items()}
