"""How a build's events are shown: live on a terminal, as plain lines, for GitHub's log or as JSON; always on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from imagesmith.events import Event, Listener
from imagesmith.view_plain import Plain
from imagesmith.view_words import duration

if TYPE_CHECKING:
    from imagesmith.view_live import Picture

__all__ = ["STYLES", "Shown", "duration", "shown"]
STYLES = ("text", "json", "github")
"""Of --log-format."""


class Shown:
    """A listener that shows events, from any thread."""

    def __init__(self, show: Listener, live: Picture | None = None) -> None:
        self._show, self._live = show, live
        self._lock, self._aside = threading.RLock(), False

    def __call__(self, event: Event) -> None:
        """Show an event."""
        with self._lock:
            if not self._aside:
                self._show(event)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to somebody else: this thread's events are not shown meanwhile, and other threads wait."""
        with self._lock:
            self._aside = True
            if self._live is not None:
                self._live.stop()
            try:
                yield
            finally:
                self._aside = False
                if self._live is not None:
                    self._live.start()


@contextmanager
def shown(style: str, *, verbose: bool = False) -> Iterator[Shown]:
    """Show events while the block runs. ``style`` is one of STYLES; ``text`` is live where stderr is a terminal."""
    if style == "json":
        yield Shown(lambda event: _write(json.dumps(event.plain(), ensure_ascii=False, default=str)))
    elif style == "github":
        from imagesmith.view_github import GitHub

        view = GitHub(_write)
        try:
            yield Shown(view)
        finally:
            view.close()
    elif _can_be_drawn_on():
        with _picture(verbose) as picture:
            yield Shown(picture, picture)
    else:
        yield Shown(Plain(_write, verbose=verbose))


def _picture(verbose: bool) -> AbstractContextManager[Picture]:
    from imagesmith.view_live import Picture  # rich takes its time to be imported

    return Picture(sys.stderr, verbose=verbose)


def _can_be_drawn_on() -> bool:
    """Whether stderr is a terminal that can move its cursor and show the tree's characters."""
    utf8 = (sys.stderr.encoding or "").lower().replace("-", "") == "utf8"
    return utf8 and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


def _write(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
