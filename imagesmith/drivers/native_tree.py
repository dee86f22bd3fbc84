"""The native driver for trees: every step works in an overlay of the layers below and a new upper directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagesmith import tree
from imagesmith.host import Host
from imagesmith.interfaces import Log, Root


@dataclass
class NativeTree:
    """Opens sessions on layers of trees, rootless: namespaces of the kernel, and no guest that runs."""

    host: Host
    name: str = "native"

    @contextmanager
    def session(self, below: Sequence[Path], *, epoch: int, log: Log) -> Iterator[TreeSession]:
        """See ``interfaces.Driver.session``. There is nothing to keep open between steps: a mount takes 0.1 s."""
        yield TreeSession(self.host, epoch, list(below))


@dataclass
class TreeSession:
    """See ``interfaces.Session``."""

    host: Host
    epoch: int
    below: list[Path] = field(default_factory=list)

    @contextmanager
    def layer(
        self, into: Path, *, log: Log, timeout: float | None = None, below: Path | None = None, resumable: bool = False
    ) -> Iterator[Root]:
        """See ``interfaces.Session.layer``."""
        self.below[-1] = below or self.below[-1]
        upper, work = into / "upper", into / "work"
        upper.mkdir(mode=0o755)
        work.mkdir(mode=0o755)
        layers = tuple(str(folder.absolute() / "upper") for folder in self.below)
        mount = tree.OverlayMount(layers, str(upper.absolute()), str(work.absolute()))
        with tree.open_root(self.host, mount, epoch=self.epoch, log=log, timeout=timeout) as root:
            yield root
        self.below.append(into)
