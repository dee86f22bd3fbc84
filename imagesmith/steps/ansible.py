"""Ansible playbooks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema

from imagesmith.errors import BuildError, StepFailed, TimedOut, ToolFailed
from imagesmith.host import Host
from imagesmith.interfaces import Connection, Root
from imagesmith.kinds import Options, RecipeFile, Remark, Step, digest, file_digest
from imagesmith.steps._running import running

_PURPOSE = "run a playbook"
# Ansible's documentation, "Sample directory setup", "Roles", "Adding modules and plugins locally".
_BESIDE = ("collections", "files", "filter_plugins", "group_vars", "handlers", "host_vars", "library", "lookup_plugins",
           "module_utils", "roles", "tasks", "templates", "vars", "ansible.cfg")  # fmt: skip
_REMOTE_TMP = "/tmp/.imagesmith-ansible"
_PLACE = re.compile(r"The error appears to be in '([^']+)': line (\d+), column (\d+)")


class _Playbook(Options):
    path: RecipeFile
    alone: bool
    """Whether it has a folder of its own."""

    def identity(self) -> dict[str, object]:
        """The playbook's bytes and what it may use beside it."""
        folder = self.path.parent
        beside = [path for path in sorted(folder.iterdir()) if path.name not in {".git", self.path.name}
                  and (self.alone or path.name in _BESIDE)]  # fmt: skip
        return {"playbook": [self.path.name, file_digest(self.path)],
                "beside": digest([[path.name, file_digest(path, follow=False)] for path in beside])}  # fmt: skip


def _playbook(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    here = Path((info.context or {}).get("folder", "."))
    return {"path": value, "alone": (here / value).resolve().parent != here.resolve()}


class Ansible(Step, name="ansible", version=1, shorthand="playbook"):
    """Run an Ansible playbook on the running guest, as root.

    `ansible-playbook` runs on this host, over the build's own connection, and its output is the step's. The guest needs
    Python. It is the only host of the inventory, called `guest`. Restart it with a `reboot` step, not in a playbook.

    In the key is all that is in the playbook's folder. Where that is the recipe's own folder, the playbook counts, and
    what Ansible looks for beside it: roles, files, templates, tasks, handlers, vars, group_vars, host_vars, library,
    plugins, collections, ansible.cfg. What is installed on this host, such as collections, is not in the key. The
    host's own configuration of Ansible is not used; an `ansible.cfg` beside the playbook is.
    """

    playbook: Annotated[_Playbook, BeforeValidator(_playbook), WithJsonSchema({"type": "string"})] = Field(
        description="The playbook, relative to the recipe."
    )
    extra_vars: dict[str, Any] = Field({}, description="Variables for it, the strongest of all; they may hold secrets.")
    groups: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        [], description="Groups that the guest is in, for playbooks that name one under `hosts`."
    )
    tags: list[Annotated[str, Field(pattern=r"^[^,\s-][^,\s]*$")]] = Field(
        [], description="Run only what has one of these tags."
    )

    @property
    def needs_running(self) -> str:
        """Ansible has to reach the guest over SSH."""
        return "Ansible reaches it over SSH"

    @property
    def worldly(self) -> bool:
        """It may download things."""
        return True

    def describe(self) -> str:
        """Name the playbook."""
        return self.playbook.path.name

    def lint(self, host: Host) -> Sequence[Remark]:
        """What Ansible says of the playbook, where it is installed: syntax, modules, roles."""
        if host.find("ansible-playbook") is None:
            return ()
        path = self.playbook.path.resolve()
        try:
            with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
                host.run(["ansible-playbook", "--syntax-check", "-i", "guest,", path], purpose="check a playbook",
                         cwd=path.parent, env=_environment(path, Path(folder)), timeout=60)  # fmt: skip
        except TimedOut:  # that it takes so long is no fault of the playbook's
            return ()
        except ToolFailed as error:
            said = error.tail
            place = _PLACE.search(said)
            what = re.sub(r"^ERROR! ", "", said[: place.start()] if place else said).strip()
            words = "; ".join(line.strip() for line in what.splitlines() if line.strip())
            file, line = (Path(place[1]), int(place[2])) if place else (path, 0)
            return [Remark(f"Ansible: {words}", file, line)]
        return ()

    def apply(self, root: Root) -> None:
        """Do it."""
        guest = running(root)
        connection = guest.connection()
        path = self.playbook.path.resolve()
        folder = connection.folder / "ansible"
        folder.mkdir(mode=0o700)
        seen: list[str] = []

        def log(line: str) -> None:
            seen.append(line)
            del seen[:-60]
            connection.log(line)

        try:
            argv = self._command(connection, folder, path)
            secrets = {"IMAGESMITH_BECOME": connection.sudo_password} if connection.sudo_password else {}
            connection.host.run(argv, purpose=_PURPOSE, cwd=path.parent, log=log, timeout=connection.left(),
                                env={**_environment(path, folder), **secrets})  # fmt: skip
        except ToolFailed as error:
            connection.check()  # the guest's end, or the connection's, says more
            raise self._failure(guest, error, seen) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if any("no hosts matched" in line for line in seen):
            raise BuildError("the playbook has done nothing: it names hosts that the guest is not one of",
                             hint="say 'hosts: all' in it, or name its group in the option 'groups'")  # fmt: skip
        root.remove([_REMOTE_TMP])

    def _command(self, connection: Connection, folder: Path, path: Path) -> list[str | Path]:
        variables: dict[str, object] = {
            "ansible_host": connection.name, "ansible_user": connection.user, "ansible_ssh_args": "",
            "ansible_ssh_common_args": shlex.join(connection.options), "ansible_python_interpreter": "auto_silent",
            "ansible_remote_tmp": _REMOTE_TMP,
        }  # fmt: skip
        if connection.sudo_password:
            variables["ansible_become_password"] = "{{ lookup('env', 'IMAGESMITH_BECOME') }}"
        guest = {"hosts": {"guest": variables}}
        inventory = {"all": {**guest, "children": {name: {"hosts": {"guest": {}}} for name in self.groups}}}
        (folder / "inventory.json").write_text(json.dumps(inventory))
        argv: list[str | Path] = ["ansible-playbook", "-i", folder / "inventory.json"]
        if connection.user != "root":
            argv += ["--become", "--become-method", "sudo"]
        if self.extra_vars:
            # Ansible reads no pipe here; this file may hold secrets, and goes with the folder when the playbook ends.
            file = folder / "variables.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps(self.extra_vars))
            argv += ["--extra-vars", f"@{file}"]
        if self.tags:
            argv += ["--tags", ",".join(self.tags)]
        return [*argv, path]

    def _failure(self, root: Root, error: ToolFailed, seen: Sequence[str]) -> StepFailed:
        wrong = [line for line in seen if line.startswith(("fatal:", "ERROR!", "failed:"))]
        said = "\n".join(wrong[-3:] or seen[-10:])
        python = root.run(["sh", "-c", "command -v python3 || command -v python"], check=False).status == 0
        return StepFailed(
            f"the playbook failed (exit status {error.status})" + (f":\n{said}" if said else ""),
            status=error.status, tail="\n".join(seen[-20:]),
            hint="" if python else "Ansible needs Python in the guest: add 'packages: [python3]' before this step",
        )  # fmt: skip


def _environment(playbook: Path, folder: Path) -> dict[str, str]:
    """What ansible-playbook gets besides; ``folder`` is for its temporary files."""
    configuration = playbook.parent / "ansible.cfg"
    if not configuration.exists():
        configuration = folder / "ansible.cfg"
        configuration.touch()
    return {
        "ANSIBLE_CONFIG": str(configuration), "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_NOCOLOR": "1", "ANSIBLE_RETRY_FILES_ENABLED": "0", "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_FORCE_COLOR": "0", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
