"""Answer files for Ubuntu's installer, cloud-init and Ignition: texts, ways, what consoles say, lint."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagesmith import recipe
from imagesmith.answers._schema import rules
from imagesmith.errors import BuildError, MissingTool, RecipeError
from imagesmith.host import Host
from imagesmith.installer.signs import Reader
from imagesmith.interfaces import Delivery, Medium
from imagesmith.kinds import Answer, known, placeholder
from imagesmith.render import Renderer, Secret

GOLDEN = Path(__file__).parent / "golden" / "answers"
KINDS = ["autoinstall", "cloud-init", "ignition"]
NASTY = "a\"b'c&d<e>$(x)`y`\\ {z}%\u00fc\u2019: #"
KEY = "ssh-ed25519 AAAA it's \"me\" & <you> $(x) \u2019"
FULL: dict[str, Any] = {"hostname": "web", "user": "ops", "password": NASTY, "ssh_keys": [KEY, "ssh-rsa BBBB two"]}
MORE: dict[str, dict[str, Any]] = {
    "autoinstall": {"packages": ["nginx", "rsync"], "timezone": "Europe/Vienna", "locale": "de_AT.UTF-8",
                    "keyboard": "de", "mirror": "https://mirror.example/a?b=1&c='d'"},
    "cloud-init": {"packages": ["nginx", "rsync"], "timezone": "Europe/Vienna"},
    "ignition": {},
}  # fmt: skip
ISO = {"autoinstall": Medium(Path("x.iso"), kernel="/casper/vmlinuz", family="subiquity"),
       "cloud-init": Medium(Path("x.iso"), kernel="/arch/boot/x86_64/vmlinuz-linux", family="arch"),
       "ignition": Medium(Path("x.iso"), kernel="/images/pxeboot/vmlinuz", family="coreos")}  # fmt: skip
DISK = Medium(Path())


def made(kind: str, folder: Path = Path(), variables: Mapping[str, Any] | None = None, **options: Any) -> Answer:
    """An answer file as the loader makes it."""
    renderer = Renderer(variables or {})
    context = {"folder": folder, "own_template": renderer.own, "mapped": renderer.mapped, "render": renderer.file}
    return cast(Answer, known("answers")[kind].model_validate(options, context=context))


def of_text(kind: str, folder: Path, text: str) -> Answer:
    (folder / "theirs").write_bytes(text.encode(errors="surrogatepass"))
    return made(kind, folder, file="theirs")


def lint(answer: Answer, host: Host | None = None) -> list[tuple[int, str]]:
    return [(remark.line, remark.message) for remark in answer.lint(host or Without())]


class Without(Host):
    """A host without the programs that check."""

    def find(self, tool: str) -> str | None:
        return None if tool in ("cloud-init", "butane") else super().find(tool)


def by_way(answer: Answer, medium: Medium) -> dict[str, Delivery]:
    return {delivery.way: delivery for delivery in answer.deliveries(medium)}


# -- our templates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["plain", "full"])
def test_our_templates(kind: str, which: str) -> None:
    options = {**FULL, **MORE[kind]} if which == "full" else {"ssh_keys": ["ssh-ed25519 AAAA docs"]}
    text = made(kind, **options).rendered.text
    file = GOLDEN / f"{kind}-{which}.txt"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text(), "GOLDEN=write writes it anew"
    assert lint(made(kind, **options)) == []


def test_nothing_in_an_option_is_taken_for_more_than_text() -> None:
    auto = yaml.safe_load(made("autoinstall", **FULL, **MORE["autoinstall"]).rendered.text)["autoinstall"]
    assert auto["apt"]["primary"][0]["uri"] == MORE["autoinstall"]["mirror"]
    assert any("it'\"'\"'s \"me\" & <you> $(x) \u2019' >> /target" in line for line in auto["late-commands"])
    cloud = yaml.safe_load(made("cloud-init", **FULL).rendered.text)
    assert cloud["users"][0]["ssh_authorized_keys"] == [KEY, "ssh-rsa BBBB two"]
    user = json.loads(made("ignition", **FULL).rendered.text)["passwd"]["users"][0]
    assert user["sshAuthorizedKeys"] == [KEY, "ssh-rsa BBBB two"]
    hashes = {user["passwordHash"], cloud["users"][0]["hashed_passwd"]}
    assert len(hashes) == 1
    assert hashes.pop().startswith("$6$")


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_is_nowhere_before_it_is_revealed_and_never_in_clear(kind: str) -> None:
    answer = made(kind, user="ops", password=placeholder("token"))
    before = answer.rendered.text
    after = answer.revealed({"token": NASTY}).rendered.text
    assert before != after
    assert NASTY not in after
    assert "token" not in before
    assert after == made(kind, user="ops", password=NASTY).rendered.text
    assert answer.secret_names() == {"token"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_secret_in_the_users_own_file_is_revealed_there(kind: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text('{"a": "{{ token }}"}')
    answer = made(kind, tmp_path, {"token": Secret("token")}, file="theirs")
    assert "token" in answer.secret_names()
    assert answer.revealed({"token": "x"}).rendered.text == '{"a": "x"}'


# -- ways --------------------------------------------------------------------------------------------------------


def test_ways_to_ubuntus_installer() -> None:
    ways = by_way(made("autoinstall"), ISO["autoinstall"])
    assert list(ways) == ["volume", "http", "medium"]
    assert ways["volume"].label == "cidata"
    assert ways["volume"].arguments == ("autoinstall",)
    assert set(ways["volume"].files) == {"user-data", "meta-data", "vendor-data"}
    assert ways["http"].arguments == ("autoinstall", "ds=nocloud-net;s={url}")
    assert ways["http"].fetched == "user-data"
    alone = yaml.safe_load(ways["medium"].files["autoinstall.yaml"])
    assert alone == yaml.safe_load(ways["volume"].files["user-data"])["autoinstall"]
    with pytest.raises(BuildError, match="does not read a 'autoinstall' file"):
        made("autoinstall").deliveries(Medium(Path("debian.iso"), family="debian-installer"))


def test_ways_to_cloud_init(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("version: 2\nethernets: {all: {match: {name: '{{ card }}'}, dhcp4: true}}\n")
    answer = made("cloud-init", tmp_path, {"card": "e*"}, hostname="web", network="net")
    ways = by_way(answer, DISK)
    assert list(ways) == ["volume"]
    assert ways["volume"].label == "cidata"
    files = ways["volume"].files
    assert yaml.safe_load(files["network-config"])["ethernets"]["all"]["match"] == {"name": "e*"}
    meta = yaml.safe_load(files["meta-data"])
    assert meta["local-hostname"] == "web"
    other = yaml.safe_load(by_way(made("cloud-init", user="ops"), DISK)["volume"].files["meta-data"])
    assert other["instance-id"] != meta["instance-id"]
    assert "local-hostname" not in other
    secret = made("cloud-init", user="ops", password=placeholder("token")).revealed({"token": "x"})
    assert b"local-hostname" not in by_way(secret, DISK)["volume"].files["meta-data"]
    http = by_way(answer, ISO["cloud-init"])["http"]
    assert http.arguments == ("ds=nocloud-net;s={url}",)
    assert http.files == files


def test_the_vendor_data_switch_the_machine_off_unless_the_user_data_say_otherwise() -> None:
    vendor = by_way(made("cloud-init"), DISK)["volume"].files["vendor-data"].decode()
    assert vendor.startswith("#cloud-config-archive\n")
    hook, config = yaml.safe_load(vendor)
    assert hook["type"] == "text/cloud-boothook"
    assert hook["content"].startswith("#!/bin/sh\n")
    state = yaml.safe_load(config["content"])["power_state"]
    assert state["mode"] == "poweroff"
    assert state["delay"] == "now"
    signs = Reader(made("cloud-init").signs)
    said = re.findall(r'"(imagesmith: [^"]*)"', hook["content"] + state["condition"])
    assert any(map(signs.reads, said))
    assert any(map(signs.ends, said))
    assert any(map(signs.trouble, said))


def test_ways_to_ignition() -> None:
    (delivery,) = made("ignition", user="ops").deliveries(DISK)
    assert delivery.way == "fw_cfg"
    assert set(delivery.files) == {"opt/com.coreos/config", "opt/org.flatcar-linux/config"}
    config = json.loads(delivery.files["opt/com.coreos/config"])
    source = config["ignition"]["config"]["merge"][0]["source"].removeprefix("data:;base64,")
    assert base64.b64decode(source).decode() == made("ignition", user="ops").rendered.text
    assert "systemctl --no-block poweroff" in config["systemd"]["units"][0]["contents"]
    (delivery,) = made("ignition", disk="/dev/sda").deliveries(ISO["ignition"])
    assert delivery.arguments == ("coreos.inst.install_dev=/dev/sda", "coreos.inst.ignition_url={url}config.ign")
    assert delivery.way == "http"
    assert delivery.fetched in delivery.files


BUTANE = "variant: fcos\nversion: 1.5.0\npasswd:\n  users:\n    - name: core\n"


def test_butane_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: Butane is no package of Debian's."""
    answer = of_text("ignition", tmp_path, BUTANE)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if Host().find("butane") is None:
        with pytest.raises(MissingTool, match="'butane' is not installed"):
            answer.deliveries(DISK)
    assert lint(answer) == []
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "butane"
    program.write_text("#!/bin/sh\ntest \"$*\" = --strict && grep -q 'variant: fcos' && echo '{\"made\": 1}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (delivery,) = answer.deliveries(ISO["ignition"])
    assert json.loads(delivery.files["config.ign"]) == {"made": 1}
    program.write_text("#!/bin/sh\n{ echo 'warning at $.passwd.users.0.nmae, line 5 col 7: Unused key nmae'\n"
                       "echo 'Config produced warnings and --strict was specified'; } >&2\nexit 1\n")  # fmt: skip
    assert lint(answer, Host()) == [(5, "passwd.users.0.nmae: Unused key nmae")]


# -- lint --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text", "expected"), [
    ("autoinstall", "autoinstall: {version: 1, user-data: {}}", [(1, "must begin with #cloud-config")]),
    ("autoinstall", "#cloud-config\na: 1\n", [(2, "has no mapping 'autoinstall'")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n", [(2, "needs 'identity' or 'user-data'")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n  identity: {username: a, hostname: b}\n",
     [(4, "autoinstall.identity: needs 'password'")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 2\n  user-data: {}\n", [(3, "version: must be one of 1")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n  user-data: {}\n  keyboard:\n    layuot: us\n",
     [(5, "needs 'layout'"), (6, "unknown key 'layuot'; did you mean 'layout'?")]),
    ("autoinstall",
     "#cloud-config\nautoinstall:\n  version: 1\n  user-data: {}\n  late-commands:\n    - [a, 1]\n    - b: c\n",
     [(6, "late-commands[0][1]: must be text, not a whole number"), (7, "must be text or a list, not a mapping")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n  interactive-sections:\n    - network\n",
     [(4, "the installer would wait")]),
    ("autoinstall", "#cloud-config\nautoinstall: {version: 1, user-data: {}}\nlate-commands: [x]\n",
     [(3, "'late-commands' belongs below autoinstall")]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  a: [\n", [(4, "is not YAML")]),
    ("autoinstall", "#cloud-config\nautoinstall: {version: 1, user-data: {}, not-known: 1}\n", []),
    ("cloud-init", "", []),
    ("cloud-init", "packages: [a]\n", [(1, "by the first line")]),
    ("cloud-init", "\n#!/bin/sh\n", []),
    ("cloud-init", "#cloud-config\n", []),
    ("cloud-init", "#Cloud-Config\nnot-known: 1\n", []),
    ("cloud-init", "Content-Type: multipart/mixed; boundary=x\nMIME-Version: 1.0\n\n--x--\n", []),
    ("cloud-init", "## template: jinja\n#cloud-config\na: {% raw %}{{ v1.region }}{% endraw %}\n", []),
    ("cloud-init", "#cloud-config\n- a\n", [(2, "must be a mapping")]),
    ("cloud-init", "#cloud-config\nruncmd: a\npackages: b\n", [(2, "runcmd: must be a list"), (3, "packages: must")]),
    ("cloud-init", "#cloud-config\nwrite_files:\n  - path: /a\n    permissions: 0644\n  - content: x\n",
     [(4, "write_files[0].permissions: must be text"), (5, "write_files[1]: needs 'path'")]),
    ("cloud-init", "#cloud-config\na: !vault x\n", [(2, "is not YAML")]),
    ("cloud-init", "#cloud-config\nx: &x {path: /a}\nwrite_files:\n  - <<: *x\n    content: b\n", []),
    ("cloud-init", "#cloud-config\nvendor_data:\n  enabled: false\n", [(3, "nothing switches the machine off")]),
    ("cloud-init", "#cloud-config\nvendor_data: {enabled: false}\npower_state: {mode: poweroff}\n", []),
    ("ignition", "{}", [(1, "needs 'ignition'")]),
    ("ignition", '{"ignition": {"version": "3.4.0"},\n"storage": {"files": [{"path": 1}]}}', [(2, "must be text")]),
    ("ignition", '{"ignition": {"version": "3.4.0"},}', [(1, "is no JSON")]),
    ("ignition", "passwd: {}\n", [(1, "with 'variant' at its top")]),
    ("ignition", "variant: fcos\npasswd: {}\n", [(1, "needs 'version'")]),
    ("ignition", BUTANE, []),
])  # fmt: skip
def test_complaints_and_their_lines(kind: str, text: str, expected: list[tuple[int, str]], tmp_path: Path) -> None:
    found = lint(of_text(kind, tmp_path, text))
    assert len(found) == len(expected), found
    for (line, message), (at, words) in zip(sorted(found), expected, strict=True):
        assert (line, words in message) == (at, True), found


def test_lines_are_those_of_the_template(tmp_path: Path) -> None:
    text = "#cloud-config\n{# two\n lines #}\n{% for one in many %}\n# {{ one }}\n{% endfor %}\nruncmd: a\n"
    (tmp_path / "theirs").write_text(text)
    answer = made("cloud-init", tmp_path, {"many": ["a", "b", "c"]}, file="theirs")
    assert [line for line, _ in lint(answer)] == [7]


def test_our_schemas_are_schemas() -> None:
    from jsonschema import Draft202012Validator

    for name in ("autoinstall", "cloud-config", "ignition", "butane"):
        Draft202012Validator.check_schema(rules(name))


WORDS = ["autoinstall", "version", "identity", "users", "runcmd", "write_files", "path", "vendor_data", "enabled",
         "ignition", "storage", "files", "variant", "interactive-sections", "keyboard", "power_state"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner,
                                                                max_size=5),
    max_leaves=20,
)  # fmt: skip
HEADS = st.sampled_from(["#cloud-config\n", "#cloud-config\nautoinstall:\n ", "", "#!/bin/sh\n", "variant: fcos\n",
                         "{"])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(head=HEADS, value=VALUES, tail=st.text(max_size=12), flow=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_lint_never_crashes(kind: str, head: str, value: object, tail: str, flow: bool, tmp_path: Path) -> None:
    body = json.dumps(value) if flow else yaml.safe_dump(value, allow_unicode=True)
    text = (head + body + tail).replace("{{", "{ {").replace("{%", "{ %").replace("{#", "{ #")
    try:
        answer = of_text(kind, tmp_path, text)
    except ValueError:  # pydantic's, for what is no template or no UTF-8
        return
    for line, message in lint(answer):
        assert line >= 0
        assert message


# -- consoles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "line", "meaning"), [
    # from public bug reports
    ("autoinstall", "finish: subiquity/Install/install/postinstall/install_ansible: FAIL: Command '['/snap/subiquity/"
     "3119/usr/bin/python3.8', '-m', 'curtin']' returned non-zero exit status 100.", "non-zero exit status 100"),
    ("autoinstall", "finish: subiquity/Install/install/curtin_install/cmd-install/stage-curthooks/builtin/cmd-curthooks"
     "/install-grub: FAIL: installing grub to target devices", "installing grub to target devices"),
    ("autoinstall", "An error occurred. Press enter to start a shell", "waits for somebody"),
    ("autoinstall", "Continue with autoinstall? (yes|no)", "was not told 'autoinstall'"),
    ("cloud-init", "[   20.1] cloud-init[350]: 2026-11-27 14:00:01,002 - util.py[WARNING]: Failed loading yaml blob. "
     "Invalid format at line 3 column 1: ...", "cannot read the user data"),
    ("cloud-init", "2026-11-27 14:00:01,002 - util.py[WARNING]: Running module scripts-user (<module>) failed",
     "could not do all of it"),
    ("cloud-init", "[   30.0] cloud-init[420]: Cloud-init v. 24.4 finished at Fri, 27 Nov 2026. Datasource "
     "DataSourceNone.  Up 30.1 seconds", "found no seed"),
    ("ignition", "Ignition has failed. Please ensure your config is valid. Note that only", "Ignition failed"),
    ("ignition", "[FAILED] Failed to start ignition-fetch.service - Ignition (fetch).", "in its stage 'fetch'"),
    ("ignition", "Press Enter for emergency shell or wait 5 minutes for reboot.", "in a shell"),
])  # fmt: skip
def test_a_failure_is_seen_on_the_console(kind: str, line: str, meaning: str) -> None:
    trouble = Reader(made(kind).signs).trouble(line)
    assert trouble is not None
    assert meaning in trouble.meaning


@pytest.mark.parametrize(("kind", "line", "phase"), [
    ("autoinstall", "  start:     subiquity/Install/install/postinstall/install_openssh-server: installing "
     "openssh-server", "after the installation: install_openssh"),
    ("autoinstall", "subiquity/Install/install/curtin_install/run: executing curtin install extract step", "unpacking"),
    ("cloud-init", "[  112.9] cloud-init[320]: Cloud-init v. 22.4.2 running 'init-local' at Fri, 27 Nov 2026 14:46:21 "
     "+0000. Up 107.16 seconds.", "cloud-init 22.4.2 looks for its seed"),
    ("ignition", "[    5.1] ignition[647]: Stage: fetch", "Ignition: fetch"),
])  # fmt: skip
def test_progress_is_seen_on_the_console(kind: str, line: str, phase: str) -> None:
    reader = Reader(made(kind).signs)
    assert reader.phase(line).startswith(phase)
    assert reader.trouble(line) is None


def test_reading_is_seen_on_the_console() -> None:
    assert Reader(made("autoinstall").signs).reads("start: subiquity/Locale/apply_autoinstall_config: ")
    assert Reader(made("ignition").signs).reads("Ignition: user-provided config was applied")


# -- seeds in recipes --------------------------------------------------------------------------------------------


def load(folder: Path, seed: str) -> recipe.Recipe:
    (folder / "image.qcow2").touch()
    (folder / "recipe.yaml").write_text(f"name: x\nbase:\n  cloud-image:\n    path: image.qcow2\n    seed: {seed}\n")
    return recipe.load(folder / "recipe.yaml")


def test_a_bare_file_name_is_a_seed_for_cloud_init(tmp_path: Path) -> None:
    (tmp_path / "user-data.yaml.j2").write_text("#cloud-config\nhostname: {{ name }}\n")
    bare = cast(Any, load(tmp_path, "user-data.yaml.j2").base)
    spelt = cast(Any, load(tmp_path, "{cloud-init: user-data.yaml.j2}").base)
    assert bare.seed.rendered.text == "#cloud-config\nhostname: x\n"
    assert bare.identity() == spelt.identity()
    assert bare.identity() != cast(Any, load(tmp_path, "cloud-init").base).identity()
    with pytest.raises(RecipeError, match=r"no such file: .*user-data\.yml; did you mean 'user-data.yaml.j2'"):
        load(tmp_path, "user-data.yml")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5:.*unknown option 'usr'; did you mean 'user'"):
        load(tmp_path, "{cloud-init: {usr: ops}}")
