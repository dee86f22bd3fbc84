"""What is seen while a build runs: the tree on a terminal, plain lines, GitHub's log; nothing foreign is obeyed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from imagesmith import view_words
from imagesmith.advice import advice
from imagesmith.errors import BuildError, CheckFailed, Complaint, GuestFailed, RecipeError, StepFailed
from imagesmith.events import Event, Progress
from imagesmith.failure import told
from imagesmith.view_github import GitHub, command, summarize, summary
from imagesmith.view_live import Picture
from imagesmith.view_plain import Plain
from tests.conftest import Command
from tests.terminals import Terminal

GOLDEN = Path(__file__).parent / "golden" / "view"
EVIL = "::error::injected ##[error]injected \x1b[31mred\x1b[2J\x1b]0;title\x07\x9b1A bell\x07 100%"
TREE = [
    {"name": "base iso debian", "verb": "base", "seconds": 754.2},
    {"name": "1 packages nginx", "verb": "step", "seconds": 41.0, "below": "base iso debian"},
    {"name": "2 configure", "verb": "step", "seconds": 0.0, "below": "1 packages nginx"},
    {"name": "output qcow2", "verb": "output", "seconds": 12.5, "below": "2 configure"},
    {"name": "check bios", "verb": "check", "seconds": 90.0, "below": "2 configure"},
]


def events() -> Iterator[Event]:
    """A build that has everything in it, at fixed times."""
    clock = 1_700_000_000.0

    def event(name: str, node: str = "", seconds: float | None = None, **data: object) -> Event:
        nonlocal clock
        clock += 3
        return Event(name, "web", node, "", seconds, data, clock)

    base, first, second, output, check = (str(node["name"]) for node in TREE)
    yield event("plan", nodes=[node["name"] for node in TREE], tree=TREE)
    yield event("node-start", base)
    for done in range(0, 7):
        yield event("progress", base, **Progress("debian.iso", done << 26, 6 << 26, 22369621.0).plain())
    yield event("progress", base, **Progress("debian.iso", 6 << 26, 6 << 26, 22369621.0, finished=True).plain())
    yield event("node-log", base, line="phase: partitioning (after 12 s)")
    yield event("node-done", base, 700.0)
    yield event("node-cached", first)
    for left in (1, 0):
        yield event("node-start", second)
        yield event("node-log", second, line="working")
        yield event("node-log", second, line=EVIL)
        if left:
            yield event("node-failed", second, 2.0, error=f"the commands failed (exit status 1):\n{EVIL}",
                        tail=["working", EVIL], where="recipes/web.yaml:14:5", left=left)  # fmt: skip
            yield event("note", second, text="the commands failed (exit status 1); trying again (1 left)")
    yield event("node-done", second, 3.2)
    yield event("node-start", output)
    yield event("node-start", check)
    yield event("node-log", output, line="converting")
    yield event("node-log", check, line="booting")
    yield event("node-log", output, line="converted")
    yield event("check", check, check="boot", firmware="bios", passed=True, seen="running in 8.1 s", seconds=8.1)
    yield event("check", check, check="port 80", firmware="bios", passed=False, seen=f"refused\n{EVIL}", seconds=1.0,
                where="recipes/web.yaml:21:5")  # fmt: skip
    yield event("node-done", output, 14.0)
    yield event("node-failed", check, 61.5, error="1 of 2 checks failed under bios:\nport 80: refused", tail=[],
                where="recipes/web.yaml:21:5")  # fmt: skip
    yield event("node-log", output, line="late words of what is being closed")


def lines(view: type[GitHub] | type[Plain], **more: bool) -> str:
    said: list[str] = []
    show = view(said.append, **more)
    for event in events():
        show(event)
    assert not any("\n" in line or "\x1b" in line or "\x07" in line for line in said)
    return "\n".join(said) + "\n"


@pytest.mark.parametrize(("name", "said"), [
    ("plain.txt", lambda: lines(Plain, verbose=False)),
    ("verbose.txt", lambda: lines(Plain, verbose=True)),
    ("github.txt", lambda: lines(GitHub)),
])  # fmt: skip
def test_events_as_lines(name: str, said: object) -> None:
    assert said() == (GOLDEN / name).read_text()  # type: ignore[operator]


def test_in_githubs_log_folds_have_one_nodes_lines_and_foreign_words_are_no_commands() -> None:
    open_, seen = "", []
    for line in lines(GitHub).splitlines():
        assert "##[" not in line
        if line.startswith("::group::"):
            assert not open_
            open_ = line.removeprefix("::group::")
        elif line == "::endgroup::":
            assert open_
            open_ = ""
        elif line.lstrip().startswith("::"):
            assert line.startswith(("::warning ", "::notice "))
        elif "convert" in line:
            seen.append(open_)
    assert not open_
    assert seen == ["output qcow2", "output qcow2"]


def test_what_was_at_work_when_a_build_ended_is_in_githubs_log_too() -> None:
    said: list[str] = []
    show = GitHub(said.append)
    show(Event("plan", "web", data={"tree": TREE}))
    for node in ("2 configure", "output qcow2"):
        show(Event("node-start", "web", node))
        show(Event("node-log", "web", node, data={"line": "at work"}))
    show.close()
    end = ["| at work", "::endgroup::"]
    assert said == ["::group::2 configure", *end, "::group::output qcow2", *end]


def test_an_annotation_is_escaped_as_the_toolkit_does_and_names_files_from_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    said = command("error", "100%\r\nnext::line", title="2 a, b: c", place=f"{tmp_path}/recipes/web.yaml:14:5")
    assert said == "::error file=recipes/web.yaml,line=14,col=5,title=2 a%2C b%3A c::100%25%0Anext::line"
    assert command("notice", "plain") == "::notice::plain"


def test_the_jobs_summary_has_tables_and_no_foreign_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    given = ("web: failed", [("web.qcow2", 5 << 20, "ab" * 32)],
             [("boot", "bios", True, "running"), ("file /a|b", "bios", False, "<img src=x>\n*bold*")],
             ["imagesmith: </pre><b>", "  at: web.yaml:3"])  # fmt: skip
    summarize(*given)  # type: ignore[arg-type]
    summarize("next: up to date", [], [])
    assert (tmp_path / "summary.md").read_text() == summary(*given) + "### next: up to date\n\n"  # type: ignore[arg-type]
    assert summary(*given) == (GOLDEN / "summary.md").read_text()  # type: ignore[arg-type]


# -- the tree ----------------------------------------------------------------------------------------------------


class Screen:
    """A picture and the terminal that it is drawn on."""

    def __init__(self, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"LINES": str(rows), "COLUMNS": str(columns), "FORCE_COLOR": "1", "TERM": "xterm"}.items():
            monkeypatch.setenv(name, value)
        self.stream = io.StringIO()
        self.picture = Picture(self.stream, verbose=False)
        self._screen = pyte.HistoryScreen(columns, rows, history=10000)

    def rows(self) -> list[str]:
        """What is seen now, without what has gone out of the top."""
        if self.picture._live is not None:
            self.picture._live.refresh()
        self._screen.reset()
        self._screen.set_mode(pyte.modes.LNM)
        pyte.Stream(self._screen).feed(self.stream.getvalue())
        return [row.rstrip() for row in self._screen.display if row.strip()]

    @property
    def gone(self) -> int:
        """How many rows have gone out of the top."""
        return len(self._screen.history.top)


def test_the_tree_shows_each_nodes_state_and_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, seen = Screen(24, 80, monkeypatch), {}
    monkeypatch.setattr("imagesmith.view_live.now", lambda: 1_700_000_060.0)
    with screen.picture as picture:
        for number, event in enumerate(events()):
            picture(event)
            seen[number, event.event, event.node] = screen.rows()

    def at(name: str, node: str, last: bool = False) -> list[str]:
        found = [rows for (_, what, whose), rows in seen.items() if (what, whose) == (name, node)]
        return found[-1 if last else 0]

    start = at("node-start", "base iso debian")
    assert start[0] == "web: 0 of 5 nodes, 57 s"
    assert start[1][1:] == " base iso debian   54 s, 12 min 34 s last time"
    assert start[2:] == ["· 1 packages nginx  41 s last time", "· 2 configure", "├─ · output qcow2   12 s last time",
                         "└─ · check bios     1 min 30 s last time"]  # fmt: skip
    download = [rows for (_, what, _), rows in seen.items() if what == "progress"]
    assert download[3][2] == "  ┊ debian.iso: 50 % of 384.0 MiB, 21.3 MiB/s, 9 s left"
    assert not any("debian.iso" in row for row in download[-1])
    assert at("node-log", "base iso debian")[2] == "  ┊ partitioning, for 27 s"
    again = at("note", "2 configure")
    assert [row for row in again if row.startswith("! ")] == [
        "! 2 configure: the commands failed (exit status 1); trying again (1 left)"]  # fmt: skip
    assert "  │ working" in again
    failed = at("node-failed", "check bios")
    assert failed[-1] == "     ┊ 1 of 2 checks failed under bios"
    assert "✔ bios: boot: running in 8.1 s" in failed
    end = screen.rows()[-6:]
    assert [row.split()[:2] for row in end] == [
        ["web:", "4"], ["✔", "base"], ["·", "1"], ["✔", "2"], ["├─", "✔"], ["└─", "✘"]]  # fmt: skip
    assert "\x1b[2J" not in screen.stream.getvalue()
    assert "title" not in screen.stream.getvalue()
    assert screen.stream.getvalue().endswith("\n")
    assert screen.stream.getvalue().rindex("\x1b[?25h") > screen.stream.getvalue().rindex("\x1b[?25l")  # the cursor


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (10, 40), (4, 20), (2, 5)])
def test_a_plan_that_does_not_fit_is_folded_and_never_scrolls(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number} a step with quite a long name, so that it does not fit" for number in range(1, 51)]
    leaves = [f"output number {number}" for number in range(20)]
    tree = [*({"name": name, "verb": "step", "seconds": 3.0} for name in names),
            *({"name": name, "verb": "output", "seconds": 0.0} for name in leaves)]  # fmt: skip
    screen = Screen(rows, columns, monkeypatch)
    with screen.picture as picture:
        picture(Event("plan", "many", data={"tree": tree}))
        for number, name in enumerate(names):
            picture(Event("node-start", "many", name))
            for line in range(7):
                picture(Event("node-log", "many", name, data={"line": f"{line} 漢字 {EVIL} " * 10}))
            if number % 10 == 5:
                shown = screen.rows()
                assert screen.gone == 0
                assert len(shown) < rows
                if rows >= 10 and number > 20:
                    assert f"✔ {number - sum(row[0] == '✔' for row in shown) + 1} nodes are done" in shown
                    assert shown[-1].startswith("… ")
            picture(Event("node-done", "many", name, seconds=1.0))
        for name in leaves:
            picture(Event("node-start", "many", name))
            picture(Event("node-log", "many", name, data={"line": "at work"}))
        assert len(screen.rows()) < rows
        assert screen.gone == 0


def test_a_terminal_shows_the_tree_and_is_left_as_it_was(command: Command, tmp_path: Path) -> None:
    """At a terminal of 80 by 24, with a guest that tries to set its title and to clear it; interrupted by Ctrl-C."""
    recipe = tmp_path / "small.yaml"
    recipe.write_text(r"""
name: small
base: {bootstrap: {distribution: debian, suite: bookworm, kernel: none}}
variables: {nap: 1000}
outputs: [oci]
steps:
  - name: clear the screen
    shell: |
      printf '\033[2J\033]0;evil\007\nworking\n'; sleep {{ nap }}; false
  - name: never made
    shell: 'true'
""")
    ours = Command(command.store, tmp_path / "output")
    user = Terminal(ours.argv("build", recipe), ours.environment(), size=(24, 80))
    user.expect("┊ working")
    user.expect("working")  # drawn once more
    user.type("\x03")
    assert user.end() == 130
    assert "evil" not in user.seen
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(user.seen)
    shown = [row.rstrip() for row in screen.display if row.strip()]
    assert not screen.cursor.hidden
    assert shown[-1] == "imagesmith: interrupted; what was finished is kept"
    at = next(number for number, row in enumerate(shown) if row.startswith("- 1 clear the screen"))
    assert [row.split()[:2] for row in shown[at : at + 4]] == [["-", "1"], ["·", "2"], ["·", "3"], ["├─", "·"]]
    plain = Terminal(["env", "TERM=dumb", *ours.argv("build", recipe, "--var", "nap=0")], ours.environment())
    assert plain.end() == 1
    assert "\x1b" not in plain.seen
    assert "start  1 clear the screen" in plain.seen


# -- failures ----------------------------------------------------------------------------------------------------


def test_foreign_text_is_shown_and_not_obeyed() -> None:
    assert view_words.clean(EVIL) == "::error::injected ##[error]injected red bell? 100%"
    assert view_words.clean("10 %\r 55 %\r100 %\r\n") == "100 %"
    assert view_words.clean("a\x1b(Bb\x1b7c\x1bPx\x1b\\d\u202ee") == "abcd?e"


def test_a_failure_says_its_cause_first_then_where_and_what_to_try() -> None:
    error = GuestFailed("the guest's kernel panicked", hint="give it more memory")
    error.node, error.place, error.part = "check bios", "recipes/web.yaml:14:5", "check"
    error.last = ("[  1.0] Kernel panic - not syncing: \x1b[31mVFS\x1b[0m",)
    error.evidence = (Path("output/web/failed/bios-console.log"), Path("output/web/failed/bios-screen.png"))
    error.ways = ("imagesmith shell recipes/web.yaml --after 3",)
    assert told(error) == [
        "imagesmith: check bios: the guest's kernel panicked",
        "  | [  1.0] Kernel panic - not syncing: VFS",
        "  at: recipes/web.yaml:14 (check)",
        "  hint: give it more memory",
        "  kept: output/web/failed/bios-console.log (what the guest's console showed)",
        "  kept: output/web/failed/bios-screen.png (a picture of the screen)",
        "  shell: imagesmith shell recipes/web.yaml --after 3",
    ]
    other = StepFailed("the commands failed (exit status 1):\n" + "\n".join(map(str, range(100))))
    other.node = "output ova"
    both = BuildError("both")
    both.several = (error, other)
    said = told(both)
    assert said[:7] == told(error)
    assert said[7:9] == ["imagesmith: output ova: the commands failed (exit status 1)", "  | 76"]
    assert said[-1] == "  | 99"
    assert told(CheckFailed("")) == ["imagesmith: "]
    place = Complaint(Path("web.yaml"), 3, 5, "steps[0]", "unknown step 'x'")
    assert told(RecipeError([place])) == ["imagesmith: web.yaml:3:5: steps[0]: unknown step 'x'"]
    assert os.linesep not in "".join(told(error))


@pytest.mark.parametrize(("said", "hint"), [
    ("Reading state information...\nE: Unable to locate package nginx-lihgt", "is the package called so"),
    ("Failed to start x.service: Failed to connect to bus: No such file or directory", "'via: ssh' at the step"),
    ("sh: 3: jq: not found", "install the package that has it"),
    ("bash: line 1: jq: command not found", "install the package that has it"),
    ("curl: (60) SSL certificate problem: unable to get local issuer certificate", "ca-certificates"),
    ("Err:1 http://mirror bookworm InRelease\n  Temporary failure resolving 'mirror'", "'retries: 2'"),
    ("tar: /srv/x: Cannot write: No space left on device", "a larger 'disk'"),
    ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 412", "cloud-init status --wait"),
    ("W: GPG error: http://mirror InRelease: NO_PUBKEY 0123", "the repository's key"),
    ("assertion failed", ""),
    ("cp: cannot stat '/etc/nothere': No such file or directory", ""),
])  # fmt: skip
def test_what_to_try_is_known_by_what_programs_say(said: str, hint: str) -> None:
    assert hint in advice(said)
    assert bool(advice(said)) == bool(hint)
