"""What happens when things go wrong: said clearly, nothing left running, nothing lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Command

HEAD = """\
name: small
base: {bootstrap: {distribution: debian, suite: bookworm, kernel: none}}
outputs: [oci]
steps:
"""


def write(folder: Path, steps: str, head: str = HEAD) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "small.yaml").write_text(head + steps)
    return folder / "small.yaml"


@pytest.fixture
def quick(command: Command, tmp_path: Path) -> Command:
    """The command with the shared store and an output folder of its own."""
    return Command(command.store, tmp_path / "output")


def of_ours(store: Path, nap: str = "") -> list[str]:
    """Processes that name the store or sleep for ``nap``, and mounts and loop devices of the store.

    A guest's processes have an environment of their own, and mounts are in name spaces of their own, so the one can
    be known by what it does, the other is seen only in the mountinfo of the processes that are in the name space.
    """
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if str(store) in words or (nap and nap in words):
                    found.add(words)
                mounts = (process / "mountinfo").read_text(errors="replace")
                found |= {line for line in mounts.splitlines() if str(store) in line}
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=False).stdout
    return [*sorted(found), *(line for line in loops.splitlines() if str(store) in line)]


def gone(store: Path, nap: str = "") -> bool:
    """Wait until nothing of ours is left: the kernel takes a moment to end a namespace."""
    for _ in range(100):
        if not of_ours(store, nap):
            return True
        time.sleep(0.1)
    return False


def a_nap() -> str:
    """A long time to sleep that nobody else sleeps for, so that the sleeper can be found among all processes."""
    return f"1000.{random.SystemRandom().randrange(10**11, 10**12)}"


def test_a_step_that_fails_shows_its_last_lines_and_costs_nothing_before_it(quick: Command, tmp_path: Path) -> None:
    good = "  - shell: echo one > /one\n"
    recipe = write(tmp_path, good + "  - name: break\n    shell: |\n      echo the reason is this\n      exit 7\n")
    ran = quick("build", recipe, expect=1)
    assert "2 break" in ran.err
    assert "exit status 7" in ran.err
    assert "the reason is this" in ran.err
    message = ran.err[ran.err.index("imagesmith: ") :].splitlines()
    kept = quick.output / "small" / "failed" / "2-break.log"
    assert message == [  # the cause, where it stands, what was kept, the ways in
        "imagesmith: 2 break: the commands failed (exit status 7)",
        "  | the reason is this",
        f"  at: {recipe}:6 (step 2 of 3)",
        f"  kept: {kept} (the log)",
        f"  kept: {kept.with_name('report.html')} (all of it, as a page)",
        f"  shell: imagesmith build {recipe} --output {quick.output} --on-error shell",
        f"  shell: imagesmith shell {recipe} --after 1",
    ]
    assert not (quick.output / "small" / "manifest.json").exists()
    assert "the reason is this" in (quick.output / "small" / "failed" / "2-break.log").read_text()
    write(tmp_path, good + "  - name: break\n    shell: echo mended\n")
    ran = quick("build", recipe)
    assert "cached 1 shell" in ran.err
    assert "done   2 break" in ran.err
    assert not (quick.output / "small" / "failed").exists()


def test_a_step_that_hangs_is_ended_with_all_it_started(quick: Command, tmp_path: Path) -> None:
    nap = a_nap()
    steps = f"  - name: hang\n    shell: echo waiting; setsid sleep {nap} & sleep {nap}\n    timeout: 3s\n"
    recipe = write(tmp_path, steps)
    build = quick.start("build", recipe)
    seen = False
    while build.poll() is None:
        seen = seen or any(f"sleep {nap}" in words for words in of_ours(quick.store, f"sleep {nap}"))
        time.sleep(0.1)
    _, err = build.communicate()
    assert build.returncode == 1, err[-3000:]
    assert seen, "the test cannot see what it looks for"
    assert "did not end within" in err
    assert "waiting" in err
    assert gone(quick.store, nap), of_ours(quick.store, nap)


def test_retries(quick: Command, tmp_path: Path) -> None:
    # the layer of a failed try is thrown away, so what it did is not seen by the next
    recipe = write(tmp_path, "  - name: flaky\n    retries: 1\n    shell: test ! -e /tried; touch /tried; false\n")
    ran = quick("build", recipe, expect=1)
    assert "trying again (1 left)" in ran.err
    assert ran.err.count("FAILED 1 flaky") == 2


def test_secrets_are_used_and_found_nowhere(quick: Command, tmp_path: Path) -> None:
    secret = f"s3cr3t-{random.getrandbits(64):x}"
    head = HEAD.replace("steps:", "variables: {token: {secret: {env: THE_TOKEN}}}\nsteps:")
    recipe = write(tmp_path, """\
  - name: use it
    shell: {run: 'echo "$TOKEN"; test -n "$TOKEN"; echo "length ${#TOKEN}"', env: {TOKEN: "{{ token }}"}}
""", head)  # fmt: skip
    missing = quick("build", recipe, expect=2)
    assert "the environment variable THE_TOKEN is not set" in missing.err
    ran = quick("build", recipe, "--log-format", "json", env={"THE_TOKEN": secret})
    assert secret not in ran.err + ran.out
    assert "***" in ran.err
    for path in [*quick.output.rglob("*"), quick.store / "index.db", *quick.store.glob("index.db-*"),
                 *quick.store.glob("layers/*/log")]:  # fmt: skip
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_two_builds_at_once_do_each_node_once(quick: Command, tmp_path: Path) -> None:
    stamp = f"{time.time()}"
    steps = f"  - name: slow\n    shell: 'echo {stamp} > /stamp; sleep 2'\n  - name: last\n    shell: echo > /last\n"
    recipe = write(tmp_path, steps)
    builds = [quick.start("build", recipe, "--log-format", "json") for _ in range(2)]
    done: list[str] = []
    for build in builds:
        _, err = build.communicate(timeout=300)
        assert build.returncode == 0, err[-3000:]
        done += [e["node"] for e in map(json.loads, err.splitlines()) if e["event"] == "node-done"]
    base = [node for node in done if node.startswith("base ")]
    assert len(base) <= 1  # an earlier test may have made it
    assert sorted(done) == ["1 slow", "2 last", "3 cleanup", *base, "output oci", "take the inventory"]
    assert [path.name for path in quick.output.iterdir()] == ["small"]
    folder = quick.output / "small"
    assert (folder / "manifest.json").exists()
    sums = (folder / "SHA256SUMS").read_text()
    for line in sums.splitlines():
        assert hashlib.sha256((folder / line[66:]).read_bytes()).hexdigest() == line[:64], line


def test_interrupted_anywhere_it_goes_on_after_the_last_finished_step(quick: Command, tmp_path: Path) -> None:
    stamp = f"{time.time()}"
    nap = a_nap()
    work = f"sleep {nap} > /dev/null 2>&1 & sleep 0.3"
    steps = "".join(f"  - name: part {n}\n    shell: 'echo {stamp} {n} > /part{n}; {work}'\n" for n in range(6))
    recipe = write(tmp_path, steps)
    chance, finished = random.Random(stamp), set[str]()
    for round_ in range(8):
        build = quick.start("build", recipe, "--log-format", "json")
        assert build.stderr is not None
        first = build.stderr.readline()  # before, Python itself begins, for as long as other programs let it
        time.sleep(chance.uniform(0, 1.3))
        number = chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        build.send_signal(number)
        err = first + build.communicate(timeout=60)[1]
        assert build.returncode in (0, 130, -9), err[-3000:]
        assert gone(quick.store, nap), f"{number!r} left: {of_ours(quick.store, nap)}"
        lines = []
        for line in err.splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # the line that was being written, or the last word of the interrupted command
        done = {e["node"] for e in lines if e["event"] == "node-done"}
        assert not done & finished, f"round {round_} did again what was finished"
        finished |= done
        assert quick("cache", "verify").out == "sound\n"
    ran = quick("build", recipe, "--log-format", "json")
    events = [json.loads(line) for line in ran.err.splitlines()]
    assert {e["node"] for e in events if e["event"] == "node-cached"} >= finished
    assert not list((quick.store / "layers").glob("*.part"))
    assert sorted(p.name for p in quick.output.iterdir()) == ["small"]


def test_no_network_is_said(quick: Command, tmp_path: Path) -> None:
    head = HEAD.replace("kernel: none", "kernel: none, mirror: 'http://127.0.0.1:9/debian'")
    ran = quick("build", write(tmp_path, "  - shell: 'true'\n", head), expect=1)
    assert "127.0.0.1" in ran.err
    assert "refused" in ran.err
    assert gone(quick.store)


def test_a_missing_tool_is_named_with_its_packages(command: Command, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    fresh = Command(tmp_path / "store", tmp_path / "output")
    recipe = write(tmp_path, "  - shell: 'true'\n")
    # a PATH without mmdebstrap: everything else that is in /usr/bin and /usr/sbin
    for folder in ("/usr/bin", "/usr/sbin"):
        for program in Path(folder).iterdir():
            if program.name != "mmdebstrap" and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    ran = fresh("build", recipe, expect=1, env={"PATH": str(tools)})
    assert "'mmdebstrap' is not installed; it is needed to" in ran.err
    assert "Debian/Ubuntu mmdebstrap, Fedora mmdebstrap" in ran.err


def test_no_space_left_is_said_and_leaves_nothing(quick: Command, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill up")
    small = tmp_path / "small-disk"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=True)
    try:
        ran = Command(small / "store", tmp_path / "output")("build", write(tmp_path, "  - shell: 'true'\n"), expect=1)
        assert "space" in ran.err
        assert not list((small / "store" / "layers").iterdir())
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_hostile_images_are_refused(quick: Command, tmp_path: Path) -> None:
    evil = tmp_path / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, "1M"],
                   check=True)  # fmt: skip
    ran = quick("test", evil, expect=1)
    assert "may name any file of this host" in ran.err
    half = tmp_path / "half.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", half, "1G"], check=True)
    os.truncate(half, 100)
    assert f"{half} is cut off or damaged\n" in quick("test", half, expect=1).err


def test_wrong_words_on_the_command_line(quick: Command, tmp_path: Path) -> None:
    recipe = write(tmp_path, "  - shell: 'true'\n")
    assert "no such option" in quick("build", recipe, "--outptu", "x", expect=2).err.lower()
    assert "did you mean 'oci'?" in quick("build", recipe, "--only", "ocii", expect=2).err
    assert "no such file" in quick("validate", tmp_path / "none.yaml", expect=2).out
    assert "did you mean 'packages'?" in quick("kinds", "pakages", expect=2).err


def test_the_store_is_listed_measured_collected_and_cleared(command: Command, tmp_path: Path) -> None:
    mine = Command(tmp_path / "store", tmp_path / "output")
    shutil.copytree(command.store, tmp_path / "store", symlinks=True, ignore=shutil.ignore_patterns("layers"))
    assert "MiB in" in mine("cache", "size").out
    mine("cache", "verify", "--repair")
    assert mine("cache", "verify").out == "sound\n"
    mine("cache", "clear")
    assert mine("cache", "list").out == ""
    assert "removed" in mine("cache", "gc", "--limit", "1G").out
