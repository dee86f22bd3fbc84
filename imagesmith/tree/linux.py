"""The Linux system calls that Python's library lacks. Numbers are from the kernel's uapi headers, named beside each."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# <linux/sched.h>
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000
# <linux/mount.h>
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_SYS_MOUNT_SETATTR, _MOUNT_ATTR_RDONLY = 442, 1
_SYS_PIVOT_ROOT = 155 if os.uname().machine == "x86_64" else 41  # <asm/unistd_64.h>, <asm-generic/unistd.h>
# <linux/prctl.h>, <linux/capability.h>
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_DUMPABLE = 1, 24, 4
_DROPPED = (16, 17, 22, 25)
"""CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME: no step may load modules into the host, or reboot it."""
# <linux/fs.h>: _IOWR('X', 119, int), _IOWR('X', 120, int)
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
# <linux/loop.h>
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_READ_ONLY, _LO_AUTOCLEAR = 1, 4


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave namespaces behind (unshare(2))."""
    _call(_libc.unshare(flags), "unshare")


def die_with_parent() -> None:
    """Be killed when the thread that started us ends (prctl(2), PR_SET_PDEATHSIG)."""
    _call(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def hide_from_guests() -> None:
    """Let nobody in our user namespace look into this process through /proc (ptrace(2), "Ptrace access mode checking").

    It was executed outside of the namespace, so root in there has no power over it once it is not dumpable.
    """
    _call(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def pivot(root: str) -> None:
    """Make a mounted ``root`` all that this process can see: the old root is gone from its mount namespace.

    The old root is put over the new one and taken away there (pivot_root(2), "pivot_root(".", ".")").
    """
    unshare(NEW_MOUNTS)
    os.chdir(root)
    _call(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), root)
    umount(".")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up, for whatever is executed next, what no step may do to the host's kernel."""
    for capability in _DROPPED:
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the error names the target."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode())
    _call(_libc.mount(*arguments), target)


def umount(target: str, *, detach: bool = True) -> None:
    """umount2(2), at once, whoever still uses it."""
    _call(_libc.umount2(os.fsencode(target), _DETACH if detach else 0), target)


def read_only(target: str) -> None:
    """Make a mount and all below it read-only (mount_setattr(2), Linux 5.12)."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _call(
        _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(target), _AT_RECURSIVE, attributes, len(attributes)),
        target,
    )


def set_host_name(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode("ascii", "ignore")[:64]
    _call(_libc.sethostname(raw, len(raw)), "sethostname")


def flush(fd: int) -> None:
    """Write a file system's dirty data to its medium (syncfs(2))."""
    _call(_libc.syncfs(fd), "syncfs")


def freeze(fd: int, *, thaw: bool = False) -> None:
    """Flush a mounted file system and stop all writes to it, or let it go on (FIFREEZE, FITHAW)."""
    fcntl.ioctl(fd, _FITHAW if thaw else _FIFREEZE, 0)


def attach_loop(path: str, offset: int, size: int, *, read_only: bool) -> tuple[str, int]:
    """Put a free loop device over a part of a file; return its name and a descriptor to keep until it is mounted.

    The kernel lets go of it when nothing uses it any more (LO_FLAGS_AUTOCLEAR). Needs Linux 5.8 (LOOP_CONFIGURE).
    """
    backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(32):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            name = f"/dev/loop{number}"
            if not os.path.exists(name):
                os.mknod(name, 0o660 | stat.S_IFBLK, os.makedev(7, number))
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            flags = _LO_AUTOCLEAR | (_LO_READ_ONLY if read_only else 0)
            # struct loop_config: fd, block_size, struct loop_info64 (device, inode, rdevice, offset, sizelimit,
            # number, encrypt_type, encrypt_key_size, flags, two names of 64, key of 32, init[2]), reserved[8]
            info = struct.pack("=QQQQQIIII64s64s32s2Q", 0, 0, 0, offset, size, 0, 0, 0, flags, b"", b"", b"", 0, 0)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, struct.pack("=II", backing, 0) + info + bytes(64))
                return name, device
            except OSError:
                os.close(device)
                if attempt == 31:
                    raise
    finally:
        os.close(control)
        os.close(backing)
    raise AssertionError("unreachable")
