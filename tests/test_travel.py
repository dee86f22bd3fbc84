"""Into a guest as a failing step left it, and as it was after any step; everything there is thrown away."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import rootless
from tests.conftest import Command, Golden
from tests.terminals import Terminal, works_as_a_terminal

TREE = """
name: travel
base: {bootstrap: {distribution: debian, suite: bookworm, packages: [openssh-server, sudo]}}
steps:
  - name: begin
    shell: echo one > /root/one
  - shell: rm /usr/bin/sudo
  - name: break
    shell: |
      echo half > /root/half
      LAST
  - cleanup: false
outputs: [oci]
"""
DISK = """
name: travel-disk
base: {disk: {path: golden.qcow2, trusted: true}}
steps:
  - shell: echo half > /root/half; false
  - cleanup: false
outputs: [raw]
"""


def contents(store: Path) -> set[str]:
    return {path.name for folder in ("layers", "leases", "locks") for path in (store / folder).iterdir()}


@pytest.fixture(scope="module")
def recipe(golden: Golden, command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose third step fails; what comes before it is in the store that the tests share."""
    path = tmp_path_factory.mktemp("travel") / "travel.yaml"
    path.write_text(TREE.replace("LAST", "false"))
    command("build", path, expect=1)
    return path


def at_terminal(command: Command, *args: str | Path) -> Terminal:
    return Terminal(command.argv(*args), command.environment())


# -- where a step fails ------------------------------------------------------------------------------------------


def test_a_failed_step_opens_the_tree_as_it_left_it(recipe: Path, command: Command) -> None:
    before = contents(command.store)
    user = at_terminal(command, "build", recipe, "--on-error", "shell")
    user.expect("the commands failed (exit status 1)")
    works_as_a_terminal(user, "touch /root/mine; cat /root/half /root/one", "half\r\none")
    user.expect("# ")
    user.type("exit 5\n")
    assert user.end() == 1
    assert "imagesmith: 3 break: the commands failed (exit status 1)" in user.seen
    assert "travel.yaml:8 (step 3 of 3)" in user.seen
    assert "  shell: imagesmith build" not in user.seen  # that is where the user was
    assert contents(command.store) == before  # neither the step's layer nor what was changed in the shell


def test_what_hangs_can_be_looked_at(recipe: Path, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "travel.yaml"
    path.write_text(TREE.replace("LAST", "sleep 1234").replace("name: break", "name: break\n    timeout: 2s"))
    user = at_terminal(command, "build", path, "--on-error", "shell")
    user.expect("the step did not end within its time")
    user.expect("# ")
    user.type("cat /proc/*/cmdline | tr '\\0' ' '; echo\n")
    user.expect("sleep 1234")
    user.type("exit\n")
    assert user.end() == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts disks")
def test_a_failed_step_opens_the_mounted_disk_as_it_left_it(golden: Golden, command: Command, tmp_path: Path) -> None:
    shutil.copy(golden.folder / "golden.qcow2", tmp_path / "golden.qcow2")
    (tmp_path / "disk.yaml").write_text(DISK)
    user = at_terminal(Command(tmp_path / "store", tmp_path), "build", tmp_path / "disk.yaml", "--on-error", "shell")
    user.expect("# ")
    user.type("cat /root/half /etc/mark\n")
    user.expect("half\r\nhello")
    user.type("exit\n")
    assert user.end() == 1


ROOTLESS = r"""
import os, shutil, subprocess, sys
from pathlib import Path
from imagesmith.drivers.native_tree import NativeTree
from imagesmith.host import Host
from imagesmith.terminal import UserTerminal

home = Path(os.environ["HOME"])
if sys.argv[1:] != ["inside"]:
    from tests.terminals import Terminal, works_as_a_terminal
    for folder in ("bin", "etc", "root"):
        (home / "below/upper" / folder).mkdir(parents=True)
    for program in ("/bin/dash", "/usr/bin/tty", "/usr/bin/id"):
        shutil.copy(program, home / "below/upper/bin")
        for word in subprocess.run(["ldd", program], capture_output=True, text=True).stdout.split():
            if word.startswith("/"):
                library = home / "below/upper" / word[1:]
                library.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(word, library)
    (home / "below/upper/bin/sh").symlink_to("dash")
    (home / "code").write_text(CODE)
    user = Terminal([sys.executable, "-B", home / "code", "inside"], os.environ)
    user.expect("# ")
    user.type("tty; id\n")
    user.expect("/dev/pts/0")
    user.expect("uid=0")
    user.type("exit\n")
    sys.exit(user.end())
(home / "layer").mkdir()
with (NativeTree(Host()).session([home / "below"], epoch=0, log=print) as session,
      session.layer(home / "layer", below=home / "below", log=print) as root):
    root.shell(UserTerminal())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_enters_a_tree() -> None:
    with rootless.home() as home:
        done = rootless.run(home, f"CODE = {ROOTLESS!r}\nexec(CODE)")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_shell_needs_a_terminal(recipe: Path, command: Command) -> None:
    assert "stdin is no terminal" in command("build", recipe, "--on-error", "shell", expect=2).err
    assert "stdin is no terminal" in command("shell", recipe, expect=2).err
    assert "did you mean 'shell'?" in command("build", recipe, "--on-error", "shel", expect=2).err


def test_the_log_of_a_step_can_be_followed(recipe: Path, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "travel.yaml"
    path.write_text(TREE.replace("LAST", "echo told; sleep 1000"))
    build = command.start("build", path, "--verbose")
    assert build.stderr is not None
    while "| told" not in build.stderr.readline():
        pass
    (part,) = (command.store / "layers").glob("*.part")
    assert (part / "log").read_text() == "told\n"
    build.terminate()
    assert build.wait() == 130


# -- as it was after a step --------------------------------------------------------------------------------------


def test_a_command_runs_in_the_tree_after_a_step(recipe: Path, command: Command) -> None:
    before = contents(command.store)
    ran = command("shell", recipe, "--", "sh", "-c", "ls /root /usr/bin/sudo; touch /root/mine; exit 7", expect=7)
    assert "one\n" in ran.out
    assert "cannot access '/usr/bin/sudo'" in ran.out
    assert "travel after '2 shell rm" in ran.err
    assert "thrown away" in ran.err
    for after in ("1", "begin", "1 begin"):
        ran = command("shell", recipe, "--after", after, "--", "ls", "/root", "/usr/bin/sudo")
        assert "/usr/bin/sudo\n" in ran.out
        assert "one\n" in ran.out
        assert "mine" not in ran.out
    assert "one" not in command("shell", recipe, "--after", "base", "--", "ls", "/root").out
    assert command("shell", recipe, "--", "sh", "-c", "kill -9 $$", expect=137).out == ""
    assert contents(command.store) == before


def test_a_step_that_is_not_there_is_said(recipe: Path, command: Command) -> None:
    said = command("shell", recipe, "--after", "break", "--", "true", expect=2).err
    assert "'3 break' is not built as the recipe stands now; the last that is there is '2 shell rm" in said
    assert "did you mean 'begin'?" in command("shell", recipe, "--after", "begn", "--", "true", expect=2).err
    assert "did you mean 'begin'?" in command("build", recipe, "--from", "begn", expect=2).err
    assert "the recipe has 3 steps" in command("build", recipe, "--from", "4", expect=2).err
    assert "there are 'base bootstrap debian bookworm', '1 begin'" in (
        command("build", recipe, "--from", "quux", expect=2).err)  # fmt: skip


def test_steps_run_again_from_a_number_or_a_name(recipe: Path, command: Command) -> None:
    for word, first in (("2", 2), ("break", 3), ("3 break", 3)):
        ran = command("build", recipe, "--from", word, "--log-format", "json", expect=1)
        events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
        begun = [event["node"] for event in events if event["event"] == "node-start"]
        assert [int(node[0]) for node in begun] == list(range(first, 4))


def test_plan_is_there_for_machines(recipe: Path, command: Command) -> None:
    found = json.loads(command("plan", recipe, "--json").out)
    nodes = {node["name"].partition(" ")[2]: node for node in found["nodes"]}
    assert (nodes["begin"]["state"], nodes["begin"]["driver"]) == ("there", "native")
    assert nodes["begin"]["age"] >= 0
    assert nodes["break"]["reasons"] == ["never built"]
    assert nodes["oci"]["reasons"] == ["'3 break' runs"]
    assert found["recipe"] == "travel"


@pytest.mark.parametrize("words", [["--refresh", "7d"], ["{recipe}", "--refresh", "12h"]])
def test_an_age_without_its_equals_sign_is_said(recipe: Path, command: Command, words: list[str]) -> None:
    said = command("build", *[word.format(recipe=recipe) for word in words], expect=2).err
    assert f"write --refresh={words[-1]}" in said


# -- booted copies -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_is_booted_and_entered_without_network_or_login(golden: Golden, command: Command) -> None:
    user = at_terminal(command, "shell", golden.recipe)
    user.expect("golden after 'assemble the disk': a copy of its disk, booted")
    user.expect("# ")
    user.type("cat /etc/mark; stty size; tty\n")
    assert "hello\r\n30 100" in user.expect("/dev/hvc0")
    user.type("sh -c 'echo be''gun; exec sleep 1000'\n")
    user.expect("begun")
    user.type("\x03")
    user.expect("# ")
    user.type("exit\n")
    assert user.end() == 0


@pytest.mark.slow
def test_the_recipes_login_becomes_root_by_its_password(command: Command, tmp_path: Path) -> None:
    (tmp_path / "login.yaml").write_text("""
name: travel-login
machine: {memory: 1G}
login: {user: ops, password: sesame-17}
base: {bootstrap: {distribution: debian, suite: bookworm, packages: [openssh-server, sudo]}}
steps:
  - user: {name: ops, password: sesame-17, groups: [sudo]}
  - shell: echo two > /root/two
    via: ssh
  - cleanup: false
outputs: [raw]
""")
    ours = Command(command.store, tmp_path)
    ours("build", tmp_path / "login.yaml")
    user = at_terminal(ours, "shell", tmp_path / "login.yaml")
    user.expect("a shell in the running guest, over SSH")
    user.expect("# ")
    user.type("cat /root/two; id -u; stty size\n")
    assert "two\r\n0\r\n" in user.expect("30 100")
    user.type("exit\n")
    assert user.end() == 0
    assert "sesame" not in user.seen


@pytest.mark.slow
def test_an_image_is_booted_for_a_command(golden: Golden, command: Command) -> None:
    ran = command("shell", golden.folder / "golden.qcow2", "--", "sh", "-c", "cat /etc/mark; exit 9", expect=9)
    assert ran.out == "hello\n"


@pytest.mark.slow
def test_a_failed_check_opens_the_booted_copy(golden: Golden, command: Command, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"""
name: travel-check
base: {{recipe: {golden.recipe}}}
machine: {{memory: 1G}}
steps: [{{cleanup: false}}]
checks: [{{file: {{path: /etc/mark, contains: never said}}}}]
outputs: [qcow2]
""")
    user = Terminal(Command(command.store, tmp_path).argv("build", tmp_path / "r.yaml", "--on-error", "shell"),
                    command.environment())  # fmt: skip
    user.expect("1 of 1 checks failed under bios")
    user.expect("# ")
    user.type("cat /etc/mark; tty; exit\n")
    user.expect("/dev/hvc0")
    assert user.end() == 1


@pytest.mark.slow
def test_a_failed_step_in_an_appliance_is_entered_line_by_line(golden: Golden, tmp_path: Path) -> None:
    shutil.copy(golden.folder / "golden.qcow2", tmp_path / "golden.qcow2")
    (tmp_path / "disk.yaml").write_text(DISK.replace(", trusted: true", ""))
    user = at_terminal(Command(tmp_path / "store", tmp_path), "build", tmp_path / "disk.yaml", "--on-error", "shell")
    user.expect("each line that you type is run by a shell of its own")
    user.expect("/# ")
    user.type("cd /etc\n")
    user.expect("/etc# ")
    user.type("cat /root/half mark; false\n")
    user.expect("half")
    user.expect("(exit status 1)")
    user.expect("/etc# ")
    user.type("exit\n")
    assert user.end() == 1
