"""yaml-language-server, spoken to as an editor does (Language Server Protocol 3.17, over stdio)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Self

SERVER = Path(__file__).parent.parent / ".venv/node/node_modules/yaml-language-server/bin/yaml-language-server"
_WITHIN = 180.0


def program() -> list[str]:
    """The command that starts it; tools/setup test-all installs it."""
    node = shutil.which("node")
    assert node is not None, "node is not installed: run tools/setup test-all"
    assert SERVER.is_file(), "yaml-language-server is not installed: run tools/setup test-all"
    return [node, str(SERVER), "--stdio"]


class Editor:
    """An editor with a folder open."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._answers: dict[int, Any] = {}
        self._diagnostics: dict[str, list[dict[str, Any]]] = {}
        self._messages: Queue[dict[str, Any]] = Queue()

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(program(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)  # fmt: skip
        Thread(target=self._read, daemon=True).start()
        self._ask("initialize", {"processId": None, "rootUri": self._folder.as_uri(), "capabilities": {
            "textDocument": {"hover": {"contentFormat": ["plaintext"]}, "completion": {"completionItem": {}}}}})
        self._tell("initialized", {})
        self._tell("workspace/didChangeConfiguration", {"settings": {"yaml": {
            "hover": True, "completion": True, "validate": True, "schemaStore": {"enable": False}}}})
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()
        for stream in (self._server.stdin, self._server.stdout):
            assert stream is not None
            stream.close()

    def open(self, file: Path) -> list[str]:
        """Open a file; what the editor underlines, as ``LINE: MESSAGE``."""
        uri = file.as_uri()
        self._diagnostics.pop(uri, None)
        self._tell("textDocument/didOpen", {"textDocument": {"uri": uri, "languageId": "yaml", "version": 1,
                                                             "text": file.read_text()}})  # fmt: skip
        self._until(lambda: uri in self._diagnostics)
        return [f"{found['range']['start']['line'] + 1}: {found['message']}" for found in self._diagnostics[uri]]

    def hover(self, file: Path, line: int, column: int) -> str:
        """What is shown where the mouse rests (from 1)."""
        found = self._ask("textDocument/hover", self._at(file, line, column))
        return "" if found is None else json.dumps(found["contents"], ensure_ascii=False)

    def complete(self, file: Path, line: int, column: int) -> set[str]:
        """What is offered where the cursor stands (from 1)."""
        found = self._ask("textDocument/completion", self._at(file, line, column))
        items = found["items"] if isinstance(found, dict) else found or []
        return {item["label"] for item in items}

    def _at(self, file: Path, line: int, column: int) -> dict[str, Any]:
        return {"textDocument": {"uri": file.as_uri()}, "position": {"line": line - 1, "character": column - 1}}

    def _ask(self, method: str, params: object) -> Any:
        self._number += 1
        number = self._number
        self._send({"id": number, "method": method, "params": params})
        self._until(lambda: number in self._answers)
        return self._answers.pop(number)

    def _tell(self, method: str, params: object) -> None:
        self._send({"method": method, "params": params})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._server.stdin.flush()

    def _read(self) -> None:
        stream = self._server.stdout
        assert stream is not None
        while head := stream.readline():
            length = int(head.split(b":")[1]) if head.lower().startswith(b"content-length") else 0
            while stream.readline().strip():
                pass
            self._messages.put(json.loads(stream.read(length)))

    def _until(self, done: Any) -> None:
        deadline = time.monotonic() + _WITHIN
        while not done():
            try:
                message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError("the language server does not answer") from None
            if message.get("method") == "textDocument/publishDiagnostics":
                self._diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
            elif "method" in message and "id" in message:  # it asks for settings, and to be told of files: as without
                items = message["params"].get("items", []) if isinstance(message.get("params"), dict) else []
                self._send({"id": message["id"], "result": [None for _ in items]})
            elif "id" in message:
                assert "error" not in message, message
                self._answers[message["id"]] = message.get("result")
