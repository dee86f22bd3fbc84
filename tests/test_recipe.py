"""What a person is told about a recipe: every complaint, at once, with its place and the nearest right word."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagesmith.errors import RecipeError
from imagesmith.kinds import placeholder
from imagesmith.recipe import Overrides, Recipe, load, name_for

GOOD = """\
name: web
version: 2026.10
variables:
  hostname: golden
  admin: {default: "{{ hostname }}-admin", description: The first user}
  count: 3
  token: {secret: {env: DEPLOY_TOKEN}}
machine: {memory: 512M, disk: 2G, firmware: [bios, uefi]}
base: {bootstrap: {distribution: debian, suite: bookworm}}
steps:
  - packages: [nginx-light]
  - copy: {from: site/, to: /var/www/html, mode: "0644"}
  - template: {from: motd.j2, to: /etc/motd}
  - shell: echo {{ hostname }} ${#PATH} > /etc/issue
  - name: say it
    shell: {run: echo, env: {TOKEN: "{{ token }}", COUNT: "{{ count }}"}}
    timeout: 1m30s
    retries: 2
    when: "{{ arch == 'x86_64' }}"
  - shell: "false"
    when: "{{ count > 3 }}"
checks:
  - port: 80
  - boot
outputs: [qcow2, {vagrant: {provider: libvirt}}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("hello")
    (tmp_path / "motd.j2").write_text("Welcome to {{ hostname }}{# a comment #}\n")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def read(folder: Path, text: str = GOOD, **given: str) -> Recipe:
    return load(write(folder, text), Overrides(environment={}, given=given))


def complaints(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(folder, text)
    assert caught.value.exit_code == 2
    return [str(c).removeprefix(str(folder) + "/") for c in caught.value.complaints]


def test_a_good_recipe(folder: Path) -> None:
    recipe = read(folder)
    assert (recipe.name, recipe.version, recipe.machine.memory) == ("web", "2026.10", 512 << 20)
    assert recipe.variables == {"hostname": "golden", "admin": "golden-admin", "count": 3}
    titles = [entry.title.split(" ")[0] for entry in recipe.steps]
    assert titles == ["packages", "copy", "template", "shell", "say", "cleanup"]
    said = recipe.steps[4]
    assert said.options.timeout == 90
    assert said.options.retries == 2
    assert said.kind.env == {"TOKEN": placeholder("token"), "COUNT": "3"}  # type: ignore[attr-defined]
    assert "${#PATH}" in recipe.steps[3].kind.run  # type: ignore[attr-defined]
    assert [entry.kind.label for entry in recipe.outputs] == ["qcow2", "libvirt.box"]


def test_a_template_is_rendered_when_the_recipe_is_read(folder: Path) -> None:
    assert "Welcome to golden\n" in repr(read(folder).steps[2].kind.identity()).replace("\\n", "\n")


def test_the_strongest_value_of_a_variable_wins_and_keeps_the_type(folder: Path) -> None:
    path = write(folder, GOOD)
    (folder / "v.yaml").write_text("hostname: from-file\ncount: 7\n")
    weak = Overrides(environment={"IMAGESMITH_VAR_hostname": "env", "IMAGESMITH_VAR_count": "5"})
    assert load(path, weak).variables == {"hostname": "env", "admin": "env-admin", "count": 5}
    middle = Overrides(weak.environment, files=[folder / "v.yaml"])
    assert load(path, middle).variables["hostname"] == "from-file"
    strong = Overrides(weak.environment, files=[folder / "v.yaml"], given={"hostname": "given", "count": "1"})
    assert load(path, strong).variables == {"hostname": "given", "admin": "given-admin", "count": 1}


def test_cleanup_false_leaves_it_out(folder: Path) -> None:
    recipe = read(folder, "base: {bootstrap: {distribution: debian, suite: bookworm}}\nsteps: [{cleanup: false}]\n")
    assert recipe.steps == ()


def test_all_complaints_come_at_once_with_their_places(folder: Path) -> None:
    said = complaints(folder, """\
name: Web Server
variabels: {}
machine: {memroy: 1G, firmware: uefii}
base: {bootstrapp: {suite: bookworm}}
steps:
  - pakages: [nginx]
  - copy: {from: sit/, to: /x, moed: "0644"}
  - shell: echo {{ hostnam }}
  - name: nothing
  - shell: a
    copy: {from: site/, to: /x}
  - shell: x
    timout: 5m
  - shell: x
    timeout: soon
checks:
  - prot: 80
outputs: [qcow, qcow2, qcow2]
""")
    assert said[0].startswith("r.yaml:1:7: name: use lower-case letters")
    rest = "\n".join(said)
    for expected in (
        "r.yaml:2:1: variabels: unknown key 'variabels'; did you mean 'variables'?",
        "r.yaml:3:11: machine.memroy: unknown option 'memroy'; did you mean 'memory'?",
        "r.yaml:3:33: machine.firmware: must be 'bios', 'uefi' or 'uefi-secure'; did you mean 'uefi'?",
        "r.yaml:4:8: base.bootstrapp: unknown base 'bootstrapp'; did you mean 'bootstrap'?",
        "r.yaml:6:5: steps[0].pakages: unknown step 'pakages'; did you mean 'packages'?",
        "steps[1].copy.from: no such file:",
        "did you mean 'site'?",
        "steps[1].copy.moed: unknown option 'moed'; did you mean 'mode'?",
        "r.yaml:8:12: steps[2].shell: unknown variable 'hostnam'",
        "steps[3]: names no step",
        "r.yaml:10:5: steps[4]: is shell and copy at once",
        "r.yaml:13:5: steps[5].timout: unknown option 'timout' beside 'shell'; did you mean 'timeout'?",
        "r.yaml:15:14: steps[6].timeout: 'soon' is no duration",
        "r.yaml:17:5: checks[0].prot: unknown check 'prot'; did you mean 'port'?",
        "r.yaml:18:10: outputs[0]: unknown output 'qcow'; did you mean 'qcow2'?",
        "r.yaml:18:24: outputs[2]: there are two outputs 'qcow2'",
    ):
        assert expected in rest


@pytest.mark.parametrize(("text", "expected"), [
    ("a: [1, 2", "r.yaml:1:9: is not YAML"),
    ("a: 1\n  b: 2\n", "r.yaml:2:4: is not YAML"),
    ("- just\n- a list\n", "a recipe is a mapping"),
    ("", "a recipe is a mapping"),
    ("name: a\nname: b\nbase: x", "r.yaml:2:1: name: 'name' is there twice"),
    ("base: {bootstrap: {}, disk: {}}", "base: must be exactly one of"),
    ("base: {bootstrap: {suite: '{{ 1 +'}}", "base.bootstrap.suite: bad template"),
    ("variables: {name: x}\nbase: {bootstrap: {}}", "'name' is the recipe's own name"),
    ("variables: {a: {secrt: {env: X}}}\nbase: {bootstrap: {}}", "unknown key 'secrt'; did you mean 'secret'?"),
    ("variables: {a: {secret: {envv: X}}}\nbase: {bootstrap: {}}", "unknown source 'envv'; did you mean 'env'?"),
    ("variables: {a: {description: needed}}\nbase: {bootstrap: {}}", "has no default; give it with --var a=…"),
    ("variables: {t: {secret: {env: X}}}\nsteps: [{shell: '{{ t | upper }}'}]\nbase: {bootstrap: {}}",
     "a secret can only be used whole"),
])  # fmt: skip
def test_what_is_wrong_is_said(folder: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(complaints(folder, text))


@pytest.mark.parametrize(("text", "expected"), [
    ("base: {bootstrap: {suite: x}}\nmachine: {memory: 0b_}", "r.yaml:2:19: machine.memory: '0b_' is no int"),
    ("base: {bootstrap: {suite: x}}\nmachine: {memory: !!int abc}", "r.yaml:2:19: machine.memory: 'abc' is no int"),
    ("base: {bootstrap: {suite: x}}\nmachine: {memory: !!bool x}", "machine.memory: 'x' is no bool"),
    ("base: {bootstrap: {suite: x}}\nsteps: [{shell: !foo x}]", "r.yaml:2:17: steps[0].shell: the tag !foo means"),
    ("base: {bootstrap: {suite: x}}\nsteps: !!set {a, b}", "r.yaml:2:8: steps: the tag !!set means nothing here"),
    ("base: {bootstrap: {suite: x}}\nsteps: [{shell: !!binary eA==}]", "steps[0].shell: the tag !!binary means"),
])  # fmt: skip
def test_a_value_that_yaml_cannot_make_is_named(folder: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(complaints(folder, text))


@pytest.mark.parametrize(("text", "expected"), [
    ("base: {disk: pipe}", "r.yaml:1:14: base.disk: is neither a file nor a folder"),
    ("base: {disk: site}", "r.yaml:1:14: base.disk: is a folder, not a disk image"),
    ("base: {disk: {path: motd.j2, format: qcow}}", "base.disk.format: must be"),
    ("base: {disk: " + "x" * 300 + "}", "cannot be looked at"),
    ("base: {disk: motd.j2}\nsteps: [{user: {name: a, ssh_keys: [site]}}]", "site cannot be read: Is a directory"),
    ("base: {disk: motd.j2}\nsteps: [{user: {name: a, ssh_keys: [bin]}}]", "bin holds no public SSH key"),
])  # fmt: skip
def test_a_file_of_the_wrong_sort_is_named(folder: Path, text: str, expected: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "bin").write_bytes(b"\xff\xfe")
    assert expected in "\n".join(complaints(folder, text))


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load(tmp_path / "none.yaml")


def test_a_bad_template_file_names_its_own_line(folder: Path) -> None:
    (folder / "motd.j2").write_text("one\ntwo {{ hostnmae }}\n")
    said = "\n".join(complaints(folder, GOOD))
    assert "motd.j2:2: unknown variable 'hostnmae'; did you mean 'hostname'?" in said


def test_unknown_variables_from_outside_are_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="--var: unknown variable 'hostnam'; did you mean 'hostname'"):
        read(folder, hostnam="x")


def test_a_small_file_cannot_grow_without_bounds(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "is not YAML: more than" in "\n".join(complaints(folder, "\n".join(lines)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["{{", "{{ x }}", "shell"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["name", "base", "steps", "bootstrap", "shell", "copy", "from", "machine", "outputs", "x"]),
        inner, max_size=4), max_leaves=12))  # fmt: skip
def test_no_recipe_crashes_us(folder: Path, data: object) -> None:
    import yaml

    path = write(folder, yaml.safe_dump(data))
    with contextlib.suppress(RecipeError):
        load(path, Overrides(environment={}))


def test_quote_makes_one_word_of_a_shells_command_line(folder: Path) -> None:
    recipe = read(folder, GOOD.replace("echo {{ hostname }} ${#PATH}", "echo {{ (hostname ~ \"'s; $x\") | quote }}"))
    assert "echo 'golden'\"'\"'s; $x'" in str(recipe.steps[3].kind.run)  # type: ignore[attr-defined]


def test_a_secret_in_a_recipe_is_not_quoted_before_it_is_there(folder: Path) -> None:
    with pytest.raises(RecipeError, match="without filters"):
        read(folder, GOOD.replace('"{{ token }}"', '"{{ token | quote }}"'))


@pytest.mark.parametrize(("file", "name"), [
    ("ubuntu-22.04-server.img", "ubuntu-22.04-server"), ("debian-12.5.qcow2", "debian-12.5"), ("a.libvirt.box", "a"),
    ("Web_1.raw.zst", "web-1"), (".hidden.img", "image"),
])  # fmt: skip
def test_images_of_two_versions_have_two_names(file: str, name: str) -> None:
    assert name_for(Path(file)) == name


def test_what_is_nested_too_deeply_is_a_complaint(folder: Path) -> None:
    for text in ("[" * 5000, "- " * 100_000):
        assert complaints(folder, text) == ["r.yaml:1:1: is nested too deeply"]
