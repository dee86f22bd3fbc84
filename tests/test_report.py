"""report.html: what is in it, and how it is in a real browser: light, dark, on a phone, by keyboard, from nowhere."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith import evidence, report
from imagesmith.api import load, make_plan
from imagesmith.compare import difference
from imagesmith.errors import BuildError, CheckFailed
from imagesmith.events import Event
from imagesmith.inventory import File, Inventory
from imagesmith.timeline import Timeline
from imagesmith.treemap import cells
from tests.browser import Page, browser
from tests.conftest import Command, Golden

EVIL = '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>\x1b[31m\udcff&{{ 7 * 7 }}'
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8d"
    "b00000000049454e44ae426082"
)
VOID = {"meta", "link", "br", "img", "rect"}


def timeline(names: list[str]) -> Timeline:
    found = Timeline()
    found(Event("plan", "web", data={"nodes": names}, time=1000.0))
    found(Event("node-cached", "web", names[0], time=1000.1))
    for number, name in enumerate(names[1:], 1):
        found(Event("node-done", "web", name, seconds=2.0, time=1000.0 + 2 * number))
    return found


def manifest(word: str) -> dict[str, Any]:
    nodes = [{"name": f"{n} {word}", "seconds": 3.5, "cached": n == 0, "key": "k", "verb": "step", "driver": None}
             for n in range(9)]  # fmt: skip
    checks = [{"check": f"check {n} {word}", "firmware": fw, "passed": True, "seen": f"seen {word}\nmore"}
              for n in range(4) for fw in ("bios", "uefi")]  # fmt: skip
    artifacts = [{"format": "qcow2", "main": "web.qcow2", "key": "k", "virtual_size": 3 << 30,
                  "files": [{"name": f"web {word}.qcow2", "size": 140_000_000, "sha256": "a" * 64}]},
                 {"format": "oci", "main": "web.oci.tar", "key": "k", "virtual_size": None,
                  "files": [{"name": "web.oci.tar", "size": 90_000_000, "sha256": "b" * 64}]}]  # fmt: skip
    return {
        "recipe": "web", "version": "1.0", "description": f"A web server {word}", "arch": "x86_64",
        "variables": {"greeting": word}, "epoch": 0, "nodes": nodes, "artifacts": artifacts, "checks": checks,
        "machine": {"cpus": 2, "memory": 1 << 30, "disk": 4 << 30, "firmware": ["bios", "uefi"]},
        "inputs": {"recipe": {"name": "web.yaml", "digest": "c" * 64}, "files": {word: [[f"files/{word}", "d" * 64]]},
                   "downloads": {word: [{"url": f"https://example.org/{word}", "checksum": "x", "digest": "e" * 64}]}},
        "host": {"imagesmith": "0.1.0", "system": f"Linux {word}", "tools": {"qemu-img": word}},
    }  # fmt: skip


def system(word: str, count: int = 300) -> Inventory:
    files = {f"/usr/{'lib' if n % 3 else 'share'}/part{n % 17}/{word.replace('/', '_')}{n}":
             File(0o100644, 0, 0, 40_000 + n * 997, "f" * 64) for n in range(count)}  # fmt: skip
    return Inventory(
        system=f"Debian {word}", init="systemd", kernels=["6.1.0"], package_format="deb", notes=[word],
        packages={f"package-{n} {word}": f"1.{n} {word}" for n in range(count // 3)},
        services={f"{word}.service": "enabled"}, users={word: f"uid 1 {word}"}, groups={word: "gid 1"},
        files=dict(sorted(files.items())),
    )  # fmt: skip


def page(word: str) -> str:
    made = manifest(word)
    before = report.Before(made, difference(system(word, 200), system(word)), 0.0)
    watched, guests = timeline([node["name"] for node in made["nodes"]]), [report.Guest("bios", word * 3, PIXEL)]
    return report.built(made, watched, inventory=system(word), before=before, guests=guests,
                        logs=[(word, f"a line\n{word}\n" * 900)])  # fmt: skip


def failure(word: str) -> str:
    error = CheckFailed(f"2 of 4 checks failed under bios:\n{word}\n/home/me/store/layers/1: {word}")
    error.node, error.place, error.part, error.hint = "check bios", "web.yaml:3:5", "check", f"try {word}"
    error.ways = (f"imagesmith shell {word}",)
    watched = timeline(["base", "1 step", "check bios"])
    watched(Event("node-failed", "web", "check bios", seconds=5.0, time=1010.0))
    check = {"check": word, "firmware": "bios", "passed": False, "seen": word}
    watched(Event("check", "web", "check bios", data=check))
    return report.failed(
        "web", "1.0", error, watched, place=[(2, "checks:", False), (3, f"  - {word}", True)], logs=[("x.log", word)],
        guests=[report.Guest("bios", word, PIXEL)], private=[(re.compile("/home/me/store"), "$IMAGESMITH_CACHE")],
    )  # fmt: skip


class Balanced(HTMLParser):
    """Complains where tags do not fit each other; knows all tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


@pytest.mark.parametrize("make", [page, failure])
def test_what_guests_and_recipes_say_is_text(make: Any) -> None:
    made, plain = Balanced(), Balanced()
    made.feed(text := make(EVIL))
    plain.feed(make("plain"))
    assert made.open == plain.open == []
    assert made.seen == plain.seen
    assert not made.seen & {"script", "onerror", "iframe", "object", "form"}
    assert "\x1b" not in text
    text.encode()


def test_a_failure_begins_with_its_cause_and_names_no_folder_of_this_host() -> None:
    text = re.sub("<style>.*?</style>|<[^>]*>", " ", failure("nginx is not running"), flags=re.S)
    order = ["2 of 4 checks failed under bios", "nginx is not running", "web.yaml:3", "What to try", "Console under",
             "Timeline"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "/home/me" not in text
    assert "$IMAGESMITH_CACHE/layers/1" in text


def test_only_folders_of_this_host_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    recipe = tmp_path / "small.yaml"
    recipe.write_text("name: small\nbase: {bootstrap: {distribution: debian, suite: bookworm}}\noutputs: [qcow2]\n")
    (folder := tmp_path / "output/small/failed").mkdir(parents=True)
    own = f"{tempfile.gettempdir()}/imagesmith.a1_b/y"
    error = BuildError(f"/etc/passwd, /tmp/x, {own}, {tmp_path}/note, {tmp_path}-2, /srv/store/1")
    evidence.report_failure(make_plan(load(recipe)), error, Timeline(), folder, Path("/srv/store"))
    shown = (folder / report.FILE).read_text()
    assert f"/etc/passwd, /tmp/x, $TMPDIR/y, ./note, {tmp_path}-2, $IMAGESMITH_CACHE/1" in shown
    assert error.evidence == (folder / report.FILE,)


_SIZES = st.dictionaries(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5).map(lambda p: "/" + "/".join(p)),
                         st.integers(0, 1 << 30), max_size=60)  # fmt: skip


@given(sizes=_SIZES)
def test_the_map_of_folders_is_whole_and_nothing_lies_on_anything(sizes: dict[str, int]) -> None:
    found = cells({path + ".f": File(0o100644, 0, 0, size, "") for path, size in sizes.items()})
    total = sum(sizes.values())
    assert sum(cell.size for cell in found) == total
    if total:
        assert sum(cell.width * cell.height for cell in found) == pytest.approx(10_000, rel=0.01)
        for cell in found:
            assert cell.width * cell.height == pytest.approx(10_000 * cell.size / total, rel=0.02, abs=0.5)
            assert cell.x + cell.width <= 100.01
            assert cell.y + cell.height <= 100.01
    for one in found:
        for other in found:
            if one is not other:
                beside = one.x + one.width <= other.x + 0.01 or other.x + other.width <= one.x + 0.01
                assert beside or one.y + one.height <= other.y + 0.01 or other.y + other.height <= one.y + 0.01


def test_folders_in_folders_are_one_cell_however_many_they_are() -> None:
    deep = "/a" * 3000
    found = cells({f"{deep}/big": File(0o100644, 0, 0, 1 << 20, ""), "/b/c": File(0o100644, 0, 0, 1 << 20, "")})
    assert [cell.path for cell in found] == [deep, "/b"]


# -- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module", params=["built", "failed"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page in a file; everything that is folded in it is to be opened by who looks."""
    word = "a-word-that-is-much-too-long-to-fit-on-any-telephone's-screen-without-being-broken-somewhere"
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text({"built": page, "failed": failure}[request.param](word), encoding="utf-8")
    return file


# WCAG 2.1, "contrast ratio" and "relative luminance"; text is on the nearest opaque background, labels on their cell.
_CONTRAST = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const bad = [];
  document.querySelectorAll('details').forEach(one => one.open = true);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, own = node.parentElement;
    if (!node.data.trim() || own.closest('.hidden, .skip, title, desc')) continue;
    const style = getComputedStyle(own);
    let back = null;
    const cell = own.closest('foreignObject');
    if (cell) back = rgb(getComputedStyle(cell.parentElement.querySelector('rect')).fill);
    for (let at = own; !back && at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) back = colour;
    }
    const ours = light(rgb(style.color)), theirs = light(back || [255, 255, 255]);
    const ratio = (Math.max(ours, theirs) + .05) / (Math.min(ours, theirs) + .05);
    if (ratio < 4.5) bad.push([node.data.trim().slice(0, 30), ratio]);
  }
  return bad;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_looks_right_and_asks_nobody(chromium: Page, shown: Path, width: int, dark: bool) -> None:
    chromium.open(shown, width=width, dark=dark)
    assert chromium.ask(_CONTRAST) == []  # opens what is folded, too
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.skip, .hidden, svg') &&
        one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML)"""
    assert chromium.ask(wide) == []
    assert chromium.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(14, 18, 23)" if dark else "rgb(246, 247, 249)")  # fmt: skip
    assert chromium.requests[0] == shown.as_uri()
    assert all(url.startswith("data:") for url in chromium.requests[1:])
    assert chromium.complaints == []


def test_it_can_be_used_by_keyboard(chromium: Page, shown: Path) -> None:
    chromium.open(shown)
    wanted = chromium.ask("""[...document.querySelectorAll('a[href], summary, [tabindex="0"]')].filter(
        one => one.matches('summary') || !one.closest('details:not([open])')).length""")
    reached = []
    for _ in range(wanted):
        chromium.press("Tab", 9)
        reached.append(chromium.ask("""(at => at.tagName + ' ' + at.textContent.trim())(document.activeElement)"""))
        assert chromium.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    folded = [one for one in reached if one.startswith("SUMMARY")]
    assert reached[0] == "A Skip to the content"
    assert len(folded) == chromium.ask("document.querySelectorAll('summary').length")
    chromium.ask("document.querySelector('details:not([open]) > summary').focus()")
    chromium.press("Enter", 13)
    assert chromium.ask("document.activeElement.parentElement.open") is True
    chromium.press("Tab", 9)  # what was folded, and can be scrolled, is reached, too
    assert chromium.ask("document.activeElement.tagName") in ("PRE", "SUMMARY", "A", "BODY")


def test_those_who_do_not_see_it_are_told(chromium: Page, shown: Path) -> None:
    chromium.open(shown)
    assert chromium.ask("[...document.images].every(one => one.alt.includes('bios') && one.naturalWidth > 0)") is True
    assert chromium.ask("document.images.length") == 1
    assert chromium.ask("document.documentElement.lang") == "en"
    assert chromium.ask("document.querySelectorAll('h1').length") == 1
    named = "[...document.querySelectorAll('svg')].every(one => one.closest('[aria-hidden=true], [role=img]'))"
    assert chromium.ask(named) is True
    assert chromium.ask("document.querySelectorAll('table').length") > 0


def test_scripts_are_not_run_even_if_they_got_in(chromium: Page, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    evil = "<script>document.title = 'taken'</script><img src='http://192.0.2.1/x.png'></main>"
    file.write_text(page("word").replace("</main>", evil))
    chromium.open(file)
    assert "taken" not in chromium.ask("document.title")
    assert any("Content Security Policy" in one or "ContentSecurityPolicy" in one for one in chromium.complaints)


# -- of real builds ----------------------------------------------------------------------------------------------


def test_a_build_leaves_a_report(golden: Golden, command: Command, chromium: Page) -> None:
    file = golden.folder / "report.html"
    text = file.read_text()
    for word in ("golden.ova", "22 checks passed", "nginx-light", "Debian GNU/Linux 12", "7 leave a mark", "qemu-img"):
        assert word in text
    for place in (str(command.store), str(command.output), f"{Path.home()}/"):  # the guest's root has a home, too
        assert place not in re.sub("<pre.*?</pre>", "", text, flags=re.S)
    chromium.open(file, width=390)
    assert chromium.ask("document.documentElement.scrollWidth") <= 390
    assert chromium.ask("document.images.length") == 2
    assert chromium.complaints == []
    kept = json.loads((golden.folder / "inventory.json").read_text())
    assert "nginx.service" in kept["services"]
    assert kept["files"]["/etc/shadow"][4] == ""


def test_a_second_build_tells_what_is_different(golden: Golden, command: Command, tmp_path: Path) -> None:
    mine = Command(command.store, tmp_path)
    small = ("--no-checks", "--only", "oci")
    mine("build", golden.recipe, *small)
    first = (tmp_path / "golden/report.html").stat().st_mtime_ns
    assert "There was no previous build" in (tmp_path / "golden/report.html").read_text()
    mine("build", golden.recipe, *small)
    assert (tmp_path / "golden/report.html").stat().st_mtime_ns == first  # nothing changed, nothing is touched
    mine("build", golden.recipe, "--var", "greeting=good day", *small)
    text = (tmp_path / "golden/report.html").read_text()
    assert "/etc/mark" in text
    assert "6 -&gt; 9 bytes" in text


def test_a_failed_step_leaves_a_report(golden: Golden, command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(f"""\
name: broken
base: {{recipe: {golden.recipe}}}
steps:
  - shell: |
      echo a word before the end
      no-such-program --at-all
outputs: [oci]
""")
    ran = Command(command.store, tmp_path)("build", recipe, expect=1)
    file = tmp_path / "broken/failed/report.html"
    assert f"kept: {file}" in ran.err
    text = re.sub("<style>.*?</style>|<[^>]*>", " ", file.read_text(), flags=re.S)
    for word in ("no-such-program", "broken.yaml:4", "a word before the end", "What to try"):
        assert word in text
    assert str(tmp_path) not in text
