"""Steps in a running guest through the command: a login of the recipe's own, Ansible, a restart, a lost connection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagesmith.errors import RecipeError
from imagesmith.host import Host
from imagesmith.machine.ssh_login import Credentials
from imagesmith.options import secrets_in
from imagesmith.plan import Facts, Plan, make_plan
from imagesmith.recipe import Overrides, Recipe, load
from tests.conftest import Command
from tests.test_ssh import children, content

HOST = Host()
PASSWORD = "tell-nobody-4711"


def test_a_recipe_with_a_login_ansible_and_a_restart(command: Command) -> None:
    recipe = Path(__file__).parent / "recipes" / "online.yaml"
    ran = command("build", recipe, "--log-format", "json", env={"ONLINE_PASSWORD": PASSWORD})
    assert PASSWORD not in ran.out + ran.err
    events = [json.loads(line) for line in ran.err.splitlines() if line.startswith("{")]
    told = [event["line"] for event in events if event["event"] == "node-log"]
    # Ansible's own output is the step's, line by line.
    assert any("TASK [who Ansible is]" in line for line in told)
    assert any("Ansible is root" in line for line in told)
    assert any("guest " in line and "failed=0" in line for line in told)
    assert "soon" in told
    assert "never" not in told
    assert sum(line.startswith("connected after") for line in told) == 3  # the boot, the restart, the lost connection
    disk = command.output / "online" / "online.qcow2"
    boots = content(disk, "/root/boots").split()
    assert len(boots) == 2
    assert boots[0] != boots[1]
    assert content(disk, "/root/who") == b"root\n"
    assert content(disk, "/root/token") == PASSWORD.encode()
    assert content(disk, "/etc/motd") == b"put there by Ansible\n"
    assert not children()


# -- no guest is needed --------------------------------------------------------------------------------------------


def read(path: Path) -> Recipe:
    return load(path, Overrides(environment={}))


def plan(folder: Path, text: str) -> Plan:
    (folder / "old.raw").write_bytes(b"x" * 512)
    (folder / "r.yaml").write_text("base: {disk: {path: old.raw}}\n" + text)
    return make_plan(read(folder / "r.yaml"), Facts(root=True), read)


STEPS = "steps: [{shell: 'true', via: ssh}, reboot, {cleanup: false}]\n"


def test_who_enters_is_in_no_key(tmp_path: Path) -> None:
    without = plan(tmp_path, STEPS)
    secret = "variables: {pw: {secret: {env: PW}}}\n" + 'login: {user: ops, password: "{{ pw }}"}\n'
    entered = plan(tmp_path, secret + STEPS)
    windows = plan(tmp_path, "login: {type: winrm, user: Administrator, password: x}\n" + STEPS)
    assert [node.key for node in without.nodes] == [node.key for node in entered.nodes]
    assert {node.driver for node in entered.spine[1:]} == {"ssh"}
    assert [node.driver for node in windows.spine if node.number] == ["winrm", "winrm"]
    assert secrets_in(entered.recipe.login) == {"pw"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("login: {user: ops}\n", "login: needs a password or a key"),
        ("login: {type: winrm, key: id, password: x}\n", "login: WinRM knows neither keys nor sudo"),
        ("login: {key: old.raw}\n", "is no private SSH key"),
        ("login: {user: '-oProxyCommand=x', password: x}\n", "login.user"),
        ("login: {usr: ops, password: x}\n", "unknown option 'usr'; did you mean 'user'"),
        ("steps: [{shell: 'true', expect_disconnect: true}]\n", "there is no connection that could end"),
        ("steps: [{reboot: 5m, via: guestfs}]\n", "needs a running guest .it restarts the guest."),
    ],
)
def test_complaints(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    with pytest.raises(RecipeError, match=complaint):
        plan(tmp_path, text)


def test_a_key_with_a_passphrase_is_refused_before_the_guest_boots(tmp_path: Path) -> None:
    file = tmp_path / "id"
    HOST.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", file], purpose="test")
    with pytest.raises(Exception, match=r"the private key of 'login' cannot be used: .*passphrase"):
        Credentials(user="ops", key=file.read_bytes()).check(tmp_path, HOST)
    assert {path.name for path in tmp_path.iterdir()} == {"id", "id.pub"}
