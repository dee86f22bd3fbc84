"""Why a node will run, in words: each change of a recipe, and what plan says of it (tests/golden/why.txt)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagesmith import history
from imagesmith.history import Past
from imagesmith.plan import Facts, Plan, make_plan
from imagesmith.recipe import Overrides, Recipe, load
from imagesmith.store import Store
from imagesmith.why import reasons

GOLDEN = Path(__file__).parent / "golden" / "why.txt"
RECIPE = """\
name: web
variables: {who: world, pw: {secret: {env: PW}}}
machine: {memory: 1G}
base: {cloud-image: {url: "https://images.example/a.qcow2", checksum: "sha256:%s"}}
steps:
  - packages: [nginx, vim]
  - script: {path: harden.sh, args: [--strict], env: {A: "1", B: "2"}}
  - copy: {from: site/, to: /srv, mode: "0644"}
  - template: {from: motd.j2, to: /etc/motd}
  - user: {name: admin, ssh_keys: [id.pub], groups: [sudo]}
  - name: settle
    shell: |
      echo one
      echo two
  - cleanup: false
checks: [boot, {port: 80}]
outputs: [raw]
""" % ("a" * 64)
Change = Callable[[str, Path], str]


def text(old: str, new: str) -> Change:
    """A change of the recipe's text."""

    def change(recipe: str, folder: Path) -> str:
        assert old in recipe
        return recipe.replace(old, new)

    return change


def file(name: str, content: str) -> Change:
    """A change of a file beside it."""

    def change(recipe: str, folder: Path) -> str:
        (folder / name).write_text(content)
        return recipe

    return change


CHANGES: dict[str, Change] = {
    "nothing": text("nginx", "nginx"),
    "a package more": text("[nginx, vim]", "[nginx, vim, curl]"),
    "another package": text("[nginx, vim]", "[nginx, nano]"),
    "packages in another order": text("[nginx, vim]", "[vim, nginx]"),
    "an option more": text("packages: [nginx, vim]", "packages: {install: [nginx, vim], upgrade: true}"),
    "a script's contents": file("harden.sh", "#!/bin/sh\necho two\n"),
    "a script's arguments and environment": text('--strict], env: {A: "1", B: "2"', '--lax], env: {A: "2", C: "3"'),
    "a file in a folder": file("site/index.html", "other"),
    "a mode": text('mode: "0644"', 'mode: "0640"'),
    "a template's text": file("motd.j2", "first\nhello {{ who }}!\n"),
    "a variable in a template": text("who: world", "who: moon"),
    "a public key": file("id.pub", "ssh-ed25519 BBBB somebody\n"),
    "a line of a shell step": text("echo two", "echo three"),
    "a secret": text('A: "1", B: "2"', 'A: "{{ pw }}", B: "2"'),
    "another download": text("a" * 64, "b" * 64),
    "the size of the disk": text("memory: 1G", "memory: 1G, disk: 8G"),
    "memory": text("memory: 1G", "memory: 2G"),
    "a step in the running guest": text('"0644"}', '"0644"}\n    via: ssh'),
    "a step between two others": text("  - name: settle", "  - shell: echo new\n  - name: settle"),
    "a step less": text('  - copy: {from: site/, to: /srv, mode: "0644"}\n', ""),
    "not to be cached": text("  - name: settle\n", "  - name: settle\n    cache: false\n"),
    "a check more": text("{port: 80}", "{port: 80}, {user: admin}"),
    "a check changed": text("{port: 80}", "{port: 81}"),
}


def plan(folder: Path, recipe: str, facts: Facts) -> Plan:
    def read(path: Path) -> Recipe:
        return load(path, Overrides(environment={}))

    (folder / "web.yaml").write_text(recipe)
    return make_plan(read(folder / "web.yaml"), facts, read)


def build(planned: Plan, store: Store) -> None:
    """Put a layer into the store for each node, as an engine would."""
    with store.using() as use:
        layers = {}
        for node in planned.nodes:
            parent = layers.get(node.below) if node.below is not None and node.below.gives == node.gives else None
            with use.making(node.key, gives=node.gives, name=node.name, parent=parent) as slot:
                (slot.folder / "disk.qcow2").write_text(node.name)
                facts = {"seconds": 2, "options": node.options, "place": node.place, "world": node.world}
                layers[node] = slot.commit(facts)
            below, under = (node.below.key, node.below.name) if node.below is not None else ("", "")
            history.note(store.root, node.place, Past(node.key, node.name, node.options, node.world, below, under, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    for name, content in (("harden.sh", "#!/bin/sh\necho one\n"), ("motd.j2", "first\nhello {{ who }}\n"),
                          ("id.pub", "ssh-ed25519 AAAA somebody\n"), ("site/index.html", "one")):  # fmt: skip
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Store:
    found = Store(folder / "store")
    build(plan(folder, RECIPE, Facts(root=False)), found)
    return found


def told(planned: Plan, store: Store) -> list[str]:
    """What plan says of the nodes that run of themselves, and how many follow."""
    run = [found for found in reasons(planned, store) if found.layer is None]
    own = [found for found in run if not found.why.endswith("' runs")]
    lines = [f"  {found.node.name}: {found.why}" for found in own]
    return [*lines, f"  and {len(run) - len(own)} that follow"] if run else ["  nothing runs"]


def test_every_change_is_told_in_words(folder: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = []
    for name, change in CHANGES.items():
        fresh = tmp_path_factory.mktemp("changed")
        shutil.copytree(folder, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("store"))
        planned = plan(fresh, change(RECIPE, fresh), Facts(root=False))
        lines += [f"{name}:", *told(planned, store)]
    lines += ["another epoch:", *told(plan(folder, RECIPE, Facts(root=False, epoch=1)), store)]
    assert "\n".join(lines) + "\n" == GOLDEN.read_text()


def test_the_options_of_an_answer_file_are_told_and_no_password(tmp_path: Path) -> None:
    (tmp_path / "x.iso").write_bytes(b"x" * 2048)
    (tmp_path / "own.cfg").write_text("d-i one\nd-i two\n")

    def planned(answers: str) -> Plan:
        return plan(tmp_path, f"name: i\nmachine: {{disk: 4G}}\nbase: {{iso: {{path: x.iso, answers: {answers}}}}}\n"
                    "outputs: [raw]\n", Facts(root=False))  # fmt: skip

    store = Store(tmp_path / "store")
    build(planned("{preseed: {user: ann, password: 1-sesame}}"), store)
    assert told(planned("{preseed: {user: bob, password: 2-sesame}}"), store)[0] == (
        "  base iso x.iso (preseed): option answers.password changed; option answers.user changed: ann -> bob")
    assert "option answers changed: preseed -> kickstart" in told(planned("{kickstart: {user: ann}}"), store)[0]
    build(planned("{preseed: own.cfg}"), store)
    (tmp_path / "own.cfg").write_text("d-i one\nd-i three\n")
    assert "the answer file's text changed, from line 2 on" in told(planned("{preseed: own.cfg}"), store)[0]


def test_a_kind_that_works_otherwise_now_is_named(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(folder, RECIPE, Facts(root=False))
    monkeypatch.setattr(type(planned.spine[1].kind), "version", 99)
    assert "imagesmith does 'packages' in another way now (version " in told(
        plan(folder, RECIPE, Facts(root=False)), store)[0]  # fmt: skip


def test_what_was_collected_is_told_from_what_was_never_built(folder: Path, store: Store) -> None:
    planned = plan(folder, RECIPE, Facts(root=False))
    store.clear()
    found = list(reasons(planned, store))
    assert found[0].why == "it was built, and collected since"
    assert found[0].seconds == 2
    other = plan(folder, RECIPE.replace("name: web", "name: other"), Facts(root=False))
    assert next(reasons(other, store)).why == "never built"


def test_a_history_that_cannot_be_read_is_none(folder: Path, store: Store) -> None:
    for path in (store.root / "history").iterdir():
        path.write_text("{")
    store.clear()
    assert next(reasons(plan(folder, RECIPE, Facts(root=False)), store)).why == "never built"
