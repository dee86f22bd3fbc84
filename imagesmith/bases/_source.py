"""A file that somebody publishes, or that is here: how a recipe names it, what stands for it in keys, getting it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator, model_validator

from imagesmith.interfaces import Workshop
from imagesmith.kinds import UNKEYED, Base, RecipeFile, file_digest

_PINNED = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_FILE: TypeAdapter[Path] = TypeAdapter(RecipeFile)


class Sourced(Base):
    """A base that begins with one file, from a ``url`` or a ``path``."""

    url: str = Field("", description="Where it is: http, https or file. Not part of the key where a checksum pins it.")
    path: RecipeFile | None = Field(None, description="The file, instead of `url`. It needs no checksum.")
    checksum: str = Field("", description="sha256:…, sha512:…, the URL or file of a list of checksums, or none.")
    signature: str = Field("", description="URL or file of the detached GPG signature of the list of checksums.")
    keyring: RecipeFile | None = Field(None, description="The publisher's public keys, armoured or not.")
    trusted: Annotated[bool, UNKEYED] = Field(
        False, description="Whether the host's own kernel may mount its file systems (faster; needs root)."
    )

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        if value and urlsplit(value).scheme not in ("http", "https", "file"):
            raise ValueError("must begin with https://, http:// or file:; a file beside the recipe is named by `path`")
        return value

    @field_validator("checksum")
    @classmethod
    def _checksum(cls, value: str, info: ValidationInfo) -> str:
        word = value.strip()
        algorithm, colon, digest = word.partition(":")
        if algorithm.lower() in ("md5", "sha1") and colon:
            raise ValueError(f"{algorithm} proves nothing any more; use sha256 or sha512")
        if algorithm.lower() in ("sha256", "sha512") and colon:
            if not _PINNED.fullmatch(word.lower()):
                digits = 64 if algorithm.lower() == "sha256" else 128
                raise ValueError(f"{algorithm.lower()} has {digits} hexadecimal digits, not {len(digest)} characters")
            return word.lower()
        if re.fullmatch(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{128}", word):
            raise ValueError(f"write {'sha256' if len(word) == 64 else 'sha512'}: before it")
        return word if word in ("", "none") else _url_or_file(word, info)

    @field_validator("signature")
    @classmethod
    def _signature(cls, value: str, info: ValidationInfo) -> str:
        return _url_or_file(value, info) if value else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.url) == (self.path is not None):
            raise ValueError("needs `url` or `path`, and not both")
        if self.url and not self.checksum:
            raise ValueError("needs `checksum` (sha256:…, or the URL of the publisher's list of checksums); "
                             "`checksum: none` takes whatever the server sends")  # fmt: skip
        if (self.signature or self.keyring is not None) and not self._listed:
            raise ValueError("`signature` and `keyring` verify a list of checksums: let `checksum` be its URL or file")
        if self.signature and self.keyring is None:
            raise ValueError("`signature` needs `keyring`: the file with the publisher's public keys")
        return self

    @property
    def _listed(self) -> bool:
        return self.checksum not in ("", "none") and not _PINNED.fullmatch(self.checksum)

    @property
    def trusted_origin(self) -> bool:
        """As the recipe says."""
        return self.trusted

    @property
    def pinned(self) -> bool:
        """Whether it is known by its contents."""
        return _PINNED.fullmatch(self.checksum) is not None

    def source_identity(self) -> dict[str, object]:
        """The contents where they are known (then it does not matter where they come from), else the source."""
        if _PINNED.fullmatch(self.checksum):
            return {"contents": self.checksum}
        found: dict[str, object] = {}
        if self.path is not None:
            found["contents"] = file_digest(self.path)
        if self.url:
            found["url"] = self.url
        if self.checksum:
            found["checksum"] = _source_identity(self.checksum)
        if self.keyring is not None:
            found |= {"signature": _source_identity(self.signature), "keyring": file_digest(self.keyring)}
        return found

    def source(self, shop: Workshop) -> Path:
        """The file: fetched where it is not here, and verified."""
        if self.path is not None and self.checksum in ("", "none"):
            return self.path
        return shop.fetch(
            self.url or str(self.path), checksum=self.checksum, signature=self.signature, keyring=self.keyring
        )

    def describe(self) -> str:
        """The file's name."""
        return self.path.name if self.path is not None else urlsplit(self.url).path.rsplit("/", 1)[-1]


def _url_or_file(value: str, info: ValidationInfo) -> str:
    """A URL as it stands; a file's absolute name, after a look whether it is there."""
    if urlsplit(value).scheme in ("http", "https", "file"):
        return value
    return str(_FILE.validate_python(value, context=info.context).absolute())


def _source_identity(source: str) -> object:
    """A URL by itself, a local file by its contents."""
    return {"contents": file_digest(Path(source))} if source.startswith("/") else source
