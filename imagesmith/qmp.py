"""The control connection to QEMU and to its storage daemon, without asyncio for whoever uses it.

Speaks the QEMU Machine Protocol (QEMU's documentation, "QEMU Machine Protocol Specification") through the library
``qemu.qmp``, whose event loop runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Self, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from imagesmith.errors import TimedOut, ToolFailed

_T = TypeVar("_T")
Event = dict[str, Any]
"""One event as it came: ``event``, ``data``, ``timestamp``."""
ANSWER_SECONDS = 60.0
"""How long a command may take unless its caller knows better; a busy host under TCG needs seconds at times."""
_EVENTS_KEPT = 1000


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets: keep the first, hand the second to the program (``pass_fds``) and close it then.

    A program that is given ``-chardev socket,id=…,fd=N`` speaks on it at once. There is no name in a file system that
    someone else could open or that could be left behind, and either side notices when the other one dies.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return ours, theirs


class Qmp:
    """One control connection. Use it as a context manager; its methods may be called from any thread."""

    def __init__(
        self,
        address: Path | socket.socket,
        *,
        name: str = "QEMU",
        alive: Callable[[], bool] = lambda: True,
        within: float = ANSWER_SECONDS,
    ) -> None:
        """Connect and negotiate.

        ``address`` is a UNIX socket's path (at most 107 bytes, <linux/un.h>), waited for until it is there, or a
        connected socket. ``name`` is for messages. ``alive`` tells whether the program still runs: when it does not,
        waiting ends at once. Raises TimedOut after ``within`` seconds, ToolFailed.
        """
        self._name = name
        self._alive = alive
        self._events: deque[Event] = deque(maxlen=_EVENTS_KEPT)
        self._news = threading.Condition()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp {name}", daemon=True)
        self._thread.start()
        self._client: QMPClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        try:
            self._connect(address, time.monotonic() + within)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what it is for ----------------------------------------------------------------------------------------

    def execute(
        self, command: str, named: Mapping[str, Any] | None = None, /, *, within: float = ANSWER_SECONDS, **more: Any
    ) -> Any:
        """Run a command and return its answer.

        Arguments whose names have dashes go in as a mapping: ``execute("blockdev-del", {"node-name": …})``. Raises
        ToolFailed (the error's text; also when the connection is gone) and TimedOut after ``within`` seconds.
        """
        client, arguments = self._client, {**(named or {}), **more}
        if self._closed or client is None:
            raise self._gone(command)
        return self._wait(lambda: client.execute(command, arguments or None), within, command)

    def send_file(self, name: str, descriptor: int) -> None:
        """Give the program an open file, which it knows by ``name`` then (QMP: ``getfd``). Raises ToolFailed, TimedOut.

        The caller's own descriptor stays open.
        """
        client = self._client
        if self._closed or client is None:
            raise self._gone("getfd")

        async def send() -> Any:
            client.send_fd_scm(descriptor)
            return await client.execute("getfd", {"fdname": name})

        self._wait(send, ANSWER_SECONDS, "getfd")

    def wait_event(
        self, *names: str, within: float, match: Callable[[Event], bool] = lambda event: True
    ) -> Event:
        """Return the oldest event of these names that ``match`` accepts, and take it from the queue.

        Raises TimedOut after ``within`` seconds, ToolFailed when the connection ends first.
        """
        deadline = time.monotonic() + within
        with self._news:
            while True:
                for event in self._events:
                    if event["event"] in names and match(event):
                        self._events.remove(event)
                        return event
                if self._closed:
                    raise self._gone("wait for " + "/".join(names))
                if not self._news.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise TimedOut(f"{self._name} did not report {'/'.join(names)} within {within:g} s")

    def events(self) -> list[Event]:
        """Take every event that has come, the oldest first (the last 1000 are kept)."""
        with self._news:
            taken = list(self._events)
            self._events.clear()
            return taken

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, from either side."""
        return self._closed

    def close(self) -> None:
        """End the connection; the program at the other end goes on."""
        if not self._loop.is_closed() and self._thread.is_alive():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            if not self._thread.is_alive():
                self._loop.close()
        self._ended()

    # -- inside ------------------------------------------------------------------------------------------------

    def _connect(self, address: Path | socket.socket, deadline: float) -> None:
        while True:
            try:
                left = max(0.1, deadline - time.monotonic())
                self._wait(lambda: self._open(address), left, "connect")
                return
            except ToolFailed:
                # A path is there a moment after the program has started; a socket that we were handed is there now.
                if isinstance(address, socket.socket) or not self._alive():
                    raise
                if time.monotonic() > deadline:
                    raise TimedOut(f"{self._name} did not open its control socket") from None
                time.sleep(0.02)

    async def _open(self, address: Path | socket.socket) -> None:
        client = QMPClient(self._name)
        await client.connect(address if isinstance(address, socket.socket) else str(address))
        self._client = client
        self._tasks = [asyncio.create_task(self._collect(client)), asyncio.create_task(self._watch(client))]

    async def _collect(self, client: QMPClient) -> None:
        while True:
            event = dict(await client.events.get())
            with self._news:
                self._events.append(event)
                self._news.notify_all()

    async def _watch(self, client: QMPClient) -> None:
        while client.runstate is Runstate.RUNNING:
            await client.runstate_changed()
        # Events that arrived together with the end must not be lost: let _collect see them first.
        await asyncio.sleep(0)
        self._ended()

    async def _disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._client is not None:
            with contextlib.suppress(QMPError, OSError, EOFError):
                await self._client.disconnect()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _ended(self) -> None:
        with self._news:
            self._closed = True
            self._news.notify_all()

    def _wait(self, work: Callable[[], Coroutine[Any, Any, _T]], within: float, doing: str) -> _T:
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result(within)
        except FutureTimeout:
            future.cancel()
            raise TimedOut(f"{self._name} did not answer '{doing}' within {within:g} s") from None
        except ExecuteError as error:
            raise ToolFailed(f"{self._name} refused '{doing}': {error}") from error
        except ExecInterruptedError as error:
            raise self._gone(doing) from error
        except (QMPError, OSError, EOFError) as error:
            raise self._gone(doing) from error

    def _gone(self, doing: str) -> ToolFailed:
        return ToolFailed(f"{self._name} ended, or closed its control connection, at '{doing}'")
