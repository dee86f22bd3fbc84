"""The agent: a process of its own that lives in namespaces, mounts a root, and does what a session asks.

Started by ``imagesmith.tree`` with its descriptors 0 and 1 as pipes (see ``wire``). It is process 1 of its process
namespace and dies with the session, so that nothing it started or mounted survives.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import select
import signal
import tarfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from imagesmith.tree import guest, linux, terminal, wire
from imagesmith.tree.furnish import Furniture
from imagesmith.tree.mounts import KINDS, Mounted

_IN, _OUT = 0, 1


def main() -> NoReturn:
    """Enter the namespaces, and serve until the session ends."""
    linux.die_with_parent()
    begin, _ = wire.receive(_IN)
    try:
        flags = linux.NEW_MOUNTS | linux.NEW_PIDS | linux.NEW_IPC | linux.NEW_UTS
        linux.unshare(flags | (linux.NEW_USER if begin["user"] else 0))
    except OSError as error:
        _fail(error, "namespaces")
        os._exit(1)
    wire.send(_OUT, {"ok": True})
    wire.receive(_IN)  # the identity maps are written
    linux.die_with_parent()
    if begin["user"]:
        linux.hide_from_guests()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child:
        for fd in (_IN, _OUT):
            os.close(fd)
        # Asked to end, we end when the last process in there has: the kernel ends them all with process 1.
        signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    linux.die_with_parent()
    try:
        _Agent(begin).serve()
    except (EOFError, BrokenPipeError):
        pass  # the session is gone
    except OSError as error:
        _fail(error, "mount")
    os._exit(0)


def _fail(error: BaseException, where: str = "") -> None:
    number = error.errno if isinstance(error, OSError) else None
    name = str(error.filename or "") if isinstance(error, OSError) else ""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    wire.send(_OUT, {"error": text, "errno": number, "path": name, "where": where})


class _Agent:
    def __init__(self, begin: Mapping[str, Any]) -> None:
        self._errors = os.dup(2)
        self._user: bool = begin["user"]
        os.setgid(0)
        os.setuid(0)
        os.setgroups([])
        os.umask(0o022)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))  # some programs close them all
        linux.mount("none", "/", flags=linux.PRIVATE | linux.RECURSIVE)
        options = dict(begin["mount"] or {})
        if begin["kind"] == "BlockMount":  # its path may lead through the /proc that we are about to hide
            options["path"] = f"/proc/self/fd/{os.open(options['path'], os.O_RDONLY | os.O_CLOEXEC)}"
        try:
            linux.mount("proc", "/proc", "proc", linux.NOSUID | linux.NODEV | linux.NOEXEC)
        except PermissionError:
            pass  # a container that hides parts of /proc: its own must do
        with suppress(OSError):
            linux.read_only("/sys")  # nothing that runs here shall set up the host
        self._resolver: bytes = begin["resolver"].encode()
        self._since: float = begin["since"]
        self._epoch: int = begin["epoch"]
        self._furniture: Furniture | None = None
        self._touched: list[str] = []
        self._mounted: Mounted | None = None
        if begin["mount"] is not None:
            if "layers" in options:
                options["layers"] = tuple(options["layers"])
            self._mounted = Mounted(KINDS[begin["kind"]](**options))
            self._root = self._mounted.place
        self._answers: dict[str, Callable[[dict[str, Any], bytes], dict[str, Any]]] = {
            "run": self._run, "inside": self._inside, "read": self._read, "exists": self._exists,
            "unpack": self._unpack, "remove": self._remove, "pack": self._pack, "settle": self._settle,
            "freeze": self._freeze, "finish": self._finish, "shell": self._shell,
        }  # fmt: skip

    def serve(self) -> None:
        """Answer requests until there are no more."""
        wire.send(_OUT, {"ok": True, "place": self._root if self._mounted else ""})
        while True:
            request, payload = wire.receive(_IN)
            if request["op"] in terminal.TYPED:  # for a shell that has ended meanwhile
                continue
            try:
                answer = self._answers[request["op"]](request, payload)
            except OSError as error:
                _fail(error)
                continue
            wire.send(_OUT, {"ok": True, **answer})

    # -- programs ------------------------------------------------------------------------------------------------

    def _run(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        """Run one of the guest's programs."""
        self._furnish()
        return {"status": self._program(request["argv"], request["env"], payload, self._enter)}

    def _enter(self) -> None:
        """Make the guest's root this process's, for what is executed next."""
        if self._user:  # a chroot holds nobody who is root and wants out
            linux.pivot(self._root)
        else:  # a namespace of a program that lingers would keep the disk's file system from being unmounted
            guest.enter(self._root)
        linux.drop_capabilities()

    def _inside(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        """Run one of the host's programs, with nothing of ours in the root."""
        self._settle(request, payload)
        return {"status": self._program(request["argv"], request["env"], payload, lambda: os.chdir(request["cwd"]))}

    def _program(self, argv: list[str], env: dict[str, str], stdin: bytes, enter: Callable[[], None]) -> int:
        source = os.memfd_create("stdin") if stdin else os.open("/dev/null", os.O_RDONLY)
        if stdin:
            with open(os.dup(source), "wb") as memory:
                memory.write(stdin)
            os.lseek(source, 0, os.SEEK_SET)
        out, end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                os.dup2(source, 0)
                os.dup2(end, 1)
                os.dup2(end, 2)
                for number in (signal.SIGPIPE, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                enter()
                os.execvpe(argv[0], argv, env)
            except BaseException as error:  # this process must end here, whatever happened
                os.write(2, f"{argv[0]}: cannot be run: {getattr(error, 'strerror', None) or error}\n".encode())
            os._exit(127)
        os.close(end)
        os.close(source)
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 1 << 18)
        try:
            return self._watch(child, out)
        finally:
            os.close(out)

    def _watch(self, child: int, out: int) -> int:
        """Pass output on until the program ends; what it left running must not hold us up."""
        os.set_blocking(out, False)
        poll = select.poll()
        poll.register(out, select.POLLIN)
        poll.register(_IN, select.POLLIN)
        ended = os.pidfd_open(child)
        poll.register(ended, select.POLLIN)
        open_ = True
        try:
            while True:
                events = dict(poll.poll())
                if _IN in events:  # nobody asks anything now: the session is gone, or gave the program up
                    request, payload = wire.receive(_IN)
                    wire.send(_OUT, {"ok": True, **self._shell(request, payload)})
                if open_ and out in events and not self._pass_on(out):
                    poll.unregister(out)
                    open_ = False
                if ended in events:
                    break
            _, status = os.waitpid(child, 0)
            while open_ and self._pass_on(out):
                pass
        finally:
            os.close(ended)
        _reap()
        return os.waitstatus_to_exitcode(status)

    def _pass_on(self, out: int) -> bool:
        """Send on what is there; return whether there was any."""
        try:
            data = os.read(out, 1 << 18)
        except BlockingIOError:
            return False
        if data:
            wire.send(_OUT, {"more": True}, data)
        return bool(data)

    def _shell(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        """Run a shell of the guest's at a terminal of its own, which the session passes on."""
        self._furnish()
        assert self._furniture is not None
        place = f"{self._root}/dev"
        master, slave = terminal.pair(f"{place}/pts/ptmx" if place in self._furniture.mounted else "/dev/ptmx")
        terminal.resize(master, request)
        child = os.fork()
        if child == 0:
            try:
                terminal.take(slave)
                for number in (signal.SIGPIPE, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)
                self._enter()
                for argv in request["shells"]:
                    with suppress(OSError):
                        os.execve(argv[0], argv, request["env"])
                os.write(2, b"there is no shell in this root file system\r\n")
            except BaseException as error:  # this process must end here, whatever happened
                os.write(2, f"no shell can be run: {error}\r\n".encode())
            os._exit(127)
        os.close(slave)
        try:
            terminal.pass_on(master, child, _IN, _OUT)
        finally:
            os.close(master)
        return {"ended": True}

    # -- files ---------------------------------------------------------------------------------------------------

    def _in_child(self, work: Callable[[], object], *, in_root: bool = True) -> Any:
        """Do something in a process that cannot come back from the root; return what it returns, raise what it raises.

        The child may use the pipes to the session meanwhile.
        """
        result, end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if in_root:
                    guest.enter(self._root)
                found: tuple[bool, object] = (True, work())
            except (OSError, tarfile.TarError) as error:
                if isinstance(error, OSError):
                    found = (False, OSError(error.errno, error.strerror, error.filename))
                else:
                    found = (False, OSError(0, str(error), ""))
            except BaseException:
                found = (False, OSError(0, traceback.format_exc(), ""))
            with open(end, "wb") as stream:
                stream.write(pickle.dumps(found))
            os._exit(0)
        os.close(end)
        with open(result, "rb") as stream:
            data = stream.read()
        os.waitpid(child, 0)
        if not data:
            raise OSError(0, "a helper process was killed", "")
        good, value = pickle.loads(data)
        if good:
            return value
        raise value

    def _read(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        def work() -> None:
            for data in guest.read(request["path"], wire.CHUNK):
                wire.send(_OUT, {"more": True}, data)

        self._in_child(work)
        return {}

    def _exists(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        return {"value": self._in_child(lambda: os.path.exists(request["path"]))}

    def _unpack(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        self._furnish()

        def work() -> None:
            stream = _Frames()
            try:
                guest.unpack(stream)  # type: ignore[arg-type]  # read() is all that is used
            finally:
                stream.drain()

        self._in_child(work)
        return {}

    def _remove(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        self._furnish()
        self._in_child(lambda: guest.remove(request["paths"]))
        return {}

    def _pack(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        """Have the host's GNU tar write the whole root; the session gives the command and the first names."""
        self._settle(request, payload)
        names = b"".join(os.fsencode(name) + b"\0" for name in sorted(os.listdir(self._root)))
        return {"status": self._program(request["argv"], request["env"], names, self._to_errors)}

    def _to_errors(self) -> None:
        os.dup2(self._errors, 2)

    # -- coming and going ----------------------------------------------------------------------------------------

    def _furnish(self) -> None:
        """See to it that what programs expect is there. Files come after that too: ``/run`` is not the layer's."""
        if self._furniture is not None:
            return
        furniture = Furniture(self._resolver)
        furniture.mount(self._root)

        def lend() -> Furniture:
            furniture.lend()
            return furniture

        self._furniture = self._in_child(lend)
        try:
            name = self._in_child(lambda: next(guest.read("/etc/hostname", 256), b"").decode("ascii", "ignore").strip())
        except OSError:
            name = ""
        linux.set_host_name(name or "localhost")

    def _settle(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        """End every program that still runs, and take back what was lent to them."""
        try:
            os.kill(-1, signal.SIGKILL)
            while True:
                os.waitpid(-1, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        if self._furniture is not None:
            furniture = self._furniture

            def take_back() -> Furniture:
                furniture.take_back()
                return furniture

            furniture = self._in_child(take_back)
            furniture.unmount(self._root)
            self._touched += [lent.path for lent in furniture.lent]
            self._furniture = None
        return {}

    def _freeze(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        fd = os.open(self._root, os.O_RDONLY)
        try:
            linux.freeze(fd, thaw=request["thaw"])
        finally:
            os.close(fd)
        return {}

    def _finish(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        self._settle(request, payload)
        if self._mounted is not None:
            self._mounted.close(touched=self._touched, since=self._since, epoch=self._epoch)
            self._mounted = None
        return {}


class _Frames:
    """A stream's frames as a file to read; a frame without payload ends it."""

    def __init__(self) -> None:
        self._rest = memoryview(b"")
        self._ended = False

    def read(self, size: int) -> bytes:
        if not self._rest and not self._ended:
            self._rest = memoryview(wire.receive(_IN)[1])
            self._ended = not self._rest
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    def drain(self) -> None:
        while not self._ended:
            self._rest = memoryview(b"")
            self.read(1)


def _reap() -> None:
    """Collect what programs left behind: process 1 is everybody's parent."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
