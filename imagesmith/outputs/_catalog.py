"""A catalog of Vagrant boxes: one folder that holds every version of a box, and the document that names them.

``vagrant box add FOLDER/metadata.json`` and ``vagrant box update`` read it, from the file system or a web server.
Source: Vagrant 2.3, lib/vagrant/box_metadata.rb (what the document holds, how versions are ordered).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from imagesmith.errors import BuildError
from imagesmith.host import Host

VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+)*(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?")
"""What Vagrant takes for a version (Gem::Version, VERSION_PATTERN)."""


@dataclass(frozen=True)
class Box:
    """One box that a catalog gets."""

    name: str
    """As users call it: ``acme/web``."""
    version: str
    description: str
    provider: str
    path: Path
    sha256: str


def add(box: Box, folder: Path, url: str, host: Host) -> str:
    """Put a box into the catalog in ``folder``; return its version there.

    The same bytes are there once. Another box for the same provider gets the next version below the recipe's: 1.2
    becomes 1.2.1, so that ``vagrant box update`` sees it. ``url`` is where ``folder`` is served; nothing for the folder
    itself. Builds that add at the same time take turns; whoever reads sees the old document or the new one.

    Raises BuildError where the catalog is another box's, or is none.
    """
    if not VERSION.fullmatch(box.version):
        raise BuildError(f"'{box.version}' is no version that Vagrant takes, and a catalog needs one",
                         hint="give the recipe a 'version:' such as 1.2")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with _turn(folder / ".lock"):
        document = _read(folder / "metadata.json", box)
        entry = _place(document, box)
        version = str(entry["version"])
        name = f"{version}-{box.provider}.box"
        if not any(p["name"] == box.provider for p in entry["providers"]) or not (folder / name).exists():
            unfinished = folder / f".{name}.new"
            host.run(["cp", "--reflink=auto", "--no-preserve=all", box.path, unfinished],
                     purpose="put the box into the catalog")  # fmt: skip
            unfinished.replace(folder / name)
        base = url.rstrip("/") if url else folder.absolute().as_uri()
        own = {"name": box.provider, "url": f"{base}/{quote(name)}", "checksum_type": "sha256", "checksum": box.sha256}
        others = [p for p in entry["providers"] if p["name"] != box.provider]
        entry["providers"] = sorted([*others, own], key=lambda p: str(p["name"]))
        _write(folder / "metadata.json", document)
    return version


def _read(path: Path, box: Box) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"name": box.name, "description": box.description, "versions": []}
    except ValueError as error:
        raise BuildError(f"{path} is no catalog of Vagrant's: {error}", hint="move it away") from None
    try:
        name, versions = document["name"], document["versions"]
        for version in versions:
            assert isinstance(version["version"], str)
            assert all(isinstance(provider["name"], str) for provider in version["providers"])
    except (AssertionError, KeyError, TypeError):
        raise BuildError(f"{path} is no catalog of Vagrant's", hint="move it away") from None
    if name != box.name:
        raise BuildError(f"{path} is the catalog of {name}, not of {box.name}",
                         hint="each box has a catalog of its own: name another folder")  # fmt: skip
    document["description"] = box.description or document.get("description", "")
    return dict(document)


def _place(document: dict[str, Any], box: Box) -> dict[str, Any]:
    """The version that the box belongs to; it is made where there is none."""
    versions: list[dict[str, Any]] = document["versions"]
    kin = sorted((v for v in versions if _below(v["version"], box.version) is not None),
                 key=lambda v: _below(v["version"], box.version) or 0)  # fmt: skip
    for version in kin:
        if any(p["name"] == box.provider and p.get("checksum") == box.sha256 for p in version["providers"]):
            return version
    if kin and not any(p["name"] == box.provider for p in kin[-1]["providers"]):
        return kin[-1]
    number = (_below(kin[-1]["version"], box.version) or 0) + 1 if kin else 0
    made: dict[str, Any] = {"version": f"{box.version}.{number}" if number else box.version, "providers": []}
    versions.append(made)
    return made


def _below(version: str, base: str) -> int | None:
    """How many builds after ``base`` a version is: 1.2 -> 0, 1.2.3 -> 3; None where it is none of its."""
    if version == base:
        return 0
    rest = version.removeprefix(f"{base}.")
    return int(rest) if rest != version and rest.isdecimal() else None


def _write(path: Path, document: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}.new")
    with unfinished.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
