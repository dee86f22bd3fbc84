"""What ``validate`` finds besides a recipe's own mistakes: in scripts, names of packages, secrets in clear."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imagesmith import api, lint, lint_secrets
from imagesmith.errors import Complaint
from imagesmith.host import Host
from imagesmith.lint_places import Places
from tests.conftest import Command

HEAD = "base:\n  bootstrap: {distribution: debian, suite: bookworm, packages: [sudo]}\n"
TOKEN = "gh" + "p_" + "0123456789abcdefABCDEF" * 2  # in two parts, so that it is none to those who look for them


def look(folder: Path, text: str, **files: str) -> tuple[list[str], list[str]]:
    """What is wrong, and what is doubtful, with a recipe and its files."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    file = folder / "r.yaml"
    file.write_text(text)
    wrong, doubtful = lint.look(api.make_plan(api.load(file)), Host())
    return [told(one, folder) for one in wrong], [told(one, folder) for one in doubtful]


def told(complaint: Complaint, folder: Path) -> str:
    return str(complaint).replace(f"{folder}/", "")


def secrets(folder: Path, text: str) -> tuple[list[str], list[str]]:
    file = folder / "r.yaml"
    file.write_text(text)
    wrong, doubtful = lint_secrets.remarks(api.make_plan(api.load(file)), Places())
    return [told(one, folder) for one in wrong], [told(one, folder) for one in doubtful]


# -- scripts ---------------------------------------------------------------------------------------------------------


def test_shellcheck_speaks_of_the_line_in_the_recipe(tmp_path: Path) -> None:
    wrong, doubtful = look(tmp_path, f"""{HEAD}steps:
  - name: a block
    shell: |
      cd /srv

      rm -rf "$HERE"/*
  - shell: "true; x=$(date)"
  - shell:
      run: |
        if true; then
          echo x
      env: {{A: b}}
  - shell: >-
      cd /usr/share;
      for f in $(ls); do rm "$f"; y=1; done
checks:
  - command: cd /srv; ls
""")  # fmt: skip
    assert all("steps[2].shell.run: SC10" in one for one in wrong), wrong
    assert wrong[0].startswith("r.yaml:12:9: steps[2].shell.run: SC")
    places = {one.split(": warning")[0].rsplit(": SC", 1)[0] for one in doubtful}
    assert places == {
        "r.yaml:8:14: steps[0].shell", "r.yaml:9:12: steps[1].shell", "r.yaml:15:12: steps[3].shell",
        "r.yaml:19:14: checks[0].command",
    }


def test_a_script_of_ones_own_is_read_as_its_first_line_says(tmp_path: Path) -> None:
    wrong, doubtful = look(
        tmp_path, f"{HEAD}steps:\n  - script: a.sh\n  - script: b.py\n",
        a__sh="#!/usr/bin/env bash\nx=(1 2)\necho $x\nif [ 1; then\n", b__py="#!/usr/bin/python3\nif x:\n"
    )  # fmt: skip
    assert wrong
    assert all(one.startswith("a.sh:") for one in wrong + doubtful)


def test_variables_that_a_step_sets_are_set_and_secrets_are_words(tmp_path: Path) -> None:
    wrong, doubtful = look(tmp_path, f"""variables: {{pw: {{secret: {{env: PW}}}}}}
{HEAD}steps:
  - shell: {{run: 'login "$word" "$other" {{{{ pw }}}}', env: {{word: x}}}}
""")  # fmt: skip
    assert wrong == []
    assert len(doubtful) == 1
    assert "other is referenced but not assigned" in doubtful[0]


# -- packages --------------------------------------------------------------------------------------------------------


def test_a_package_that_the_suite_does_not_have_is_named_with_the_nearest(tmp_path: Path) -> None:
    wrong, doubtful = look(tmp_path, """base:
  bootstrap: {distribution: debian, suite: bookworm, packages: [sudo, opensh-server]}
steps:
  - packages: [ngnix-light, g++, "python3=3.11*", "libc6:amd64", mail-transport-agent]
  - packages: {remove: [whatever], install: [curl/bookworm]}
  - shell: echo deb http://example.test/ x y > /etc/apt/sources.list.d/more.list
  - packages: [only-there]
""")  # fmt: skip
    assert wrong == [
        "r.yaml:2:71: base.bootstrap.packages[1]: no package 'opensh-server' in bookworm; did you mean "
        "'openssh-server'?",
        "r.yaml:4:16: steps[0].packages[0]: no package 'ngnix-light' in bookworm; did you mean 'nginx-light'?",
    ]
    assert doubtful == []


@pytest.mark.parametrize("base", [
    "{distribution: debian, suite: trixie, packages: [nonsense-x]}",  # this host's apt does not know it
    "{distribution: debian, suite: bookworm, packages: [nonsense-x], mirror: 'http://mirror.test/debian'}",
    "{distribution: ubuntu, suite: noble, packages: [nonsense-x]}",
])  # fmt: skip
def test_nothing_is_said_of_packages_that_this_host_cannot_know(base: str, tmp_path: Path) -> None:
    assert look(tmp_path, f"base:\n  bootstrap: {base}\n") == ([], [])


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_tokens_and_private_keys_are_found_wherever_a_recipe_takes_text_from(tmp_path: Path) -> None:
    (tmp_path / "site" / "deep").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "site" / "deep" / "id"], check=True)
    (tmp_path / "m.j2").write_text(f"first\nx {TOKEN}\n")
    (tmp_path / "s.sh").write_text(f"#!/bin/sh\ncurl -H 'Authorization: {TOKEN}' localhost\n")
    (tmp_path / "site" / "blob").write_bytes(b"\0" + TOKEN.encode())
    wrong, doubtful = secrets(tmp_path, f"""{HEAD}steps:
  - copy: {{from: site/, to: /srv}}
  - template: {{from: m.j2, to: /m}}
  - script: s.sh
  - shell: echo {TOKEN}
""")  # fmt: skip
    assert sorted(one.partition(" in clear")[0] for one in wrong) == [
        "m.j2:2:3: a token of GitHub", "r.yaml:7:17: a token of GitHub", "s.sh:2:25: a token of GitHub",
        "site/deep/id:1:1: a private key",
    ]  # fmt: skip
    assert all("{secret: {env: NAME}}" in one or "give it as a secret" in one for one in wrong)
    assert doubtful == []


def test_a_password_in_clear_is_a_warning_and_a_hash_or_a_secret_is_fine(tmp_path: Path) -> None:
    wrong, doubtful = secrets(tmp_path, f"""variables:
  pw: hunter2
  safe: {{secret: {{env: PW}}}}
login: {{password: open}}
{HEAD}steps:
  - user: {{name: a, password: "{{{{ pw }}}}"}}
  - user: {{name: b, password: "{{{{ safe }}}}"}}
  - user: {{name: c, password: "$6$salt$hash"}}
  - user: {{name: d, password: "!"}}
  - shell:
      run: "true"
      env: {{API_TOKEN: abc, DB_PASSWORD: "{{{{ safe }}}}", TOKENS: few, MODE: fast}}
""")  # fmt: skip
    assert wrong == []
    assert [one.partition(" is in clear")[0] for one in doubtful] == [
        "r.yaml:8:31: steps[0].user.password: 'password'",
        "r.yaml:14:24: steps[4].shell.env.API_TOKEN: 'API_TOKEN'",
        "r.yaml:4:19: login.password: 'password'",
    ]


@pytest.mark.parametrize(("kind", "text", "lines"), [
    ("preseed", "d-i passwd/root-password password x\nd-i passwd/user-password-crypted password $6$a$b\n"
     "d-i passwd/user-password password {{ safe }}\n", [1]),
    ("kickstart", "rootpw --lock\nrootpw x\nrootpw --iscrypted $6$a$b\nuser --name=a --password=x --plaintext\n"
     "user --name=b --iscrypted --password=$6$a$b\nbootloader --append=x --password={{ safe }}\n", [2, 4]),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n  identity:\n    hostname: x\n    username: y\n"
     "    password: $6$a$b\n  user-data:\n    users:\n      - name: z\n        plain_text_passwd: x\n", [11]),
])  # fmt: skip
def test_passwords_in_an_answer_file_are_found_at_its_lines(
    kind: str, text: str, lines: list[int], tmp_path: Path
) -> None:
    (tmp_path / "x.iso").touch()
    (tmp_path / "answers").write_text(text)
    wrong, doubtful = secrets(tmp_path, f"""variables: {{safe: {{secret: {{env: PW}}}}}}
base:
  iso: {{path: x.iso, answers: {{{kind}: answers}}}}
""")  # fmt: skip
    assert wrong == []
    assert [int(one.split(":")[1]) for one in doubtful] == lines
    assert all(one.startswith("answers:") for one in doubtful)


# -- the command -----------------------------------------------------------------------------------------------------


def test_warnings_alone_are_no_failure(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"{HEAD}steps:\n  - user: {{name: a, password: open}}\n")
    ran = command("validate", file)
    assert f"{file}:4:31: steps[0].user.password: warning: 'password' is in clear" in ran.out
    assert "fine" not in ran.out
    file.write_text(f"{HEAD}steps:\n  - shell: echo {TOKEN}\n")
    ran = command("validate", file, expect=2)
    assert f"{file}:4:17: a token of GitHub in clear" in ran.out
    assert ran.err.strip() == "imagesmith: 1 complaint"
