"""What is wrong with a kickstart file, as pykickstart's ``ksvalidator`` says: Anaconda reads it with the same library.

pykickstart is GPL, and run as a program where it is installed: on this host, or beside us (by pip).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.host import Host
from imagesmith.kinds import Remark, Rendered

VALIDATOR = "ksvalidator"
_RECENT = ("", "RHEL10", "RHEL9", "RHEL8", "RHEL7")
"""Versions of the syntax: Fedora's newest, and those of RHEL and its kin that are in use."""
_PLACED = re.compile(
    r"^(?:The following problem occurred on|There was a problem reading from) line (\d+) of the kickstart file:?\n+"
    r"(.*?)(?=\n\n|\Z)", re.M | re.S
)
_UNPLACED = re.compile(r"^(General (?:kickstart )?error in input file.*|Error reading .*)", re.M)
_UNSUPPORTED = re.compile(r"^The version .* is not supported", re.M)


def lint(rendered: Rendered, host: Host, syntax: str) -> Sequence[Remark]:
    """What the validator says with the named version; else nothing where one of the recent versions is content."""
    program = host.find(VALIDATOR) or host.find(str(Path(sys.executable).with_name(VALIDATOR)))
    if program is None:
        return ()
    if not rendered.text.strip():
        return [rendered.remark("the file is empty", 1)]
    claimed = re.search(r"^#\s*version=(\w+)", rendered.text, re.M | re.A)
    versions = (syntax,) if syntax else (*([claimed[1]] if claimed else ()), *_RECENT)
    verdicts: list[Mapping[int, str]] = []
    for version in versions:
        found = _validated(program, rendered.text, version, host)
        if found is None and syntax:
            return [rendered.remark(f"'{VALIDATOR}' does not know the syntax '{syntax}'; 'ksvalidator -l' names them")]
        if found == {}:
            return ()
        if found is not None:
            verdicts.append(found)
    best = min(verdicts, key=len, default={})
    return [rendered.remark(wrong, number) for number, wrong in sorted(best.items())]


def _validated(program: str, text: str, version: str, host: Host) -> Mapping[int, str] | None:
    """Problems by line (0 where it is not known); None for a version that this validator does not know.

    Words without a line are warnings. The validator stops at the first one: what comes after it is not checked.
    """
    # %ksappend makes the validator fetch something: what it brings is not this file's fault
    text = re.sub(r"^%ksappend\b", "#ksappend", text, flags=re.M)
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        file = Path(folder, "ks.cfg")
        file.write_bytes(text.encode(errors="replace"))
        done = host.run([program, *(["-v", version] if version else []), file], purpose="check an answer file",
                        ok=range(256), env={"TMPDIR": folder})  # fmt: skip  (it leaves files there)
    said = done.stderr.decode("utf-8", "replace") + "\n\n" + done.text
    if _UNSUPPORTED.search(said):
        return None
    found = {int(number): " ".join(what.split()) or "cannot be read" for number, what in _PLACED.findall(said)}
    if done.status != 0 and not found and (general := _UNPLACED.search(said)):
        found = {0: " ".join(general[1].split())}
    return found
