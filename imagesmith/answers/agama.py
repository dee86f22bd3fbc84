"""Answers for Agama."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from imagesmith.answers._json import JsonAnswer, lint
from imagesmith.answers._server import Server
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

# what is in the live system's journal shows on its console: there is no other way to see Agama at work
_ARGUMENTS = ("inst.finish=poweroff", "systemd.journald.forward_to_console=1")


class Agama(JsonAnswer, Server, name="agama", version=1):
    """Answers for Agama, the installer of openSUSE Leap 16 and SUSE Linux Enterprise 16: a profile in JSON.

    The template makes a server with an SSH server, an ext4 root (Agama adds what the firmware needs to boot), DHCP and
    a serial console; `product` is the name of one on the ISO: `openSUSE_Leap`, `SLES`, `Tumbleweed`. A file of your
    own whose name has `.jsonnet` in it goes as Jsonnet, and is not checked.

    Agama fetches it from a URL, or finds it as `autoinst.json` on a volume called `OEMDRV`. When the installation is
    complete it switches the machine off. Its messages reach the console by way of the journal.

    Checked are the JSON and its structure, by a schema of what all versions of Agama have in common.
    """

    template = "agama.json.j2"
    ends = "poweroff"
    signs = Signs(
        phases=(  # rust/agama-autoinstall/src, and the progress of the services that it calls
            (r"Loading configuration from", "reading the answer file"),
            (r"Configuration loaded from", "the answer file was read"),
            (r"Waiting for the installer to get ready", "looking at disks and repositories"),
            (r"Starting the auto-installation", "starting the installation"),
            (r"Preparing disks|Partitioning", "partitioning"),
            (r"Installing (?:the )?software|Installing packages", "installing packages"),
            (r"Configuring the system", "configuring the system"),
        ),
        fatal=(
            (r"Skipping the auto-installation: (.*)", r"Agama does not install: \1"),
            (r"Could not load configuration from \S+: (.*)", r"Agama cannot read the answer file: \1"),
            (r"agama-autoinstall\S*: .*Installation failed", "Agama says that the installation failed"),
        ),
    )

    product: str = Field("openSUSE_Leap", description="The product's name, as in Agama's products.d.")

    @property
    def _suffix(self) -> str:
        return "jsonnet" if self.file is not None and ".jsonnet" in self.file.suffixes else "json"

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """By HTTP, or where it looks by itself (rust/agama-autoinstall/src/auto_loader.rs, PREDEFINED_LOCATIONS)."""
        self.expect(medium, "agama")
        content, name = self.rendered.text.encode(), f"profile.{self._suffix}"
        return [
            Delivery("http", {name: content}, arguments=(f"inst.auto={{url}}{name}", *_ARGUMENTS), fetched=name),
            Delivery("volume", {f"autoinst.{self._suffix}": content}, arguments=_ARGUMENTS, label="OEMDRV"),
        ]

    def lint(self, host: Host) -> Sequence[Remark]:
        """JSON, and our schema of it."""
        return () if self._suffix == "jsonnet" else lint(self.rendered, "agama.json")
