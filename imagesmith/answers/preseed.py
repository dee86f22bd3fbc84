"""Answers for debian-installer."""

from __future__ import annotations

from collections.abc import Sequence

from imagesmith.answers._server import Server
from imagesmith.interfaces import Delivery, Medium, Signs


class Preseed(Server, name="preseed", version=1):
    """Answers for debian-installer: Debian, and Ubuntu up to 20.04."""

    template = "preseed.cfg.j2"
    signs = Signs()

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """In the initial RAM disk, where it looks first."""
        files = {"preseed.cfg": self.rendered.text.encode()}
        return [
            Delivery("initrd", files),
            Delivery("http", files, arguments=("preseed/url={url}preseed.cfg",), fetched="preseed.cfg"),
        ]
