"""From a machine's description to QEMU's command line: pure, so that golden files can hold it still.

Options are those of QEMU's manual (qemu-system-x86_64(1), "Invocation"); block devices are given as the JSON of
QMP's ``blockdev-add``, in which a comma in a file's name means nothing special.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagesmith.errors import BuildError

Arch = Literal["x86_64", "aarch64"]
CONTROL_PORT = "org.imagesmith.control"
"""The guest's name of the control channel: /dev/virtio-ports/org.imagesmith.control."""
PROGRAMS = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
_MIB = 1024 * 1024


@dataclass(frozen=True)
class Firmware:
    """What the machine starts with. ``code`` and ``variables`` are flash images; BIOS has none (it is in QEMU)."""

    name: Literal["bios", "uefi", "uefi-secure"] = "bios"
    code: Path | None = None
    code_format: str = "raw"
    variables: Path | None = None
    """This machine's own copy: it will be written."""
    variables_format: str = "raw"


@dataclass(frozen=True)
class Drive:
    """A disk. The first one of a machine is what it boots from."""

    path: Path
    """A file; with the format ``nbd`` the UNIX socket of a server that offers the export ``disk`` (disk/attach.py)."""
    format: Literal["qcow2", "raw", "nbd"] = "qcow2"
    throw_away: bool = True
    """Ignore the guest's flushes: quick, and lost if the host loses power."""
    read_only: bool = False


@dataclass(frozen=True)
class MachineSpec:
    """A machine's virtual hardware."""

    arch: Arch = "x86_64"
    accelerator: Literal["kvm", "tcg"] = "tcg"
    cpu: str = ""
    """QEMU's CPU model; by default ``host`` under KVM and ``max`` under TCG."""
    cpus: int = 1
    memory: int = 512 * _MIB
    """Bytes."""
    memory_file: bool = False
    """Whether its memory is a file of ours (Machine.memory), so that its state can be kept without copying it. What the
    guest frees becomes a hole of it within seconds, where the guest has a driver for that."""
    firmware: Firmware = Firmware()
    drives: tuple[Drive, ...] = ()
    cdroms: tuple[Path, ...] = ()
    network: bool = True
    """One virtio network card behind QEMU's user networking: the guest sees 10.0.2.0/24."""
    screen: bool = True
    """A VGA adapter, shown nowhere, for screenshots."""
    reboots: bool = False
    """Whether the guest may restart itself; otherwise QEMU ends when it tries."""
    generation: bool = False
    """Tell the guest whenever it is another one than it was (vmgenid, x86_64), so that its random numbers are, too."""
    incoming: bool = False
    """Wait for the state of another machine of the same kind (checkpoint.py) instead of starting."""
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    """The kernel's command line, where ``kernel`` is booted directly."""
    floppy: Path | None = None
    """A raw image of a floppy disk (x86_64)."""
    fw_cfg: tuple[tuple[str, Path], ...] = ()
    """Items of the firmware configuration device: name (``opt/…``) and file (QEMU: docs/specs/fw_cfg.rst)."""
    ports: tuple[str, ...] = ()
    """Names of more virtio-serial ports, beside the control channel's; see Machine.ports."""
    tpm: Path | None = None
    """The control socket of a TPM 2.0 emulator (swtpm)."""


@dataclass(frozen=True)
class Wires:
    """The file descriptors, inherited by QEMU, of its sockets to us."""

    monitor: int
    console: int
    control: int | None = None
    ports: tuple[int, ...] = ()
    """One for each of MachineSpec.ports."""
    memory: int | None = None
    """Its memory's file, where MachineSpec.memory_file says so."""


def arguments(spec: MachineSpec, wires: Wires) -> list[str]:
    """Return QEMU's whole command line, the program first. Raises BuildError for hardware that does not exist."""
    found = [PROGRAMS[spec.arch], "-name", "imagesmith", "-no-user-config", "-nodefaults", "-display", "none"]
    if spec.memory_file:
        # Shared, so that what the guest writes is in the file, and its migration stream has no need of it.
        found += ["-object", f"memory-backend-file,id=memory,size={-(-spec.memory // _MIB)}M,share=on,"
                             f"mem-path=/proc/self/fd/{wires.memory}"]  # fmt: skip
    found += ["-machine", _machine(spec)]
    found += ["-accel", "kvm" if spec.accelerator == "kvm" else "tcg,thread=multi"]
    found += ["-cpu", spec.cpu or ("host" if spec.accelerator == "kvm" else "max")]
    found += ["-smp", str(spec.cpus), "-m", f"{-(-spec.memory // _MIB)}M"]
    found += _firmware(spec.arch, spec.firmware)
    if not spec.reboots:
        found.append("-no-reboot")
    found += ["-chardev", f"socket,id=monitor,fd={wires.monitor}", "-mon", "chardev=monitor,mode=control"]
    found += ["-chardev", f"socket,id=console,fd={wires.console}", "-serial", "chardev:console"]
    if wires.control is not None or wires.ports:
        found += ["-device", "virtio-serial-pci"]
    if wires.control is not None:
        found += ["-chardev", f"socket,id=control,fd={wires.control}"]
        found += ["-device", f"virtserialport,id=control,chardev=control,name={CONTROL_PORT}"]
    for number, (name, wire) in enumerate(zip(spec.ports, wires.ports, strict=True)):
        found += ["-chardev", f"socket,id=port{number},fd={wire}"]
        found += ["-device", f"virtserialport,chardev=port{number},name={name}"]
    # Without an entropy source a guest under TCG can wait for minutes until it has random numbers for its keys.
    found += ["-device", "virtio-rng-pci"]
    if spec.screen:
        found += ["-device", "VGA" if spec.arch == "x86_64" else "ramfb"]
        if spec.arch == "aarch64":  # a PC has a keyboard; here one must be plugged in to type (QMP: send-key)
            found += ["-device", "qemu-xhci", "-device", "usb-kbd"]
    if spec.network:
        # No option ROM: nothing boots from the network here, and trying costs a minute.
        found += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
    for number, drive in enumerate(spec.drives):
        found += _drive(drive, f"disk{number}", number + 1)
    for number, cdrom in enumerate(spec.cdroms):
        found += _cdrom(spec.arch, cdrom, number, len(spec.drives) + number + 1)
    if spec.floppy is not None:
        found += _blockdev("floppy", spec.floppy, "raw", read_only=True)
        # Only as long as an installer runs: q35 has a controller for it where one is asked for.
        found += ["-device", "isa-fdc,id=fdc", "-device", "floppy,drive=floppy,bus=fdc.0"]
    for name, path in spec.fw_cfg:
        found += ["-fw_cfg", f"name={name},file={_plain(path)}"]
    if spec.tpm is not None:
        found += ["-chardev", f"socket,id=tpm,path={_plain(spec.tpm)}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        found += ["-device", f"{'tpm-crb' if spec.arch == 'x86_64' else 'tpm-tis-device'},tpmdev=tpm0"]
    if spec.generation and spec.arch == "x86_64":
        found += ["-device", "vmgenid,guid=auto"]
    if spec.memory_file:
        # The guest tells which pages are free (virtio 1.2, "Traditional Memory Balloon Device", "Free Page Reporting"),
        # and QEMU makes holes of them. It comes last: the others keep their addresses, and the network card its name.
        found += ["-device", "virtio-balloon-pci,free-page-reporting=on"]
    if spec.incoming:
        found += ["-incoming", "defer"]
    if spec.kernel is not None:
        found += ["-kernel", _plain(spec.kernel)]
        if spec.initrd is not None:
            found += ["-initrd", _plain(spec.initrd)]
        if spec.append:
            found += ["-append", spec.append]
    return found


def _machine(spec: MachineSpec) -> str:
    if spec.arch == "aarch64":
        if spec.firmware.name == "bios" and spec.kernel is None:
            raise BuildError("an aarch64 machine has no BIOS", hint="write 'firmware: uefi' under 'machine'")
        options = ["virt"]
    else:
        # graphics=off does not take the screen away: it makes SeaBIOS speak on the serial console as well, so that
        # "No bootable device" can be seen without looking at pictures (QEMU: fw_cfg file etc/sercon-port).
        options = ["q35", "graphics=off"]
        if spec.firmware.name == "uefi-secure":
            options.append("smm=on")
    if spec.firmware.code is not None:
        options += ["pflash0=code", "pflash1=variables"]
    if spec.memory_file:
        options.append("memory-backend=memory")
    return ",".join(options)


def _firmware(arch: Arch, firmware: Firmware) -> list[str]:
    if firmware.code is None or firmware.variables is None:
        return []
    found = []
    if firmware.name == "uefi-secure" and arch == "x86_64":
        # Only code in system management mode may write the variables (OVMF's README, "SMM support").
        found += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    found += _blockdev("code", firmware.code, firmware.code_format, read_only=True)
    found += _blockdev("variables", firmware.variables, firmware.variables_format)
    return found


def _drive(drive: Drive, name: str, boot: int) -> list[str]:
    cache = {"no-flush": True} if drive.throw_away else None
    found = _blockdev(name, drive.path, drive.format, read_only=drive.read_only, cache=cache)
    return [*found, "-device", f"virtio-blk-pci,drive={name},bootindex={boot}"]


def _cdrom(arch: Arch, path: Path, number: int, boot: int) -> list[str]:
    name = f"cd{number}"
    found = _blockdev(name, path, "raw", read_only=True)
    if arch == "aarch64":
        return [*found, "-device", f"virtio-scsi-pci,id={name}-bus",
                "-device", f"scsi-cd,bus={name}-bus.0,drive={name},bootindex={boot}"]  # fmt: skip
    # One drive for each of q35's six ports.
    return [*found, "-device", f"ide-cd,bus=ide.{number},drive={name},bootindex={boot}"]


def _blockdev(
    name: str, path: Path, format: str, *, read_only: bool = False, cache: dict[str, bool] | None = None
) -> list[str]:
    node: dict[str, object] = {"driver": format, "node-name": name, "read-only": read_only, "discard": "unmap"}
    if format == "nbd":
        node |= {"server": {"type": "unix", "path": str(path)}, "export": "disk"}
        return ["-blockdev", json.dumps(node, sort_keys=True, separators=(",", ":"))]
    below: dict[str, object] = {"driver": "file", "filename": str(path), "discard": "unmap"}
    if cache is not None:
        node["cache"] = below["cache"] = cache
    node["file"] = below
    return ["-blockdev", json.dumps(node, sort_keys=True, separators=(",", ":"))]


def _plain(path: Path) -> str:
    if "," in str(path):
        raise BuildError(f"QEMU cannot take a file whose name has a comma here: {path}")
    return str(path)
