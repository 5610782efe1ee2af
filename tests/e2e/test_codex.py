"""Codex over HTTP and over a WebSocket, with what it offers unasked (but for web search): a tool loop, a cut, a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.codex import Turn
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import DONE, Answer, Pause, Script, ScriptedUpstream, chunk, ending, whole, words

SAID = whole(6)


def scripted(upstream: ScriptedUpstream, name: str, *middle: Any) -> Script:
    """A call of its shell, and then six words, with this in their middle."""
    function = {"name": "exec_command", "arguments": json.dumps({"cmd": "echo from-the-tool"})}
    call = {"index": 0, "id": "c9", "type": "function", "function": function}
    first = [
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [call]}),
        chunk({}, "tool_calls"),
        DONE,
    ]
    said = words(6)
    last = Answer([*said[:4], *middle, *said[4:], *ending()])
    return upstream.plan(name, Answer(first), last)


def said_by(items: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """What its tool gave, and what it told its user."""
    outputs = [item["aggregated_output"] for item in items if item["type"] == "command_execution"]
    return outputs, [item["text"] for item in items if item["type"] == "agent_message"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("sockets", [False, True], ids=["http", "websocket"])
def test_a_tool_loop(own_stack: Stack, upstream: ScriptedUpstream, tmp_path: Path, sockets: bool) -> None:
    script = scripted(upstream, "codex")
    items = Turn(tmp_path, own_stack.url, "scripted/codex", sockets=sockets).end()
    outputs, said = said_by(items)
    assert (outputs, [text.strip() for text in said]) == (["from-the-tool\n"], [SAID.strip()])
    assert len(script.calls) == 2
    names = [tool["function"]["name"] for tool in script.calls[0]["tools"]]
    assert any("__" in name for name in names), "it offers a namespace of tools"
    assert script.calls[1]["messages"][-1]["content"].endswith("from-the-tool\n")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["kill", "stop"])
@pytest.mark.parametrize("sockets", [False, True], ids=["http", "websocket"])
def test_an_api_that_is_gone_in_the_middle(
    own_stack: Stack, upstream: ScriptedUpstream, tmp_path: Path, sockets: bool, way: str
) -> None:
    """Its user sees one answer, and its tool has run once. Over HTTP it asks for the same again, and joins the answer that goes
    on; over a WebSocket it sends the whole conversation to a new one, which is another request."""
    pause = Pause()
    script = scripted(upstream, "codex-cut", pause)
    turn = Turn(tmp_path, own_stack.url, "scripted/codex-cut", sockets=sockets)

    def speaks() -> bool:
        found = httpx.get(f"{own_stack.url}/v1/streams", trust_env=False, timeout=30).json()["data"]
        return len(script.calls) == 2 and any(one["status"] == "in_progress" and one["chunks"] > 2 for one in found)

    wait_until(speaks, 200, "the second answer speaks")
    if way == "kill":
        own_stack.kill("api")
    else:
        own_stack.stop("api")
    own_stack.start("api")
    own_stack.wait_ready()
    pause.go()
    outputs, said = said_by(turn.end())
    assert outputs == ["from-the-tool\n"]
    assert [text.strip() for text in said] == [SAID.strip()]
    assert len(script.calls) == (3 if sockets else 2)
