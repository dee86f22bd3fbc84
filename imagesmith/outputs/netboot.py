"""The netboot output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.host import Host
from imagesmith.interfaces import Files, Log, Maker
from imagesmith.kinds import FilesOutput
from imagesmith.outputs._common import finish, workspace
from imagesmith.outputs._live import arguments, prepare, write_initrd, write_root


class Netboot(FilesOutput, name="netboot", version=1):
    """A system that boots over the network and runs wholly in memory: kernel, initial RAM disk, iPXE script.

    The initial RAM disk holds the root file system as a squashfs; changes are kept in memory and are gone with the
    power. The machine needs memory for twice the RAM disk's size while it boots. It needs no server afterwards. The
    image must have a kernel, and an initial RAM disk of initramfs-tools (Debian, Ubuntu).
    """

    url: str | None = Field(
        None, pattern=r"^(https?|tftp|nfs)://[!-~]+$",
        description="Where the script finds kernel and RAM disk; by default where it was itself fetched.",
    )  # fmt: skip

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the three files."""
        live = prepare(files, "a system booted over the network", host)
        base = f"{maker.name}.netboot"
        names = [f"{base}.ipxe", f"{base}.vmlinuz", f"{base}.initrd"]
        with workspace(directory, base) as work:
            write_root(files, work / "root.squashfs", maker, host, log)
            (work / names[0]).write_text(self.script(maker), encoding="utf-8")
            (work / names[1]).write_bytes(live.kernel)
            write_initrd(live, work / names[2], {"root.squashfs": work / "root.squashfs"})
            return finish(work, directory, names)

    def script(self, maker: Maker) -> str:
        """The iPXE script (ipxe.org/scripting).

        Relative names are looked for beside the script. ``initrd=`` is for kernels that are started through UEFI, which
        look for their RAM disk by its name.
        """
        base = f"{maker.name}.netboot"
        place = "" if self.url is None else self.url.rstrip("/") + "/"
        return (
            "#!ipxe\n"
            f"kernel {place}{base}.vmlinuz initrd={base}.initrd {arguments(maker.arch)}\n"
            f"initrd {place}{base}.initrd\n"
            "boot\n"
        )
