"""What of a playbook is in a step's key, and what is said of one that is wrong. It runs in test_ssh_login.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagesmith.host import Host
from imagesmith.kinds import digest
from tests.trees import make

GOOD = "- hosts: all\n  tasks:\n    - debug: {msg: hello}\n"


def key(folder: Path, playbook: str) -> str:
    return digest(make("steps", "ansible", playbook, folder).identity())


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_playbook_s_own_folder_is_in_the_key(tmp_path: Path) -> None:
    put(tmp_path / "play/site.yml", GOOD)
    first = key(tmp_path, "play/site.yml")
    put(tmp_path / "recipe.yaml", "name: x\n")
    put(tmp_path / "play/.git/index", "x")
    assert key(tmp_path, "play/site.yml") == first
    put(tmp_path / "play/other.yml", GOOD)
    second = key(tmp_path, "play/site.yml")
    assert second != first
    put(tmp_path / "play/roles/web/tasks/main.yml", "- debug:\n")
    assert key(tmp_path, "play/site.yml") not in {first, second}


def test_beside_the_recipe_only_what_ansible_looks_for_is_in_the_key(tmp_path: Path) -> None:
    put(tmp_path / "site.yml", GOOD)
    first = key(tmp_path, "site.yml")
    put(tmp_path / "recipe.yaml", "name: x\n")
    put(tmp_path / "output/x/manifest.json", "{}")
    assert key(tmp_path, "site.yml") == first
    put(tmp_path / "group_vars/all.yml", "a: 1\n")
    assert key(tmp_path, "site.yml") != first


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("- hosts: all\n  tasks:\n    - nosuchmodule: {}\n", "couldn't resolve module/action 'nosuchmodule'", 3),
        ("- hosts: all\n  tasks: [\n", "Syntax Error while loading YAML", 3),
        ("- hosts: all\n  roles: [nope]\n", "the role 'nope' was not found", 2),
        (GOOD, "", 0),
    ],
)
def test_validate_has_ansible_s_word_on_a_playbook(text: str, said: str, line: int, tmp_path: Path) -> None:
    file = put(tmp_path / "play/site.yml", text)
    remarks = make("steps", "ansible", "play/site.yml", tmp_path).lint(Host())
    if not said:
        assert not remarks
    else:
        assert [(remark.file, remark.line) for remark in remarks] == [(file, line)]
        assert said in remarks[0].message
        assert "\n" not in remarks[0].message


def test_tags_and_groups_are_words(tmp_path: Path) -> None:
    put(tmp_path / "play/site.yml", GOOD)
    for wrong in ({"tags": ["-x"]}, {"tags": ["a,b"]}, {"groups": ["a b"]}):
        with pytest.raises(ValueError, match="pattern"):
            make("steps", "ansible", {"playbook": "play/site.yml", **wrong}, tmp_path)
