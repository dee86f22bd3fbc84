"""A changed last step in a running guest: the next build goes on from the guest's state, or boots where it must."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Command, Golden
from tests.terminals import Terminal, works_as_a_terminal

RECIPE = """
name: resumed
machine: {memory: 1G}
base: {disk: {path: golden.qcow2, trusted: true}}
steps:
  - shell: rm -f /etc/ssh/sshd_config.d/hardened.conf
  - shell: echo one > /root/one
    via: ssh
  - shell: LAST
    via: ssh
  - cleanup: false
outputs: [raw]
"""
WAKES = "test ! -e /root/.ssh/authorized_keys; cat /proc/sys/kernel/random/boot_id > /root/boot; date +%s > /root/when"


class Online:
    """A recipe whose last step changes, in a store of its own."""

    def __init__(self, folder: Path, golden: Golden) -> None:
        self.recipe = folder / "resumed.yaml"
        self.command = Command(folder / "store", folder / "output")
        shutil.copy(golden.folder / "golden.qcow2", folder / "golden.qcow2")

    def build(self, last: str, *options: str) -> str:
        self.recipe.write_text(RECIPE.replace("LAST", last))
        return self.command("build", self.recipe, "--verbose", *options).err

    @property
    def states(self) -> list[Path]:
        return sorted((self.command.store / "layers").glob("*/checkpoint/memory.zst"))


@pytest.fixture(scope="module")
def online(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Online:
    found = Online(tmp_path_factory.mktemp("online"), golden)
    first = found.build("echo first")
    assert "booting the guest" in first
    assert first.count("checkpoint: ") == 3  # of the boot, and of each step
    return found


def test_a_changed_last_step_goes_on_from_the_running_guest(online: Online) -> None:
    told = online.build(f"{WAKES}; echo second")
    assert "booting the guest" not in told
    assert "going on from the checkpoint" in told
    assert "| second" in told
    assert all(state.stat().st_mode & 0o777 == 0o600 for state in online.states)
    assert online.command("cache", "verify").out.strip() == "sound"


def test_a_guest_is_entered_as_it_was_after_a_step(online: Online) -> None:
    before = sorted((online.command.store / "layers").iterdir())
    script = "ls /root; touch /root/mine; exit 7"
    ran = online.command("shell", online.recipe, "--after", "2", "--", "sh", "-c", script, expect=7)
    assert "going on from the checkpoint" in ran.err
    assert ran.out.split() == ["one"]
    assert sorted((online.command.store / "layers").iterdir()) == before


def test_a_failed_step_opens_the_running_guest(online: Online) -> None:
    online.recipe.write_text(RECIPE.replace("LAST", "echo half > /root/half; false"))
    user = Terminal(online.command.argv("build", online.recipe, "--on-error", "shell"), online.command.environment())
    user.expect("a shell in the running guest, over SSH")
    works_as_a_terminal(user, "cat /root/half", "half")
    user.type("exit 3\n")
    assert user.end() == 1


def test_a_state_that_does_not_fit_is_no_condition(online: Online) -> None:
    for fits in (online.command.store / "layers").glob("*/checkpoint/fits"):
        fits.write_text("another machine")
    told = online.build("echo third", "--no-checkpoints")
    assert "the checkpoint cannot be used: it is of another machine or another QEMU; booting from the disk" in told
    assert "checkpoint: " not in told.replace("the checkpoint", "")
    before = len(online.states)
    collected = online.command("cache", "gc", "--limit", "100G").out
    assert "removed 0 layers" in collected
    assert len(online.states) == before
