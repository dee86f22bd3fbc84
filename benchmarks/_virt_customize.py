"""The same image with virt-customize (libguestfs), then qemu-img to compress it."""

from __future__ import annotations

from pathlib import Path

from benchmarks._measure import measure

_LIBGUESTFS = {"LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


def build(folder: Path, base: Path) -> dict[str, float]:
    """Build once; return the seconds of each part.

    It works on an overlay, so that no copy of the base counts, and the compression is the one that imagesmith uses:
    faster than qemu-img's default.
    """
    work, out = folder / "virt-customize.work.qcow2", folder / "virt-customize.qcow2"
    steps: dict[str, list[str | Path]] = {
        "overlay": ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, work],
        "virt-customize": [
            "virt-customize", "--quiet", "--format", "qcow2", "--add", work, "--smp", "2", "--memsize", "1024",
            "--install", "nginx-light", "--run-command", "useradd --create-home --shell /bin/bash ops",
            "--upload", f"{folder / 'index.html'}:/var/www/html/index.html",
        ],
        "compress": ["qemu-img", "convert", "-c", "-m", "16", "-O", "qcow2", "-o", "compression_type=zstd", work, out],
    }  # fmt: skip
    return {name: measure(argv, cwd=folder, env=_LIBGUESTFS).seconds for name, argv in steps.items()}
