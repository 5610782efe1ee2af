"""Values of a type that nobody looks for, in every place of a request: taken, or refused by the field's name. Never a 500."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api.surfaces.responses.conversations import items_of
from shared.chat import legacy, whole
from shared.chat.messages import present
from shared.chat.request import ChatRequest
from shared.errors import BadRequest
from shared.features.access.expected import expected
from shared.features.conversations import Turn
from shared.features.responses import ids
from shared.features.responses.items import as_items, have_outputs, to_items, to_messages
from shared.features.responses.lines import to_line
from shared.features.responses.native import NativeRequest, to_native
from shared.features.responses.request import TERMS, echoed
from shared.lib import json
from tests.harness.processes import Stack
from tests.harness.records import header_with
from tests.harness.upstream import DONE, ending, words
from tests.support.responses import PATH, native_model
from tests.support.sockets import Socket
from tests.support.wire import Client, Register, refused

Body = dict[str, Any]
Path = tuple[str | int, ...]

HEADER = header_with({"id": "chatcmpl-" + "0" * 32, "model": "m/x", "created_at_ms": 0})
WRONG: list[Any] = [
    None,
    True,
    0,
    5,
    1.5,
    "",
    "x",
    [],
    [1],
    [{}],
    [[1]],
    {},
    {"a": 1},
    {"type": {"a": 1}},
    {"type": "x"},
]
IMAGE = "data:image/png;base64,AA=="
USER: Body = {"role": "user", "content": "x"}

ITEMS: list[Body] = [
    {"role": "developer", "content": "d"},
    {
        "type": "message",
        "role": "user",
        "id": "msg_1",
        "content": [
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": IMAGE, "detail": "low"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"},
            {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        ],
    },
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "s"}],
        "content": [{"type": "reasoning_text", "text": "r"}],
        "encrypted_content": "x",
    },
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_" + "0" * 36,
        "content": [{"type": "output_text", "text": "b", "annotations": []}, {"type": "refusal", "refusal": "no"}],
    },
    {"type": "function_call", "call_id": "c1", "id": "fc_1", "name": "find", "namespace": "crm", "arguments": "{}"},
    {"type": "custom_tool_call", "call_id": "c2", "id": "ctc_1", "name": "run", "input": "x"},
    {"type": "function_call_output", "call_id": "c1", "output": "one"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
]
FORMAT = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
TOOLS: list[Body] = [
    {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
    {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {
        "type": "namespace",
        "name": "crm",
        "description": "of",
        "tools": [{"type": "function", "name": "find", "parameters": {}}, {"type": "custom", "name": "run"}],
    },
]
ALLOWED = [{"type": "function", "name": "f"}, {"type": "function", "name": "find", "namespace": "crm"}]
RESPONSE: Body = {
    "model": "m/x",
    "input": ITEMS,
    "instructions": "be brief",
    "tools": TOOLS,
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": ALLOWED},
    "text": {"verbosity": "low", "format": FORMAT},
    "reasoning": {"effort": "low", "summary": "auto", "context": "x"},
    "metadata": {"a": "b"},
    "include": ["reasoning.encrypted_content"],
    "max_tool_calls": 2,
    "top_logprobs": 1,
    "stream_options": {"include_obfuscation": True},
    "client_metadata": {"turn_id": "x"},
    "logit_bias": {"1": 1},
    "stop": ["x"],
    "something_new": {"a": 1},
}
CHAT: Body = {
    "model": "m/x",
    "stop": ["a"],
    "logit_bias": {"1": 1},
    "metadata": {"a": "b"},
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {}}},
        {"type": "custom", "custom": {"name": "g"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "prediction": {"type": "content", "content": "x"},
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "x"},
                {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a"}},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "no"}],
            "reasoning_details": [{"type": "reasoning.text", "text": "x"}],
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "x"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ],
}
TEXT: Body = {"model": "m/x", "prompt": ["a", [1, 2]], "n": 1, "logprobs": 1, "stop": ["x"], "metadata": {"a": "b"}}
VECTORS: Body = {"model": "m/x", "input": ["a", [1, 2]], "dimensions": 3, "metadata": {"a": "b"}}


def _as_line(body: Body) -> None:
    asked = to_line(body)
    expected(asked.request, body=asked.body)
    echoed(HEADER, asked.body)
    to_items(asked.body["messages"][bool(asked.body[TERMS].get("instructions")) :], HEADER["id"])


def _natively(body: Body) -> None:
    request = NativeRequest.check(body)
    asked = to_native(body, request, None)
    expected(asked.request, body=asked.body)
    assert {"effort", "summary"} <= echoed(HEADER, asked.body)["reasoning"].keys()
    for number, item in enumerate(as_items(asked.body[TERMS]["native"].get("input") or [])):
        ids.item_id(item.get("type") or "message", HEADER["id"], number)


def _as_items(body: Body) -> None:
    given = as_items(body.get("input"))
    have_outputs(given)
    to_items(to_messages(given), HEADER["id"])


def _as_chat(body: Body) -> None:
    expected(ChatRequest.check(body), body=body)
    for generated in (False, True):
        turn = Turn(1, HEADER["id"], present(body["messages"]), generated=generated, first=0, names={})
        json.dumps([found.item for found in items_of(turn)])


def _as_text(body: Body) -> None:
    stored = legacy.to_stored(body)
    expected(stored.request, body=stored.body)


def _whole(body: Body) -> None:
    stored = whole.to_stored("/v1/embeddings", body)
    expected(stored.request, body=stored.body)


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _changed(body: Body, path: Path) -> Iterator[Body]:
    """With each wrong value at that place, and with none."""
    for wrong in [*WRONG, ...]:
        found = inside = copy.deepcopy(body)
        for key in path[:-1]:
            inside = inside[key]  # type: ignore[index]
        if wrong is ...:
            del inside[path[-1]]  # type: ignore[arg-type]
        else:
            inside[path[-1]] = copy.deepcopy(wrong)  # type: ignore[index]
        yield found


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (_as_line, RESPONSE),
        (_natively, RESPONSE),
        (_as_items, {"input": ITEMS}),
        (_as_chat, CHAT),
        (_as_text, TEXT),
        (_whole, VECTORS),
    ],
    ids=["line", "native", "items", "chat", "text", "embeddings"],
)
def test_every_place_of_a_request(read: Callable[[Body], None], body: Body) -> None:
    read(copy.deepcopy(body))
    wrong: list[tuple[Path, str]] = []
    for path in _places(body):
        for changed in _changed(body, path):
            try:
                read(changed)
            except BadRequest as error:
                wrong += [] if error.param else [(path, f"names no field: {error}")]
            except Exception as error:
                wrong.append((path, repr(error)))
    assert wrong == []


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


def test_a_provider_of_this_api_is_asked_for_an_effort_alone(native: Client, scripted: Register) -> None:
    """It was answered with 500, after it had been accepted: it wants no summary."""
    script = scripted(headers={"content-type": "text/event-stream"})
    model = native_model(script.model)
    made = native.http.post(
        PATH, json={"model": model, "input": "x", "reasoning": {"effort": "low"}, "background": True}
    )
    assert made.status_code == 200, made.text
    assert made.json()["reasoning"] == {"effort": "low", "summary": None}


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
