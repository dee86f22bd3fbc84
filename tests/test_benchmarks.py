"""What the benchmarks make of their figures: the page, its pictures, and the docs that say what is compared."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from benchmarks._plot import Plot, ticks
from benchmarks._results import Result, merged, section, write
from benchmarks._table import Row

DOCS = Path(__file__).parent.parent / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@given(st.floats(min_value=1e-3, max_value=1e9))
def test_an_axis_is_marked_from_zero_to_the_largest_value_at_even_distances(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert marks[-1] >= most * (1 - 1e-6)
    assert marks[-2] < most
    assert 2 <= len(marks) <= 6
    assert all(abs(mark - number * marks[1]) <= 1e-6 * marks[-1] for number, mark in enumerate(marks))


def test_a_plot_is_an_svg_with_a_point_for_each_value_inside_of_the_picture() -> None:
    plot = Plot("Steps & their times", "step", "seconds", {"a < b": [(1, 0.5), (2, 7.25)], "c": [(1, 0), (30, 3)]})
    root = ElementTree.fromstring(plot.svg())
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    places = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{SVG}circle")]
    assert len(places) == 4
    assert all(0 < x < wide and 0 < y < high for x, y in places)
    assert places[1][1] < places[0][1]  # more is higher
    assert {"Steps & their times", "a < b", "step"} <= {text.text for text in root.iter(f"{SVG}text")}


def test_a_run_replaces_its_own_section_and_leaves_the_others(tmp_path: Path) -> None:
    page, order = tmp_path / "performance.md", ["one", "two", "three"]

    def result(name: str, figure: str) -> Result:
        plot = Plot(figure, "x", "y", {"line": [(1, 2)]})
        return Result(name, [Row(figure, "1.00 s", target="< 2 s", reached=True)], {name: plot}, (0.5, 1.5), 9.6)

    write(page, [result("three", "old")], "two cores", order)
    write(page, [result("one", "kept")], "two cores", order)
    write(page, [result("three", "new")], "two cores", order)
    text = page.read_text()
    assert re.findall("^## (.*)$", text, re.M) == ["one", "three"]
    assert "kept" in text
    assert "| new " in text
    assert "old" not in text
    assert "Load 0.5 before, 1.5 after; 10 s." in text
    for name in re.findall(r"\]\((performance/\S+)\)", text):
        assert (tmp_path / name).read_text().startswith("<svg")
    again = merged(text, {"one": section(result("one", "kept"), "where", "performance")}, order)
    assert merged(again, {}, order) == again


def test_the_docs_say_of_every_benchmark_what_is_compared_and_of_no_other() -> None:
    text = (DOCS / "benchmarks.md").read_text()
    compared = text[text.index("## What is compared") : text.index("## What bounds")]
    names = set(re.findall(r'^    "([a-z-]+)": \w+\.run', (DOCS.parent / "benchmarks/__main__.py").read_text(), re.M))
    assert set(re.findall(r"^\| `([a-z-]+)` \|", compared, re.M)) == names
    assert set(re.findall("^## (.*)$", (DOCS / "performance.md").read_text(), re.M)) <= names
