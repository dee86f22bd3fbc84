"""One recipe, many images: what a matrix makes of it, what a recipe inherits, and what a person is told of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imagesmith import api, reference
from imagesmith.document import parse
from imagesmith.errors import RecipeError
from imagesmith.matrix import variants
from imagesmith.recipe import Overrides, Recipe, load_all
from tests.trees import tiny

COMMON = """\
name: common
version: "2026.11"
variables:
  user: ops
  proxy: none
machine: {memory: 512M, disk: 2G}
base: {disk: tree.img}
steps:
  - name: say hello
    shell: echo {{ user }}
  - copy: {from: motd, to: /etc/motd}
outputs: [qcow2, raw]
"""
MATRIX = """\
name: web
matrix:
  suite: [bookworm, trixie]
  size: [1, 2]
  exclude:
    - {suite: trixie, size: 1}
  include:
    - {suite: trixie, flavour: big}
    - {suite: Sid/unstable, size: 3}
variables:
  flavour: plain
  greeting: "{{ suite }} is {{ flavour }}"
machine: {cpus: "{{ size }}"}
base: {disk: tree.img}
steps:
  - shell: echo the same everywhere
  - shell: echo {{ greeting }} > /etc/issue
  - shell: echo {{ name }} {{ variant }} > /etc/hostname
outputs: [raw]
"""
FRUIT = """\
matrix:
  fruit: [apple, pear]
  animal: [cat, dog]
  include:
    - color: green
    - {color: pink, animal: cat}
    - {fruit: apple, shape: circle}
    - {fruit: banana}
    - {fruit: banana, animal: cat}
variables: {color: "", shape: ""}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("shared", "own"):
        (tmp_path / place).mkdir()
    for place in ("tree.img", "shared/tree.img"):
        (tmp_path / place).write_bytes(b"a disk")
    (tmp_path / "shared" / "motd").write_text("hello\n")
    (tmp_path / "shared" / "common.yaml").write_text(COMMON)
    return tmp_path


def read(folder: Path, text: str, *only: str, name: str = "r.yaml", **given: str) -> list[Recipe]:
    (folder / name).write_text(text)
    return load_all(folder / name, Overrides(environment={}, given=given), only or None)


def complaints(folder: Path, text: str, **given: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(folder, text, **given)
    return [str(one).replace(f"{folder}/", "") for one in caught.value.complaints]


# -- extends -----------------------------------------------------------------------------------------------------


def test_a_recipe_has_what_the_one_below_it_has_and_its_own_goes_before_that(folder: Path) -> None:
    (one,) = read(folder, """\
extends: ../shared/common.yaml
variables: {user: admin, port: 80}
machine: {memory: 1G}
steps:
  - shell: echo {{ port }}
checks: [boot]
""", name="own/web.yaml")  # fmt: skip
    assert (one.name, one.version) == ("web", "2026.11"), "a name is not inherited"
    assert one.variables == {"user": "admin", "proxy": "none", "port": 80}
    assert (one.machine.memory, one.machine.disk) == (1 << 30, 2 << 30)
    assert [entry.title.split(" ")[0] for entry in one.steps] == ["say", "copy", "shell", "cleanup"]
    assert one.steps[0].kind.run == "echo admin"  # type: ignore[attr-defined]
    assert [entry.kind.label for entry in one.outputs] == ["qcow2", "raw"]
    assert one.base.identity(), "the disk beside the file that names it"
    places = [f"{entry.place.file.name}:{entry.place.line} {entry.place.path}" for entry in one.steps[:3]]
    assert places == ["common.yaml:9 steps[0]", "common.yaml:11 steps[1]", "web.yaml:5 steps[0]"]


def test_what_is_not_wanted_of_the_recipe_below_is_left_out(folder: Path) -> None:
    (one,) = read(folder, """\
extends: {recipe: shared/common.yaml, without: [outputs.raw, steps.say hello, variables.proxy, machine]}
outputs: [ova]
""")  # fmt: skip
    assert [entry.title.split(" ")[0] for entry in one.steps] == ["copy", "cleanup"]
    assert [entry.kind.label for entry in one.outputs] == ["qcow2", "ova"]
    assert one.variables == {"user": "ops"}
    assert one.machine.disk is None


def test_recipes_extend_each_other_in_a_chain(folder: Path) -> None:
    (folder / "shared" / "middle.yaml").write_text("extends: common.yaml\nsteps: [{shell: echo middle}]\n")
    (one,) = read(folder, "extends: shared/middle.yaml\nsteps: [{shell: echo top}]\n")
    assert [entry.place.file.name for entry in one.steps[:4]] == ["common.yaml", "common.yaml", "middle.yaml", "r.yaml"]
    assert [path.name for path in one.extends] == ["middle.yaml", "common.yaml"]


def test_a_secrets_file_stands_beside_the_recipe_that_declares_it(folder: Path) -> None:
    (folder / "shared" / "common.yaml").write_text(COMMON.replace("proxy: none", "token: {secret: {file: token}}"))
    (one,) = read(folder, "extends: ../shared/common.yaml\n", name="own/web.yaml")
    assert one.secrets == {"token": {"file": "../shared/token"}}


@pytest.mark.parametrize(("text", "said"), [
    ("extends: shared/commen.yaml\n",
     "r.yaml:1:10: extends: no such file: shared/commen.yaml; did you mean 'common.yaml'?"),
    ("extends: r.yaml\n", "r.yaml:1:10: extends: the recipe extends itself, by way of r.yaml"),
    ("extends: [a, b]\n", "r.yaml:1:10: extends: must be the file of a recipe, or {recipe: FILE, without: [PART, …]}"),
    ("extends: {recipe: shared/common.yaml, without: [outputs.rwa]}\n",
     "r.yaml:1:49: extends.without[0]: shared/common.yaml has no 'outputs.rwa'; did you mean 'outputs.raw'?"),
    ("extends: shared/common.yaml\noutputs: [raw]\n",
     "r.yaml:2:11: outputs[0]: there are two outputs 'raw'; their files would have the same name"),
    ("extends: shared/common.yaml\nvariables: {user: '{{ nobody }}'}\n",
     "r.yaml:2:19: variables.user: unknown variable 'nobody'"),
])  # fmt: skip
def test_what_is_wrong_with_extending_is_told_at_its_place(folder: Path, text: str, said: str) -> None:
    assert [one.replace("variables.user.default", "variables.user") for one in complaints(folder, text)][:1] == [said]


def test_what_is_wrong_in_the_recipe_below_is_told_at_its_own_place(folder: Path) -> None:
    (folder / "shared" / "common.yaml").write_text(COMMON.replace("from: motd", "from: motb"))
    (told,) = complaints(folder, "extends: shared/common.yaml\nsteps: [{shell: echo}]\n")
    assert told == "shared/common.yaml:11:18: steps[1].copy.from: no such file: shared/motb; did you mean 'motd'?"


# -- matrix ------------------------------------------------------------------------------------------------------


def test_each_combination_is_a_variant_with_a_name_and_values_of_its_own(folder: Path) -> None:
    found = read(folder, MATRIX)
    assert [one.name for one in found] == ["web-bookworm-1", "web-bookworm-2", "web-trixie-2", "web-sid-unstable-3"]
    assert [one.variables["greeting"] for one in found] == [
        "bookworm is plain", "bookworm is plain", "trixie is big", "Sid/unstable is plain",
    ]  # fmt: skip
    assert [one.machine.cpus for one in found] == [1, 2, 2, 3]
    assert [entry.kind.run for entry in found[2].steps[1:3]] == [  # type: ignore[attr-defined]
        "echo trixie is big > /etc/issue", "echo web web-trixie-2 > /etc/hostname",
    ]  # fmt: skip


def test_include_works_as_it_does_on_github() -> None:
    """The example in GitHub's documentation of ``jobs.<job_id>.strategy.matrix.include``."""
    found = variants(parse(FRUIT, Path("r.yaml")), "r")
    assert [dict(one.values) for one in found] == [
        {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        {"fruit": "pear", "animal": "cat", "color": "pink"},
        {"fruit": "pear", "animal": "dog", "color": "green"},
        {"fruit": "banana"},
        {"fruit": "banana", "animal": "cat"},
    ]
    assert [one.name for one in found][-2:] == ["r-banana", "r-banana-cat"]


def test_variants_share_every_node_that_is_the_same(folder: Path) -> None:
    plans = [api.make_plan(one) for one in read(folder, MATRIX)]
    keys = [[node.key for node in plan.nodes] for plan in plans]
    assert len({found[0] for found in keys}) == len({found[1] for found in keys}) == 1, "the base and the first step"
    assert keys[0][2] == keys[1][2] != keys[2][2]
    assert len({found[-1] for found in keys}) == 4


def test_the_processor_may_be_an_axis(folder: Path) -> None:
    found = read(folder, "matrix: {arch: [x86_64, aarch64]}\nbase: {disk: tree.img}\n")
    assert [(one.name, one.arch, one.variables) for one in found] == [
        ("r-x86_64", "x86_64", {}), ("r-aarch64", "aarch64", {}),
    ]  # fmt: skip


def test_a_recipe_with_a_matrix_that_is_extended_has_variants(folder: Path) -> None:
    (folder / "r.yaml").write_text(MATRIX)
    found = read(folder, "extends: r.yaml\nmatrix: {suite: [trixie]}\n", name="other.yaml")
    assert [one.name for one in found] == ["other-trixie-2", "other-sid-unstable-3"]


@pytest.mark.parametrize(("matrix", "said"), [
    ("{suite: bookworm}", "r.yaml:1:17: matrix.suite: must be a list of values"),
    ("{suite: [a, a]}", "r.yaml:1:21: matrix.suite[1]: 'a' is there twice"),
    ("{suite: [a, {b: c}]}", "r.yaml:1:21: matrix.suite[1]: must be text, a number, true or false: it names a variant"),
    ("{name: [a]}", "r.yaml:1:10: matrix.name: 'name' is the recipe's own and cannot be an axis"),
    ("{suite: [a/b, a-b]}",
     "r.yaml:1:9: matrix: two variants would be called r-a-b: {suite: a/b} and {suite: a-b}"),
    ("{suite: [a], exclude: [{suit: a}]}",
     "r.yaml:1:33: matrix.exclude[0].suit: 'suit' is no axis; did you mean 'suite'?"),
    ("{suite: [sid, trixie], exclude: [{suite: trixi}]}",
     "r.yaml:1:50: matrix.exclude[0].suite: 'trixi' is no value of the axis 'suite'; did you mean 'trixie'?"),
    ("{suite: [a], include: [{suite: b, sise: 3}]}",
     "r.yaml:1:43: matrix.include[0].sise: 'sise' is neither an axis nor a variable; did you mean 'size'?"),
    ("{suite: [a], exclude: [{suite: a}]}", "r.yaml:1:9: matrix: leaves no variant"),
    ("{a: &x [1,2,3,4,5,6,7,8,9,10], b: *x, c: *x, d: *x}", "r.yaml:1:9: matrix: comes to more than 1000 variants"),
])  # fmt: skip
def test_what_is_wrong_with_a_matrix_is_told_at_its_place(folder: Path, matrix: str, said: str) -> None:
    assert complaints(folder, f"matrix: {matrix}\nvariables: {{size: 1}}\nbase: {{disk: tree.img}}\n") == [said]


def test_what_is_wrong_in_all_variants_is_told_once(folder: Path) -> None:
    assert complaints(folder, MATRIX.replace("{{ greeting }}", "{{ greetin }}")) == [
        "r.yaml:17:12: steps[1].shell: unknown variable 'greetin'; did you mean 'greeting'?"
    ]


def test_an_axis_is_not_set_from_outside_and_a_value_of_include_is(folder: Path) -> None:
    assert complaints(folder, MATRIX, suite="sid") == [
        "r.yaml:11:3: variables: --var: 'suite' is an axis of the matrix; choose with --variant"
    ]
    assert {one.variables["flavour"] for one in read(folder, MATRIX, flavour="own")} == {"own"}


def test_one_variant_is_loaded_by_its_name(folder: Path) -> None:
    (folder / "r.yaml").write_text(MATRIX)
    assert api.load(folder / "r.yaml", variant="web-trixie-2").name == "web-trixie-2"
    with pytest.raises(RecipeError, match="makes several variants; one must be named: web-bookworm-1, web-bookworm-2"):
        api.load(folder / "r.yaml")
    with pytest.raises(RecipeError, match="has no variant 'web-trixie-1'; did you mean 'web-trixie-2'"):
        api.load(folder / "r.yaml", variant="web-trixie-1")


def test_editors_know_both(folder: Path) -> None:
    editor = jsonschema.Draft202012Validator(reference.schema())
    good: list[Any] = [
        {"extends": "common.yaml"}, {"extends": {"recipe": "common.yaml", "without": ["outputs"]}},
        {"base": {"disk": "tree.img"}, "matrix": {"suite": ["a", 2, True], "exclude": [{"suite": "a"}]}},
    ]  # fmt: skip
    assert [list(editor.iter_errors(one)) for one in good] == [[], [], []]
    assert list(editor.iter_errors({"extends": "a.yaml", "matrix": {"suite": "a"}}))
    assert list(editor.iter_errors({"steps": []}))


# -- the command -------------------------------------------------------------------------------------------------


def imagesmith(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "IMAGESMITH_CACHE": str(folder / "cache")}
    return subprocess.run([sys.executable, "-m", "imagesmith.cli", *words], cwd=folder, env=environment, text=True,
                          capture_output=True, check=False, timeout=300)  # fmt: skip


def test_what_variants_share_is_made_once_and_each_has_a_folder_of_its_own(folder: Path) -> None:
    tiny(folder)
    (folder / "family.yaml").write_text("""\
extends: {recipe: tiny.yaml, without: [steps.shell]}
matrix: {word: [moin, hej]}
steps:
  - shell: echo the same > /etc/issue
  - shell: echo {{ word }} > /etc/motd
""")
    done = imagesmith(folder, "build", "family.yaml", "--log-format", "json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    ran = [event["node"] for event in events if event["event"] == "node-done"]
    for node, times in (("base container tiny.tar", 1), ("1 shell echo the same > /etc/issue", 1), ("3 cleanup", 2)):
        assert ran.count(node) == times, node
    for word in ("moin", "hej"):
        manifest = json.loads((folder / f"output/family-{word}/manifest.json").read_text())
        assert (manifest["recipe"], manifest["variables"]) == (f"family-{word}", {"word": word})
        assert manifest["inputs"]["recipe"]["name"] == "family.yaml"
        assert [file["name"] for file in manifest["inputs"]["extends"]] == ["tiny.yaml"]
        assert list((folder / f"output/family-{word}").glob(f"family-{word}.rootfs.tar*"))


def test_the_command_takes_all_variants_or_the_named(folder: Path) -> None:
    (folder / "r.yaml").write_text(MATRIX)
    assert imagesmith(folder, "validate", "r.yaml").stdout == "r.yaml: fine\n"
    planned = imagesmith(folder, "plan", "r.yaml", "--variant", "web-trixie-2", "--variant", "web-bookworm-1").stdout
    assert planned.splitlines()[0] == "web-bookworm-1:"
    later = planned.partition("web-trixie-2:\n")[2].splitlines()
    assert later[0].startswith("shared base disk")
    assert later[1].endswith("(with web-bookworm-1)")
    assert later[2].startswith("run    2 shell")
    whole = json.loads(imagesmith(folder, "plan", "r.yaml", "--json").stdout)
    assert [one["recipe"] for one in whole][2:] == ["web-trixie-2", "web-sid-unstable-3"]
    wrong = imagesmith(folder, "build", "r.yaml", "--variant", "web-trixi-2")
    assert wrong.returncode == 2
    assert "--variant web-trixi-2: there is none of that name; did you mean 'web-trixie-2'?" in wrong.stderr
    (folder / "same.yaml").write_text("name: web-trixie-2\nbase: {disk: tree.img}\n")
    wrong = imagesmith(folder, "build", "r.yaml", "same.yaml")
    assert wrong.returncode == 2
    assert "r.yaml and same.yaml make images of the same name, web-trixie-2" in wrong.stderr
