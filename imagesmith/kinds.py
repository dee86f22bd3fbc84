"""What a recipe may name: bases, answer files, steps, checks and outputs, and how each is declared.

A kind is one class in one file::

    class Timezone(Step, name="timezone", version=1, shorthand="zone"):
        '''Set the guest's time zone.'''                   # its manual page

        zone: str = Field(description="…")                 # an option; the reference and the schema come from it
        retries: Annotated[int, UNKEYED] = 3               # an option that does not change the result

        def apply(self, root: Root) -> None: ...

The class statement registers it; nothing else does. Kinds are found in the folders of this package named after their
families, and through entry points of the group ``imagesmith.kinds`` (plugins.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, ValidationInfo, WithJsonSchema

from imagesmith import plugins
from imagesmith.errors import nearest
from imagesmith.host import Host
from imagesmith.interfaces import Artifact, Delivery, Disk, Guest, Layered, Log, Maker, Medium, Root, Signs, Workshop
from imagesmith.options import (
    UNKEYED,
    Duration,
    Mode,
    NewPath,
    Options,
    PublicKeys,
    RecipeFile,
    RenderedFile,
    Size,
    digest,
    file_digest,
    find_file,
    placeholder,
    reveal,
    secrets_in,
)

__all__ = [
    "FAMILIES", "UNKEYED", "Answer", "AnswerFile", "Base", "Booting", "Check", "DiskOutput", "Duration",
    "FilesOutput", "Kind", "Mode", "NewPath", "Options", "Output", "PublicKeys", "RecipeFile", "Remark", "Rendered",
    "RenderedFile", "Seen", "Size", "Step", "Unfit", "digest", "file_digest", "known", "left_out", "placeholder",
    "secrets_in", "without",
]  # fmt: skip

FAMILIES = ("bases", "answers", "steps", "checks", "outputs")
_registry: dict[str, dict[str, type[Kind]]] = {family: {} for family in FAMILIES}

# -- kinds -------------------------------------------------------------------------------------------------------


Seen = Mapping[str, str]
"""What a base or step saw of the world: addresses, and the SHA-256 of what was there (repositories' Release files)."""


@dataclass(frozen=True)
class Remark:
    """Something that is wrong with what a kind was given. ``line`` counts from 1; 0 where it is not known."""

    message: str
    file: Path | None = None
    line: int = 0


@dataclass(frozen=True)
class Rendered:
    """A template's text after rendering, and where each of its lines comes from."""

    text: str
    path: Path
    lines: tuple[int, ...] = ()
    """For each line of the text, the line of the template that it comes from, from 1."""

    def remark(self, message: str, line: int = 0) -> Remark:
        """A remark on a line of the text (from 1; 0: on the whole), placed in the template."""
        return Remark(message, self.path, self.lines[line - 1] if 0 < line <= len(self.lines) else max(line, 0))


class Kind(Options):
    """Something that a recipe may name. Subclass one of Base, Answer, Step, Check, DiskOutput and FilesOutput."""

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Raise it when the same options give another result."""
    shorthand: ClassVar[str] = ""
    """The option that a bare value stands for: ``- port: 80``."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the kind. Raises ValueError where another module has one of that name."""
        super().__pydantic_init_subclass__()
        if "name" not in kwargs:
            return
        there, module = _registry[cls.family].get(cls.name), cls.__module__
        place = there.__module__ if there is not None else _own_module(cls.family, cls.name)
        if place not in ("", module) and not module.startswith("imagesmith."):
            raise ValueError(f"{cls.family[:-1]} '{cls.name}': there is one of that name already, in {place}")
        _registry[cls.family][cls.name] = cls

    def __init_subclass__(cls, name: str = "", version: int = 1, shorthand: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name, cls.version, cls.shorthand = name, version, shorthand or cls.shorthand

    @classmethod
    def options_of(cls, value: object) -> object:
        """Spell out what a recipe gives: nothing, a bare value for the shorthand, or a mapping of options."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return dict(value)
        return {cls.shorthand: value} if cls.shorthand else value

    @property
    def worldly(self) -> bool:
        """Whether its result depends on what servers hold on the day that it runs."""
        return False

    def describe(self) -> str:
        """A few words that tell this one from others of its kind, for the plan and progress."""
        return ""

    def lint(self, host: Host) -> Sequence[Remark]:
        """What is wrong with it beyond its options, as the programs that know say, where they are on this host."""
        return ()


class Base(Kind):
    """Where the disk begins."""

    family = "bases"
    gives: ClassVar[Literal["tree", "disk"]] = "disk"

    @property
    def trusted_origin(self) -> bool:
        """Whether the host's own kernel may mount its file systems."""
        return False

    @property
    def boots(self) -> bool:
        """Whether it is made by running the machine, so that the machine's firmware counts."""
        return False

    @property
    def recipe(self) -> Path | None:
        """The recipe whose result is the base, where that is so."""
        return None

    def make(self, into: Path, shop: Workshop) -> Seen | None:
        """Fill ``into``: a new directory (``gives`` tree), or the name of a qcow2 to make (``gives`` disk)."""
        raise NotImplementedError


class Answer(Kind):
    """What an unattended installer reads: made of our own template and a few options, or the user's own file.

    A subclass names its template (a file of ``templates/answers/``, which sees every option by its name), what the
    installer says while it works, and the ways that the file can go.
    """

    family = "answers"
    shorthand = "file"
    template: ClassVar[str] = ""
    """Or an absolute path, in another package."""
    signs: ClassVar[Signs] = Signs()
    log_arguments: ClassVar[tuple[str, ...]] = ()
    """See interfaces.Installation."""
    log_ports: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[Literal["poweroff", "reboot"]] = "poweroff"

    file: Annotated[
        Path | None, BeforeValidator(lambda value, info: None if value is None else find_file(value, info)), UNKEYED,
        WithJsonSchema({"type": "string"}),
        Field(description="Your own file, a Jinja2 template named relative to the recipe, instead of ours."),
    ] = None  # fmt: skip

    _own: Callable[[str, Mapping[str, object]], Rendered] | None = PrivateAttr(None)
    _theirs: Rendered | None = PrivateAttr(None)

    def model_post_init(self, context: Any, /) -> None:
        """Take what renders templates out of the loader's context. Raises ValueError for a bad template."""
        context = context or {}
        self._own = context.get("own_template")
        if self.file is not None and "mapped" in context:
            self._theirs = context["mapped"](self.file)

    @property
    def rendered(self) -> Rendered:
        """The file's text. Raises ValueError where our template does not go with the options."""
        if self._theirs is not None:
            return self._theirs
        assert self._own is not None, "an answer file needs the loader's context"
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return self._own(str(Path("answers", self.template)), values)

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """See Options: in the user's own file, too."""
        copy = super().revealed(secrets)
        if self._theirs is not None:
            copy._theirs = replace(self._theirs, text=str(reveal(self._theirs.text, secrets)))
        return copy

    def secret_names(self) -> set[str]:
        """See Options: those in the user's own file, too."""
        return super().secret_names() | (secrets_in(self._theirs.text) if self._theirs is not None else set())

    def identity(self) -> dict[str, object]:
        """The options and the text that comes of them, so that a better template of ours is another result."""
        return {**super().identity(), "text": self.rendered.text}

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """The ways that the file can go to this installer, the one that it likes best first."""
        raise NotImplementedError


class Step(Kind):
    """One provisioning action."""

    family = "steps"
    automatic: ClassVar[bool] = False
    """Whether it comes last by itself where a recipe does not name it (``name: false`` leaves it out)."""

    @property
    def needs_running(self) -> str:
        """Why it needs a running guest; empty where it does not."""
        return ""

    def apply(self, root: Root) -> Seen | None:
        """Do it."""
        raise NotImplementedError


class Booting(Step):
    """The guest boots, and does what it does at that: a layer of its own, so that no step is booted for again.

    No recipe names it: it comes before the first of consecutive steps in a running guest.
    """

    name: ClassVar[str] = "boot"

    def apply(self, root: Root) -> Seen | None:
        """Nothing: the session has booted it."""
        return None


class Check(Kind):
    """An assertion about the finished image, made on a booted throw-away copy."""

    family = "checks"

    def check(self, guest: Guest) -> str:
        """Make it; return in a few words what was seen. Raises CheckFailed."""
        raise NotImplementedError


class Output(Kind):
    """One artifact format."""

    family = "outputs"

    @property
    def label(self) -> str:
        """What tells its files from those of the other outputs of a recipe: ``ova``, ``libvirt.box``."""
        return type(self).name

    @property
    def sameness(self) -> str:
        """How the parts of its artifact are made (format, compressor, its version): empty where none is used again.

        Where the store has an artifact with the same word, ``Disk.earlier`` is one.
        """
        return ""

    def fit(self, arch: str, firmware: Sequence[str]) -> None:
        """Hold the guest against what this format's consumers can run.

        Asked when a recipe is planned, and again before a disk is written. ``firmware`` is what the disk is known to
        boot with (``bios``, ``uefi``); nothing where that is not known yet. Raises BuildError, with the way out.
        """


    def published(self, artifacts: Sequence[Artifact], maker: Maker, host: Host) -> Sequence[str]:
        """Do what is left when the artifacts are in the output folder, main one first; return what to tell of it."""
        return ()


class DiskOutput(Output):
    """A format that is made of the sealed disk."""

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the artifact's files into ``directory``; return them, the main one first."""
        raise NotImplementedError


class FilesOutput(Output):
    """A format that is made of the root file system."""

    def write(self, files: Layered, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the artifact's files into ``directory``; return them, the main one first."""
        raise NotImplementedError


@lru_cache(maxsize=1)
def left_out() -> tuple[plugins.LeftOut, ...]:
    """Import the kinds of other packages; return those packages that are left out, and why."""
    found = plugins.load()
    for names in _registry.values():
        for name, kind in list(names.items()):
            if any(kind.__module__.partition(".")[0] in package.modules for package in found):
                del names[name]
    return found


def without() -> str:
    """What is left out, for the end of a complaint about a name that is not known; mostly nothing."""
    return "".join(f"; {package}" for package in left_out())


def _own_module(family: str, name: str) -> str:
    """The module of this package that has a kind of that name, if one may; else nothing."""
    module = name.replace("-", "_")
    place = f"imagesmith.{family}.{module}"
    own = module.isidentifier() and not module.startswith("_") and importlib.util.find_spec(place) is not None
    return place if own else ""


class _Family(Mapping[str, "type[Kind]"]):
    """The kinds of a family, by name, sorted. One that is asked for by name is imported without the others."""

    def __init__(self, family: str) -> None:
        self._family, self._kinds = family, _registry[family]
        self._whole = False

    def __getitem__(self, name: str) -> type[Kind]:
        if name not in self._kinds and (place := _own_module(self._family, str(name))):
            importlib.import_module(place)
        if name not in self._kinds:
            self._all()
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        self._all()
        return iter(sorted(self._kinds))

    def __len__(self) -> int:
        self._all()
        return len(self._kinds)

    def _all(self) -> None:
        if self._whole:
            return
        package = importlib.import_module(f"imagesmith.{self._family}")
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"imagesmith.{self._family}.{module}")
        left_out()
        self._whole = True


@lru_cache
def known(family: str) -> Mapping[str, type[Kind]]:
    """Every kind of a family, by name, sorted."""
    return _Family(family)


class Unfit(ValueError):
    """A kind inside another kind's options does not fit: its problems, for whoever knows how to tell them."""

    def __init__(self, kind: type[Kind], value: Mapping[str, object], problems: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(f"the options of '{kind.name}' do not fit")
        self.kind, self.value, self.problems = kind, value, problems


def _answer(value: object, info: ValidationInfo) -> Answer:
    kinds = known("answers")
    if isinstance(value, Answer):
        return value
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(f"must be exactly one of {', '.join(kinds)}, with a file or options")
    (name, given), = value.items()
    if name not in kinds:
        near = nearest(str(name), kinds) or "; there are " + ", ".join(kinds)
        raise ValueError(f"unknown answer file '{name}'{near}{without()}")
    kind = kinds[name]
    options = kind.options_of(given)
    if not isinstance(options, Mapping):
        raise ValueError(f"'{name}' takes a file or options")
    try:
        return kind.model_validate(dict(options), context=info.context)  # type: ignore[return-value]
    except ValidationError as error:
        raise Unfit(kind, {} if given is None else dict(options), error.errors(include_url=False)) from None


AnswerFile = Annotated[Answer, BeforeValidator(_answer), WithJsonSchema({"x-kinds": "answers"})]
"""An option that is an answer file: its kind, with the name of a file or with options."""
