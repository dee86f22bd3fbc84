"""What runs again, and what does not: keys, drivers, and the order of nodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagesmith.errors import RecipeError
from imagesmith.plan import Facts, Plan, make_plan
from imagesmith.recipe import Overrides, Recipe, load

HEAD = "base: {bootstrap: {distribution: debian, suite: bookworm}}\noutputs: [qcow2, oci]\nchecks: [boot]\n"
DISK = "base: {disk: {path: old.raw}}\noutputs: [qcow2]\n"


def read(path: Path) -> Recipe:
    return load(path, Overrides(environment={}))


def plan(folder: Path, text: str, *, root: bool = True, **options: object) -> Plan:
    (folder / "old.raw").write_bytes(b"x" * 512)
    (folder / "r.yaml").write_text(text)
    return make_plan(read(folder / "r.yaml"), Facts(root=root), read, **options)  # type: ignore[arg-type]


def keys(found: Plan) -> dict[str, str]:
    return {node.name: node.key for node in found.nodes}


def test_a_tree_stays_a_tree_until_a_disk_is_needed(tmp_path: Path) -> None:
    found = plan(tmp_path, HEAD + "steps: [{shell: 'true'}]\n")
    assert [(n.verb, n.gives, n.driver) for n in found.nodes] == [
        ("base", "tree", ""), ("step", "tree", "native"), ("step", "tree", "native"), ("assemble", "disk", ""),
        ("output", "files", ""), ("output", "files", ""), ("check", "record", ""), ("inventory", "record", ""),
    ]  # fmt: skip
    qcow2, oci = found.outputs
    assert qcow2.below is found.sealed
    assert oci.below is found.spine[2]


def test_only_containers_need_no_disk(tmp_path: Path) -> None:
    found = plan(tmp_path, HEAD, only=["oci"], checks=False)
    assert "assemble" not in {node.verb for node in found.nodes}


def test_a_change_gives_new_keys_to_what_follows_and_only_to_that(tmp_path: Path) -> None:
    steps = "steps: [{shell: echo one}, {shell: echo two}, {shell: echo three}]\n"
    before = keys(plan(tmp_path, HEAD + steps))
    after = keys(plan(tmp_path, HEAD + steps.replace("two", "TWO")))
    same = {name for name in before if before[name] == after.get(name)}
    assert same == {"base bootstrap debian bookworm", "1 shell echo one"}


@pytest.mark.parametrize("change", [
    ("shell: 'true'", "shell: 'true', timeout: 9m"), ("shell: 'true'", "shell: 'true', retries: 3"),
    ("shell: 'true'", "shell: 'true', name: other"), ("checks: [boot]", "checks: [{boot: {within: 9m}}]"),
])  # fmt: skip
def test_what_does_not_change_the_image_changes_no_layer(tmp_path: Path, change: tuple[str, str]) -> None:
    text = HEAD + "steps: [{shell: 'true'}]\n"
    before, after = plan(tmp_path, text), plan(tmp_path, text.replace(*change))
    assert [node.key for node in before.spine] == [node.key for node in after.spine]


def test_a_file_counts_by_its_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("#!/bin/sh\necho one\n")
    text = HEAD + "steps: [{script: a}]\n"
    before = plan(tmp_path, text).sealed.key
    (tmp_path / "b").write_text("#!/bin/sh\necho one\n")
    assert plan(tmp_path, text.replace("script: a", "script: b")).sealed.key == before
    (tmp_path / "a").write_text("#!/bin/sh\necho two\n")
    assert plan(tmp_path, text).sealed.key != before


def test_a_name_counts_where_it_is_part_of_the_target(tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        (tmp_path / name).write_text("same")
        (tmp_path / f"{name}.d").mkdir()
        (tmp_path / f"{name}.d" / "f").write_text("same")

    def key(source: str, to: str) -> str:
        return plan(tmp_path, HEAD + f"steps: [{{copy: {{from: {source}, to: {to}}}}}]\n").sealed.key

    assert key("m1", "/etc/") != key("m2", "/etc/")
    assert key("m1.d", "/srv") != key("m2.d", "/srv")
    assert key("m1.d/", "/srv/") == key("m2.d/", "/srv/")


def test_a_link_counts_by_what_is_read_through_it(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("#!/bin/sh\necho one\n")
    (tmp_path / "link").symlink_to("real")
    script = HEAD + "steps: [{script: link}]\n"
    copy = HEAD + "steps: [{copy: {from: link, to: /a}}]\n"
    ran, copied = plan(tmp_path, script).sealed.key, plan(tmp_path, copy).sealed.key
    assert plan(tmp_path, script.replace("link", "real")).sealed.key == ran
    (tmp_path / "real").write_text("#!/bin/sh\necho two\n")
    assert plan(tmp_path, script).sealed.key != ran
    assert plan(tmp_path, copy).sealed.key == copied  # it is copied as a link


def test_a_name_that_is_not_utf8_counts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    text = HEAD + "steps: [{copy: {from: d/, to: /a}}]\n"
    before = plan(tmp_path, text).sealed.key
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/d/\xff")).write_text("")
    assert plan(tmp_path, text).sealed.key != before


def test_a_fifo_in_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d/pipe")
    with pytest.raises((OSError, RecipeError), match=r"neither a file, a folder nor a link: .*pipe"):
        plan(tmp_path, HEAD + "steps: [{copy: {from: d/, to: /a}}]\n")


def test_a_secret_is_in_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + "variables: {t: {secret: {env: T}}}\nsteps: [{shell: {run: x, env: {T: '{{ t }}'}}}]\n"
    monkeypatch.setenv("T", "one")
    before = keys(plan(tmp_path, text))
    monkeypatch.setenv("T", "two")
    assert keys(plan(tmp_path, text)) == before


@pytest.mark.parametrize(("base", "via", "root", "driver"), [
    ("{path: old.raw}", "auto", True, "guestfs"), ("{path: old.raw, trusted: true}", "auto", True, "native"),
    ("{path: old.raw, trusted: true}", "auto", False, "guestfs"), ("{path: old.raw}", "guestfs", True, "guestfs"),
    ("{path: old.raw}", "ssh", True, "ssh"),
])  # fmt: skip
def test_how_a_step_reaches_a_disk(tmp_path: Path, base: str, via: str, root: bool, driver: str) -> None:
    text = DISK.replace("{path: old.raw}", base) + f"steps: [{{shell: x, via: {via}}}, {{cleanup: false}}]\n"
    found = plan(tmp_path, text, root=root)
    assert found.spine[-1].driver == driver
    assert found.spine[-1].why_driver


def test_offline_and_online_are_different_results(tmp_path: Path) -> None:
    text = DISK + "steps: [{shell: x, via: VIA}, {cleanup: false}]\n"
    drivers = {via: plan(tmp_path, text.replace("VIA", via)).sealed.key for via in ("auto", "guestfs", "ssh")}
    assert drivers["auto"] == drivers["guestfs"] != drivers["ssh"]


def test_a_step_that_needs_a_running_guest_gets_one(tmp_path: Path) -> None:
    found = plan(tmp_path, HEAD + "steps: [{shell: x}, {service: {started: [nginx]}}]\n")
    assert [(n.verb, n.driver) for n in found.spine] == [
        ("base", ""), ("step", "native"), ("assemble", ""), ("step", "ssh"), ("step", "ssh"), ("step", "native"),
    ]  # fmt: skip
    assert found.spine[3].name == "boot the guest"


def test_the_boot_is_the_same_whatever_runs_in_the_guest(tmp_path: Path) -> None:
    boots = [plan(tmp_path, DISK + f"steps: [{{shell: {word}, via: ssh}}]\n").spine[1].key for word in ("one", "two")]
    assert boots[0] == boots[1]


def test_no_state_is_kept_of_a_guest_that_was_given_a_secret(tmp_path: Path) -> None:
    secret = "variables: {pw: {secret: {env: PW}}}\n"
    steps = "steps: [{shell: x, via: ssh}, {shell: {run: y, env: {A: '{{ pw }}'}}, via: ssh}, {shell: z, via: ssh}]\n"

    def kept(more: str) -> list[bool]:
        return [node.resumable for node in plan(tmp_path, DISK + secret + more + steps).spine[1:5]]

    assert kept("") == [True, True, False, False]
    assert kept("checkpoints: with-secrets\n") == [True] * 4
    assert kept("checkpoints: false\n") == [False] * 4
    assert kept("login: {user: ops, password: '{{ pw }}'}\n") == [False] * 4


def test_another_recipes_guest_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "lower.yaml").write_text(DISK + "steps: [{shell: x, via: ssh}]\n")
    (tmp_path / "old.raw").touch()
    found = plan(tmp_path, "base: {recipe: lower.yaml}\nsteps: [{shell: y, via: ssh}, {cleanup: false}]\n")
    assert [node.name for node in found.spine][-2:] == ["boot the guest (2)", "1 shell y"]


def test_a_running_guest_is_cleaned_up_where_an_appliance_would_be_needed(tmp_path: Path) -> None:
    text = DISK + "steps: [{shell: x, via: ssh}]\n"
    assert plan(tmp_path, text).sealed.driver == "ssh"
    assert plan(tmp_path, DISK + "steps: [{shell: x}]\n").sealed.driver == "guestfs"


@pytest.mark.parametrize(("text", "expected"), [
    (DISK + "steps: [{shell: x, via: native}]\n", "say `trusted: true` at the base"),
    (HEAD + "steps: [{service: {started: [x]}, via: native}]\n", "needs a running guest"),
    ("base: {recipe: r.yaml}\n", "the recipe is its own base"),
])  # fmt: skip
def test_what_cannot_be_planned_is_said(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        plan(tmp_path, text)


def test_a_recipe_on_a_recipe_shares_its_layers(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: lower\n" + HEAD + "steps: [{shell: one}]\n")
    lower = make_plan(read(tmp_path / "base.yaml"), Facts(root=True), read)
    upper = plan(tmp_path, "name: upper\nbase: {recipe: base.yaml}\nsteps: [{shell: two}]\n")
    assert [n.key for n in lower.spine] == [n.key for n in upper.spine[: len(lower.spine)]]
    assert [n.driver for n in upper.spine[len(lower.spine) :]] == ["native", "native"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=6), st.data())
def test_keys_depend_on_everything_below_and_nothing_else(
    tmp_path: Path, words: list[str], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(words) - 1))
    changed = [*words[:position], "changed", *words[position + 1 :]]

    def spine(of: list[str]) -> list[str]:
        steps = ", ".join(f"{{shell: {word}}}" for word in of)
        return [node.key for node in plan(tmp_path, HEAD + f"steps: [{steps}]\n").spine]

    before, after = spine(words), spine(changed)
    assert before[: position + 1] == after[: position + 1]
    assert not set(before[position + 1 :]) & set(after[position + 1 :])
