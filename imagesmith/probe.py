"""Whether KVM works here: found out by booting a Linux kernel under it, with a short deadline.

On some hosts ``/dev/kvm`` opens, and guests under it hang or stop for ever (nested virtualisation). No attribute of the
host tells these from others, so a kernel is booted without a disk: where KVM works, it panics for want of a root file
system in a second or two. The verdict holds for one boot of this host, one QEMU and one kernel.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from imagesmith.errors import BuildError, GuestFailed, ImagesmithError, Interrupted, RecipeError, TimedOut
from imagesmith.host import Host
from imagesmith.machine.arguments import PROGRAMS, Arch, MachineSpec
from imagesmith.machine.qemu import Machine

OVERRIDE = "IMAGESMITH_ACCEL"
"""The environment variable that decides instead of the probe: ``kvm`` or ``tcg``."""
PROBE_SECONDS = 10.0
_VERDICTS = "accelerator.json"
_KVM = Path("/dev/kvm")
# What a kernel without a root file system says (Linux: init/do_mounts.c, init/main.c): it got through all the rest.
_GOOD_PANIC = re.compile(r"Unable to mount root fs|No working init found|Requested init")


@dataclass(frozen=True)
class Accelerator:
    """What guests run under. ``reason`` says why, and ``mend`` how to have KVM (a command, or empty)."""

    name: Literal["kvm", "tcg"]
    reason: str
    mend: str = ""


def qemu_version(host: Host, arch: Arch = "x86_64") -> str:
    """QEMU's version, such as ``7.2.22``. Raises MissingTool."""
    said = host.run([PROGRAMS[arch], "--version"], purpose="run guests").text
    found = re.search(r"version (\S+)", said)
    return found[1] if found else said.strip()[:40]


def kernels() -> list[Path]:
    """Linux kernels on this host that we may read: the running one first, then the others, the newest name first.

    Before them comes the one that libguestfs is told to use (supermin(1), SUPERMIN_KERNEL): in a container there is no
    other.
    """
    told = [Path(os.environ["SUPERMIN_KERNEL"])] if "SUPERMIN_KERNEL" in os.environ else []
    boot = sorted(Path("/boot").glob("vmlinuz-*"), reverse=True)
    modules = sorted(Path("/usr/lib/modules").glob("*/vmlinuz"), reverse=True)
    running = platform.release()
    found = sorted([*boot, *modules], key=lambda path: running not in str(path))
    return [path for path in [*told, *found] if path.is_file() and os.access(path, os.R_OK)]


def accelerator(
    host: Host, cache: Path, log: Callable[[str], None], *, arch: Arch = "x86_64", more_kernels: Sequence[Path] = ()
) -> Accelerator:
    """Decide between KVM and TCG for guests of ``arch``, and say in one line of ``log`` when it is TCG.

    The verdict is kept in the folder ``cache``. ``more_kernels`` are tried with where the host has none that we may
    read. Raises MissingTool (no QEMU), RecipeError (nonsense in IMAGESMITH_ACCEL), Interrupted.
    """
    wanted = os.environ.get(OVERRIDE, "")
    if wanted not in {"", "kvm", "tcg"}:
        raise RecipeError([], f"{OVERRIDE} is '{wanted}'", hint="it may be 'kvm' or 'tcg', or not be set at all")
    if wanted:
        return Accelerator("kvm" if wanted == "kvm" else "tcg", f"{OVERRIDE} says so")
    found = _decide(host, cache, arch, [*kernels(), *more_kernels])
    if found.name == "tcg":
        mend = f" ({found.mend})" if found.mend else ""
        log(f"guests run under TCG, many times slower than KVM: {found.reason}{mend}")
    return found


def _decide(host: Host, cache: Path, arch: Arch, kernels: Sequence[Path]) -> Accelerator:
    if arch != platform.machine():
        return Accelerator("tcg", f"this host is {platform.machine()}, and the guest {arch}")
    if not _KVM.exists():
        return _absent(Path("/proc/cpuinfo").read_text())
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"you may not open {_KVM}", 'sudo usermod -aG kvm "$USER" && newgrp kvm')
    if not kernels:
        return Accelerator("tcg", "there is no Linux kernel that you may read to try KVM with",
                           "sudo chmod +r /boot/vmlinuz-*")  # fmt: skip
    key = _key(host, arch, kernels[0])
    verdicts = _read(cache / _VERDICTS)
    if key not in verdicts:
        verdicts = {old: verdict for old, verdict in verdicts.items() if old.split("|")[0] == key.split("|")[0]}
        verdicts[key] = _try(host, arch, kernels[0])
        _write(cache / _VERDICTS, verdicts)
    return verdicts[key]


def _absent(cpuinfo: str) -> Accelerator:
    """Why there is no ``/dev/kvm``, by the processor's flags (Linux: arch/x86/include/asm/cpufeatures.h)."""
    found = re.search(r"^flags\s*:(.*)$", cpuinfo, re.M)
    flags = set(found[1].split()) if found else set()
    module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else ""
    if module:
        return Accelerator("tcg", f"there is no {_KVM}: its module is not loaded", f"sudo modprobe {module}")
    why = "the processor has no virtualisation, or its firmware switches it off"
    if "hypervisor" in flags:
        why = "this is a virtual machine, and its host does not pass virtualisation on to it"
    return Accelerator("tcg", f"there is no {_KVM}: {why}")


def _key(host: Host, arch: Arch, kernel: Path) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    files = [Path(host.require(PROGRAMS[arch], "run guests")).resolve(), kernel]
    stats = [(str(file), file.stat()) for file in files]
    return "|".join([boot, *(f"{name}|{stat.st_size}|{stat.st_mtime_ns}" for name, stat in stats)])


def _try(host: Host, arch: Arch, kernel: Path) -> Accelerator:
    """Boot a kernel under KVM: two CPUs, as guests have, and no disk."""
    console = "ttyAMA0" if arch == "aarch64" else "ttyS0"
    spec = MachineSpec(arch=arch, accelerator="kvm", cpus=2, network=False, screen=False, kernel=kernel,
                       append=f"console={console} panic=-1 loglevel=4")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        try:
            with Machine(host, spec, Path(folder, "console.log"), purpose="try KVM") as machine:
                why = machine.watch(partial(_stopped, machine), within=PROBE_SECONDS, doing="boot")
        except Interrupted:
            raise
        except TimedOut:
            why = "a Linux kernel hangs under it"
        except GuestFailed as error:
            if _GOOD_PANIC.search(error.message):
                return Accelerator("kvm", f"{kernel.name} boots under it")
            why = error.message
        except ImagesmithError as error:
            why = error.message
    return Accelerator("tcg", "KVM does not work here: " + why.partition("\n")[0][:200].strip())


def _stopped(machine: Machine) -> str | None:
    """Tell whether the virtual CPU has stopped: that is what QEMU does after "KVM internal error"."""
    stopped = machine.qmp.execute("query-status").get("status") == "internal-error"
    return "the virtual CPU stopped with 'KVM internal error'" if stopped else None


def _read(path: Path) -> dict[str, Accelerator]:
    """The verdicts that are kept; none where the file is missing or is not ours."""
    try:
        kept = json.loads(path.read_bytes())
        return {str(key): Accelerator(**verdict) for key, verdict in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, verdicts: dict[str, Accelerator]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:  # mode 0600
            json.dump({key: asdict(verdict) for key, verdict in verdicts.items()}, file, indent=1, sort_keys=True)
        Path(file.name).replace(path)
    except OSError as error:
        raise BuildError(f"cannot keep the verdict on KVM in {path}: {error.strerror}") from error
