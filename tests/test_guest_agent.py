"""QEMU's guest agent, played by a thread at the other end of its port."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imagesmith.errors import ToolFailed
from imagesmith.machine import guest_agent
from imagesmith.machine.guest_agent import GuestAgent

Answer = Callable[[str, dict[str, Any]], object]


@pytest.fixture
def port() -> Iterator[Callable[[Answer], GuestAgent]]:
    ends: list[socket.socket] = []

    def start(answer: Answer) -> GuestAgent:
        ours, theirs = socket.socketpair()
        ends.extend((ours, theirs))
        theirs.sendall(b'{"return": "left from before"}\nnoise\n')

        def serve() -> None:
            for line in theirs.makefile("rb"):
                asked = json.loads(line)
                said = answer(asked["execute"], asked.get("arguments", {}))
                if said is not None:
                    theirs.sendall((b"\xff" if "sync" in asked["execute"] else b"") + json.dumps(said).encode() + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        return GuestAgent(ours)

    yield start
    for end in ends:
        end.close()


def test_freezing_and_thawing(port: Callable[[Answer], GuestAgent]) -> None:
    asked = []

    def answer(command: str, arguments: dict[str, Any]) -> object:
        asked.append(command)
        return {"return": arguments.get("id", 2)}

    agent = port(answer)
    assert agent.freeze()
    agent.thaw()
    assert asked == ["guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


def test_a_guest_without_an_agent_and_one_that_cannot(
    port: Callable[[Answer], GuestAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_agent, "_THERE_SECONDS", 0.2)
    assert not port(lambda command, arguments: None).freeze()

    def refuses(command: str, arguments: dict[str, Any]) -> object:
        if "id" in arguments:
            return {"return": arguments["id"]}
        return {"error": {"class": "GenericError", "desc": "not supported"}}

    agent = port(refuses)
    assert not agent.freeze()
    with pytest.raises(ToolFailed, match="guest-fsfreeze-thaw: not supported"):
        agent.thaw()
