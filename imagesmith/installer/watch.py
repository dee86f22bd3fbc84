"""What an installation has come to, judged by its lines and by whether anything moves. What runs is in follow.py.

Times are seconds since the machine was switched on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from imagesmith.installer.signs import Reader, Trouble

DID = {"shutdown": "switched the machine off", "reset": "restarted the machine"}
"""How a guest ends by itself (Machine.ended), in words."""
_BEFORE, _AFTER, _LAST = 8, 12, 5
"""Lines around the one that shows a failure that are told with it."""
_SETTLE = 2.0
"""Seconds that a failure's further lines have to come."""
_PHASES_KEPT = 500
_LONGEST = 500
"""Characters of a line that are looked at and kept."""
_EARLY = 120.0
"""Seconds in which a kernel's panic may be the emulator's fault."""
_FAREWELL = 300.0
"""Seconds without a movement after which an installer that is done is switched off, at most: what it says may be that
it is finishing, and packing an initial RAM disk under emulation moves nothing for minutes."""


@dataclass(frozen=True)
class Limits:
    """How long an installation and its parts may take, in seconds; and how often the guest may restart itself."""

    within: float
    read_within: float
    stall: float
    restarts: int = 0


@dataclass(frozen=True)
class Failure:
    """Why there is no use in going on."""

    what: str
    hint: str = ""
    lines: tuple[str, ...] = ()
    """Those that matter, of console and log."""
    late: bool = False
    """Whether it is a deadline that has passed."""
    fluke: bool = False
    """Whether starting again may help."""


class Watch:
    """One installation's state. Feed it, and ask it for ``failure`` and ``news``."""

    def __init__(self, reader: Reader, limits: Limits, *, wants: str = "") -> None:
        """``wants``: the file that the installer must ask for over HTTP."""
        self._reader, self._limits, self.wants = reader, limits, wants
        self._news: list[str] = []
        self._phases: list[tuple[str, float]] = []
        self._seen: set[str] = set()
        self.start()

    def start(self) -> None:
        """The machine starts, for the first time or again."""
        self._context: deque[str] = deque(maxlen=_BEFORE)
        self._trouble: Trouble | None = None
        self._trouble_lines: list[str] = []
        self._trouble_at = self._moved_at = 0.0
        self._read_at: float | None = None
        self._done_at: float | None = None
        self._restarts = 0
        self._stopped = ""
        self._wrote = False

    # -- what happens ------------------------------------------------------------------------------------------

    def line(self, text: str, now: float) -> None:
        """A line came, from the console or in the log."""
        self._moved_at = now
        text = text.strip()[:_LONGEST]
        if not text:
            return
        if self._trouble is not None:
            if len(self._trouble_lines) < _BEFORE + _AFTER:
                self._trouble_lines.append(text)
            return
        self._trouble = self._reader.trouble(text)
        if self._trouble is not None:
            self._trouble_at, self._trouble_lines = now, [*self._context, text]
            return
        self._context.append(text)
        if self._reader.reads(text):
            self.read(now)
        if self._reader.ends(text):
            self._done_at = now
        self._phase(self._reader.phase(text), now)

    def read(self, now: float) -> None:
        """The answer file was read."""
        if self._read_at is None:
            self._read_at = now
            self._news.append(f"answer file read (after {now:.1f} s)")

    def moved(self, now: float, *, wrote: bool = False) -> None:
        """Something was read from, or written to, a disk or the network; ``wrote``: to the disk."""
        self._moved_at = now
        self._wrote = self._wrote or wrote

    def restarted(self, times: int) -> None:
        """The guest has restarted itself so often by now."""
        self._restarts = times

    def stopped(self, status: str) -> None:
        """QEMU has stopped the machine (QMP: RunState); ``io-error`` where the host's disk is full."""
        self._stopped = status

    def _phase(self, name: str, now: float) -> None:
        if name and name not in self._seen and len(self._phases) < _PHASES_KEPT:
            self._seen.add(name)
            self._phases.append((name, now))
            self._news.append(f"phase: {name} (after {now:.0f} s)")

    # -- what is to be told ------------------------------------------------------------------------------------

    def news(self) -> list[str]:
        """What is worth telling since the last call."""
        news, self._news = self._news, []
        return news

    def summary(self, now: float) -> list[str]:
        """How long each phase took."""
        ends = [*(at for _, at in self._phases[1:]), now]
        return [f"took: {name}: {end - at:.0f} s" for (name, at), end in zip(self._phases, ends, strict=False)]

    @property
    def where(self) -> str:
        """What it was doing last; nothing where that is not known."""
        return f"; it was last at: {self._phases[-1][0]}" if self._phases else ""

    def done(self, now: float) -> bool:
        """Whether the installer said so, and nothing has moved since: it waits to be switched off."""
        patience = min(_FAREWELL, self._limits.stall * 0.9)
        return self._done_at is not None and now - max(self._done_at, self._moved_at) >= patience

    def failure(self, now: float) -> Failure | None:
        """Why there is no use in going on; None while there is."""
        if self._trouble is not None and (
            now - self._trouble_at >= _SETTLE or len(self._trouble_lines) >= _BEFORE + _AFTER
        ):
            return self._trouble_told(now)
        limits = self._limits
        if self._stopped:
            full = self._stopped == "io-error"
            why = "this host cannot write the guest's disk any more" if full else f"QEMU says '{self._stopped}'"
            return Failure(f"the machine was stopped: {why}{self.where}",
                           "make space where the store is (imagesmith cache gc)" if full else "")  # fmt: skip
        if self._restarts > limits.restarts:
            return Failure(f"the guest restarts itself again and again ({self._restarts} times so far){self.where}",
                           "the console's log shows where each start ends")  # fmt: skip
        if now >= limits.within:
            return Failure(f"the installation was not over after {limits.within:g} s{self.where}",
                           "where that is too short for this host, the base takes a longer 'within'",
                           late=True)  # fmt: skip
        if now >= limits.read_within and (why := self._unread()):
            return Failure(f"{why} within {limits.read_within:g} s", self._unread_hint(), late=True)
        if now - self._moved_at >= limits.stall:
            return Failure(
                f"the installation hangs: nothing moved for {limits.stall:g} s, neither console and log nor disk and "
                f"network{self.where}",
                "perhaps it asks a question that the answer file does not answer: see the console's log and the "
                "picture of its screen", tuple(self._context)[-_LAST:], late=True)  # fmt: skip
        return None

    def ending(self, how: str, now: float) -> Failure | None:
        """Why the machine's end is no good one; ``how`` as in Machine.ended."""
        if self._trouble is not None:
            return self._trouble_told(now)
        if how not in DID:
            return Failure(f"the installation ended after {now:.0f} s, because {how}{self.where}",
                           "is the host out of memory?" if "SIGKILL" in how else "")  # fmt: skip
        did = f"the installer {DID[how]}"
        if self._unread():
            return Failure(f"{did} after {now:.0f} s without having read its answer file", self._unread_hint())
        if self._reader.tells_end and self._done_at is None:
            return Failure(f"{did} after {now:.0f} s without having said that it is done{self.where}",
                           lines=tuple(self._context))  # fmt: skip
        return None

    # -- inside ------------------------------------------------------------------------------------------------

    def _trouble_told(self, now: float) -> Failure:
        trouble = self._trouble
        assert trouble is not None
        fluke = trouble.fluke and now < _EARLY and not self._wrote and not self._phases and self._read_at is None
        return Failure(f"{trouble.meaning}{self.where}", lines=tuple(self._trouble_lines), fluke=fluke)

    def _unread(self) -> str:
        """What the installer has not done with its answer file; nothing where it has, or where that cannot be seen."""
        if self._read_at is not None:
            return ""
        if self.wants:
            return f"the installer did not ask for {self.wants}"
        return "the installer did not read its answer file" if self._reader.tells_reading else ""

    def _unread_hint(self) -> str:
        return ("has the guest got a network, and does this installer know the kernel argument that names the file?"
                if self.wants else "is it the right kind of answer file, delivered as this installer likes it? "
                "'deliver' chooses another way, and 'read_within' gives a slow machine more time")  # fmt: skip
