"""Responses over a provider that speaks the API itself: what it is sent, and its recorded streams as its clients get them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness.upstream import Answer, ScriptedUpstream
from tests.support import recordings
from tests.support.recordings import Row, payloads, pieces, wire
from tests.support.responses import CODEX, ENDS, PATH, native_model, written_anew
from tests.support.wire import Client, Register, field, frames, refused

RECORDINGS = [row for row in recordings.recordings("responses") if not row["expected"]["error"]]
BEGINNINGS = ("response.created", "response.queued", "response.in_progress")


@pytest.fixture
def client(native: Client) -> Client:
    return native


def told(body: bytes) -> list[dict[str, Any]]:
    found = []
    for number, frame in enumerate(frames(body)):
        event = json.loads(field(frame, b"data") or b"")
        assert field(frame, b"event") == event["type"].encode()
        assert field(frame, b"id") == b"%d" % event["sequence_number"] == b"%d" % number
        found.append(event)
    return found


def plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "sequence_number"}


@pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recorded_stream_is_shown_as_it_came(client: Client, scripted: Register, row: Row) -> None:
    given = [json.loads(payload) for payload in payloads(row)]
    script = scripted(list(pieces(wire(row, done=False), row["file"])))
    posted = client.http.post(PATH, json={"model": native_model(script.model), "input": "x", "stream": True})
    assert posted.status_code == 200, posted.text
    events = told(posted.content)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    wanted = [plain(event) for event in given if event.get("type") not in (*BEGINNINGS, *ENDS)]
    assert [plain(event) for event in events[2:-1]] == wanted
    end = next(event for event in given if event.get("type") in ENDS)
    ours = events[-1]["response"]
    assert events[-1]["type"] == end["type"]
    assert ours["id"] == events[0]["response"]["id"]
    fixed = ("id", "background", "conversation", "model", "previous_response_id", "store")
    said = {name: value for name, value in end["response"].items() if name not in (*fixed, "output")}
    assert {name: ours[name] for name in said} == said
    if end["response"].get("output"):
        done = [event["item"] for event in given if event.get("type") == "response.output_item.done"]
        assert ours["output"] in (end["response"]["output"], done)
    assert client.get(f"{PATH}/{ours['id']}").json() == ours
    for after in (0, 1, len(events) // 2, len(events) - 2):
        rest = client.get(f"{PATH}/{ours['id']}", params={"stream": "true", "starting_after": str(after)})
        assert rest.content == b"".join(frames(posted.content)[after + 1 :])


def answer(text: str = "hi", response_id: str = "resp_own") -> list[bytes]:
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    response = {"id": response_id, "object": "response", "status": "completed", "usage": usage}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "status": "in_progress", "output": []}},
        {"type": "response.web_search_call.searching", "item_id": "ws_1", "output_index": 0},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.output_text.delta", **at, "delta": text, "logprobs": []},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "content": [part]}},
        {"type": "response.completed", "response": {**response, "output": [{**item, "content": [part]}]}},
    ]
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events]


def test_the_provider_is_sent_what_the_client_said(client: Client, scripted: Register) -> None:
    script = scripted(answer())
    asked: dict[str, Any] = {
        "input": [
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "secret"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"role": "user", "content": "x"},
        ],
        "instructions": "be brief",
        "tools": [{"type": "web_search"}, {"type": "mcp", "server_label": "s", "server_url": "https://x.test"}],
        "tool_choice": {"type": "web_search"},
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "truncation": "auto",
        "prompt": {"id": "pmpt_1"},
        "store": False,
        "something_new": {"a": [1]},
    }
    made = client.http.post(PATH, json={"model": native_model(script.model), "on_interruption": "fail", **asked}).json()
    assert script.script.calls[0] == {**asked, "model": script.name, "stream": True}
    assert (made["status"], made["output"][0]["content"][0]["text"]) == ("completed", "hi")
    assert {name: made[name] for name in ("tools", "truncation", "instructions")} == {
        name: asked[name] for name in ("tools", "truncation", "instructions")
    }
    items = client.get(f"{PATH}/{made['id']}/input_items", params={"order": "asc"}).json()["data"]
    assert [item["type"] for item in items] == ["reasoning", "web_search_call", "message"]
    assert items[0]["encrypted_content"] == "secret"


def test_what_a_client_asks_again_in_its_session_is_asked_once(client: Client, scripted: Register) -> None:
    script = scripted(answer())
    body = {"model": native_model(script.model), "input": "one", "client_metadata": CODEX}
    first, again = (
        client.http.post(PATH, json=one, headers={"session-id": "s"}).json() for one in (body, written_anew(body))
    )
    assert first == again
    (sent,) = script.script.calls
    assert sent["client_metadata"] == CODEX


def test_a_response_that_the_provider_keeps_is_continued_there(client: Client, scripted: Register) -> None:
    script = scripted(answer())
    first = client.http.post(PATH, json={"model": native_model(script.model), "input": "one"}).json()
    body = {"model": native_model(script.model), "input": "two", "previous_response_id": first["id"]}
    second = client.http.post(PATH, json=body).json()
    assert second["previous_response_id"] == first["id"]
    sent = script.script.calls[1]
    assert (sent["previous_response_id"], sent["input"]) == ("resp_own", "two")


def test_what_another_provider_may_answer_is_sent_as_items(client: Client, upstream: ScriptedUpstream) -> None:
    script = upstream.script("aliased", answer())
    first = client.http.post(PATH, json={"model": "alias", "input": "one"}).json()
    body = {"model": "alias", "input": "two", "previous_response_id": first["id"]}
    assert client.http.post(PATH, json=body).json()["status"] == "completed"
    sent = script.calls[1]
    assert "previous_response_id" not in sent
    assert [item["role"] for item in sent["input"]] == ["user", "assistant", "user"]


def test_a_response_of_another_provider_is_sent_as_items(client: Client, scripted: Register) -> None:
    first = client.http.post(PATH, json={"model": "fake/echo", "input": "one"}).json()
    script = scripted(answer())
    body = {"model": native_model(script.model), "input": "two", "previous_response_id": first["id"]}
    second = client.http.post(PATH, json=body).json()
    sent = script.script.calls[0]
    assert "previous_response_id" not in sent
    assert [(item["role"], item["content"]) for item in sent["input"][::2]] == [("user", "one"), ("user", "two")]
    assert sent["input"][1]["content"][0]["text"] == "one"
    third = client.http.post(PATH, json={"model": "fake/echo", "input": "x", "previous_response_id": second["id"]})
    assert third.status_code == 200


def test_a_conversation_with_such_a_provider(client: Client, scripted: Register) -> None:
    script = scripted(answer())
    conversation = client.http.post("/v1/conversations", json={}).json()["id"]
    for text in ("one", "two"):
        body = {"model": native_model(script.model), "input": text, "conversation": conversation}
        assert client.http.post(PATH, json=body).json()["conversation"] == {"id": conversation}
    assert "conversation" not in script.script.calls[1]
    assert len(script.script.calls[1]["input"]) == 3


def test_a_conversation_has_the_calls_of_such_a_provider_as_they_came(
    client: Client, upstream: ScriptedUpstream
) -> None:
    call = {
        "id": "fc_1",
        "type": "function_call",
        "call_id": "c1",
        "name": "find",
        "namespace": "crm",
        "status": "completed",
    }
    item = {**call, "arguments": "{}"}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    done = {"id": "resp_own", "object": "response", "status": "completed", "usage": usage, "output": [item]}
    said = [
        {"type": "response.output_item.added", "output_index": 0, "item": {**call, "arguments": ""}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    script = upstream.plan(
        "namespaced", Answer([b"data: %b\n\n" % json.dumps(one).encode() for one in said]), Answer(answer())
    )
    conversation = client.http.post("/v1/conversations", json={}).json()["id"]
    tools = [{"type": "namespace", "name": "crm", "tools": [{"type": "function", "name": "find", "parameters": {}}]}]
    body = {"model": "own/namespaced", "conversation": conversation, "tools": tools}
    assert client.http.post(PATH, json={**body, "input": "x"}).json()["output"] == [item]
    output = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    assert client.http.post(PATH, json={**body, "input": [output]}).status_code == 200
    listed = client.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()["data"]
    assert [(one["name"], one["namespace"]) for one in listed if "name" in one] == [("find", "crm")]
    (sent,) = [one for one in script.calls[1]["input"] if one.get("type") == "function_call"]
    assert (sent["name"], sent["namespace"]) == ("find", "crm")


def test_what_such_a_provider_refuses_is_refused(client: Client, scripted: Register) -> None:
    unknown = {"model": "fake/echo", "input": "x", "tools": [{"type": "web_search"}]}
    assert refused(client.http.post(PATH, json=unknown), 400)["param"] == "tools[0].type"


def test_a_conversation_is_compacted_by_the_provider(client: Client, scripted: Register) -> None:
    value = {"id": "resp_up", "object": "response.compaction", "created_at": 1, "output": [{"type": "compaction"}]}
    value["usage"] = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
    script = scripted([json.dumps(value).encode()], headers={"content-type": "application/json"})
    asked = {"input": [{"role": "user", "content": "a long story"}], "new": 1}
    made = client.http.post(f"{PATH}/compact", json={"model": native_model(script.model), **asked})
    assert (made.status_code, made.json()) == (200, value)
    (call,) = script.script.calls
    assert call == {"model": script.name, **asked}
    assert call.head.startswith("POST /v1/responses/compact ")
    assert client.state(made.headers["x-stream-id"])["usage"]["total_tokens"] == 11


def test_what_cannot_be_compacted_is_refused(client: Client, scripted: Register) -> None:
    def refusal(status: int, **fields: Any) -> Any:
        answer = client.http.post(f"{PATH}/compact", json={"model": "own/x", "input": "x", **fields})
        return refused(answer, status)

    assert refusal(400, model="fake/echo")["param"] == "model"
    assert refusal(400, input=None)["param"] == "input"
    assert refusal(400, stream=True)["param"] == "stream"
    assert refusal(404, previous_response_id="resp_0")["code"] == "previous_response_not_found"
