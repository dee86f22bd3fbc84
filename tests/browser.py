"""A real browser without a window: Chromium, spoken to over two pipes (Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

Message = dict[str, Any]


class Page:
    """A page that is open."""

    def __init__(self, to: BinaryIO, back: BinaryIO) -> None:
        self._to, self._from, self._number, self._session = to, back, 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        """What the page's console said, and what went wrong in it."""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> Message:
        self._number += 1
        message: Message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (found := self._next()).get("id") != self._number:
            pass
        assert "error" not in found, f"{method}: {found['error']}"
        return dict(found["result"])

    def _next(self) -> Message:
        data = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        found: Message = json.loads(data)
        what, params = found.get("method", ""), found.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif what in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Audits.issueAdded"):
            self.complaints.append(json.dumps(params))
        elif what == "Page.loadEventFired":
            self._loaded = True
        return found

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Load a file as a screen of this width shows it, and wait until it is there."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia",
             features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])  # fmt: skip
        self.requests.clear()
        self.complaints.clear()
        self._loaded = False
        self("Page.navigate", url=path.absolute().as_uri())
        while not self._loaded:
            self._next()

    def ask(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                 **(text if kind == "keyDown" else {}))  # fmt: skip

    def picture(self, into: Path) -> None:
        """Write a PNG of the whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        data = self("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        into.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium, without a window, a profile or a network of its own."""
    there, to = os.pipe()
    back, here = os.pipe()
    with tempfile.TemporaryDirectory(prefix="imagesmith-", ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
                   "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
                   f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        # Chromium reads from descriptor 3 and writes to 4.
        process = subprocess.Popen(["bash", "-c", f'exec "$@" 3<&{there} 4>&{here}', "bash", *command],
                                   pass_fds=[there, here], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(there)
        os.close(here)
        try:
            with os.fdopen(to, "wb") as sender, os.fdopen(back, "rb") as receiver:
                yield Page(sender, receiver)
        finally:
            process.kill()
            process.wait()
