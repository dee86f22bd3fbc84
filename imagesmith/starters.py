"""Recipes to begin with: those of ``recipes/`` that build, made the user's own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import imagesmith
from imagesmith import recipe
from imagesmith.errors import RecipeError, nearest
from imagesmith.kinds import Answer

SCHEMA = "imagesmith.schema.json"
"""The name under which a recipe that is made here knows its JSON Schema."""
_USER, _VAGRANT = "ops", "files/vagrant.pub"
_STAND_IN = "imagesmithuser"


@dataclass(frozen=True)
class Starter:
    """A recipe of ours, and the name that its answer file gets.

    The name is empty where there is no answer file, and where it goes with a script of ours (kinds `alpine`,
    `archinstall`, `unattend`): then the answers stay options.
    """

    file: str
    answers: str = ""

    @property
    def text(self) -> str:
        """The recipe as it is shipped."""
        return _recipes(self.file).read_text(encoding="utf-8")

    @property
    def description(self) -> str:
        """What it makes."""
        found = re.search(r"^description: (.*)$", self.text, re.M)
        return found[1] if found else ""

    @property
    def lets_in(self) -> bool:
        """Whether it makes a user who logs in with a key."""
        return "ssh_keys:" in self.text


STARTERS: Mapping[str, Starter] = {
    "debian": Starter("debian-12.yaml"),
    "ubuntu": Starter("iso/ubuntu-24.04.yaml", "autoinstall.yaml"),
    "fedora": Starter("iso/fedora.yaml", "ks.cfg"),
    "rocky": Starter("iso/rocky-9.yaml", "ks.cfg"),
    "alma": Starter("iso/alma-9.yaml", "ks.cfg"),
    "opensuse": Starter("iso/opensuse-leap.yaml", "agama.json"),
    "alpine": Starter("iso/alpine.yaml"),
    "arch": Starter("iso/arch.yaml"),
    "windows": Starter("iso/windows-server-2022.yaml"),
    "web": Starter("web.yaml"),
    "docker-host": Starter("docker-host.yaml"),
    "k8s-node": Starter("k8s-node.yaml"),
}


def starter(word: str) -> Starter:
    """The starter that the user names. Raises RecipeError with the nearest."""
    if word not in STARTERS:
        near = nearest(word, STARTERS) or "; there are " + ", ".join(STARTERS)
        raise RecipeError((), f"--from {word}: there is no such recipe to begin with{near}")
    return STARTERS[word]


def files_of(chosen: Starter, name: str, key: str = "") -> dict[str, bytes]:
    """The files of a folder with the recipe ``name``, by their names in it; the recipe comes first.

    ``key`` is a public SSH key, or several, one a line. Without it Vagrant's well-known one is taken, and with it there
    is no box for Vagrant, which logs in with its own. Raises RecipeError for a name that a recipe cannot have.
    """
    if not recipe.NAME.fullmatch(name):
        raise RecipeError((), f"'{name}' cannot name a recipe: use lower-case letters, digits, dots, hyphens")
    folder = _recipes(chosen.file).with_suffix("")
    beside = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in (sorted(folder.rglob("*")) if folder.is_dir() else ()) if file.is_file()
    }  # fmt: skip
    if chosen.lets_in:
        beside["key.pub"] = f"{key.strip()}\n".encode() if key else _recipes(_VAGRANT).read_bytes()
    text = _own(chosen, name, own_key=bool(key))
    if chosen.answers:
        text, answers = _with_answers(text, chosen.answers, beside)
        beside[chosen.answers] = answers.encode()
        del beside["key.pub"]  # it is in the answers
    return {f"{name}.yaml": f"# yaml-language-server: $schema={SCHEMA}\n{text}".encode(), **beside}


def given(chosen: Starter) -> list[str]:
    """The variables that have no default, so that the user must say them."""
    return re.findall(r"^  (\w+): \{description: ", chosen.text, re.M)


def _own(chosen: Starter, name: str, *, own_key: bool) -> str:
    """The recipe's text, with its new name and what lies beside it now."""
    text = re.sub(r"^name: .*$", f"name: {name}", chosen.text, count=1, flags=re.M)
    text = text.replace(f"recipes/{chosen.file}", f"{name}.yaml")
    text = text.replace(f"from: {Path(chosen.file).stem}/", "from: ")
    if not own_key:
        return re.sub(r"ssh_keys: \[[^\]]*\]", "ssh_keys: [key.pub]", text)
    text = re.sub(r"ssh_keys: \[[^\]]*\].*$", "ssh_keys: [key.pub]", text, flags=re.M)
    text = re.sub(r"^  - vagrant: .*\n", "", text, flags=re.M)
    return text.replace("{default: vagrant,", f"{{default: {_USER},")


def _with_answers(text: str, name: str, beside: Mapping[str, bytes]) -> tuple[str, str]:
    """The recipe with the answers in a file of their own, and that file: what our template makes of the options."""
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as scratch:
        for file, content in {"recipe.yaml": text.encode(), **beside}.items():
            Path(scratch, file).write_bytes(content)
        loaded = recipe.load(Path(scratch, "recipe.yaml"), recipe.Overrides({}, given={"user": _STAND_IN}))
        answer = getattr(loaded.base, "answers")  # noqa: B009 (a base that begins with an ISO)
        assert isinstance(answer, Answer)
        said = answer.rendered.text
    said = re.sub(r"\{[{%#]", lambda found: f"{{{{ '{found[0]}' }}}}", said).replace(_STAND_IN, "{{ user }}")
    kind = type(answer).name
    short = f"{kind}: {name}    # yours to change: a template that sees the variables above"
    return re.sub(rf"^( +){kind}:\n(?:\1 .*\n)+", rf"\1{short}\n", text, flags=re.M), said


def _recipes(name: str) -> Path:
    """A file of ``recipes/``, installed inside the package or beside it in a clone."""
    package = Path(imagesmith.__file__).parent
    inside = package / "recipes" / name
    return inside if inside.exists() else package.parent / "recipes" / name
