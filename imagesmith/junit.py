"""Check results as JUnit XML, as CI systems read it (the Jenkins xUnit plug-in's junit-10.xsd)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2, Char


def junit(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """One suite for each recipe and firmware, one case for each check, in the order they ran."""
    top = ET.Element("testsuites")
    suites: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for recipe, found in results.items():
        for result in found:
            suites.setdefault((recipe, result["firmware"]), []).append(result)
    for (recipe, firmware), cases in suites.items():
        suite = ET.SubElement(
            top, "testsuite", name=f"{recipe}.{firmware}", tests=str(len(cases)), errors="0", skipped="0",
            failures=str(sum(not case["passed"] for case in cases)),
            time=f"{sum(case['seconds'] for case in cases):.3f}",
        )  # fmt: skip
        for case in cases:
            node = ET.SubElement(
                suite, "testcase", classname=f"{recipe}.{firmware}", name=_text(case["check"]),
                time=f"{case['seconds']:.3f}",
            )  # fmt: skip
            if case["passed"]:
                ET.SubElement(node, "system-out").text = _text(case["seen"])
            else:
                seen = _text(case["seen"])
                ET.SubElement(node, "failure", message=seen.splitlines()[0] if seen else "failed").text = seen
    ET.indent(top)
    body: bytes = ET.tostring(top, encoding="utf-8")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body + b"\n"


def _text(value: object) -> str:
    return _NOT_IN_XML.sub("\ufffd", str(value))
