"""Values of a type that nobody looks for, in every place of a request: taken, or refused by the field's name. Never a 500."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from shared.lib import json
from tests.harness.processes import Stack
from tests.harness.upstream import DONE, ending, words
from tests.support.responses import PATH
from tests.support.sockets import Socket
from tests.support.wire import Client, Register, refused

Body = dict[str, Any]
Path = tuple[str | int, ...]

IMAGE = "data:image/png;base64,AA=="
USER: Body = {"role": "user", "content": "x"}


@pytest.fixture
def limited(keyed: Stack, admin: Client) -> Iterator[Client]:
    """A tenant whose tokens are counted."""
    asked = {"tenant": f"t-{uuid.uuid4().hex[:12]}", "limits": {"tokens_per_min": 1_000_000}}
    with Client(keyed.url, admin.http.post("/v1/keys", json=asked).json()["key"]) as http:
        yield http


CALL: Body = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT: Body = {"type": "function_call_output", "call_id": "c", "output": "x"}


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"type": {"a": 1}}, "type"),
        ({"type": ["message"], **USER}, "type"),
        ({"type": 5}, "type"),
        ({**CALL, "id": [1]}, "id"),
        ({**CALL, "call_id": {}}, "call_id"),
        ({**OUTPUT, "call_id": ["c"]}, "call_id"),
        ({"id": {"a": 1}}, "id"),
        ({"type": "item_reference", "id": ["x"]}, "id"),
        ({"type": "reasoning", "content": 5}, "content"),
        ({"type": "reasoning", "summary": True}, "summary"),
    ],
)
def test_an_item_is_refused_by_its_field(stack: Stack, client: Client, item: Body, field: str) -> None:
    conversation = client.http.post("/v1/conversations", json={}).json()["id"]
    asked: Body = {"model": "fake/echo", "input": [USER, item]}
    for path, more in ((PATH, {}), (PATH, {"conversation": conversation}), (f"{PATH}/input_tokens", {})):
        assert refused(client.http.post(path, json={**asked, **more}), 400)["param"] == f"input[1].{field}"
    with Socket(stack.url) as socket:
        assert socket.answer(**asked)["error"]["param"] == f"input[1].{field}"
    for path in ("/v1/conversations", f"/v1/conversations/{conversation}/items"):
        assert refused(client.http.post(path, json={"items": [USER, item]}), 400)["param"] == f"items[1].{field}"


@pytest.mark.parametrize("field", ["type", "id", "call_id"])
def test_an_item_is_refused_before_a_provider_of_this_api_is_asked(native: Client, field: str) -> None:
    asked = {"model": "own/none", "input": [{**CALL, field: {"a": 1}}]}
    assert refused(native.http.post(PATH, json=asked), 400)["param"] == f"input[0].{field}"


@pytest.mark.parametrize("kind", [{"a": 1}, ["function"], 5])
def test_a_call_in_a_chat_is_refused_by_its_type(client: Client, kind: Any) -> None:
    calls = [{"id": "c", "type": kind, "function": {"name": "f", "arguments": "{}"}}]
    asked = {
        "model": "fake/echo",
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, USER],
    }
    refusal = refused(client.http.post("/v1/chat/completions", json=asked), 400)
    assert refusal["param"] == "messages[1].tool_calls[0].type"


def test_what_is_a_providers_own_is_passed_on(limited: Client, scripted: Register) -> None:
    """What is under a name that this server does not know, it leaves to the provider, whatever its type: also where the
    tokens of a request are counted before it is asked."""
    part = {"type": "text", "text": "x", "cache_control": {"type": {"a": [1]}}}
    script = scripted([*words(1), *ending()])
    asked = {"model": script.model, "messages": [{"role": "user", "content": [part]}]}
    assert limited.http.post("/v1/chat/completions", json=asked).status_code == 200
    assert script.script.calls[0]["messages"][0]["content"] == [part]
    prompt = [{"type": {"a": 1}}]
    said = {"choices": [{"index": 0, "text": "y", "finish_reason": "stop"}]}
    script = scripted([b"data: %b\n\n" % json.dumps(said), DONE], headers={"content-type": "text/event-stream"})
    assert limited.http.post("/v1/completions", json={"model": script.model, "prompt": prompt}).status_code == 200
    assert script.script.calls[0]["prompt"] == prompt


def test_a_session_of_chat_is_a_conversation_in_every_spelling(client: Client) -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"a": 1}}},
        {"id": "c2", "type": "custom", "custom": {"name": "g"}},
    ]
    said = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": IMAGE}, {"type": "image_url", "uuid": "u"}]},
        {"role": "assistant", "content": said, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "x"},
        {"role": "function", "name": "f", "content": None},
        USER,
    ]
    asked = {"model": "fake/echo", "messages": messages, "session_id": f"odd-{uuid.uuid4().hex}"}
    assert client.http.post("/v1/chat/completions", json=asked).status_code == 200
    shown = client.get(f"/v1/conversations/{asked['session_id']}/items", params={"order": "asc"})
    assert shown.status_code == 200, shown.text
    found = shown.json()["data"]
    kinds = ["message", "message", "function_call", "custom_tool_call", "custom_tool_call_output", "message", "message"]
    assert [item["type"] for item in found] == [*kinds, "message"]
    assert [part["image_url"] for part in found[0]["content"]] == [IMAGE, None]
    assert [part["type"] for part in found[1]["content"]] == ["output_text", "refusal"]
    assert [found[2][name] for name in ("call_id", "name", "arguments")] == ["", "f", '{"a":1}']
    assert [found[3][name] for name in ("call_id", "name", "input")] == ["c2", "g", ""]
