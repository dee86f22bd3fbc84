"""What the documentation's pages tell the reader to type: run, in order, and held against what the page shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import pages
from tests.conftest import Command

RUN = [page for page in pages.PAGES if any(block.runs for block in pages.blocks(page))]


def _params() -> list[object]:
    slow = {page for page in RUN for block in pages.blocks(page) if "slow" in block.words}
    return [pytest.param(page, id=pages.name(page), marks=[pytest.mark.slow] if page in slow else []) for page in RUN]


@pytest.mark.parametrize("page", _params())
def test_a_page_does_what_it_says(page: Path, command: Command, tmp_path: Path) -> None:
    pages.run(page, tmp_path, pages.environment({**os.environ, "IMAGESMITH_CACHE": str(command.store)}))


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_command_block_is_run_or_says_what_it_needs(page: Path) -> None:
    for block in pages.blocks(page):
        if block.words[:1] in (("sh",), ("console",), ("bash",)):
            assert block.runs or block.value("needs") in pages.NEEDS, (
                f"line {block.line}: '{' '.join(block.words)}' should be 'sh run' or 'sh needs=…': see tests/pages.py"
            )


def test_every_reason_is_used() -> None:
    used = {block.value("needs") for page in pages.PAGES for block in pages.blocks(page)} - {""}
    assert used == set(pages.NEEDS)


@pytest.mark.parametrize(("expected", "seen"), [
    ("built in 2 min 05 s\n", "built in 9.3 s\n"), ("a  137.8 MiB  456df24c876dd612…\n", "a  9 B  0123456789abcdef…\n"),
    ("one\n…\nlast\n", "one\nlast\n"), ("one\n…\nlast\n", "one\n2\n3\nlast\n"), ("load … now\n", "load 3 now\n"),
])  # fmt: skip
def test_what_differs_from_run_to_run_may_differ(expected: str, seen: str) -> None:
    assert pages.fits(expected, seen)


@pytest.mark.parametrize(("expected", "seen"), [
    ("3 checks\n", "2 checks\n"), ("first\n…\n", "second\n"), ("first\n", "first\nsecond\n"), ("a.b\n", "a-b\n"),
])  # fmt: skip
def test_nothing_else_may(expected: str, seen: str) -> None:
    assert not pages.fits(expected, seen)


def test_a_page_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    for text, said in (("```sh run\nfalse\n```\n", "ended with 1"), ("```sh run exit=2\ntrue\n```\n", "ended with 99"),
                       ("```sh run\necho one\n```\n\n```text output\ntwo\n```\n", "should print:\ntwo")):  # fmt: skip
        wrong = tmp_path / "page.md"
        wrong.write_text(text)
        with pytest.raises(AssertionError, match=said):
            pages.run(wrong, tmp_path, pages.environment(os.environ))
