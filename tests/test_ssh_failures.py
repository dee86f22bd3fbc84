"""What goes wrong in a running guest, and what is said of it: in one guest, into which an appliance puts the key."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from imagesmith.archive import Archive, archive_of
from imagesmith.disk.attach import exported
from imagesmith.drivers.ssh import SshDriver
from imagesmith.drivers.ssh_root import SshRoot
from imagesmith.errors import BuildError, GuestFailed, StepFailed, TimedOut
from imagesmith.machine.inject import debugfs, places
from imagesmith.machine.ssh import Ssh
from imagesmith.machine.ssh_login import Credentials, make_key
from tests.test_ssh import EPOCH, HOST, OWN_KEY, children, first_layers, new

LINES: list[str] = []


@pytest.fixture(scope="module")
def unclean(golden: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The shared image as it would be after a loss of power: its journal must be replayed."""
    below = first_layers(golden, tmp_path_factory.mktemp("unclean"), "rm /etc/ssh/sshd_config.d/hardened.conf; "
                         f"install -d -m 700 /root/.ssh; printf %s '{OWN_KEY}' > /root/.ssh/authorized_keys; "
                         "touch -d @1000000000 /root/.ssh/authorized_keys")  # fmt: skip
    with exported(below[-1] / "disk.qcow2", HOST, writable=True) as raw:
        debugfs(f"{raw}?offset={places(raw, HOST)[0].offset}", ["feature needs_recovery"], HOST, write=True)
    return below


def test_failures_have_messages_of_their_own_and_leave_nothing_running(unclean: list[Path], tmp_path: Path) -> None:
    driver = SshDriver(HOST, accelerator="tcg", arch="x86_64", cpu="", cpus=2, memory=1 << 30, firmware="bios")
    with (
        driver.session(unclean, epoch=EPOCH, log=LINES.append) as session,
        pytest.raises(GuestFailed) as died,
        session.layer(new(unclean[-1].parent / "000003"), below=unclean[-1], log=LINES.append) as root,
    ):
        _one_after_the_other(session, root, tmp_path)
    assert died.value.message == "the guest switched itself off"
    assert not children()


def _one_after_the_other(session: Any, root: Any, folder: Path) -> None:
    assert any("journal must be replayed" in line and "appliance" in line for line in LINES)
    assert root.read("/root/.ssh/authorized_keys") == OWN_KEY.encode()
    assert root.run(["stat", "-c", "%a %u %Y", "/root/.ssh/authorized_keys"]).output == "644 0 1000000000\n"
    guest = session._running.guest

    def within(seconds: float) -> SshRoot:
        return SshRoot(HOST, guest, epoch=EPOCH, log=LINES.append, deadline=time.monotonic() + seconds)

    _a_wrong_password(guest, folder)
    _a_user_s_own_key(guest, within(600), folder)
    _a_full_disk(within(600))
    _no_tar(within(600))
    _no_network(guest, within(15))
    _no_restart(within(600))
    root.run(["sh", "-c", "sync; echo o > /proc/sysrq-trigger; sleep 600"])


def _a_wrong_password(guest: Any, folder: Path) -> None:
    for user, hint in (("vagrant", "is 'login.password' right"), ("root", "PermitRootLogin yes")):
        own = new(folder / user)
        with Ssh(HOST, guest.machine, Credentials(user=user, password="not-this-one"), own) as ssh, pytest.raises(
            GuestFailed, match=r"does not let \w+ in: banner SSH-2.0-.*, password refused: "
        ) as refused:  # fmt: skip
            ssh.connect(300)
        assert hint in refused.value.hint
        assert "not-this-one" not in refused.value.message
        assert [path.name for path in own.iterdir()] == []


def _a_user_s_own_key(guest: Any, root: SshRoot, folder: Path) -> None:
    """A user with sudo's rights (vagrant, without a password) becomes root; another one is told what he lacks."""
    own = new(folder / "key")
    key, public = make_key(own, HOST)
    root.run(["useradd", "-m", "stranger"])
    for user in ("vagrant", "stranger"):
        root.run(["sh", "-euc", 'cd ~"$0" 2>/dev/null || cd "/home/$0"; mkdir -p .ssh; cat >> .ssh/authorized_keys; '
                  'chown -R "$0:" .ssh; chmod 700 .ssh', user], input=public.encode() + b"\n")  # fmt: skip
    said: list[bytes] = []
    with Ssh(HOST, guest.machine, Credentials(user="vagrant", key=key, sudo=True), own) as ssh:
        ssh.connect(300)
        assert ssh.ask("id -un; echo $HOME; cat", within=60, input=b"stdin", take=said.append) == (0, "")
        assert b"".join(said) == b"root\n\nstdin"
    with Ssh(HOST, guest.machine, Credentials(user="stranger", key=key, sudo=True), own) as ssh, pytest.raises(
        GuestFailed, match=r"stranger is let into the guest, but cannot become root there with sudo: .*password"
    ) as refused:  # fmt: skip
        ssh.connect(300)
    assert "login.password" in refused.value.hint


def _a_full_disk(root: SshRoot) -> None:
    with pytest.raises(StepFailed, match="No space left on device"):
        root.run(["sh", "-ec", "dd if=/dev/zero of=/filler bs=64M"])
    with pytest.raises(BuildError, match=r"tar failed in the guest .*No space left on device"):
        root.unpack(archive_of(lambda archive: archive.data("/srv/big", bytes(1 << 20)), epoch=EPOCH))
    root.run(["sh", "-ec", "echo full 2>/dev/null > /dev/null"])  # the guest is still of use
    root.remove(["/filler", "/srv/big"])


def _no_tar(root: SshRoot) -> None:
    def files(archive: Archive) -> None:
        archive.directory("/srv/files", mode=0o750, uid=33, gid=33)
        archive.data("/srv/files/it's", b"contents", mode=0o4711, uid=33, gid=33)
        archive.link("/srv/files/link", "it's")

    root.run(["mv", "/bin/tar", "/bin/tar.away"])
    root.unpack(archive_of(files, epoch=EPOCH))
    root.run(["mv", "/bin/tar.away", "/bin/tar"])
    said = root.run(["sh", "-c", "cd /srv; stat -c '%n %a %u %g %Y' files files/*; ls -A /tmp | grep imagesmith"],
                    check=False)  # fmt: skip
    assert said.output.splitlines() == [
        f"files 750 33 33 {EPOCH}", f"files/it's 4711 33 33 {EPOCH}", f"files/link 777 0 0 {EPOCH}",
    ]  # fmt: skip
    assert root.read("/srv/files/link") == b"contents"


def _no_network(guest: Any, root: SshRoot) -> None:
    net = guest.machine.qmp.execute("query-rx-filter")[0]["name"]
    guest.machine.qmp.execute("set_link", name=net, up=False)
    with pytest.raises(TimedOut, match="did not end in time, and the guest does not answer over the network any more"):
        root.run(["sh", "-c", "sleep 600"])
    guest.machine.qmp.execute("set_link", name=net, up=True)


def _no_restart(root: SshRoot) -> None:
    assert root.run(["pgrep", "-c", "sshd"]).status == 0  # the network is there again
    root.run(["mount", "--bind", "/bin/true", "/bin/systemctl"])
    with pytest.raises(TimedOut, match="the guest did not restart in time: it still answers"):
        root.restart(20)
    root.run(["umount", "/bin/systemctl"])
