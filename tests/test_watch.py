"""What is made of an installer's lines and of silence: phases, failures, stalls, ends. No machine runs here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imagesmith.errors import GuestFailed, Interrupted, ToolFailed
from imagesmith.host import Host
from imagesmith.installer import follow as follow_module
from imagesmith.installer.follow import Evidence, Follower
from imagesmith.installer.signs import Reader
from imagesmith.installer.syslog import Journal
from imagesmith.installer.watch import Failure, Limits, Watch
from imagesmith.interfaces import Signs
from imagesmith.machine.arguments import MachineSpec
from imagesmith.machine.console import Lines

SIGNS = Signs(
    phases=((r"Menu item '(\S+)' selected", r"item \1"), (r"^Installing the base", "base system")),
    fatal=((r"Downloading a file failed: (\S+)", r"\1 could not be fetched"), (r"^!! ERROR", "it shows an error")),
    read=r"loaded preseed file", done=r"finish-install",
)  # fmt: skip
LIMITS = Limits(within=1000, read_within=100, stall=50)


def watch(signs: Signs = SIGNS, limits: Limits = LIMITS, wants: str = "") -> Watch:
    return Watch(Reader(signs), limits, wants=wants)


def failed(watched: Watch, now: float) -> Failure:
    failure = watched.failure(now)
    assert failure is not None
    return failure


# -- a good one --------------------------------------------------------------------------------------------------


def test_phases_are_told_once_with_their_times() -> None:
    seen = watch()
    seen.line("Nov 27 main-menu[1]: INFO: Menu item 'netcfg' selected", 12.4)
    seen.line("successfully loaded preseed file from file:///preseed.cfg", 15.04)
    seen.line("Nov 27 main-menu[1]: INFO: Menu item 'netcfg' selected", 16)
    seen.line("Installing the base system", 20)
    seen.line("Menu item 'finish-install' selected", 30)
    assert seen.news() == [
        "phase: item netcfg (after 12 s)", "answer file read (after 15.0 s)", "phase: base system (after 20 s)",
        "phase: item finish-install (after 30 s)",
    ]  # fmt: skip
    assert seen.news() == []
    assert seen.failure(31) is None
    assert seen.ending("shutdown", 32) is None
    assert seen.ending("reset", 32) is None
    assert seen.summary(35) == ["took: item netcfg: 8 s", "took: base system: 10 s", "took: item finish-install: 5 s"]


def test_phases_and_lines_are_kept_within_bounds() -> None:
    seen = watch()
    for number in range(5000):
        seen.line(f"Menu item '{number}' selected" + "x" * 100_000, number / 100)
    assert len(seen.summary(60)) == 500
    assert len(seen.where) < 100


def test_an_installer_that_is_done_and_waits_is_switched_off() -> None:
    seen = watch(limits=Limits(10_000, 100, 900))
    seen.read(1)
    seen.line("finish-install", 10)
    seen.moved(100)
    assert not seen.done(399)
    assert seen.done(401)


# -- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_line_that_shows_a_failure_ends_it_with_the_lines_that_matter() -> None:
    seen = watch()
    seen.read(1)
    for number in range(20):
        seen.line(f"before {number}", 5)
    seen.line("Menu item 'anna' selected", 5)
    seen.line("Downloading a file failed: e2fsprogs-udeb", 6)
    assert seen.failure(6.5) is None  # what follows may say more
    seen.line("The installer failed to download a file from the mirror.", 6.6)
    found = failed(seen, 8)
    assert found.what == "e2fsprogs-udeb could not be fetched; it was last at: item anna"
    assert found.lines[-2:] == (
        "Downloading a file failed: e2fsprogs-udeb", "The installer failed to download a file from the mirror.",
    )  # fmt: skip
    assert "before 19" in found.lines
    assert len(found.lines) < 12
    assert not found.late
    assert not found.fluke


def test_it_is_told_without_waiting_where_the_installer_goes_on_talking() -> None:
    seen = watch()
    seen.line("!! ERROR: no", 6)
    for number in range(100):
        seen.line(f"after {number}", 6)
    assert len(failed(seen, 6.1).lines) <= 20


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("[    2.5] Kernel panic - not syncing: VFS: Unable to mount root fs", "kernel panicked: VFS: Unable to mount"),
        ("ALERT!  LABEL=x does not exist.  Dropping to a shell!", "does not find its medium"),
        ("Unable to find a medium containing a live file system", "does not find its medium"),
        ("Entering emergency mode. Exit the shell to continue.", "does not find its medium"),
        ("No bootable device.", "no bootable device"),
        ("Fatal glibc error: CPU does not support x86-64-v2", "CPU lacks what this system needs"),
    ],
)
def test_failures_that_installers_share(line: str, meaning: str) -> None:
    seen = watch(Signs())
    seen.line(line, 3)
    assert meaning in failed(seen, 10).what


def test_only_an_early_panic_of_the_emulators_kind_is_worth_another_start() -> None:
    timer = "Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug"

    def fluke(line: str, at: float = 3, wrote: bool = False, phase: bool = False) -> bool:
        seen = watch(Signs(phases=((r"^go", "going"),)))
        seen.line("go" if phase else "x", 1)
        seen.moved(2, wrote=wrote)
        seen.line(line, at)
        return failed(seen, at + 3).fluke

    assert fluke(timer)
    assert fluke("Kernel panic - not syncing: Fatal exception in interrupt")
    assert not fluke("Kernel panic - not syncing: sysrq triggered crash")
    assert not fluke("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)")
    assert not fluke(timer, at=200)
    assert not fluke(timer, wrote=True)
    assert not fluke(timer, phase=True)


def test_starting_again_forgets_what_was() -> None:
    seen = watch()
    seen.line("!! ERROR", 1)
    seen.start()
    assert seen.failure(10) is None


def test_silence_everywhere_is_a_stall_and_movement_anywhere_is_none() -> None:
    seen = watch()
    seen.read(1)
    seen.line("Where do you live?", 10)
    assert seen.failure(59) is None
    found = failed(seen, 60)
    assert found.late
    assert "hangs: nothing moved for 50 s" in found.what
    assert found.lines[-1] == "Where do you live?"
    seen.moved(60)
    assert seen.failure(100) is None
    seen.line("still here", 109)
    assert seen.failure(150) is None


def test_an_answer_file_that_is_not_asked_for_is_told_in_time() -> None:
    seen = watch(Signs(), wants="preseed.cfg")
    seen.moved(99)
    assert seen.failure(99) is None
    found = failed(seen, 100)
    assert found.what == "the installer did not ask for preseed.cfg within 100 s"
    assert found.late
    seen.read(101)
    assert seen.failure(102) is None


def test_an_answer_file_that_is_not_read_is_told_where_that_can_be_seen() -> None:
    seen = watch()
    seen.moved(99)
    assert "did not read its answer file within 100 s" in failed(seen, 100).what
    blind = watch(Signs())
    blind.moved(99)
    assert blind.failure(100) is None


def test_all_of_it_has_a_deadline() -> None:
    seen = watch()
    seen.line("Menu item 'pkgsel' selected", 10)
    seen.read(11)
    seen.moved(999)
    found = failed(seen, 1000)
    assert found.what == "the installation was not over after 1000 s; it was last at: item pkgsel"
    assert found.late


def test_a_guest_that_restarts_itself_again_and_again() -> None:
    seen = watch(limits=Limits(1000, 1000, 1000, restarts=3))
    seen.restarted(3)
    assert seen.failure(5) is None
    seen.restarted(4)
    assert "restarts itself again and again (4 times" in failed(seen, 6).what


def test_a_machine_that_qemu_has_stopped() -> None:
    seen = watch()
    seen.stopped("io-error")
    found = failed(seen, 6)
    assert found.what == "the machine was stopped: this host cannot write the guest's disk any more"
    assert "cache gc" in found.hint
    seen.stopped("internal-error")
    assert "QEMU says 'internal-error'" in failed(seen, 6).what


# -- ends that are none ------------------------------------------------------------------------------------------


def ends(seen: Watch, how: str) -> str:
    failure = seen.ending(how, 40)
    assert failure is not None
    return failure.what


def test_ends_are_told_apart() -> None:
    seen = watch()
    unread = "after 40 s without having read its answer file"
    assert ends(seen, "shutdown") == f"the installer switched the machine off {unread}"
    assert ends(seen, "reset").startswith("the installer restarted the machine after 40 s without having read")
    seen.read(1)
    assert "without having said that it is done" in ends(seen, "shutdown")
    died = ends(seen, "QEMU was killed by SIGKILL")
    assert died == "the installation ended after 40 s, because QEMU was killed by SIGKILL"
    seen.line("finish-install", 30)
    assert seen.ending("shutdown", 40) is None
    assert "SIGKILL" in ends(seen, "QEMU was killed by SIGKILL")


def test_a_failure_seen_just_before_the_end_is_the_one_that_counts() -> None:
    seen = watch()
    seen.line("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", 39.9)
    assert "kernel panicked: Attempted to kill init!" in ends(seen, "reset")


# -- lines -------------------------------------------------------------------------------------------------------


def test_a_console_is_cut_into_lines_and_prompts_are_seen() -> None:
    lines = Lines()
    assert lines.feed(b"one\r\ntw") == ["one"]
    assert lines.pending == "tw"
    assert lines.feed(b"o\r\n\x1b[1mthree\x1b[0m\r\nPrompt: ") == ["two", "three"]
    assert lines.pending == "Prompt: ".rstrip()
    assert lines.feed(b"\n") == ["Prompt:"]
    painted = b"\x1b[3;4HError\x1b[5;6H<Go Back>" * 500
    assert "<Go Back>" in lines.feed(painted)


# -- the loop, with a machine that is none -----------------------------------------------------------------------


@dataclass
class Puppet:
    """Stands for a machine and its console: each start says something else."""

    starts: list[bytes]
    spec: MachineSpec = field(default_factory=lambda: MachineSpec(screen=False, network=False))
    restarts: int = 0
    ended: str = ""
    _unsaid: bytes = b""

    def __post_init__(self) -> None:
        self.start_again()

    @property
    def console(self) -> Puppet:
        return self

    @property
    def qmp(self) -> Puppet:
        return self

    def execute(self, *args: object, **more: object) -> object:
        raise ToolFailed("gone")

    def start_again(self) -> None:
        self._unsaid = self.starts.pop(0)

    def news(self) -> bytes:
        news, self._unsaid = self._unsaid, b""
        if b"done" in news:
            self.ended = "shutdown"
        return news

    def tail(self) -> str:
        return "the tail"

    def finish(self) -> None:
        pass


def follow(puppet: Puppet, tmp_path: Path) -> list[str]:
    said: list[str] = []
    watched = watch(Signs(phases=((r"^go", "going"),), fatal=((r"^bad", "it is bad"),)))
    evidence = Evidence(tmp_path, Journal(tmp_path / "installer.log"))
    follower = Follower(puppet, watched, evidence, Host(), said.append)  # type: ignore[arg-type]
    assert follower.follow() == "shutdown"
    return said


TIMER = b"[0.1] Kernel panic - not syncing: IO-APIC + timer doesn't work!\n" + b"and more\n" * 20


def test_a_start_that_the_emulator_spoilt_is_made_again(tmp_path: Path) -> None:
    said = follow(Puppet([TIMER, TIMER, b"go\ndone\n"]), tmp_path)
    assert [line.endswith("starting the guest again") for line in said] == [True, True, False]
    assert said[-1].startswith("phase: going")
    with pytest.raises(GuestFailed, match="IO-APIC"):
        follow(Puppet([TIMER] * 5), tmp_path)


def test_a_failure_comes_with_the_tail_and_the_files(tmp_path: Path) -> None:
    (tmp_path / "install-console.log").write_text("x")
    with pytest.raises(GuestFailed, match="it is bad") as caught:
        follow(Puppet([b"go\nbad\n"]), tmp_path)
    assert caught.value.tail == "the tail"
    assert [path.name for path in caught.value.artifacts] == ["install-console.log"]


def test_of_a_silent_machines_pictures_the_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_PICTURE", 0.15), ("_LOOK", 0.01), ("_POLL", 0.02)):
        monkeypatch.setattr(follow_module, name, value)
    taken: list[Path] = []

    class Photographed(Puppet):
        def screenshot(self, path: Path) -> None:
            taken.append(path.with_stem(f"{path.stem}-{len(taken)}"))
            path.write_bytes(b"png")
            if len(taken) > 8:
                self._unsaid = b"done\n"

    follow(Photographed([b""], MachineSpec(network=False)), tmp_path)
    assert len(taken) > 8
    assert len(list(tmp_path.glob("screen-*.png"))) == 5


def test_cancelling_ends_the_watch(tmp_path: Path) -> None:
    host = Host()
    host.cancel()
    evidence = Evidence(tmp_path, Journal(tmp_path / "log"))
    with pytest.raises(Interrupted):
        Follower(Puppet([b""]), watch(), evidence, host, print).follow()  # type: ignore[arg-type]
