"""The incus output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import MIB, finish, workspace
from imagesmith.outputs._incus import metadata, os_release
from imagesmith.outputs._names import named_for
from imagesmith.outputs._rootfs import need_init, read, system, write_small_tar, write_tar
from imagesmith.outputs._squashfs import write_squashfs

_NAME = "{{ container.name }}"
_TEMPLATES = {"/etc/hostname": "hostname.tpl", "/etc/hosts": "hosts.tpl"}


class Incus(FilesOutput, name="incus", version=1, shorthand="layout"):
    """A system container's image for Incus and LXD. For a virtual machine take `incus-vm`.

    `split` is a file of metadata and a squashfs: `incus image import X.incus.tar.xz X.incus.squashfs --alias X`.
    `unified` is one file: `incus image import X.incus-unified.tar.xz --alias X`. It boots the image's own init; its
    host name is the instance's. Without what only a machine needs: the contents of /boot, kernel modules and firmware;
    fstab and machine-id are empty.
    """

    layout: Literal["split", "unified"] = Field("split", description="Two files or one")

    @property
    def label(self) -> str:
        """Tell the two apart."""
        return "incus" if self.layout == "split" else "incus-unified"

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the image. Raises BuildError for one without /sbin/init."""
        need_init(files, "Incus", ("/sbin/init",))
        about = os_release((read(files, "/etc/os-release") or b"").decode("utf-8", "replace"))
        named = named_for(files, _NAME)
        first = {
            "metadata.yaml": metadata(maker, about, _TEMPLATES),
            **{f"templates/{file}": named[path.lstrip("/")] for path, file in _TEMPLATES.items()},
        }
        name = f"{maker.name}.{self.label}.tar.xz"
        content = system(files)
        with workspace(directory, name) as work:
            if self.layout == "unified":
                size = write_tar(files, content, work / name, host, epoch=maker.epoch, compression="xz",
                                 first=first, prefix="rootfs/")  # fmt: skip
                made = [name]
            else:
                made = [name, f"{maker.name}.incus.squashfs"]
                write_small_tar(work / name, host, first, epoch=maker.epoch)
                size = write_squashfs(files, content, work / made[1], host, epoch=maker.epoch, compression="zstd")
            log(f"{made[-1]}: {size // MIB} MiB in its files")
            return finish(work, directory, made)
