"""Kinds are imported when they are asked for."""

from __future__ import annotations

import sys

from imagesmith.host import Host

ONE = """
import sys
from imagesmith.kinds import known
assert known("outputs")["raw"].name == "raw"
assert "imagesmith.outputs.oci" not in sys.modules
assert "nonsense" not in known("outputs") and "_common" not in known("outputs") and 7 not in known("outputs")
names = list(known("outputs"))
assert names == sorted(names) and {"raw", "oci", "qcow2"} <= set(names) and len(known("outputs")) == len(names)
assert known("bases")["cloud-image"].name == "cloud-image"
"""


def test_a_kind_that_is_named_is_imported_without_the_others() -> None:
    Host().run([sys.executable, "-c", ONE], purpose="test")
