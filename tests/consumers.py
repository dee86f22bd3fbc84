"""The programs that our images are made for, asked whether they take them. Each function fails with what they said."""

from __future__ import annotations

import json
import socket
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagesmith.errors import ToolFailed
from imagesmith.host import Host
from tests.ovf_lint import OVF, RASD, lint_ovf

__all__ = ["Docker", "add_box", "boot_ova", "dockerd", "lint_ovf", "registry", "same_disk", "v2v_print_source",
           "vagrant_up", "validate_oci"]  # fmt: skip

NO_KVM = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


def ask(*argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300) -> str:
    """What a program says on its standard output. Raises ToolFailed with its last words."""
    return Host().run(list(argv), purpose="test an image", env=env, cwd=cwd, timeout=timeout).text


# -- disks --------------------------------------------------------------------------------------------------------


def image_info(path: Path, format: str) -> dict[str, Any]:
    """What qemu-img knows of an image."""
    found: dict[str, Any] = json.loads(ask("qemu-img", "info", "--output=json", "-f", format, path))
    return found


def same_disk(source: Path, image: Path, format: str) -> None:
    """Hold an image's content against the qcow2 that it was made of (trailing zeros count for nothing)."""
    ask("qemu-img", "compare", "-f", "qcow2", "-F", format, source, image)


def v2v_print_source(package: Path) -> str:
    """What virt-v2v makes of an OVA, or of a folder with an OVF. It checks the manifest and the references."""
    return ask("virt-v2v", "-i", "ova", package, "--print-source", env=NO_KVM)


# -- Vagrant ------------------------------------------------------------------------------------------------------


def vagrant_env(home: Path) -> dict[str, str]:
    """A Vagrant of the test's own, that asks nobody for news."""
    return {"VAGRANT_HOME": str(home), "VAGRANT_CHECKPOINT_DISABLE": "1", "HOME": str(home)}


def add_box(box: Path, name: str, home: Path) -> str:
    """Add a box to a Vagrant of its own; what it lists then, with the box's own information."""
    home.mkdir(parents=True, exist_ok=True)
    ask("vagrant", "box", "add", "--name", name, box, env=vagrant_env(home), cwd=home)
    return ask("vagrant", "box", "list", "-i", env=vagrant_env(home), cwd=home)


def vagrant_up(box: Path, folder: Path, command: str) -> str:
    """Start a libvirt box with ``vagrant up``, and say ``command`` to its guest with ``vagrant ssh``; what it answers.

    libvirt and all it starts are the test's own (see vagrant_up.sh); needs root. ``folder`` has a short path.
    """
    script = Path(__file__).with_name("vagrant_up.sh")
    return ask("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
               "sh", script, folder, box, command, timeout=1500)  # fmt: skip


# -- OCI ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unpacked:
    """An image that all validators took: its configuration and its root file system."""

    config: dict[str, Any]
    rootfs: Path


def validate_oci(archive: Path, folder: Path) -> Unpacked:
    """Let oci-image-tool, umoci and skopeo judge an image; unpack it below ``folder``.

    Each misses something: only umoci (and docker) catches a wrong diff_id, only oci-image-tool and umoci a wrong size.
    """
    layout = folder / "layout"
    layout.mkdir(parents=True)
    ask("tar", "-xf", archive, "-C", layout)
    index = json.loads((layout / "index.json").read_bytes())
    reference = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
    ask("oci-image-tool", "validate", "--type", "image", "--ref", f"name={reference}", layout)
    rootless = [] if ask("id", "-u").strip() == "0" else ["--rootless"]
    ask("umoci", "unpack", *rootless, "--image", f"{layout}:{reference}", folder / "bundle")
    ask("skopeo", "copy", "-q", f"oci-archive:{archive}", f"dir:{folder / 'dir'}")
    ask("skopeo", "inspect", f"docker-archive:{archive}")
    config = json.loads(ask("skopeo", "inspect", "--config", f"oci-archive:{archive}"))
    return Unpacked(config, folder / "bundle/rootfs")


@dataclass(frozen=True)
class Docker:
    """A Docker daemon of the test's own (and the containerd that it started)."""

    address: str
    containerd: str

    def __call__(self, *argv: str | Path) -> str:
        """Say something to it."""
        return ask("docker", "-H", self.address, *argv)

    def load(self, archive: Path) -> str:
        """Load an image; its name."""
        return self("load", "-q", "-i", archive).strip().removeprefix("Loaded image: ")

    def run(self, image: str, *command: str, options: Sequence[str] = ()) -> str:
        """Run a container without a network; its output."""
        return self("run", "--rm", "--network", "none", *options, image, *command)

    def ctr_import(self, archive: Path) -> str:
        """Import an image into containerd; the names of all images there."""
        ask("ctr", "-a", self.containerd, "images", "import", archive)
        return ask("ctr", "-a", self.containerd, "images", "ls", "-q")


@contextmanager
def dockerd(folder: Path) -> Iterator[Docker]:
    """Start a Docker daemon below ``folder`` (a short path: sockets) and end it with all that it started.

    It lives in namespaces of its own for mounts and processes, so that nothing outlives it, even when it is killed.
    Needs root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    address = f"unix://{folder}/s"
    host = Host()
    with (folder / "log").open("wb") as log, host.start(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "dockerd",
         "--data-root", folder / "data", "--exec-root", folder / "exec", "-H", address, "--pidfile", folder / "pid",
         "--bridge=none", "--iptables=false", "--ip6tables=false"],
        purpose="run Docker", stdout=log, stderr=log,
    ) as daemon:  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                ask("docker", "-H", address, "version")
                break
            except ToolFailed:
                words = (folder / "log").read_text(errors="replace")[-2000:]
                assert daemon.poll() is None, f"dockerd ended:\n{words}"
                assert time.monotonic() < deadline, f"dockerd does not answer:\n{words}"
                time.sleep(0.2)
        yield Docker(address, f"{folder}/exec/containerd/containerd.sock")


_REGISTRY = """\
version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: {address}}}
"""


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Start an image registry of the test's own; its address, on the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "registry.yml").write_text(_REGISTRY.format(folder=folder, address=address))
    with (folder / "registry.log").open("wb") as log, Host().start(
        ["docker-registry", "serve", folder / "registry.yml"], purpose="run a registry", stdout=log, stderr=log
    ) as daemon:  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(tuple(address.split(":")), timeout=5).close()  # type: ignore[arg-type]
                break
            except OSError:
                words = (folder / "registry.log").read_text(errors="replace")[-2000:]
                assert daemon.poll() is None, f"the registry ended:\n{words}"
                assert time.monotonic() < deadline, f"the registry does not answer:\n{words}"
                time.sleep(0.1)
        yield address


# -- appliances, booted -------------------------------------------------------------------------------------------

_CONTROLLER = {  # what a descriptor asks for -> what QEMU calls it
    "PIIX4": ["-device", "ide-hd,drive=disk,bus=ide.0"],
    "VirtualSCSI": ["-device", "pvscsi,id=scsi", "-device", "scsi-hd,drive=disk,bus=scsi.0"],
}
_ADAPTER = {"VirtioNet": "virtio-net-pci", "VmxNet3": "vmxnet3"}


def boot_ova(ova: Path, folder: Path, *, within: float = 600) -> str:
    """Boot an appliance on the hardware that its descriptor asks for; what its SSH server says first.

    That takes the kernel's drivers for the disk and the network adapter, an address from DHCP and a started sshd.
    """
    ask("tar", "-xf", ova, "-C", folder)
    system = ET.fromstring(next(folder.glob("*.ovf")).read_bytes())
    kinds = {item.findtext(f"{RASD}ResourceType"): item for item in system.iter(f"{OVF}Item")}
    controller = next(kinds[kind] for kind in ("5", "6") if kind in kinds).findtext(f"{RASD}ResourceSubType", "")
    adapter = _ADAPTER[kinds["10"].findtext(f"{RASD}ResourceSubType", "")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    console = folder / "console.log"
    with Host().start(
        ["qemu-system-x86_64", "-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "max", "-display", "none",
         "-nodefaults", "-smp", kinds["3"].findtext(f"{RASD}VirtualQuantity", ""),
         "-m", kinds["4"].findtext(f"{RASD}VirtualQuantity", ""), "-serial", f"file:{console}",
         "-drive", f"file={next(folder.glob('*.vmdk'))},format=vmdk,if=none,id=disk,snapshot=on",
         *_CONTROLLER[controller], "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22",
         "-device", f"{adapter},netdev=net"],
        purpose="boot an appliance",
    ) as machine:  # fmt: skip
        deadline = time.monotonic() + within
        while True:
            banner = _banner(port)
            if banner:
                return banner
            words = console.read_text(errors="replace")[-2000:] if console.exists() else ""
            assert machine.poll() is None, f"QEMU ended:\n{words}"
            assert time.monotonic() < deadline, f"no SSH server answers; the console's end:\n{words}"
            time.sleep(1)


def _banner(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stream:
            return stream.recv(64).decode("ascii", "replace").strip()
    except OSError:
        return ""
