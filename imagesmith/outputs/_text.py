"""Text of the recipe's in the documents that go with an image."""

from __future__ import annotations

import re


def xml_text(value: str) -> str:
    """Leave out what XML 1.0 cannot hold (section 2.2, Char)."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", value)
