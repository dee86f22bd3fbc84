"""Before a build: what ``init`` writes, and what shells offer at Tab."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imagesmith import recipe, starters
from tests.conftest import Command
from tests.terminals import Terminal

ROOT = Path(__file__).parent.parent
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGV4YW1wbGU me@o'home"
BIN = Path(sys.executable).parent


def written(folder: Path, name: str, key: str = "") -> Path:
    """What init writes, without the command."""
    for file, content in starters.files_of(starters.STARTERS[name], name, key).items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_bytes(content)
    return folder / name / f"{name}.yaml"


def loaded(file: Path, **given: str) -> recipe.Recipe:
    """A recipe, with files for the variables that want one."""
    declared = yaml.safe_load(file.read_text())["variables"]
    files = {name: str(file) for name, said in declared.items() if not {"default", "secret"} & set(said)}
    return recipe.load(file, recipe.Overrides({}, given={**files, **given}))


def answers(found: recipe.Recipe) -> str:
    return str(found.base.answers.rendered.text)  # type: ignore[attr-defined]


# -- init ------------------------------------------------------------------------------------------------------------


def test_every_recipe_to_begin_with_is_fine(command: Command, tmp_path: Path) -> None:
    files = [written(tmp_path, name, KEY if name == "debian" else "") for name in starters.STARTERS]
    images = [word for name in ("iso", "virtio") for word in ("--var", f"{name}={ROOT / 'Makefile'}")]
    windows = tmp_path / "windows" / "windows.yaml"
    assert command("validate", *(file for file in files if file != windows)).out.count(": fine\n") == len(files) - 1
    assert "fine" in command("validate", windows, *images).out


@pytest.mark.parametrize("name", [name for name, one in starters.STARTERS.items() if one.answers])
def test_the_answer_file_is_what_our_own_template_makes(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, name)
    shipped = ROOT / "recipes" / starters.STARTERS[name].file
    assert answers(loaded(file)) == answers(loaded(shipped))
    assert answers(loaded(file, user="alice")) == answers(loaded(shipped, user="alice"))
    assert "answers:\n" in file.read_text()
    assert f": {starters.STARTERS[name].answers} " in file.read_text()


@pytest.mark.parametrize("name", [name for name, one in starters.STARTERS.items() if one.lets_in])
def test_a_key_of_ones_own_takes_the_place_of_vagrants(name: str, tmp_path: Path) -> None:
    vagrant, own = loaded(written(tmp_path / "a", name)), loaded(written(tmp_path / "b", name, KEY))
    assert [type(entry.kind).name for entry in vagrant.outputs].count("vagrant") == 1
    assert [entry.kind.label for entry in own.outputs] == [
        entry.kind.label for entry in vagrant.outputs if type(entry.kind).name != "vagrant"
    ]
    assert vagrant.variables["user"] == "vagrant"
    assert own.variables["user"] == "ops"
    texts = "".join(file.read_text() for file in (tmp_path / "b").rglob("*") if file.is_file())
    assert KEY.split()[1] in texts
    assert "agrant" not in texts.replace("VAGRANT", "")


def test_init_writes_a_folder_says_what_next_and_overwrites_nothing(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    ran = command("init", folder, "--from", "web")
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        ".gitignore", "imagesmith.schema.json", "index.html.j2", "shop.yaml", "site/style.css"]  # fmt: skip
    assert (folder / "shop.yaml").read_text().startswith("# yaml-language-server: $schema=imagesmith.schema.json\n")
    assert "imagesmith build shop.yaml" in ran.out
    assert loaded(folder / "shop.yaml").name == "shop"
    (folder / "shop.yaml").write_text("mine")
    assert "is there already" in command("init", folder, "--from", "debian", expect=2).err
    assert (folder / "shop.yaml").read_text() == "mine"
    assert not (folder / "key.pub").exists()


def test_init_refuses_what_it_does_not_know(command: Command, tmp_path: Path) -> None:
    for words, said in (
        ((tmp_path / "a", "--from", "debain"), "did you mean 'debian'?"),
        ((tmp_path / "My Image", "--from", "web"), "lower-case letters"),
        ((tmp_path / "a", "--from", "web", "--key", KEY), "makes no user"),
        ((tmp_path / "a", "--from", "debian", "--key", "missing.pub"), "no such file: missing.pub"),
        ((tmp_path / "a", "--from", "debian", "--key", "~nobody-of-that-name/x"), "--key ~nobody-of-that-name/x: "),
    ):
        assert said in command("init", *words, expect=2).err
    assert list(tmp_path.iterdir()) == []


def test_init_asks_at_a_terminal(command: Command, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa.pub").write_text(KEY + "\n")
    argv = ["sh", "-c", f"cd {tmp_path} && exec {sys.executable} -m imagesmith.cli init"]
    terminal = Terminal(argv, command.environment(HOME=str(tmp_path)))
    assert "Docker" in terminal.expect("begin with [debian]")
    terminal.type("docker-host\n")
    terminal.expect("[docker-host]")
    terminal.type("dock\n")
    terminal.expect("id_rsa.pub]")
    terminal.type("\n")
    terminal.expect("imagesmith build dock.yaml")
    assert terminal.end() == 0
    assert (tmp_path / "dock" / "key.pub").read_text() == KEY + "\n"
    assert (tmp_path / "dock" / "daemon.json").is_file()


@pytest.mark.slow
def test_what_init_writes_builds(command: Command, tmp_path: Path) -> None:
    command("init", tmp_path / "web", "--from", "web")
    command("build", tmp_path / "web" / "web.yaml")
    assert (command.output / "web" / "web.qcow2").is_file()


# -- what shells offer at Tab ----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with recipes in it."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "disk.img").touch()
    return tmp_path


def test_fish_offers_values_with_their_meanings(command: Command, place: Path) -> None:
    def offered(line: str) -> dict[str, str]:
        script = f"imagesmith --show-completion | source; complete -C '{line}'"
        env = command.environment(PATH=f"{BIN}:/usr/bin:/bin", HOME=str(place))
        argv = ["fish", "--no-config", "-c", script]
        done = subprocess.run(argv, cwd=place, capture_output=True, text=True, check=True, env=env)
        return {word: meaning for word, _, meaning in (row.partition("\t") for row in done.stdout.splitlines())}

    assert offered("imagesmith valid").keys() == {"validate"}
    assert offered("imagesmith build rec").keys() >= {"recipes/web.yaml", "recipes/iso/", "recipes/docker-host.yaml"}
    assert offered("imagesmith build recipes/web.yaml --only ").keys() == {"qcow2", "ova"}
    assert offered("imagesmith build recipes/web.yaml --from ")["1"] == "packages nginx-light"
    assert offered("imagesmith shell recipes/web.yaml --after ").keys() == {"1", "2", "3", "4", "5"}
    assert "VirtualBox" in offered("imagesmith convert disk.img --to v")["vdi"]
    assert offered("imagesmith kinds boots").keys() == {"bootstrap"}
    assert offered("imagesmith init --from ").keys() == set(starters.STARTERS)
    assert offered("imagesmith inspect di").keys() == {"disk.img"}


@pytest.mark.parametrize(("shell", "argv"), [
    ("bash", ["bash", "--norc", "--noprofile", "-i"]),
    ("zsh", ["zsh", "-f", "-i"]),
])  # fmt: skip
def test_bash_and_zsh_complete_at_a_terminal(shell: str, argv: list[str], command: Command, place: Path) -> None:
    env = command.environment(PATH=f"{BIN}:/usr/bin:/bin", HOME=str(place), PS1="% ")
    terminal = Terminal(argv, env, size=(40, 160))
    if shell == "zsh":
        terminal.type("autoload -U compinit; compinit -u\n")
    terminal.type(f'cd {place}; imagesmith --show-completion > c; . ./c; echo rea"d"y\n')
    terminal.expect("ready")
    for typed, completed in (
        ("imagesmith kinds boots\t", "trap"),
        ("imagesmith build recipes/web.y\t --only qc\t", "ow2"),
        ("imagesmith inspect dis\t", "k.img"),
        ("imagesmith build recipes/web.yaml --from \t\t", "1" if shell == "bash" else "nginx-light"),
    ):
        terminal.type(typed)
        terminal.expect(completed, within=60)
        terminal.type("\x15")
    terminal.type("exit\n")
    terminal.end()
