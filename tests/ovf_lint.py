"""What nobody else says about an OVF package: the faults that importers pass over and users meet later.

The rules are DMTF DSP0243 1.1.0's and DSP8023's, and what VirtualBox and virt-v2v were seen to stumble over.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
CIM = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_"
RASD = CIM + "ResourceAllocationSettingData}"
VSSD = CIM + "VirtualSystemSettingData}"
CONTROLLERS = {"5", "6", "20"}  # IDE, parallel SCSI, other storage (SATA)
DISK, NETWORK, MEMORY, CPU = "17", "10", "4", "3"


@dataclass(frozen=True)
class Member:
    size: int
    sha256: str
    head: bytes


@dataclass(frozen=True)
class Package:
    names: tuple[str, ...]
    files: dict[str, Member]
    descriptor: bytes
    manifest: str


def lint_ovf(path: Path) -> list[str]:
    """Every fault of a package: an .ova, or an .ovf with its files beside it."""
    if path.suffix == ".ovf":
        return list(_faults(_beside(path)))
    with path.open("rb") as stream:
        magic = stream.read(512)[257:265]
    faults = [] if magic == b"ustar\x0000" else [f"not a ustar: {magic!r}"]
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
        faults += [f"not a flat name: {m.name}" for m in members if "/" in m.name or m.name.startswith(".")]
        faults += [f"not a plain file: {m.name}" for m in members if not m.isreg()]
        content = {m.name: tar.extractfile(m) for m in members if m.isreg()}
        package = _read([m.name for m in members], {name: file.read() for name, file in content.items() if file})
    if not package.names[0].endswith(".ovf"):
        faults.append(f"the first member is {package.names[0]}, not the descriptor")
    return faults + list(_faults(package))


def _beside(path: Path) -> Package:
    references = ET.fromstring(path.read_bytes()).iter(f"{OVF}File")
    names = [path.name, path.with_suffix(".mf").name, *(r.get(f"{OVF}href", "") for r in references)]
    return _read(names, {n: (path.parent / n).read_bytes() for n in names if (path.parent / n).is_file()})


def _read(names: list[str], content: dict[str, bytes]) -> Package:
    descriptor = next((n for n in names if n.endswith(".ovf")), "")
    files = {n: Member(len(c), hashlib.sha256(c).hexdigest(), c[: 64 << 10]) for n, c in content.items()}
    manifest = next((c.decode() for n, c in content.items() if n.endswith(".mf")), "")
    return Package(tuple(names), files, content.get(descriptor, b""), manifest)


def _faults(package: Package) -> Iterator[str]:
    try:
        envelope = ET.fromstring(package.descriptor)
    except ET.ParseError as error:
        yield f"not XML: {error}"
        return
    if envelope.tag != f"{OVF}Envelope":
        yield f"the root element is {envelope.tag}"
    yield from _manifest(package)
    yield from _references(package, envelope)
    yield from _disks(package, envelope)
    yield from _sections(envelope)
    for system in envelope.iter(f"{OVF}VirtualSystem"):
        yield from _hardware(envelope, system)


def _manifest(package: Package) -> Iterator[str]:
    named = dict(re.findall(r"(?m)^SHA256\((.+)\)= ([0-9a-f]{64})$", package.manifest))
    if len(named) != len(package.manifest.splitlines()):
        yield "a line of the manifest is not SHA256(name)= hex"
    expected = {name for name in package.files if not name.endswith((".mf", ".cert"))}
    yield from (f"the manifest lacks {name}" for name in sorted(expected - set(named)))
    yield from (f"the manifest names {name}, which is not there" for name in sorted(set(named) - expected))
    for name in sorted(expected & set(named)):
        if named[name] != package.files[name].sha256:
            yield f"the manifest's digest of {name} is wrong"


def _references(package: Package, envelope: ET.Element) -> Iterator[str]:
    references = list(envelope.iter(f"{OVF}File"))
    yield from _twice("File id", [r.get(f"{OVF}id", "") for r in references])
    for reference in references:
        href, size = reference.get(f"{OVF}href", ""), reference.get(f"{OVF}size")
        if href not in package.files:
            yield f"the file {href} is not in the package"
        elif size != str(package.files[href].size):
            yield f"the size of {href} is {package.files[href].size}, not {size}"
    named = {r.get(f"{OVF}href") for r in references}
    yield from (f"{n} is in the package, but not in References" for n in package.files
                if n not in named and not n.endswith((".ovf", ".mf", ".cert")))  # fmt: skip


def _disks(package: Package, envelope: ET.Element) -> Iterator[str]:
    hrefs = {r.get(f"{OVF}id"): r.get(f"{OVF}href", "") for r in envelope.iter(f"{OVF}File")}
    disks = list(envelope.iter(f"{OVF}Disk"))
    yield from _twice("diskId", [d.get(f"{OVF}diskId", "") for d in disks])
    for disk in disks:
        href = hrefs.get(disk.get(f"{OVF}fileRef"))
        if href is None:
            yield f"the disk's fileRef {disk.get(f'{OVF}fileRef')} is no file"
            continue
        unit = _unit(disk.get(f"{OVF}capacityAllocationUnits", "byte"))
        if unit is None:
            yield f"'{disk.get(f'{OVF}capacityAllocationUnits')}' is no programmatic unit"
            continue
        if not disk.get(f"{OVF}format", "").endswith("vmdk.html#streamOptimized"):
            yield f"the disk's format is {disk.get(f'{OVF}format')}"
        if href in package.files:
            yield from _image(href, package.files[href].head, int(disk.get(f"{OVF}capacity", "0")) * unit)


def _image(name: str, head: bytes, capacity: int) -> Iterator[str]:
    if head[:4] != b"KDMV":
        yield f"{name} is no VMDK"
        return
    flags, sectors, _, offset, size = struct.unpack_from("<IQQQQ", head, 8)
    if flags & 0x30000 != 0x30000:
        yield f"{name} is not streamOptimized (no compressed grains, or no markers)"
    if sectors * 512 != capacity:
        yield f"the capacity of {name} is {sectors * 512} bytes, not {capacity}"
    text = head[offset * 512 : (offset + size) * 512].rstrip(b"\0").decode("ascii", "replace")
    for wanted in ('createType="streamOptimized"', "ddb.uuid.image", f'"{name}"'):
        if wanted not in text:
            yield f"the descriptor inside {name} lacks {wanted}"


def _sections(envelope: ET.Element) -> Iterator[str]:
    for section in envelope.iter():
        if section.tag.startswith(OVF) and section.tag.endswith(("Section", "}VirtualSystem")):
            children = [child.tag for child in section]
            if not children or children[0] != f"{OVF}Info":
                yield f"{section.tag.removeprefix(OVF)} does not begin with Info"


def _hardware(envelope: ET.Element, system: ET.Element) -> Iterator[str]:
    items = list(system.iter(f"{OVF}Item"))
    found = {item.findtext(f"{RASD}InstanceID", ""): item for item in items}
    networks = {n.get(f"{OVF}name") for n in envelope.iter(f"{OVF}Network")}
    disks = {f"ovf:/disk/{d.get(f'{OVF}diskId')}" for d in envelope.iter(f"{OVF}Disk")}
    yield from _twice("InstanceID", [i.findtext(f"{RASD}InstanceID", "") for i in items])
    places = [(i.findtext(f"{RASD}Parent"), i.findtext(f"{RASD}AddressOnParent")) for i in items]
    yield from _twice("place on a controller", [f"{p}:{a}" for p, a in places if p is not None])
    for element in [*items, *system.iter(f"{OVF}System")]:
        names = [child.tag for child in element]
        if names != sorted(names):
            yield f"the elements of {element.findtext(f'{RASD}ElementName')} are not in alphabetical order"
    for item in items:
        name, kind = item.findtext(f"{RASD}ElementName"), item.findtext(f"{RASD}ResourceType", "")
        yield from (f"{name} lacks {tag}" for tag in ("ElementName", "InstanceID", "ResourceType")
                    if not item.findtext(f"{RASD}{tag}"))  # fmt: skip
        units, quantity = item.findtext(f"{RASD}AllocationUnits"), item.findtext(f"{RASD}VirtualQuantity", "")
        if units is not None and _unit(units.replace("hertz", "byte")) is None:
            yield f"'{units}' is no programmatic unit"
        if kind in (CPU, MEMORY) and not (quantity.isdigit() and int(quantity)):
            yield f"{name} has the quantity '{quantity}'"
        if kind == MEMORY and not (units or "").startswith("byte"):
            yield f"memory is counted in '{units}'"
        parent = item.findtext(f"{RASD}Parent")
        if kind == DISK and parent is None:
            yield f"{name} has no Parent"
        if parent is not None and (
            parent not in found or found[parent].findtext(f"{RASD}ResourceType") not in CONTROLLERS
        ):
            yield f"the Parent of {name}, {parent}, is no controller"
        if kind == DISK and item.findtext(f"{RASD}HostResource") not in disks:
            yield f"the HostResource of {name}, {item.findtext(f'{RASD}HostResource')}, is no disk"
        if kind == NETWORK and item.findtext(f"{RASD}Connection") not in networks:
            yield f"{name} is on the network {item.findtext(f'{RASD}Connection')}, which is not declared"
    kinds = [i.findtext(f"{RASD}ResourceType") for i in items]
    yield from (f"the machine has no {what}" for what, kind in
                (("CPU", CPU), ("memory", MEMORY), ("disk", DISK)) if kind not in kinds)  # fmt: skip


def _unit(text: str) -> int | None:
    """The bytes of a programmatic unit (DSP0004, annex C.1): ``byte``, ``byte * 2^20``."""
    parts = re.fullmatch(r"byte(?: \* (2|10)\^(\d{1,2}))?", text)
    if parts is None:
        return None
    return int(parts[1]) ** int(parts[2]) if parts[1] else 1


def _twice(what: str, values: list[str]) -> Iterator[str]:
    yield from (f"the {what} {value} is there twice" for value in sorted({v for v in values if values.count(v) > 1}))
