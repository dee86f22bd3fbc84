"""A ready-made disk image, from a publisher or a file, as the base."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from imagesmith.interfaces import Workshop
from imagesmith.kinds import UNKEYED, Base, RecipeFile, file_digest

_PINNED = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_FILE: TypeAdapter[Path] = TypeAdapter(RecipeFile)


def _no_seed(value: object) -> None:
    raise ValueError("a cloud-init seed is not supported yet; what it would set up can be done with "
                     "`user`, `copy` and `shell` steps")  # fmt: skip


class CloudImage(Base, name="cloud-image", version=1):
    """Begin with a disk image that somebody publishes (`url`), or with one that is here (`path`).

    Any format that qemu-img reads. What is fetched must be known by a checksum: its own (`sha256:…`, `sha512:…`), or
    the URL or file of a list such as SHA256SUMS, whose line for the URL's last part counts and whose GPG signature is
    verified where `keyring` is given (detached with `signature`, else clear-signed). `checksum: none` takes whatever
    the server sends when the base is made.
    """

    url: str = Field("", description="Where it is: http, https or file. Not part of the key where a checksum pins it.")
    path: RecipeFile | None = Field(None, description="The image's file, instead of `url`. It needs no checksum.")
    checksum: str = Field("", description="sha256:…, sha512:…, the URL or file of a list of checksums, or none.")
    signature: str = Field("", description="URL or file of the detached GPG signature of the list of checksums.")
    keyring: RecipeFile | None = Field(None, description="The publisher's public keys, armoured or not.")
    format: Literal["", "qcow2", "raw", "vdi", "vhdx", "vmdk", "vpc"] = Field(
        "", description="The image's format, where its header does not tell (a fixed VHD is `vpc`)."
    )
    trusted: Annotated[bool, UNKEYED] = Field(
        False, description="Whether the host's own kernel may mount its file systems (faster; needs root)."
    )
    seed: SkipJsonSchema[Annotated[None, BeforeValidator(_no_seed)]] = Field(None, description="Not supported yet.")

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

    def identity(self) -> dict[str, object]:
        """The contents where they are known (then it does not matter where they come from), else the source."""
        found: dict[str, object] = {"format": self.format}
        if _PINNED.fullmatch(self.checksum):
            return found | {"contents": self.checksum}
        if self.path is not None:
            found["contents"] = file_digest(self.path)
        if self.url:
            found["url"] = self.url
        if self.checksum:
            found["checksum"] = _source_identity(self.checksum)
        if self.keyring is not None:
            found |= {"signature": _source_identity(self.signature), "keyring": file_digest(self.keyring)}
        return found

    def make(self, into: Path, shop: Workshop) -> None:
        """Fetch it where it is not here, verify it, and make a qcow2 of it."""
        source = self.path
        if source is None or self.checksum not in ("", "none"):
            source = shop.fetch(
                self.url or str(self.path), checksum=self.checksum, signature=self.signature, keyring=self.keyring
            )
        shop.import_disk(source, into, format=self.format)

    def describe(self) -> str:
        """The image's file name."""
        return self.path.name if self.path is not None else urlsplit(self.url).path.rsplit("/", 1)[-1]


def _url_or_file(value: str, info: ValidationInfo) -> str:
    """A URL as it stands; a file's absolute name, after a look whether it is there."""
    if urlsplit(value).scheme in ("http", "https", "file"):
        return value
    return str(_FILE.validate_python(value, context=info.context).absolute())


def _source_identity(source: str) -> object:
    """A URL by itself, a local file by its contents."""
    return {"contents": file_digest(Path(source))} if source.startswith("/") else source
