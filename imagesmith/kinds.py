"""What a recipe may name: bases, steps, checks and outputs, and how each is declared.

A kind is one class in one file::

    class Timezone(Step, name="timezone", version=1, shorthand="zone"):
        '''Set the guest's time zone.'''                   # its manual page

        zone: str = Field(description="…")                 # an option; the reference and the schema come from it
        retries: Annotated[int, UNKEYED] = 3               # an option that does not change the result

        def apply(self, root: Root) -> None: ...

The class statement registers it; nothing else does. Kinds are found in the folders of this package named after their
families, and through entry points of the group ``imagesmith.kinds`` (each names a module to import).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema

from imagesmith.errors import nearest
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Files, Guest, Log, Maker, Root, Workshop

FAMILIES = ("bases", "steps", "checks", "outputs")
_registry: dict[str, dict[str, type[Kind]]] = {family: {} for family in FAMILIES}

# -- option types ------------------------------------------------------------------------------------------------


class _Unkeyed:
    """Marks an option that does not change the result: it stays out of the key."""


class _FileMark:
    """Marks an option that is a file or folder: its bytes are keyed, its name is not."""


UNKEYED = _Unkeyed()


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def _find_file(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("must be the name of a file")
    path = _folder(info) / value
    try:
        if not path.exists():
            near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise ValueError(f"no such file: {path}{near}")
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"is neither a file nor a folder: {path}")
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise ValueError(f"cannot be looked at: {path}: {error.strerror}") from None
    return path


def _render_file(value: object, info: ValidationInfo) -> str:
    path = _find_file(value, info)
    render: Callable[[Path], str] = (info.context or {})["render"]
    return render(path)


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a duration such as 90s, 5m or 1h30m")
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or parts is None:
        raise ValueError(f"'{text}' is no duration; write 90s, 5m or 1h30m")
    hours, minutes, seconds = parts.groups()
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a size such as 512M or 8G")
    parts = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", str(value).strip(), re.I)
    if parts is None:
        raise ValueError(f"'{value}' is no size; write 512M or 8G (powers of 1024)")
    number, unit = parts.groups()
    return int(int(number) * 1024 ** " KMGT".index(unit.upper() or " "))


Duration = Annotated[float, BeforeValidator(_duration),
                     WithJsonSchema({"type": ["string", "number"], "examples": ["90s", "5m", "1h30m"]})]  # fmt: skip
"""Seconds; written 90s, 5m, 1h30m, or a plain number."""
Size = Annotated[int, BeforeValidator(_size),
                 WithJsonSchema({"type": ["string", "integer"], "examples": ["512M", "8G"]})]  # fmt: skip
"""Bytes; written 512M, 8G (powers of 1024), or a plain number."""
RecipeFile = Annotated[Path, BeforeValidator(_find_file), _FileMark(), WithJsonSchema({"type": "string"})]
"""A file or folder, named relative to the recipe; its contents are keyed."""
RenderedFile = Annotated[str, BeforeValidator(_render_file), WithJsonSchema({"type": "string"})]
"""A Jinja2 template, named relative to the recipe; the option's value is the rendered text, and that is keyed."""


def _mode(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3,4}", value):
        return int(value, 8)
    raise ValueError('must be an octal mode in quotes, such as "0644"')


Mode = Annotated[int, BeforeValidator(_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3,4}$"})]
"""A file mode, written in octal and in quotes."""


# -- kinds -------------------------------------------------------------------------------------------------------


class Options(BaseModel):
    """A group of options: unknown names are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, arbitrary_types_allowed=True, coerce_numbers_to_str=True
    )

    def identity(self) -> dict[str, object]:
        """Everything that the result depends on, as plain values; files are there by their contents."""
        found: dict[str, object] = {}
        for name, field in type(self).model_fields.items():
            if any(isinstance(mark, _Unkeyed) for mark in field.metadata):
                continue
            found[field.alias or name] = _plain(getattr(self, name))
        return found


class Kind(Options):
    """Something that a recipe may name. Subclass one of Base, Step, Check, DiskOutput and FilesOutput."""

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Raise it when the same options give another result."""
    shorthand: ClassVar[str] = ""
    """The option that a bare value stands for: ``- port: 80``."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the kind."""
        super().__pydantic_init_subclass__()
        if "name" in kwargs:
            _registry[cls.family][cls.name] = cls

    def __init_subclass__(cls, name: str = "", version: int = 1, shorthand: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name:
            cls.name, cls.version, cls.shorthand = name, version, shorthand

    @classmethod
    def options_of(cls, value: object) -> object:
        """Spell out what a recipe gives: nothing, a bare value for the shorthand, or a mapping of options."""
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return dict(value)
        return {cls.shorthand: value} if cls.shorthand else value

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """A copy with every secret's place-holder replaced by its value."""
        return self.model_copy(update={n: _reveal(getattr(self, n), secrets) for n in type(self).model_fields})

    def describe(self) -> str:
        """A few words that tell this one from others of its kind, for the plan and progress."""
        return ""


class Base(Kind):
    """Where the disk begins."""

    family = "bases"
    gives: ClassVar[Literal["tree", "disk"]] = "disk"

    @property
    def trusted_origin(self) -> bool:
        """Whether the host's own kernel may mount its file systems."""
        return False

    @property
    def recipe(self) -> Path | None:
        """The recipe whose result is the base, where that is so."""
        return None

    def make(self, into: Path, shop: Workshop) -> None:
        """Fill ``into``: a new directory (``gives`` tree), or the name of a qcow2 to make (``gives`` disk)."""
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

    def apply(self, root: Root) -> None:
        """Do it."""
        raise NotImplementedError


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


class DiskOutput(Output):
    """A format that is made of the sealed disk."""

    def write(self, disk: Disk, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the artifact's files into ``directory``; return them, the main one first."""
        raise NotImplementedError


class FilesOutput(Output):
    """A format that is made of the root file system."""

    def write(self, files: Files, maker: Maker, directory: Path, host: Host, log: Log) -> Sequence[Path]:
        """Write the artifact's files into ``directory``; return them, the main one first."""
        raise NotImplementedError


@lru_cache(maxsize=1)
def _discover() -> None:
    for family in FAMILIES:
        package = importlib.import_module(f"imagesmith.{family}")
        for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
            importlib.import_module(f"imagesmith.{family}.{module}")
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group="imagesmith.kinds"), key=lambda e: e.name):
        importlib.import_module(entry.value)


def known(family: str) -> dict[str, type[Kind]]:
    """Every kind of a family, by name, sorted."""
    _discover()
    return dict(sorted(_registry[family].items()))


# -- identity ----------------------------------------------------------------------------------------------------


def digest(value: object) -> str:
    """The SHA-256 of a plain value's canonical JSON, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # a file name that is not UTF-8 holds lone surrogates, and so may a YAML string ("\\ud800")
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def file_digest(path: Path, *, follow: bool = True) -> str:
    """Name a file or folder by its contents: bytes, executable bits, links and names; no times or owners.

    Where ``path`` itself is a link, what it leads to counts (``follow``), or where it points; a link inside a folder
    is always where it points. Raises OSError for what cannot be read, and for a FIFO, socket or device.
    """
    if not follow and path.is_symlink():
        return digest(["link", str(path.readlink())])
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        inside = sorted(path.iterdir(), key=lambda p: p.name)
        return digest(["folder", [[p.name, file_digest(p, follow=False)] for p in inside]])
    if not stat.S_ISREG(mode):  # opening a FIFO waits for ever
        raise OSError(f"is neither a file, a folder nor a link: {path}")
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    return digest(["file", content, bool(mode & 0o100)])


def _plain(value: object) -> object:
    if isinstance(value, Options):
        return value.identity()
    if isinstance(value, Path):
        return {"contents": file_digest(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# -- secrets -----------------------------------------------------------------------------------------------------

_SECRET = re.compile("\ue000([^\ue000\ue001]*)\ue001")


def placeholder(name: str) -> str:
    """What stands for a secret in a recipe's strings until the moment it is used (private-use characters around)."""
    return f"\ue000{name}\ue001"


def secrets_in(value: object) -> set[str]:
    """The names of the secrets that a value holds place-holders of."""
    if isinstance(value, str):
        return set(_SECRET.findall(value))
    if isinstance(value, BaseModel):
        return {name for field in type(value).model_fields for name in secrets_in(getattr(value, field))}
    if isinstance(value, Mapping):
        return {name for item in value.values() for name in secrets_in(item)}
    if isinstance(value, (list, tuple)):
        return {name for item in value for name in secrets_in(item)}
    return set()


def _reveal(value: object, secrets: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return _SECRET.sub(lambda match: secrets[match.group(1)], value)
    if isinstance(value, Options):
        return value.model_copy(update={n: _reveal(getattr(value, n), secrets) for n in type(value).model_fields})
    if isinstance(value, Mapping):
        return {key: _reveal(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_reveal(item, secrets) for item in value)
    return value
