"""A small Debian root file system, made once for the tests of trees, steps and the bootstrap base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagesmith import kinds, tree
from imagesmith.archive import Archive
from imagesmith.host import Host
from imagesmith.interfaces import Root

EPOCH = 1_700_000_000


class Shop:
    """A workshop without a store."""

    def __init__(self, *, epoch: int = EPOCH) -> None:
        self.host, self.arch, self.epoch, self.seed = Host(), "x86_64", epoch, "00"
        self.lines: list[str] = []
        self.log = self.lines.append

    @contextmanager
    def tree(self, directory: Path) -> Iterator[Root]:
        with tree.open_root(self.host, tree.DirectoryMount(str(directory)), epoch=self.epoch, log=self.log) as root:
            yield root

    def inside(self, argv: Sequence[str], *, purpose: str, env: Mapping[str, str] | None = None) -> None:
        tree.inside(self.host, argv, purpose=purpose, env=env, log=self.log)


def make(family: str, name: str, value: object, folder: Path = Path()) -> Any:
    """A kind as a recipe would make it."""
    kind = kinds.known(family)[name]
    context = {"folder": folder, "render": lambda path: path.read_text()}
    return kind.model_validate(kind.options_of(value), context=context)


def bootstrap(into: Path, shop: Shop, **options: object) -> Path:
    """Fill a layer's folder with a bootstrapped system."""
    upper = into / "upper"
    upper.mkdir(parents=True)
    upper.chmod(0o755)
    make("bases", "bootstrap", {"distribution": "debian", "suite": "bookworm", **options}).make(upper, shop)
    return into


_made: dict[str, Path] = {}


def small_tree(factory: pytest.TempPathFactory) -> Path:
    """The folder of a layer with the smallest Debian there is; made at the first call. Not to be changed."""
    if "small" not in _made:
        _made["small"] = bootstrap(factory.mktemp("small"), Shop(), kernel="none")
    return _made["small"]


TINY = """\
name: tiny
version: "1.0"
variables:
  word: {default: hello}
base: {container: {path: tiny.tar, kernel: none, trusted: true}}
steps:
  - shell: echo '{{ word }}' > /etc/motd
outputs: [tar]
"""


def tiny(folder: Path) -> Path:
    """A recipe that is built in a second: a busybox, a step, a tar."""
    busybox = Path(Host().require("busybox", "test")).read_bytes()
    with (folder / "tiny.tar").open("wb") as out, Archive(out, epoch=EPOCH) as archive:
        for name in ("bin", "etc", "root", "tmp"):
            archive.directory(name)
        archive.data("bin/busybox", busybox, mode=0o755)
        for program in ("sh", "cat", "chown", "echo", "env", "ls", "mkdir", "rm", "stat"):
            archive.link(f"bin/{program}", "busybox")
        archive.data("etc/os-release", b"ID=tiny\n")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY)
    return recipe
