"""Answers for YaST."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from imagesmith.answers._server import Server
from imagesmith.answers._words import misspelt, words
from imagesmith.answers._xml import Element, Malformed, XmlAnswer, parse
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark

_FILE = "autoinst.xml"
_NAMESPACE = "http://www.suse.com/1.0/yast2ns"
_CONFIG = "http://www.suse.com/1.0/configns"
_SCHEMA = Path("/usr/share/YaST2/schema/autoyast/rng/profile.rng")
_TYPES = words("string disksize symbol integer boolean list map")
_SECTIONS = words(
    """add-on audit-laf auth-client bootloader ca_mgm classes cobbler configuration_management deploy_image dhcp-server
    dns-server fcoe-client files firewall firstboot fstab ftp-server general groups host http-server image init
    iscsi-client kdump keyboard language local_repos login_settings mail networking nfs nfs_server nis nis_server
    ntp-client partitioning partitioning_advanced printer proxy report rules samba-client samba-server scripts security
    services-manager software sound squid ssh_import sssd sudo suse_register sysconfig system-config tftp-server
    timezone upgrade user_defaults users x11 xen-config zfcp dasd"""
)  # autoyast-rnc of yast2-schema, profile.rnc, and the clients' X-SuSE-YaST-AutoInstResource names


class Autoyast(XmlAnswer, Server, name="autoyast", version=1):
    """Answers for YaST: openSUSE Leap up to 15, SUSE Linux Enterprise up to 15.

    The template makes a server of the pattern `minimal_base` with an SSH server, one ext4 partition (YaST adds what
    the firmware needs to boot), DHCP on `eth0`, no firewall, and a serial console. `mirror` is one more repository;
    what else is installed from is on the ISO. `product` is needed where the ISO holds several: `SLES`, `Leap`.

    linuxrc, YaST's first program, finds the file in the initial RAM disk, at a URL, or on a volume called `OEMDRV`.
    YaST speaks text on the serial console. What it cannot do it shows in a box, and waits: that is seen as a stall.

    Checked are the XML, YaST's own rules of what the text of an element may be (`config:type`), slips of the pen in
    names of sections, and all of it by YaST's schema where `yast2-schema` is installed.
    """

    template = "autoyast.xml.j2"
    ends = "poweroff"
    signs = Signs(
        phases=(
            (r">>> (.+) installation program v\S+", r"starting \1"),  # linuxrc: linuxrc.c
            (r"Starting hardware detection", "looking at the hardware"),
            (r"Loading Installation System \((\d+/\d+)\)", r"loading the installer (\1)"),
            (r"\*\*\* Starting YaST", "starting YaST"),
            (r"Preparing disks|Creating partition", "partitioning"),
            (r"Installing [Pp]ackages|Installing \S+\.rpm", "installing packages"),
            (r"Installing boot ?loader|Save boot ?loader", "installing the boot loader"),
            (r"Finishing [Bb]asic [Ii]nstallation|Saving configuration", "finishing"),
        ),
        fatal=(
            (r"No (?:installation )?repository found", "YaST finds no repository to install from"),
            (r"(?:An e|E)rror (?:occurred )?while (?:parsing|reading) the (?:AutoYaST )?control file",
             "YaST cannot read the answer file"),
            (r"Could not read the installation system", "the installer's own system cannot be read"),
        ),
    )  # fmt: skip

    product: str = Field("", description="The product to install, where the ISO holds several.")

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """In the initial RAM disk: linuxrc reads ``file:`` there (AutoYaST Guide, invoking the installation)."""
        self.expect(medium, "yast")
        files = {_FILE: self.checked()}
        text = ("textmode=1",)
        return [
            Delivery("initrd", files, arguments=(f"autoyast=file:///{_FILE}", *text)),
            Delivery("http", files, arguments=(f"autoyast={{url}}{_FILE}", "ifcfg=*=dhcp", *text), fetched=_FILE),
            Delivery("volume", files, arguments=(f"autoyast=label://OEMDRV/{_FILE}", *text), label="OEMDRV"),
        ]

    def lint(self, host: Host) -> Sequence[Remark]:
        """XML; what YaST's parser takes; what its schema says, where that is here."""
        rendered = self.rendered
        try:
            root = parse(rendered.text)
        except Malformed as error:
            return [rendered.remark(f"is no XML: {error.message}", error.line)]
        found = [rendered.remark(message, line) for message, line in problems(root)]
        if not found and _SCHEMA.exists() and host.find("xmllint"):
            found = [rendered.remark(message, line) for message, line in _validated(rendered.text, host)]
        return found


def problems(root: Element) -> Iterator[tuple[str, int]]:
    """What YaST would not take, and the lines."""
    if root.name != "profile":
        yield f"the outermost element is <profile>, not <{root.name}>", root.line
        return
    if root.namespace != _NAMESPACE:
        yield f'<profile> belongs to the namespace xmlns="{_NAMESPACE}"', root.line
    for section in root.children:
        if near := misspelt(section.name, _SECTIONS):
            yield f"there is no section <{section.name}>; did you mean '{near}'?", section.line
    for element in (below for child in root.children for below in child.walk()):
        yield from _typed(element)


def _typed(element: Element) -> Iterator[tuple[str, int]]:
    """The rules of yast-yast2, library/xml/src/modules/XML.rb: parse_node, fetch_type, detect_type."""
    short, long = element.attributes.get("t"), element.attributes.get(f"{_CONFIG} type", element.attributes.get("type"))
    text, name, line = element.text.strip(), element.name, element.line
    if short is not None and long is not None:
        yield f"<{name}> has both 't' and 'config:type'", line
        return
    kind = short if short is not None else long
    if kind is None:
        if text and element.children and not element.cdata:
            yield f"<{name}> holds both text and elements", line
    elif kind not in _TYPES:
        near = misspelt(kind, _TYPES)
        yield (f"<{name}>: there is no type '{kind}'" + (f"; did you mean '{near}'?" if near
               else f"; there are {', '.join(sorted(_TYPES))}")), line  # fmt: skip
    elif kind == "boolean" and text not in ("true", "false"):
        yield f"<{name}> is a boolean: true or false, not '{text[:40]}'", line
    elif kind == "integer" and not re.search(r"-?\d+", text):
        yield f"<{name}> is an integer, and '{text[:40]}' is none", line
    elif kind == "symbol" and not text:
        yield f"<{name}> is a symbol, and symbols are not empty", line


def _validated(text: str, host: Host) -> Iterator[tuple[str, int]]:
    done = host.run(
        ["xmllint", "--noout", "--nonet", "--relaxng", _SCHEMA, "-"], purpose="check an AutoYaST profile",
        input=text.encode("utf-8", "replace"), timeout=60, ok=range(256),
    )  # fmt: skip
    for said in done.stderr.decode("utf-8", "replace").splitlines():
        if match := re.match(r"-:(\d+): element \S+: Relax-NG validity error : (.*)", said):
            yield match[2], int(match[1])
