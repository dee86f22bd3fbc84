"""Answers for Windows Setup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from imagesmith.answers._more import Accompanied
from imagesmith.answers._server import Account, Line, Word
from imagesmith.answers._windows import problems
from imagesmith.answers._xml import Malformed, XmlAnswer, parse
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium
from imagesmith.kinds import Remark

_FILE, _SCRIPT = "Autounattend.xml", "imagesmith.ps1"


class Unattend(XmlAnswer, Accompanied, Account, name="unattend", version=1):
    r"""Answers for Windows Setup: Windows Server 2016 and later, Windows 10 and 11.

    The template wipes the first disk, installs one image of the ISO, names the machine, logs `user` (or Administrator)
    in once, and runs a script that opens WinRM over HTTPS (port 5986, with a certificate of its own) or OpenSSH's
    server, and switches the machine off. `password` is the password itself, not a hash; Windows wants letters, digits
    and capitals in it. It stands in the answer file, which Windows keeps without it.

    Windows has no drivers for virtio: name the ISO of virtio-win under `media`, and its folder for this Windows as
    `virtio`; the drives from D to H are searched for it.

    Setup looks for `Autounattend.xml` at the root of all drives: it goes on a second CD, or on a floppy disk. Windows'
    ISOs are booted as a CD. Their boot loader shows "Press any key to boot from CD or DVD" for five seconds, under BIOS
    only where the disk has a boot sector already, under UEFI always: so under UEFI a copy of the ISO without that is
    booted. With `boot_command` the ISO itself is booted, and a key must be pressed in time:
    `boot_command: ["<spacebar><wait><spacebar><wait><spacebar><wait><spacebar><wait><spacebar>"]`. When Setup restarts
    the machine nothing is pressed, and it boots from the disk.

    Windows says nothing on a serial console: screenshots are taken. Where something is wrong with the answers, Setup
    shows a box and waits: that is seen as a stall.

    Checked are the XML, passes and attributes of components, and slips of the pen in names of components and settings.
    """

    template = "unattend.xml.j2"
    more = {_SCRIPT: "unattend.ps1.j2"}
    ends = "poweroff"

    hostname: str = Field("windows", pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,14})$", description="The computer's name.")
    password: Line | None = Field(None, description="The password of that user, and of Administrator; best a secret.")
    image: Line = Field("1", description="Which image of the ISO: its number, or its name.")
    product_key: Word | None = Field(None, description="The product key, where the ISO wants one.")
    firmware: Literal["bios", "uefi"] = Field("bios", description="How the disk is laid out: as `machine.firmware`.")
    virtio: Annotated[str, Field(pattern=r"^[A-Za-z0-9.]*$")] = Field(
        "", description="The folder of virtio-win's drivers: 2k22, 2k25, w10, w11."
    )
    winrm: bool = Field(True, description="Whether WinRM listens, with HTTPS.")
    openssh: bool = Field(False, description="Whether OpenSSH's server is installed, from the image or Windows Update.")
    timezone: Line = Field("UTC", description="The time zone, as Windows calls it: W. Europe Standard Time.")
    locale: Word = Field("en-US", description="Language and formats; the ISO must have the language.")
    keyboard: Word = Field("en-US", description="The keyboard's layout: a locale, or 0409:00000409.")

    @model_validator(mode="after")
    def _entered(self) -> Self:
        if self.file is None and not self.password:
            raise ValueError("needs `password`: Windows lets nobody in without one")
        return self

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """At the root of a volume (Windows Setup Automation Overview, implicit answer file search order)."""
        self.expect(medium, "windows")
        files = {_FILE: self.checked()}
        if self.file is None:
            files |= {name: text.replace("\n", "\r\n").encode() for name, text in self.also().items()}
            if self.keys:
                files["authorized_keys"] = "".join(f"{key}\n" for key in self.keys).encode()
        return [Delivery("volume", files, label="UNATTEND"), Delivery("floppy", files, label="UNATTEND")]

    def lint(self, host: Host) -> Sequence[Remark]:
        """XML, and what is known of its structure."""
        rendered = self.rendered
        try:
            root = parse(rendered.text)
        except Malformed as error:
            return [rendered.remark(f"is no XML: {error.message}", error.line)]
        return [rendered.remark(message, line) for message, line in problems(root)]
