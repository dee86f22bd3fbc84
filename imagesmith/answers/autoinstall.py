"""Answers for Ubuntu's server installer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import ClassVar

from imagesmith.answers._schema import held, line_of, read, rules
from imagesmith.answers._server import Server
from imagesmith.document import Document
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

_META = b"instance-id: imagesmith\n"
_ELSEWHERE = (
    "version", "interactive-sections", "early-commands", "late-commands", "error-commands", "refresh-installer",
    "identity", "storage", "debconf-selections", "shutdown", "reporting",
)  # fmt: skip
"""Keys of autoinstall that mean nothing to cloud-init: beside ``autoinstall:`` nobody reads them."""


class Autoinstall(Server, name="autoinstall", version=1):
    """Answers for Ubuntu's server installer (subiquity): 20.04 and later, the live-server ISOs.

    It finds them on a small volume named `cidata`, as user data of its cloud-init. Your own file begins with
    `#cloud-config` and has everything below `autoinstall:`; let it say `shutdown: poweroff`, and leave no section
    interactive. Ours makes a minimal server on one ext4 file system, with an SSH server, and with cloud-init as in
    Ubuntu's cloud images: it does something where it finds a data source.

    `validate` holds the file against the published reference. What the installer passes over, such as keys that it
    does not know, is no complaint.
    """

    template = "autoinstall.yaml.j2"
    log_arguments: ClassVar[tuple[str, ...]] = ("systemd.journald.forward_to_console=1",)
    signs = Signs(
        phases=(
            (r"Cloud-init v\. \S+ running 'init", "the live system's cloud-init reads the answers"),
            (r"start: +subiquity/Early/run", "early commands"),
            (r"subiquity/Install/install/configure_apt", "configuring apt"),
            (r"executing curtin install partitioning step|curtin_install/\S*stage-partitioning", "partitioning"),
            (r"executing curtin install extract step|curtin_install/\S*stage-extract", "unpacking the system"),
            (r"executing curtin install curthooks step|curtin_install/\S*stage-curthooks", "configuring the system"),
            (r"start: +subiquity/Install/install/\S*run_unattended_upgrades", "security updates"),
            (r"start: +subiquity/Install/install/postinstall/(\w+)", r"after the installation: \1"),
            (r"start: +subiquity/Late/run", "late commands"),
            (r"start: +subiquity/(?:Shutdown|Reboot)", "switching off"),
        ),
        fatal=(
            (r"subiquity/(?:Install/install|Early/run|Late/run|\S*autoinstall_config)\S*: FAIL:? ?(.*)",
             r"a part of the installation failed: \1"),
            (r"An error occurred\. Press enter to start a shell", "the installer failed, and waits for somebody"),
            (r"/var/crash/\S*\.install_fail\.crash", "the installer failed, and wrote a crash report"),
            (r"(Malformed autoinstall in .*)", r"the installer does not take the answer file: \1"),
            (r"Continue with autoinstall\?", "it asks whether to go on: the kernel was not told 'autoinstall'"),
            (r"\[WARNING\]: (Failed loading yaml blob.*|Failed at merging in cloud config part.*)",
             r"the answer file cannot be read: \1"),
        ),
        read=r"subiquity/\S*autoinstall_config|start: +subiquity/Early/run",
    )  # fmt: skip

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """A volume that it finds by its name; over HTTP; a file in the ISO's top folder."""
        self.expect(medium, "subiquity")
        files = {"user-data": self.rendered.text.encode(), "meta-data": _META, "vendor-data": b""}
        # "nocloud-net" is the word that 20.04 and 22.04 want for a URL, and later ones take
        found = [
            Delivery("volume", files, arguments=("autoinstall",), label="cidata"),
            Delivery("http", files, arguments=("autoinstall", "ds=nocloud-net;s={url}"), fetched="user-data"),
        ]
        document = read(self.rendered)
        if isinstance(document, Document) and isinstance(document.value, dict) and "autoinstall" in document.value:
            # there it stands by itself (20.04 to 23.10 take nothing else), and JSON is YAML
            alone = json.dumps(document.value["autoinstall"], indent=1).encode()
            found.append(Delivery("medium", {"autoinstall.yaml": alone}, arguments=("autoinstall",)))
        return found

    def lint(self, host: Host) -> Sequence[Remark]:
        """What is not as the reference says, or would make the installer wait for somebody."""
        rendered = self.rendered
        first = rendered.text.lstrip().lower()
        if not first.startswith("#cloud-config"):
            if re.match(r"#!|#include|#cloud-boothook|#part-handler|## template: jinja", first) or re.search(
                r"(?m)^(mime-version|content-type):", first[:4096]
            ):
                return ()  # cloud-init makes something of it, that cannot be known here
            return [rendered.remark("must begin with #cloud-config: cloud-init passes over it otherwise", 1)]
        document = read(rendered)
        if isinstance(document, Remark):
            return [document]
        value = document.value
        if not isinstance(value, dict) or not isinstance(value.get("autoinstall"), dict):
            return [rendered.remark("has no mapping 'autoinstall', below which everything must be",
                                    line_of(document, ("autoinstall",)))]  # fmt: skip
        schema = rules("autoinstall")
        found = held(rendered, document, {"properties": {"autoinstall": schema}, "$defs": schema["$defs"]})
        for key in value:
            if key in _ELSEWHERE:
                found.append(rendered.remark(f"'{key}' belongs below autoinstall: nobody reads it here",
                                             line_of(document, (key,), key=True)))  # fmt: skip
        return [*found, *self._unattended(document, value["autoinstall"])]

    def _unattended(self, document: Document, answers: dict[str, object]) -> list[Remark]:
        rendered, found = self.rendered, list[Remark]()
        asks = answers.get("interactive-sections")
        if isinstance(asks, list) and asks:
            message = "autoinstall.interactive-sections: the installer would wait for somebody there"
            where = ("autoinstall", "interactive-sections")
            found.append(rendered.remark(message, line_of(document, where, key=True)))
        elif "identity" not in answers and "user-data" not in answers:
            message = "autoinstall needs 'identity' or 'user-data': the installer would stop without a user"
            found.append(rendered.remark(message, line_of(document, ("autoinstall",), key=True)))
        return found

