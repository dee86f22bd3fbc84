"""What the steps do to a system, in the words of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from imagesmith import kinds, tree
from imagesmith.drivers.native_tree import NativeTree
from imagesmith.errors import BuildError, StepFailed
from imagesmith.host import Host
from imagesmith.interfaces import Root
from tests.trees import EPOCH, make, small_tree

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGkAcj0Wn6NCIh7fZeXo5rUtLIZ1Fv1nVXKJzOYV1hQg somebody"
LINES: list[str] = []


class System:
    """A system that steps are applied to, one layer each."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.folders, self.folder, self.host = [base], folder, Host()
        self.seen: kinds.Seen | None = None
        """What the last step told."""

    def do(self, name: str, value: object = None) -> Path:
        return self.apply(make("steps", name, value, self.folder))

    def apply(self, step: kinds.Step) -> Path:
        into = self.folder / f"layer{len(self.folders)}"
        into.mkdir()
        LINES.clear()
        try:
            with (
                NativeTree(self.host).session(self.folders, epoch=EPOCH, log=LINES.append) as session,
                session.layer(into, below=self.folders[-1], log=LINES.append) as root,
            ):
                self.seen = step.apply(root)
        except BaseException:
            tree.remove(self.host, into)
            raise
        self.folders.append(into)
        return into / "upper"

    @contextmanager
    def look(self) -> Iterator[Root]:
        mount = tree.OverlayMount(tuple(str(folder / "upper") for folder in self.folders))
        with tree.open_root(self.host, mount, epoch=EPOCH, log=LINES.append) as root:
            yield root

    def read(self, path: str) -> str:
        with self.look() as root:
            return root.read(path).decode()

    def stat(self, *paths: str) -> list[str]:
        with self.look() as root:
            return root.run(["stat", "-c", "%n %U:%G %a", *paths]).output.splitlines()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory)


@pytest.fixture
def system(small: Path, tmp_path: Path) -> System:
    return System(small, tmp_path)


# -- files ---------------------------------------------------------------------------------------------------------


def test_copy_minds_the_slashes_at_the_end(system: System) -> None:
    site = system.folder / "site"
    (site / "sub").mkdir(parents=True)
    (site / "sub/page").write_text("page")
    (site / "tool").write_text("#!/bin/sh\n")
    (site / "tool").chmod(0o700)
    (site / "link").symlink_to("sub/page")
    system.do("copy", {"from": "site", "to": "/srv"})
    system.do("copy", {"from": "site/", "to": "/var/www", "owner": "www-data", "mode": "0640"})
    system.do("copy", {"from": "site/tool", "to": "/usr/local/bin/"})
    system.do("copy", {"from": "site/tool", "to": "/opt"})
    system.do("copy", {"from": "site/sub/page", "to": "/etc/new/name", "owner": "1:games"})
    assert system.stat("/srv/site/sub", "/srv/site/sub/page", "/srv/site/tool", "/var/www/sub", "/var/www/sub/page",
                       "/usr/local/bin/tool", "/opt/tool", "/etc/new", "/etc/new/name", "/srv/site/link") == [
        "/srv/site/sub root:root 755", "/srv/site/sub/page root:root 644", "/srv/site/tool root:root 755",
        "/var/www/sub www-data:www-data 750", "/var/www/sub/page www-data:www-data 640",
        "/usr/local/bin/tool root:root 755", "/opt/tool root:root 755", "/etc/new root:root 755",
        "/etc/new/name daemon:games 644", "/srv/site/link root:root 777",
    ]  # fmt: skip


def test_copy_is_keyed_by_contents_and_slash(system: System) -> None:
    for name in ("a", "b"):
        (system.folder / name).mkdir()
        (system.folder / name / "f").write_text("same")

    def key(source: str) -> str:
        return kinds.digest(make("steps", "copy", {"from": source, "to": "/srv"}, system.folder).identity())

    assert key("a/") == key("b/")
    assert key("a/") != key("a")
    before = key("a/")
    (system.folder / "a/f").write_text("other")
    assert key("a/") != before


def test_an_owner_that_the_guest_does_not_know_is_named(system: System) -> None:
    (system.folder / "f").write_text("")
    with pytest.raises(BuildError, match="no user or group 'nginx'"):
        system.do("copy", {"from": "f", "to": "/srv/f", "owner": "nginx"})


def test_a_template_becomes_a_file(system: System) -> None:
    (system.folder / "motd.j2").write_text("Hello\n")
    system.do("template", {"from": "motd.j2", "to": "/etc/motd", "owner": "games", "mode": "0600"})
    assert system.read("/etc/motd") == "Hello\n"
    assert system.stat("/etc/motd") == ["/etc/motd games:games 600"]


@pytest.mark.parametrize("value", [
    {"from": "f", "to": "relative"}, {"from": "f", "to": "/a/../b"}, {"from": "none", "to": "/a"},
    {"from": "f", "to": "/a", "mode": "rw"}, {"from": "f", "to": "/a", "owner": "a b"}, {"from": "f"},
])  # fmt: skip
def test_a_wrong_copy_is_refused_before_anything_is_built(tmp_path: Path, value: dict[str, str]) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(ValidationError):
        make("steps", "copy", value, tmp_path)


# -- commands ------------------------------------------------------------------------------------------------------


def test_shell_stops_at_the_first_failure(system: System) -> None:
    with pytest.raises(StepFailed, match="exit status 3"):
        system.do("shell", "echo before\n(exit 3)\necho after")
    assert LINES == ["before"]
    with pytest.raises(StepFailed, match="not set"):
        system.do("shell", "echo $not_there")


def test_no_command_of_a_shell_step_eats_the_rest(system: System) -> None:
    system.do("shell", "cat\nread line || echo nothing\ncat <<X | tr a-z A-Z\nhere\nX\necho 'a  b' \"$(echo c)\"")
    assert LINES == ["nothing", "HERE", "a  b c"]


def test_secrets_reach_commands_but_no_argument_list_and_no_file(system: System) -> None:
    secret = kinds.placeholder("token")
    step = make("steps", "shell", {"run": f"""
        echo "$TOKEN" | md5sum > /srv/sum; test {secret} = s3cret
        ! grep -a s3cret /proc/[0-9]*/cmdline
        """, "env": {"TOKEN": secret}})  # fmt: skip
    assert kinds.secrets_in(step) == {"token"}
    upper = system.apply(step.revealed({"token": "s3cret"}))
    assert [str(path.relative_to(upper)) for path in upper.rglob("*")] == ["srv", "srv/sum"]
    (system.folder / "s").write_text("#!/bin/sh\n")
    with pytest.raises(ValidationError, match="pass them through env"):
        make("steps", "script", {"path": "s", "args": [secret]}, system.folder)


def test_a_script_runs_with_its_own_interpreter_and_leaves_nothing(system: System) -> None:
    (system.folder / "s.pl").write_text('#!/usr/bin/perl\nprint "@ARGV $ENV{COLOUR}\\n"; open F, ">/srv/made";')
    upper = system.do("script", {"path": "s.pl", "args": ["a b", "--c"], "env": {"COLOUR": "blue"}})
    assert LINES == ["a b --c blue"]
    assert [str(path.relative_to(upper)) for path in upper.rglob("*")] == ["srv", "srv/made"]
    (system.folder / "text").write_text("echo")
    with pytest.raises(ValidationError, match="begins with #!"):
        make("steps", "script", "text", system.folder)


# -- users and services --------------------------------------------------------------------------------------------


def test_a_user_is_made_with_all_that_belongs_to_it(system: System) -> None:
    (system.folder / "id.pub").write_text(f"# mine\n{KEY}\n")
    system.do("shell", "mkdir -p /etc/sudoers.d")
    system.do("user", {"name": "vagrant", "uid": 1234, "groups": ["games", "www-data"], "password": "geheim",
                       "ssh_keys": ["id.pub", KEY.replace("somebody", "other")], "sudo": "nopasswd"})  # fmt: skip
    passwd = system.read("/etc/passwd").splitlines()
    assert "vagrant:x:1234:1234::/home/vagrant:/bin/bash" in passwd
    shadow = next(line.split(":") for line in system.read("/etc/shadow").splitlines() if line.startswith("vagrant:"))
    assert shadow[2] == str(EPOCH // 86400)
    with system.look() as root:
        check = "my ($h) = (getpwnam('vagrant'))[1]; exit(crypt('geheim', $h) ne $h)"
        root.run(["perl", "-e", check])
        assert set(root.run(["id", "-Gn", "vagrant"]).output.split()) == {"vagrant", "games", "www-data"}
    assert system.read("/home/vagrant/.ssh/authorized_keys").splitlines() == [KEY, KEY.replace("somebody", "other")]
    assert system.read("/etc/sudoers.d/90-vagrant") == "vagrant ALL=(ALL:ALL) NOPASSWD: ALL\n"
    assert system.stat("/home/vagrant/.ssh", "/home/vagrant/.ssh/authorized_keys", "/etc/sudoers.d/90-vagrant") == [
        "/home/vagrant/.ssh vagrant:vagrant 700", "/home/vagrant/.ssh/authorized_keys vagrant:vagrant 600",
        "/etc/sudoers.d/90-vagrant root:root 440",
    ]  # fmt: skip
    system.do("user", {"name": "vagrant", "groups": ["audio"], "shell": "/bin/sh", "ssh_keys": [KEY]})
    with system.look() as root:
        assert set(root.run(["id", "-Gn", "vagrant"]).output.split()) == {"vagrant", "games", "www-data", "audio"}
    assert "vagrant:x:1234:1234::/home/vagrant:/bin/sh" in system.read("/etc/passwd").splitlines()
    assert len(system.read("/home/vagrant/.ssh/authorized_keys").splitlines()) == 2


def test_the_same_password_gives_the_same_bytes_and_its_hash_is_taken_as_it_is(system: System) -> None:
    shadows = []
    for _ in range(2):
        system.folders[1:] = []
        for layer in system.folder.glob("layer*"):
            tree.remove(system.host, layer)
        system.do("user", {"name": "joe", "password": "geheim"})
        system.do("user", {"name": "daemon", "password": "$6$abc$def"})
        shadows.append(system.read("/etc/shadow"))
    assert shadows[0] == shadows[1]
    assert "daemon:$6$abc$def:" in shadows[0]


def test_a_user_without_sudo_in_the_guest_cannot_have_it(system: System) -> None:
    with pytest.raises(BuildError, match="sudo, which the guest does not have"):
        system.do("user", {"name": "joe", "sudo": "password"})


def test_a_private_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n")
    with pytest.raises(ValidationError, match="no public SSH key"):
        make("steps", "user", {"name": "joe", "ssh_keys": ["id"]}, tmp_path)


def test_services_need_an_init(system: System) -> None:
    with pytest.raises(BuildError, match="neither systemd nor OpenRC"):
        system.do("service", ["cron"])
    assert make("steps", "service", {"started": ["nginx"]}).needs_running == "it starts nginx"
    with pytest.raises(ValidationError):
        make("steps", "service", ["--root=/"])


# -- packages and cleanup ------------------------------------------------------------------------------------------


def test_packages_services_and_cleanup(system: System) -> None:
    layer = system.do("packages", ["cron", "openssh-server", "systemd-sysv"])
    assert not list((layer / "var/lib/apt/lists").glob("*_*"))
    assert not list(layer.rglob("*.deb"))
    assert (layer / "etc/ssh/ssh_host_ed25519_key").is_file()
    assert not (layer / "usr/sbin/policy-rc.d").exists()
    with system.look() as root:
        assert not root.exists("/usr/sbin/logrotate"), "recommended only"
    layer = system.do("service", {"disable": ["cron"], "mask": ["fstrim.timer"]})
    assert (layer / "etc/systemd/system/fstrim.timer").readlink() == Path("/dev/null")
    with system.look() as root:
        assert not root.exists("/etc/systemd/system/multi-user.target.wants/cron.service")
    system.do("service", ["cron"])
    system.do("shell", "echo x > /root/.bash_history; echo x > /tmp/x; mkdir /tmp/.y; echo x > /var/log/new; "
              "echo x > /var/log/old.1; cp /etc/passwd /etc/passwd-; mkdir -p /var/cache/man/x")  # fmt: skip
    system.do("packages", {"remove": ["cron"]})
    system.do("cleanup")
    system.do("shell", "systemd-analyze verify imagesmith-ssh-host-keys.service")
    with system.look() as root:
        for gone in ("/root/.bash_history", "/tmp/x", "/tmp/.y", "/var/log/old.1", "/etc/passwd-", "/var/cache/man/x",
                     "/etc/ssh/ssh_host_ed25519_key", "/var/lib/dpkg/status-old", "/usr/sbin/cron"):  # fmt: skip
            assert not root.exists(gone), gone
        for empty in ("/etc/machine-id", "/var/log/new", "/var/log/dpkg.log", "/var/log/apt/history.log"):
            assert root.read(empty) == b"", empty
        assert root.exists("/etc/systemd/system/multi-user.target.wants/imagesmith-ssh-host-keys.service")
        assert root.exists("/var/log/apt")


def test_a_package_that_is_not_there_is_named(system: System) -> None:
    with pytest.raises(StepFailed, match="Unable to locate package no-such-package"):
        system.do("packages", ["no-such-package"])
    for wrong in (["--purge"], ["a b"], [], {"upgrade": False}):
        with pytest.raises(ValidationError):
            make("steps", "packages", wrong)


def test_every_step_of_the_interface_is_there() -> None:
    named = {"packages", "copy", "template", "user", "service", "shell", "script", "cleanup"}
    assert named <= set(kinds.known("steps"))
