"""The same image with Packer's qemu builder (https://www.packer.io, here Debian's packer 1.6)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks._measure import measure

USER = "builder"


def template(folder: Path, base: Path, provisioners: list[dict[str, object]]) -> dict[str, object]:
    """The template. Set for speed where there is a choice: virtio, no flushes, Packer's own compression."""
    return {
        "builders": [{
            "type": "qemu", "accelerator": "tcg", "headless": True, "disk_image": True, "iso_url": str(base),
            "iso_checksum": "none", "format": "qcow2", "disk_size": "4096M", "disk_compression": True,
            "disk_interface": "virtio", "disk_cache": "unsafe", "disk_discard": "unmap", "net_device": "virtio-net",
            "memory": 1024, "qemuargs": [["-cpu", "max"], ["-smp", "2"]], "vm_name": "packer.qcow2",
            "output_directory": str(folder / "packer-output"), "ssh_username": USER,
            "ssh_private_key_file": str(folder / "key"), "ssh_timeout": "30m",
            "shutdown_command": "sudo systemctl poweroff",
        }],
        "provisioners": provisioners,
    }  # fmt: skip


def web(folder: Path) -> list[dict[str, object]]:
    """A web server, a user and a file."""
    return [
        {"type": "file", "source": str(folder / "index.html"), "destination": "/tmp/index.html"},
        {"type": "shell", "inline": [
            "set -e",
            "export DEBIAN_FRONTEND=noninteractive",
            "sudo apt-get -q update",
            "sudo -E apt-get -qy install --no-install-recommends nginx-light",
            "sudo useradd --create-home --shell /bin/bash ops",
            "sudo install -D -m 0644 /tmp/index.html /var/www/html/index.html",
            "sudo apt-get clean",
        ]},
    ]  # fmt: skip


def build(folder: Path, base: Path, provisioners: list[dict[str, object]]) -> dict[str, float]:
    """Build once, with nothing left of an earlier time; return the seconds of each part."""
    for name in ("packer-output", "packer-home"):
        shutil.rmtree(folder / name, ignore_errors=True)
    home = folder / "packer-home"
    home.mkdir()
    (folder / "packer.json").write_text(json.dumps(template(folder, base, provisioners), indent=2))
    quiet = {"CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(home / "cache"), "PACKER_CONFIG_DIR": str(home)}
    run = measure(["packer", "build", "-color=false", "packer.json"], cwd=folder, env=quiet)
    (folder / "packer.log").write_text(run.stdout + run.stderr)
    if not (folder / "packer-output/packer.qcow2").is_file():
        raise AssertionError(run.stdout)
    return {"build": run.seconds}
