"""Files into a guest that has no tar: their contents by SFTP, their places, owners and times by its shell."""

from __future__ import annotations

import shlex
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from imagesmith.errors import BuildError, ToolFailed
from imagesmith.interfaces import Connection

_PURPOSE = "copy files into a guest over SSH"
_FOLDER = 'umask 077; folder=$(mktemp -d /tmp/imagesmith.XXXXXX) && chown "$1" "$folder" && echo "$folder"'

Small = Callable[..., tuple[int, bytes, str]]
"""Runs a script of ours in the guest as root, with arguments: status, stdout, stderr."""


def unpack(archive: BinaryIO, connection: Connection, small: Small) -> None:
    """Put the members of a tar that ``placing.place`` made where their names say. Raises BuildError, MissingTool."""
    status, out, said = small(_FOLDER, connection.user)
    if status != 0:
        raise BuildError(f"cannot make a folder for files in the guest: {said}")
    there = out.decode().strip()
    with tempfile.TemporaryDirectory(prefix="sftp-", dir=connection.folder) as name:
        here, script, batch = Path(name), ["set -e"], list[str]()
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            members = tar.getmembers()
            for number, member in enumerate(members):
                script += _make(member, f"{there}/{number}")
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is not None:
                    with (here / str(number)).open("wb") as out_file:
                        while data := stream.read(1 << 20):
                            out_file.write(data)
                    batch.append(f'put "{here / str(number)}" "{there}/{number}"')
        script += [_touch(member) for member in reversed(members)]  # folders after what is in them
        try:
            connection.host.run(["sftp", "-q", "-b", "-", *connection.options, f"{connection.user}@{connection.name}"],
                                purpose=_PURPOSE, input="\n".join([*batch, ""]).encode(),
                                timeout=connection.left())  # fmt: skip
        except ToolFailed as error:
            connection.check()
            raise BuildError(f"the guest has no tar, and does not take files by SFTP either: {error.tail}",
                             hint="install tar in the guest, or its SFTP server") from None  # fmt: skip
    status, _, said = small("\n".join([*script, f"rm -rf {there}"]))
    if status != 0:
        raise BuildError(f"cannot put files into their places in the guest: {said}")


def _make(member: tarfile.TarInfo, source: str) -> list[str]:
    path, mode = shlex.quote("/" + member.name), f"{member.mode & 0o7777:04o}"
    own = f"{member.uid}:{member.gid}"
    if member.isdir():
        return [f"mkdir {path}", f"chown {own} {path}", f"chmod {mode} {path}"]
    if member.issym():
        return [f"rm -f {path}", f"ln -s -- {shlex.quote(member.linkname)} {path}", f"chown -h {own} {path}"]
    if member.islnk():
        return [f"ln -f {shlex.quote('/' + member.linkname)} {path}"]
    return [f"rm -f {path}", f"cp {source} {path}", f"chown {own} {path}", f"chmod {mode} {path}"]


def _touch(member: tarfile.TarInfo) -> str:
    path = shlex.quote("/" + member.name)
    return f"touch -h -d @{int(member.mtime)} {path} 2>/dev/null || touch -d @{int(member.mtime)} {path}"
