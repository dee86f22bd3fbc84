"""The options of kinds: their types, what of them is keyed, and secrets' place-holders in them."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, WithJsonSchema

from imagesmith.digests import sha256
from imagesmith.errors import nearest

# -- option types ------------------------------------------------------------------------------------------------


class _Unkeyed:
    """Marks an option that does not change the result: it stays out of the key."""


class _FileMark:
    """Marks an option that is a file or folder: its bytes are keyed, its name is not."""


UNKEYED = _Unkeyed()


def _folder(info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", "."))


def find_file(value: object, info: ValidationInfo) -> Path:
    """The file or folder that a recipe names, relative to itself. Raises ValueError where there is none."""
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


def _new_path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise ValueError("must be the name of a file or folder")
    return _folder(info) / value


def _render_file(value: object, info: ValidationInfo) -> str:
    path = find_file(value, info)
    render: Callable[[Path], str] = (info.context or {})["render"]
    return render(path)


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a duration such as 90s, 5m or 1h30m")
    text = str(value).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.fullmatch(r"(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+(?:\.\d+)?)s)?", text)
    if not text or parts is None:
        raise ValueError(f"'{text}' is no duration; write 90s, 5m or 1h30m")
    days, hours, minutes, seconds = parts.groups()
    return int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)


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
RecipeFile = Annotated[Path, BeforeValidator(find_file), _FileMark(), WithJsonSchema({"type": "string"})]
"""A file or folder, named relative to the recipe; its contents are keyed."""
NewPath = Annotated[Path, BeforeValidator(_new_path), WithJsonSchema({"type": "string"})]
"""A file or folder that need not be there, named relative to the recipe."""
RenderedFile = Annotated[str, BeforeValidator(_render_file), WithJsonSchema({"type": "string"})]
"""A Jinja2 template, named relative to the recipe; the option's value is the rendered text, and that is keyed."""


def _mode(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3,4}", value):
        return int(value, 8)
    raise ValueError('must be an octal mode in quotes, such as "0644"')


Mode = Annotated[int, BeforeValidator(_mode), WithJsonSchema({"type": "string", "pattern": "^0?[0-7]{3,4}$"})]
"""A file mode, written in octal and in quotes."""


_PUBLIC_KEY = re.compile(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?$")


def _public_keys(value: object, info: ValidationInfo) -> object:
    """Turn a key, or the name of a file of keys, into keys: these are what is keyed."""
    if not isinstance(value, str) or _PUBLIC_KEY.match(value) or secrets_in(value):
        return value
    path = find_file(value, info)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{value} holds no public SSH key: it is no text") from None
    except OSError as error:
        raise ValueError(f"{value} cannot be read: {error.strerror}; name a key, or a file of keys") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found or any("PRIVATE KEY" in line for line in found):
        raise ValueError(f"{value} holds no public SSH key")
    return "\n".join(found)


PublicKeys = Annotated[str, BeforeValidator(_public_keys)]
"""A public SSH key, or the name of a file of them; the value is the keys, one a line."""


class Options(BaseModel):
    """A group of options: unknown names are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, arbitrary_types_allowed=True, coerce_numbers_to_str=True
    )

    def identity(self) -> dict[str, object]:
        """Everything that the result depends on, as plain values; files are there by their contents."""
        return {type(self).model_fields[name].alias or name: _plain(value) for name, value in self.keyed()}

    def keyed(self) -> Iterator[tuple[str, object]]:
        """The names and values of the fields that the result depends on."""
        for name, field in type(self).model_fields.items():
            if not any(isinstance(mark, _Unkeyed) for mark in field.metadata):
                yield name, getattr(self, name)

    def secret_names(self) -> set[str]:
        """The secrets whose place-holders its options hold."""
        return {name for field in type(self).model_fields for name in secrets_in(getattr(self, field))}

    def revealed(self, secrets: Mapping[str, str]) -> Self:
        """A copy with every secret's place-holder replaced by its value."""
        return self.model_copy(update={n: reveal(getattr(self, n), secrets) for n in type(self).model_fields})


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
    return digest(["file", sha256(path), bool(mode & 0o100)])


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
    if isinstance(value, Options):
        return value.secret_names()
    if isinstance(value, Mapping):
        return {name for item in value.values() for name in secrets_in(item)}
    if isinstance(value, (list, tuple)):
        return {name for item in value for name in secrets_in(item)}
    return set()


def reveal(value: object, secrets: Mapping[str, str]) -> object:
    """A value with every secret's place-holder in it replaced by the secret."""
    if isinstance(value, str):
        return _SECRET.sub(lambda match: secrets[match.group(1)], value)
    if isinstance(value, Options):
        return value.revealed(secrets)
    if isinstance(value, Mapping):
        return {key: reveal(item, secrets) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(reveal(item, secrets) for item in value)
    return value
