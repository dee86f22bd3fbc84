"""The pages of the documentation as programs: what their blocks say is written, run, and held against what came out.

The words behind a fence say what a block is:

- ``sh run`` is run, in order, with the page's other blocks, in one folder; ``exit=1`` says that it fails; ``slow``
  puts the page into ``make test-all``
- ``sh needs=WHAT`` is not: ``NEEDS`` says why
- ``text output`` is what the block before it prints (stdout and stderr). Times, sizes and digests may be others;
  ``…`` is any text, and on a line of its own any lines
- ``file=PATH``, in any language, is written to that file before what follows runs
- ``yaml recipe FILE…`` is a whole recipe, and the files that it names: where the page makes none, stand-ins
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "clone": "works on a clone of this project as a whole: installing, testing, measuring it",
    "network": "fetches from a publisher's server",
    "registry": "talks to a server of the reader's own",
    "terminal": "is a dialogue",
    "vagrant": "starts a box under libvirt; tests/test_vagrant.py does that",
    "machine": "changes the machine that it runs on: its services, packages or users",
    "yours": "stands for files, names or commands of the reader's own",
}
FENCED = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```", re.M | re.S)
_MARK = "-- end of block"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


@dataclass(frozen=True)
class Block:
    """A fenced block: the words behind the fence, the text, and the line where it begins."""

    words: tuple[str, ...]
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.words[:2] == ("sh", "run")

    @property
    def files(self) -> list[str]:
        """The files that a whole recipe names."""
        return [word for word in self.words[2:] if "=" not in word] if self.words[:2] == ("yaml", "recipe") else []

    def value(self, key: str) -> str:
        """What ``key=value`` among the words says; empty where it is not there."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{key}=")), "")


def blocks(page: Path) -> Iterator[Block]:
    whole = page.read_text()
    for found in FENCED.finditer(whole):
        indent, words, text = found.groups()
        yield Block(
            tuple(words.split()), re.sub(f"^{indent}", "", text, flags=re.M), whole[: found.start()].count("\n") + 1
        )


_RECIPE = "base: {bootstrap: {distribution: debian, suite: bookworm}}\noutputs: [raw]\n"


def stand_in(path: Path) -> None:
    """A file where there is none, that a recipe can name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        texts = {".pub": "ssh-ed25519 AAAA docs\n", ".yaml": _RECIPE}
        path.write_text(texts.get(path.suffix, "#!/bin/sh\n"))


def wild(text: str) -> str:
    """Text without what differs from one run to the next: times, sizes, digests, the width of columns."""
    text = re.sub(r"\b(\d+ min )?\d+(\.\d+)? s\b", "TIME", text)
    text = re.sub(r"\b\d+(\.\d+)? ([KMG]i)?B\b", "SIZE", text)
    text = re.sub(r"\b\d+ -> \d+ bytes", "SIZES", text)
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "HEX", text)
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in text.strip().splitlines())


def fits(expected: str, seen: str) -> bool:
    """Whether that is what the page says."""
    lines = ["(?:.*\n)*" if line == "…" else _line(line) for line in wild(expected).splitlines()]
    return re.fullmatch("".join(lines), wild(seen) + "\n") is not None


def _line(line: str) -> str:
    return re.escape(line).replace("HEX…", "HEX.").replace("…", ".*") + "\n"


@dataclass
class Done:
    """A block that was run: what it should print (nothing: whatever it likes), and what it printed."""

    block: Block
    expected: str = ""
    seen: str = ""


def execute(page: Path, folder: Path, env: Mapping[str, str]) -> tuple[list[Done], int]:
    """Run a page's blocks up to the first that fails. Returns these, and the last one's exit status."""
    script, told = ["set -e"], []
    for number, block in enumerate(blocks(page)):
        for file in block.files:
            stand_in(folder / file)
        if file := block.value("file"):
            text = folder / f".{number}"
            text.write_text(block.text)
            script.append(f'mkdir -p "$(dirname {shlex.quote(file)})" && cp {text} {shlex.quote(file)}')
        elif block.runs:
            part, status = folder / f".{number}.sh", block.value("exit")
            part.write_text(block.text)
            script.append(f"echo '{_MARK} {len(told)}'")
            script.append(f"( set -e; . {part} ) && exit 99 || test $? = {status}" if status else f". {part}")
            told.append(Done(block))
        elif block.words[:2] == ("text", "output"):
            assert [one for one in told[-1:] if not one.expected], (
                f"{name(page)}:{block.line}: output of nothing that is run"
            )
            told[-1].expected = block.text
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=folder, env={**env, "HOME": str(folder)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=3600,
    )  # fmt: skip
    parts = re.split(rf"^{_MARK} \d+\n", done.stdout, flags=re.M)[1:]
    for one, seen in zip(told, parts, strict=False):
        one.seen = seen
    return told[: len(parts)], done.returncode


def run(page: Path, folder: Path, env: Mapping[str, str]) -> None:
    """Do what the page says. Raises AssertionError with the block that did something else."""
    told, status = execute(page, folder, env)
    for one in told:
        where = f"{name(page)}:{one.block.line}: {one.block.text}"
        assert status == 0 or one is not told[-1], f"{where}\nended with {status} after:\n{one.seen}"
        assert not one.expected or fits(one.expected, one.seen), (
            f"{where}\nprinted:\n{one.seen}\nand should print:\n{one.expected}"
        )
    assert status == 0, f"{name(page)} ended with {status}"


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """This environment, with this project's command first in the path, and a width that tables fit into."""
    kept = {key: value for key, value in env.items() if not key.startswith("IMAGESMITH_VAR_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "COLUMNS": "200"}


def main() -> None:
    """``python -m tests.pages PAGE FOLDER`` shows what each block prints, for whoever writes the page.

    ``!!`` stands before what is not what the page says.
    """
    folder = Path(sys.argv[2]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    told, status = execute(Path(sys.argv[1]), folder, environment(os.environ))
    for one in told:
        mark = "!!" if one.expected and not fits(one.expected, one.seen) else "--"
        print(f"-- line {one.block.line}\n{one.block.text}{mark}\n{one.seen}", flush=True)
    print(f"-- ended with {status}")


if __name__ == "__main__":
    main()
