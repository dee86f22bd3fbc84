"""What Ignition reads at the first boot of Fedora CoreOS and Flatcar."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence

from pydantic import Field

from imagesmith.answers import _json
from imagesmith.answers._schema import held, line_of, read, rules
from imagesmith.answers._server import Account, Word
from imagesmith.archive import guest_file
from imagesmith.document import Document
from imagesmith.errors import BuildError, MissingTool
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

_ITEMS = ("opt/com.coreos/config", "opt/org.flatcar-linux/config")
"""Where Ignition looks in QEMU's firmware configuration: Fedora CoreOS', and Flatcar's."""
_ERROR = re.compile(r"(?im)^(?:error|warning) at \$(?P<path>[^,]*), line (?P<line>\d+) col \d+: (?P<message>.*)$")
_UNIT = "imagesmith-poweroff.service"


class Ignition(Account, name="ignition", version=1):
    """A configuration for Ignition: Fedora CoreOS, Flatcar and their like.

    A disk image gets it through QEMU's firmware configuration, together with a unit that switches the machine off when
    it has started up, and removes itself. A live ISO of Fedora CoreOS installs itself with it to `disk`; the installed
    system reads it at its own first boot.

    Your own file is Ignition's JSON, or YAML for Butane (`variant:` at its top), which the program `butane` makes JSON
    of. Ours sets a name, and lets `user` (or `core`, where there is none) in. Ignition runs once in a system's life:
    what is sealed has had its configuration.
    """

    template = "ignition.json.j2"
    signs = Signs(
        phases=(
            (r"Ignition (?:finished|\d[\w.-]*)", "Ignition"),
            (r"Stage: (fetch|disks|mount|files|umount)\b", r"Ignition: \1"),
            (r"Starting .*(?:CoreOS|coreos)[ -][Ii]nstaller|coreos-installer install", "installing"),
            (r"Ignition: ran on", "start-up"),
        ),
        fatal=(
            (r"Ignition has failed|ignition\[\d+\]: (?:CRITICAL|Ignition failed).*", "Ignition failed"),
            (r"Failed to start .*Ignition \((\S+)\)", r"Ignition failed in its stage '\1'"),
            (r"Press Enter for emergency shell|You are in (?:rescue|emergency) mode", "its start-up ended in a shell"),
            (r"coreos-installer.*[Ee]rror: (.*)", r"the installation failed: \1"),
        ),
        read=r"fetched user config from|Ignition: (?:user-provided config was applied|ran on)|imagesmith: the seed",
    )  # fmt: skip

    disk: Word = Field("/dev/vda", description="The disk that a live ISO installs to, which is erased.")

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """Through QEMU's firmware configuration; a live ISO's installer fetches it by HTTP."""
        self.expect(medium, "coreos")
        if medium.kernel:
            told = (f"coreos.inst.install_dev={self.disk}", "coreos.inst.ignition_url={url}config.ign")
            return [Delivery("http", {"config.ign": self._json()}, arguments=told, fetched="config.ign")]
        wrapped = _with_poweroff(self._json())
        return [Delivery("fw_cfg", {name: wrapped for name in _ITEMS})]

    def _json(self) -> bytes:
        text = self.rendered.text
        return _butane(text, Host()) if _is_butane(text) else text.encode()

    def lint(self, host: Host) -> Sequence[Remark]:
        """What Butane says of it, where it is here; whether it is what it should be."""
        rendered = self.rendered
        if not _is_butane(rendered.text) and rendered.text.lstrip().startswith("{"):
            return _json.lint(rendered, "ignition.json")
        document = read(rendered)
        if isinstance(document, Remark):
            return [document]
        if not isinstance(document.value, dict) or "variant" not in document.value:
            return [rendered.remark("must be Ignition's JSON, or YAML for Butane, with 'variant' at its top",
                                    line_of(document, ()))]  # fmt: skip
        return self._asked(document, host)

    def _asked(self, document: Document, host: Host) -> list[Remark]:
        if host.find("butane") is None:
            return held(self.rendered, document, rules("butane"))
        try:
            _butane(self.rendered.text, host)
        except BuildError as error:
            lines = [self.rendered.remark(f"{found['path'].lstrip('.')}: {found['message']}", int(found["line"]))
                     for found in _ERROR.finditer(error.message)]  # fmt: skip
            return lines or [self.rendered.remark(error.message)]
        return []


def _is_butane(text: str) -> bool:
    return re.search(r"^[\"']?variant[\"']?\s*:", text, re.M) is not None


def _butane(text: str, host: Host) -> bytes:
    """Ignition's JSON for Butane's YAML. Raises BuildError with what `butane` says, MissingTool."""
    program = host.find("butane")
    if program is None:
        raise MissingTool("'butane' is not installed; it is needed to make Ignition's JSON of a file for Butane",
                          hint="install it (Fedora: butane; its releases hold a program that needs nothing else), or "
                          "name the JSON that it makes instead")  # fmt: skip
    done = host.run([program, "--strict"], purpose="make Ignition's JSON", input=text.encode(), ok=range(256))
    if done.status != 0:
        raise BuildError(done.stderr.decode("utf-8", "replace").strip() or "butane takes no such file")
    return done.stdout


def _with_poweroff(config: bytes) -> bytes:
    """The configuration, merged into one that switches the machine off (Ignition 3: ignition.config.merge)."""
    source = "data:;base64," + base64.b64encode(config).decode()
    unit = {"name": _UNIT, "enabled": True, "contents": guest_file(_UNIT).decode()}
    return json.dumps({
        "ignition": {"version": "3.0.0", "config": {"merge": [{"source": source}]}}, "systemd": {"units": [unit]},
    }, indent=1).encode()  # fmt: skip
