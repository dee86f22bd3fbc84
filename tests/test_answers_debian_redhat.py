"""Answer files for debian-installer and Anaconda: texts, ways, signs, and what their checkers say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagesmith.answers import _lint_kickstart, _lint_preseed
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.installer.signs import Reader
from imagesmith.interfaces import Delivery, Medium
from imagesmith.kinds import Answer, Rendered, known, placeholder, secrets_in
from imagesmith.render import Renderer, Secret
from tests.conftest import Command

GOLDEN = Path(__file__).parent / "golden" / "answers"
KINDS = ["preseed", "kickstart"]
NASTY = "a\"b'c&d $(x)`y`\\ {z}%#\u00fc\\"
KEYS = ["ssh-ed25519 AAAA it's \"me\" # $(x) `y` \\", "ssh-rsa BBBB two"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"hostname": "web"},
    "full": {
        "hostname": "web.example.org", "user": "ops.team", "password": NASTY, "ssh_keys": KEYS, "keyboard": "de",
        "packages": ["nginx", "rsync"], "timezone": "Europe/Vienna", "locale": "de_AT.UTF-8", "disk": "/dev/sda",
        "mirror": "https://mirror.example:8443/pub/os/",
    },
    "root": {"password": "$6$salt$hash", "ssh_keys": KEYS[:1], "locale": "en_US.UTF-8"},
}  # fmt: skip


def make(kind: str, folder: Path = Path(), variables: dict[str, Any] | None = None, **options: Any) -> Answer:
    renderer = Renderer(variables or {})
    context = {"folder": folder, "own_template": renderer.own, "mapped": renderer.mapped}
    return cast(Answer, known("answers")[kind].model_validate(options, context=context))


def of_file(kind: str, folder: Path, text: str, variables: dict[str, Any] | None = None, **more: Any) -> Answer:
    (folder / "answers.cfg").write_bytes(text.encode())
    return make(kind, folder, variables, file="answers.cfg", **more)


def complaints(answer: Answer) -> list[tuple[int, str]]:
    return [(remark.line, remark.message) for remark in answer.lint(Host())]


def lint_text(text: str) -> list[tuple[int, str]]:
    found = _lint_preseed.lint(Rendered(text, Path("x.cfg")), Host())
    return [(remark.line, remark.message) for remark in found]


def value(text: str, question: str) -> str:
    return next(a.value for a in _lint_preseed.answers(text)
                if isinstance(a, _lint_preseed.Answer) and a.question == question)  # fmt: skip


def deliveries(answer: Answer, family: str = "") -> list[Delivery]:
    return list(answer.deliveries(Medium(Path("x.iso"), family=family)))


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_our_templates_make_what_they_made_and_their_checkers_are_content(kind: str, name: str) -> None:
    answer = make(kind, **OPTIONS[name])
    golden = GOLDEN / f"{kind}-{name}.txt"
    if "IMAGESMITH_GOLDEN" in os.environ:
        golden.write_text(answer.rendered.text)
    assert answer.rendered.text == golden.read_text()
    assert complaints(answer) == []
    if kind == "kickstart":
        for syntax in ("F40", "RHEL10", "RHEL9", "RHEL8", "RHEL7"):
            assert complaints(make(kind, syntax=syntax, **OPTIONS[name])) == []


def test_the_checkers_are_here() -> None:
    assert Host().find("debconf-set-selections")
    assert _lint_kickstart.lint(Rendered("nonsense\n", Path("ks.cfg")), Host(), ""), "ksvalidator is missing"


@pytest.mark.parametrize("user", ["ops.team", None])
def test_what_a_preseed_does_last_gives_the_keys_and_sudo_exactly(user: str | None, tmp_path: Path) -> None:
    text = make("preseed", ssh_keys=KEYS, user=user).rendered.text
    home = "home/ops.team" if user else "root"
    for folder in ("target/etc/sudoers.d", "target/etc/network", "etc/network", f"target/{home}"):
        (tmp_path / folder).mkdir(parents=True)
    script = re.sub(r"(?<=[ >])/(?=target|etc)", f"{tmp_path}/", value(text, "preseed/late_command"))
    subprocess.run(["busybox", "sh", "-c", script.replace("in-target ", ": ")], check=True)
    assert (tmp_path / f"target/{home}/.ssh/authorized_keys").read_text().splitlines() == KEYS
    assert (tmp_path / f"target/{home}/.ssh").stat().st_mode & 0o777 == 0o700
    sudo = [file.read_text() for file in (tmp_path / "target/etc/sudoers.d").iterdir()]
    assert sudo == (["ops.team ALL=(ALL:ALL) NOPASSWD: ALL\n"] if user else [])
    assert "iface eth0 inet dhcp\n" in (tmp_path / "target/etc/network/interfaces").read_text()


@pytest.mark.parametrize("user", ["ops", None])
def test_what_a_kickstart_does_last_gives_the_keys_exactly(user: str | None, tmp_path: Path) -> None:
    text = make("kickstart", ssh_keys=KEYS, user=user).rendered.text
    home = "home/ops" if user else "root"
    for folder in ("etc/sudoers.d", home):
        (tmp_path / folder).mkdir(parents=True)
    script = text.partition("%post --erroronfail\n")[2].removesuffix("%end\n")
    script = re.sub(r"(?<=[ >])/(?=etc|home|root)", f"{tmp_path}/", script).replace("-o ops -g ops", "")
    subprocess.run(["sh", "-c", "restorecon() { :; }; " + script], check=True)
    assert (tmp_path / home / ".ssh/authorized_keys").read_text().splitlines() == KEYS
    assert (tmp_path / "etc/locale.conf").read_text() == "LANG=C.UTF-8\n"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["password", "timezone", "locale", "keyboard", "mirror", "disk", "hostname", "user"])
def test_no_option_can_begin_a_line_of_its_own(kind: str, option: str) -> None:
    for bad in ("x\ny", "x\ry", "x\u2028y", "x\x00y", "http://x\nd-i a/b string c"):
        with pytest.raises(ValidationError):
            make(kind, **{option: bad})
    with pytest.raises(ValidationError):
        make(kind, packages=["a\n%end"])


def test_what_is_no_package_is_refused() -> None:
    for bad in ("%end", "#x", "a b"):
        with pytest.raises(ValidationError):
            make("kickstart", packages=[bad])
    assert "\n@^minimal-environment\n-firewalld\n" in make(
        "kickstart", packages=["@^minimal-environment", "-firewalld"]).rendered.text  # fmt: skip
    with pytest.raises(ValidationError, match="http"):
        make("preseed", mirror="mirror.example/debian")


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_escaped_when_it_is_known_and_must_be_a_line(kind: str) -> None:
    answer = make(kind, user="ops", password=placeholder("word"))
    assert answer.secret_names() == {"word"}
    before = answer.rendered.text
    assert answer.revealed({"word": NASTY}).rendered.text == make(kind, user="ops", password=NASTY).rendered.text
    assert answer.rendered.text == before
    assert NASTY not in before + answer.revealed({"word": NASTY}).rendered.text
    with pytest.raises(BuildError, match="line"):
        answer.revealed({"word": "two\nlines"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_in_a_file_of_ones_own_stands_there_as_it_is(kind: str, tmp_path: Path) -> None:
    text = "rootpw {{ word }}\n" if kind == "kickstart" else "d-i passwd/root-password password {{ word }}\n"
    answer = of_file(kind, tmp_path, text, {"word": Secret("word")})
    assert secrets_in(answer.rendered.text) == {"word"}
    assert answer.revealed({"word": "s3cret"}).rendered.text == text.replace("{{ word }}", "s3cret")


def test_the_syntax_that_a_kickstart_is_checked_against_is_not_keyed() -> None:
    assert make("kickstart", syntax="RHEL9").identity() == make("kickstart").identity()


# -- ways ------------------------------------------------------------------------------------------------------------


def test_how_a_preseed_goes() -> None:
    answer = make("preseed", hostname="web")
    ways = {delivery.way: delivery for delivery in deliveries(answer, "debian-installer")}
    assert list(ways) == ["initrd", "http", "medium"]
    assert all(delivery.files == {"preseed.cfg": answer.rendered.text.encode()} for delivery in ways.values())
    assert ways["initrd"].arguments == ("priority=critical", "DEBIAN_FRONTEND=text", "TERM=dumb")
    assert ways["http"].arguments == ("auto=true", "priority=critical", "DEBIAN_FRONTEND=text", "TERM=dumb",
                                      "hostname=web", "preseed/url={url}preseed.cfg")  # fmt: skip
    assert ways["http"].fetched == "preseed.cfg"
    assert ways["medium"].arguments[-1] == "preseed/file=/cdrom/preseed.cfg"
    assert answer.log_arguments == ("log_host={log_host}", "log_port={log_port}")
    with pytest.raises(BuildError, match=r"x\.iso .*subiquity"):
        deliveries(answer, "subiquity")


def test_how_a_kickstart_goes() -> None:
    answer = make("kickstart")
    ways = {delivery.way: delivery for delivery in deliveries(answer, "anaconda")}
    assert list(ways) == ["initrd", "volume", "http", "medium"]
    assert all(delivery.files == {"ks.cfg": answer.rendered.text.encode()} for delivery in ways.values())
    assert [ways[way].arguments[0] for way in ("initrd", "http", "medium")] == [
        "inst.ks=file:/ks.cfg", "inst.ks={url}ks.cfg", "inst.ks=cdrom:/ks.cfg"]  # fmt: skip
    assert ways["volume"].label == "OEMDRV"
    assert not any(argument.startswith("inst.ks") for argument in ways["volume"].arguments)
    assert answer.log_ports == ("org.fedoraproject.anaconda.log.0",)
    with pytest.raises(BuildError, match="debian-installer"):
        deliveries(answer, "debian-installer")


# -- signs: lines as the installers write them -------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "line", "doing"), [
    ("preseed", "<14>Nov 27 14:51:05 main-menu[2036]: INFO: Menu item 'download-installer' selected",
     "loading the installer's components"),
    ("preseed", "<14>Nov 27 15:00:45 main-menu[2036]: INFO: Menu item 'bootstrap-base' selected",
     "installing the base system"),
    ("preseed", "Nov  3 16:36:19 debootstrap: I: Unpacking the base system...", "unpacking the base system"),
    ("preseed", "Menu item 'pkgsel' succeeded but requested to be left unconfigured.", ""),
    ("kickstart", "anaconda 34.25.2.10-1.el9_2 for Red Hat Enterprise Linux 9.2 started.", "starting the installer"),
    ("kickstart", "Starting automated install...........", "reading packages and disks"),
    ("kickstart", "21:15:23,251 DEBUG packaging: Installing libgcc (1/1973)", "installing packages"),
    ("kickstart", "Installing libgcc.x86_64 (1/326)", "installing packages"),
    ("kickstart", "Preparing transaction from installation source", "installing packages"),
    ("kickstart", "Running post-installation scripts", "running %post"),
    ("kickstart", "Pane is dead (status 0, Fri Nov 27 15:00:00 2026)", ""),
])  # fmt: skip
def test_what_an_installer_is_doing(kind: str, line: str, doing: str) -> None:
    reader = Reader(type(make(kind)).signs)
    assert reader.phase(line) == doing
    assert reader.trouble(line) is None


@pytest.mark.parametrize(("kind", "line", "meaning"), [
    ("preseed", "<13>Nov 27 14:00:00 anna[2800]: WARNING **: package retrieval failed", "component"),
    ("preseed", "!! ERROR: Failed to process the preconfiguration file", "imagesmith validate"),
    ("preseed", "!! ERROR: Something of tomorrow", "shows an error"),
    ("preseed", "Dec 22 20:20:14 main-menu[330]: WARNING **: Menu item 'bootstrap-base' failed.", "step"),
    ("preseed", "Dec 22 20:20:12 base-installer: error: exiting on error base-installer/debootstrap-failed", "base"),
    ("preseed", "Prompt: '?' for help, default=1> ", "asks a question"),
    ("preseed", "Prompt: '?' for help> ", "asks a question"),
    ("preseed", "[Press enter to continue]", "asks a question"),
    ("preseed", "[   30.1] reboot: System halted", "exit/poweroff"),
    ("kickstart", "[  201.9] dracut-initqueue[455]: Warning: Could not boot.", "main image"),
    ("kickstart", "Entering emergency mode. Exit the shell to continue.", "emergency"),
    ("kickstart", "The following problem occurred on line 10 of the kickstart file:", "imagesmith validate"),
    ("kickstart", "The installation was stopped due to an error which occurred while running in", "missing"),
    ("kickstart", "An unknown error has occured, look at the /tmp/anaconda-tb* file(s) for more details", "crashed"),
    ("kickstart", "Pane is dead (status 1, Fri Nov 27 15:00:00 2026)", "crashed"),
    ("kickstart", "Please make a selection from the above ['c' to continue, 'q' to quit, 'r' to", "asks"),
    ("kickstart", "Installation complete. Press ENTER to quit: ", "'poweroff' or 'reboot'"),
])  # fmt: skip
def test_what_shows_that_an_installation_cannot_succeed(kind: str, line: str, meaning: str) -> None:
    trouble = Reader(type(make(kind)).signs).trouble(line)
    assert trouble is not None
    assert meaning in trouble.meaning


def test_what_shows_that_the_answer_file_was_read() -> None:
    debian, anaconda = (Reader(type(make(kind)).signs) for kind in KINDS)
    assert debian.reads("preseed.cfg was read")
    assert debian.reads("preseed: successfully loaded preseed file from file:///preseed.cfg")
    assert not debian.reads("main-menu[330]: INFO: Menu item 'netcfg' selected")
    assert anaconda.reads("dracut-cmdline[300]: anaconda: parsing kickstart /ks.cfg")
    assert anaconda.reads("INFO anaconda: Parsing kickstart: /run/install/ks.cfg")
    assert not anaconda.reads("anaconda: fetching kickstart from /dev/sr1:/ks.cfg")


# -- checkers --------------------------------------------------------------------------------------------------------

GOOD = """\
# Locale
d-i debian-installer/locale string en_US\r
\td-i  keyboard-configuration/xkb-keymap\tselect us
d-i mirror/http/proxy string
d-i mirror/http/proxy seen true
d-i partman-auto/expert_recipe string boot-root :: \\
# no end of the answer

    1000 10000 -1 ext4 \\
    mountpoint{ / } .
   # an odd comment, and no harm
d-i grub-installer/apt-install-failed error
tasksel tasksel/first multiselect standard, ssh-server
d-i finish-install/reboot_in_progress note
"""


def test_a_good_preseed_has_no_complaint(tmp_path: Path) -> None:
    assert complaints(of_file("preseed", tmp_path, GOOD)) == []


@pytest.mark.parametrize(("line", "message"), [
    ("d-i netcfg/get_hostname", "no answer"),
    ("d-i", "no answer"),
    ("d-i\u00a0netcfg/get_hostname string", "no answer"),
    ("  # short", "first column"),
    ("d-i passwd/username vagrant", "no type"),
    ("d-i passwd/user-fullname strnig Vagrant", "no type"),
    ("d-i debian-installer/locale string C", "country"),
    ("d-i passwd/root-password password x", "twice"),
    ("d-i passwd/user-password password x\nd-i passwd/user-password-again password y", "differs"),
])  # fmt: skip
def test_what_a_preseed_is_refused_or_waits_for(line: str, message: str) -> None:
    (place, said), = lint_text(f"# begin\n{line}\n# end\n")
    assert message in said
    assert place == 2 + line.count("\n")


def test_an_answer_that_the_file_ends_in_is_lost() -> None:
    (line, said), = lint_text("d-i a/b string x\nd-i preseed/late_command string a; \\\n  b; \\\n")
    assert (line, "drops" in said) == (2, True)


@pytest.mark.parametrize("more", [
    "d-i debian-installer/country string US\n", "d-i preseed/include string more.cfg\n",
    "d-i preseed/early_command string debconf-set debian-installer/country US\n",
])  # fmt: skip
def test_what_may_be_answered_elsewhere_is_no_complaint(more: str) -> None:
    assert lint_text("d-i debian-installer/locale string C\n" + more) == []


@pytest.mark.parametrize("more", [
    "d-i passwd/root-login boolean false", "d-i passwd/root-password-crypted password !",
    "d-i passwd/root-password-again password x",
])  # fmt: skip
def test_a_password_that_is_not_asked_for_needs_no_second_one(more: str) -> None:
    assert lint_text(f"d-i passwd/root-password password x\n{more}\n") == []


def test_a_complaint_names_the_line_of_the_template(tmp_path: Path) -> None:
    text = "{% for name in names %}\nd-i a/{{ name }} string x\n{% endfor %}\n{# two\n lines #}\nd-i lost\n"
    assert [line for line, _ in complaints(of_file("preseed", tmp_path, text, {"names": ["b", "c", "d"]}))] == [6]
    text = "lang en_US\n{% for name in names %}\nnetwork --hostname={{ name }}\n{% endfor %}\nfrobnicate\n"
    found = complaints(of_file("kickstart", tmp_path, text, {"names": ["b", "c"]}))
    assert found == [(5, "Unknown command: frobnicate")]


@pytest.mark.parametrize(("text", "where"), [("a\n{{ x", 2), ("a\n%post\necho ${#x}\n%end\n", 3), ("a\n\n{% x %}", 3)])
def test_what_looks_like_jinja_is_a_complaint_with_its_line(text: str, where: int, tmp_path: Path) -> None:
    for kind in KINDS:
        with pytest.raises(ValidationError, match=rf"answers\.cfg:{where}: bad template"):
            of_file(kind, tmp_path, text)


def test_debconfs_checker_and_our_reader_agree_line_by_line() -> None:
    words = ["d-i", "a/b", "string", "note", "strnig", "x y"]
    lines = [" ".join(words[:n]) for n in range(len(words))]
    lines += [f"d-i a/b {kind} v" for kind in ("select", "text", "title", "sELECT", "seen", "1")] + ["\t d-i a/b note"]
    text = "\n".join(lines) + "\n"
    ours = {line for line, _ in lint_text(text)}
    done = subprocess.run(["debconf-set-selections", "--checkonly"], input=text, capture_output=True, text=True,
                          check=False)  # fmt: skip
    theirs = {int(number) for number in re.findall(r"line (\d+)", done.stderr)}
    assert ours == theirs
    assert theirs


WORDS = ["d-i", "a/b", "string", "seen", "x", "#", "\\", " ", "\t", "\n", "\r\n", "\\\n", "{ }", "\u00e9", "%"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=30).map("".join)))
def test_no_text_is_too_odd_for_the_preseed_lint(text: str) -> None:
    for line, message in lint_text(text):
        assert 1 <= line <= text.count("\n") + 1
        assert message


def test_a_kickstart_is_fine_where_one_recent_version_says_so(tmp_path: Path) -> None:
    old = "install\nlang en_US.UTF-8\nkeyboard us\nrootpw x\nauthconfig --enableshadow\n%packages\n@core\n%end\n"
    assert complaints(of_file("kickstart", tmp_path, old)) == []  # RHEL 7; deprecated in RHEL 8; gone in RHEL 9
    assert complaints(of_file("kickstart", tmp_path, old, syntax="RHEL8")) == []
    assert complaints(of_file("kickstart", tmp_path, old, syntax="RHEL9"))[0] == (1, "install has been removed.")
    (line, said), = complaints(of_file("kickstart", tmp_path, old, syntax="RHEL99"))
    assert (line, "ksvalidator -l" in said) == (0, True)
    ancient = "lang en_US\nkeyboard us\nmonitor --noprobe\n%packages\n@core\n"
    assert complaints(of_file("kickstart", tmp_path, ancient)) != []
    assert complaints(of_file("kickstart", tmp_path, f"#version=FC6\n{ancient}")) == []


def test_odd_kickstarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "left"
    left.mkdir()
    monkeypatch.setenv("TMPDIR", str(left))
    for good in (
        "lang en_US\r\nkeyboard us\r\n%packages\r\n@core\r\n%end\r\n",
        "%include /tmp/parts\nlang en_US\n%pre --interpreter=/usr/bin/python3\nprint('part /')\n%end\n",
        "%ksappend http://127.0.0.1:9/never-fetched\nlang en_US\n",
        "# nothing but a comment\n",
        "lang en_US\n%post --nochroot --log=/root/x\ncat <<'E' > /x\n % no section\nE\n%end\n",
    ):
        assert complaints(of_file("kickstart", tmp_path, good)) == [], good
    assert complaints(of_file("kickstart", tmp_path, " \n")) == [(1, "the file is empty")]
    assert [line for line, _ in complaints(of_file("kickstart", tmp_path, "lang en_US\n%post\necho\n"))] == [3]
    assert not list(left.iterdir())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from([
    "%packages\n", "%end\n", "%post\n", "part / ", "--size=", "1\n", "%include ", "'", "\"", "\\\n", "\x00",
    "%addon x\n", "#version=F99\n", "@core\n", "\n", "lang \u00e9\n"]), max_size=15).map("".join)))  # fmt: skip
def test_no_text_is_too_odd_for_the_kickstart_lint(text: str) -> None:
    for remark in _lint_kickstart.lint(Rendered(text, Path("ks.cfg")), Host(), ""):
        assert remark.message
        assert remark.line <= text.count("\n") + text.count("\r") + 2


def test_validate_tells_what_is_wrong_with_an_answer_file(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x.iso").touch()
    (tmp_path / "my.cfg").write_text("d-i a/b string {{ name }}\nd-i lost\n")
    (tmp_path / "r.yaml").write_text("name: x\nbase:\n  iso: {path: x.iso, answers: {preseed: my.cfg}}\n")
    out = command("validate", tmp_path / "r.yaml", expect=2).out
    assert f"{tmp_path}/my.cfg:2:1: 'd-i lost' is no answer" in out


def test_the_password_of_a_kickstart_is_one_word() -> None:
    text = make("kickstart", **OPTIONS["full"]).rendered.text
    line = next(line for line in text.splitlines() if line.startswith("user "))
    assert len(shlex.split(line)) == 5
