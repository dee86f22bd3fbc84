"""What guests left behind, and the page that tells of a failed build."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from imagesmith import report
from imagesmith.errors import ImagesmithError
from imagesmith.machine.console import plain
from imagesmith.plan import Plan
from imagesmith.report import Guest
from imagesmith.timeline import Timeline

_CONSOLE, _SCREEN = "-console.log", "screen.png"
_MOST = 1 << 20
"""Bytes of a console that are looked at: its end."""


def guests(folder: Path) -> list[Guest]:
    """What the booted copies showed whose console (``bios-console.log``) and screen (``bios-screen.png``) are here."""
    found, pictures = [], {path.name: path for path in sorted(folder.glob(f"*{_SCREEN}"))}
    for path in sorted(folder.glob(f"*{_CONSOLE}")):
        name = path.name.removesuffix(_CONSOLE)
        picture = pictures.pop(f"{name}-{_SCREEN}", None) or pictures.pop(_SCREEN, None)
        found.append(Guest(name, plain(path.read_bytes()[-_MOST:]), picture.read_bytes() if picture else b""))
    left = (Guest(name.removesuffix(_SCREEN).rstrip("-") or "screen", "", path.read_bytes())
            for name, path in pictures.items())  # fmt: skip
    return [*found, *left]


def report_failure(plan: Plan, error: ImagesmithError, timeline: Timeline, folder: Path, store: Path) -> None:
    """Put a page beside what was kept of a failed build, in ``folder``. Where nothing was kept, there is none."""
    errors = error.several or (error,)
    file, line, _ = (*errors[0].place.rsplit(":", 2), "", "")[:3]
    place = report.excerpt(Path(file), int(line)) if line.isdigit() else []
    with suppress(OSError):  # the failure itself is what must be told
        if not folder.is_dir():
            return
        page = report.failed(
            plan.recipe.name, plan.recipe.version, error, timeline, place=place, logs=list(_logs(errors)),
            guests=guests(folder), private=_private(plan, folder, store),
        )  # fmt: skip
        (folder / report.FILE).write_text(page, encoding="utf-8")
        errors[0].evidence = (*errors[0].evidence, folder / report.FILE)


def _private(plan: Plan, folder: Path, store: Path) -> list[tuple[re.Pattern[str], str]]:
    """This host's folders, the innermost first, and what is shown in their place; not those that every guest has."""
    words = {store: "$IMAGESMITH_CACHE", folder.parent.absolute(): plan.recipe.name,
             plan.recipe.path.parent.absolute(): ".", Path(os.environ.get("HOME") or "/"): "~"}  # fmt: skip
    named = sorted((str(path) for path in words if str(path) not in ("/", "/root")), key=lambda name: -len(name))
    own = re.compile(rf"{re.escape(tempfile.gettempdir())}/imagesmith\.\w+")
    whole = [(re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-])"), words[Path(name)]) for name in named]
    return [(own, "$TMPDIR"), *whole]


def _logs(errors: Sequence[ImagesmithError]) -> Iterator[tuple[str, str]]:
    for path in dict.fromkeys(path for error in errors for path in error.evidence):
        if path.suffix == ".log" and not path.name.endswith(_CONSOLE) and path.is_file():
            yield path.name, path.read_text("utf-8", "replace")
