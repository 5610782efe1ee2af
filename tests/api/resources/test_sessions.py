"""Sessions as clients use them: what the provider is sent, what is remembered, and what is refused."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, chunk, ending, words
from tests.support.wire import Client, Register, ask, chunks, refused, text


@pytest.fixture
def session_id() -> str:
    return f"s-{uuid.uuid4().hex}"


def said(text: str, **delta: Any) -> list[bytes]:
    return [chunk({"role": "assistant", "content": text, **delta}), *ending()]


def messages(client: Client, session_id: str) -> list[tuple[str, str]]:
    response = client.get(f"/v1/sessions/{session_id}/messages")
    assert response.status_code == 200, response.text
    return [(message["role"], message["content"]) for message in response.json()["data"]]


def test_the_provider_is_sent_what_was_said_before(client: Client, scripted: Register, session_id: str) -> None:
    asked = scripted(said("a"))
    system = {"role": "system", "content": "be kind"}
    for number in range(3):
        body = ask(asked.model, session_id=session_id)
        body["messages"] = [system, {"role": "user", "content": f"q{number}", "name": "ann"}]
        response = client.post(body)
        assert response.headers["x-session-id"] == session_id
    sent = asked.script.calls[2]["messages"]
    assert [message["content"] for message in sent] == ["be kind", "q0", "a", "q1", "a", "q2"]
    assert sent[1] == {"role": "user", "content": "q0", "name": "ann"}
    assert sent[2] == {"role": "assistant", "content": "a"}
    turns = [(role, text) for i in range(3) for role, text in (("user", f"q{i}"), ("assistant", "a"))]
    assert messages(client, session_id) == [("system", "be kind"), *turns]
    listed = client.get("/v1/streams", params={"session_id": session_id}).json()["data"]
    assert len(listed) == 3
    assert {state["session_id"] for state in listed} == {session_id}


def test_streams_headers_and_tools(client: Client, scripted: Register, session_id: str) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    asked = scripted([chunk({"role": "assistant", "content": None, "tool_calls": [call]}), *ending()])
    body = ask(asked.model, stream=True)
    response = client.post(body, headers={"x-session-id": session_id})
    assert response.headers["x-session-id"] == session_id
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    client.post({**body, "messages": [result]}, headers={"x-session-id": session_id})
    _, answer, tool = asked.script.calls[1]["messages"]
    assert tool == result
    assert answer["tool_calls"] == [{key: value for key, value in call.items() if key != "index"}]


def test_the_official_client(stack: Stack, session_id: str) -> None:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=2) as openai:
        for words_said in ("one", "two"):
            openai.chat.completions.create(
                model="fake/echo",
                messages=[{"role": "user", "content": words_said}],
                extra_body={"session_id": session_id},
            )
    with Client(stack.url) as client:
        assert [content for _, content in messages(client, session_id)] == ["one", "one", "two", "two"]


def test_a_busy_session(client: Client, scripted: Register, session_id: str) -> None:
    pause = Pause()
    asked = scripted([*words(1), pause, *ending()])
    with client.streaming(asked.model, session_id=session_id) as viewer:
        viewer.take(1)
        response = client.post(ask(asked.model, session_id=session_id))
        refused(response, 409, "session_busy")
        assert response.headers["x-should-retry"] == "false"
        refused(client.post(ask(asked.model), headers={"x-session-id": session_id}), 409)
        with client.streaming("fake/echo", "later", session_id=session_id, session_policy="enqueue") as waiting:
            assert client.state(waiting.id)["status"] == "queued"
            assert client.get(f"/v1/sessions/{session_id}").json()["open"] == [viewer.id, waiting.id]
            pause.go()
            assert b"later" in waiting.rest()
    assert [content for _, content in messages(client, session_id)] == ["hello there", "w0 ", "later", "later"]
    assert len(asked.script.calls) == 1


def test_interrupting(client: Client, scripted: Register, session_id: str) -> None:
    asked = scripted([*words(1), Pause(), *ending()])
    with client.streaming(asked.model, session_id=session_id) as viewer:
        viewer.take(1)
        answer = client.post(ask("fake/echo", "instead", session_id=session_id, session_policy="interrupt"))
        assert answer.json()["choices"][0]["message"]["content"] == "instead"
        assert b"generation_cancelled" in viewer.rest()
    wait_until(lambda: asked.script.hung_up == 1, what="the provider is hung up on")
    assert messages(client, session_id) == [("user", "instead"), ("assistant", "instead")]


def test_reasoning_is_sent_back_only_if_it_was_stored(client: Client, scripted: Register, session_id: str) -> None:
    asked = scripted(said("a", reasoning_content="because"))
    client.post(ask(asked.model, session_id=session_id))
    client.post(ask(asked.model, session_id=session_id, store_reasoning=True))
    client.post(ask(asked.model, session_id=session_id))
    answers = [message for message in asked.script.calls[2]["messages"] if message["role"] == "assistant"]
    assert answers == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "a", "reasoning_content": "because"},
    ]
    state = client.get("/v1/streams", params={"session_id": session_id}).json()["data"][0]
    assert state["characters"] == {"content": 1, "reasoning": 7}


def test_f17_a_session_goes_on_after_calls_that_broke(client: Client, scripted: Register, session_id: str) -> None:
    """Nobody can take back what the session holds: arguments that were cut, one id twice, a call without a result."""
    call = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"cmd": "ls'}}
    asked = scripted([chunk({"role": "assistant", "content": None, "tool_calls": [call]}), *ending()])
    body = ask(asked.model, session_id=session_id)
    result = {"role": "tool", "tool_call_id": "call_0", "content": "what?"}
    for said in ([{"role": "user", "content": "one"}], [result, {"role": "user", "content": "two"}], body["messages"]):
        assert client.post({**body, "messages": said}).status_code == 200
    sent = asked.script.calls[2]["messages"]
    roles = ["user", "assistant", "tool", "user", "assistant", "tool", "user"]
    assert [message["role"] for message in sent] == roles
    calls = [message["tool_calls"][0] for message in sent if message["role"] == "assistant"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"arguments": '{"cmd": "ls'}] * 2
    results = [(message["tool_call_id"], message["content"]) for message in sent if message["role"] == "tool"]
    assert results == [("call_0", "what?"), (calls[1]["id"], "There is no result: the call was not answered.")]
    assert calls[0]["id"] != calls[1]["id"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"session_id": "a b"}, "invalid_request"),
        ({"session_id": ""}, "invalid_request"),
        ({"session_id": 5}, "invalid_request"),
        ({"session_id": "s", "n": 2}, "invalid_request"),
        ({"session_id": "s", "session_policy": "queue"}, "invalid_request"),
        ({"session_id": "s", "session_trim": True}, "invalid_request"),
        ({"session_id": "s", "session_max_tokens": 0}, "invalid_request"),
    ],
)
def test_what_is_refused(client: Client, fields: dict[str, Any], code: str) -> None:
    refused(client.post(ask("fake/echo", **fields)), 400, code)


def test_a_session_that_is_too_large(client: Client, session_id: str) -> None:
    client.post(ask("fake/echo", "x" * 4000, session_id=session_id))
    refused(client.post(ask("fake/echo", "y", session_id=session_id, session_max_tokens=500)), 413, "session_too_large")
    answer = client.post(ask("fake/echo", "y", session_id=session_id, session_max_tokens=500, session_trim="oldest"))
    assert answer.json()["usage"]["prompt_tokens"] == 1


def test_lists_deletion_and_strangers(alice: Client, bob: Client) -> None:
    names = [f"list-{i}-{uuid.uuid4().hex}" for i in range(3)]
    for name in names:
        alice.post(ask("fake/echo", session_id=name))
    listed = alice.get("/v1/sessions", params={"limit": 2}).json()
    assert [session["id"] for session in listed["data"]] == names[:0:-1]
    assert listed["has_more"]
    rest = alice.get("/v1/sessions", params={"after": listed["last_id"]}).json()
    assert rest["data"][0]["id"] == names[0]
    one = f"/v1/sessions/{names[0]}"
    for response in (bob.get(one), bob.get(f"{one}/messages"), bob.http.delete(one), alice.get("/v1/sessions/none")):
        refused(response, 404)
    page = alice.get(f"{one}/messages", params={"limit": 1}).json()
    assert (page["has_more"], page["data"][0]["role"]) == (True, "user")
    after = alice.get(f"{one}/messages", params={"after": page["last_id"]}).json()
    assert [message["role"] for message in after["data"]] == ["assistant"]
    refused(alice.get(f"{one}/messages", params={"after": "nothing"}), 404)
    assert alice.http.delete(one).json() == {"id": names[0], "object": "session.deleted", "deleted": True}
    refused(alice.get(one), 404)


def test_open_webuis_chats(alice: Client, keyed: Stack) -> None:
    """Off unless switched on: then a streamed request's chat is a session that only takes note."""
    chat = uuid.uuid4().hex
    headers = {"x-openwebui-chat-id": chat}
    assert "x-session-id" not in alice.post(ask("fake/echo", stream=True), headers=headers).headers


def test_open_webuis_chats_when_switched_on(own_stack: Stack) -> None:
    own_stack.kill("api")
    own_stack.start("api", STREAMSPOOL_OPENWEBUI_SESSIONS="true")
    own_stack.wait_ready()
    headers = {"x-openwebui-chat-id": "chat-1"}
    with Client(own_stack.url) as client:
        body = ask("fake/echo", "one", stream=True)
        assert client.post(body, headers=headers).headers["x-session-id"] == "chat-1"
        assert "x-session-id" not in client.post(ask("fake/echo", "a title for it"), headers=headers).headers
        history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "one"}]
        client.post({**body, "messages": [*history, {"role": "user", "content": "two"}]}, headers=headers)
        assert [content for _, content in messages(client, "chat-1")] == ["one", "one", "two", "two"]


def test_reasoning_in_tags_is_reasoning_where_the_provider_says_so(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path, session_id: str
) -> None:
    parts = [chunk({"role": "assistant", "content": piece}) for piece in ("<th", "ink>why", "</think>\n", "because")]
    upstream.script("tagged", [*parts, *ending()])
    table = {"tagger": {"base_url": upstream.base_url, "think_tags": True}}
    settings = {"STREAMSPOOL_PROVIDERS": json.dumps(table)}
    with (
        Stack(valkey.url.replace("db=0", "db=11"), upstream.base_url, tmp_path, **settings) as running,
        Client(running.url) as client,
    ):
        states = []
        for provider in ("tagger", "scripted"):
            response = client.stream(f"{provider}/tagged", session_id=f"{provider}-{session_id}")
            assert text(chunks(response.content)) == "<think>why</think>\nbecause"
            states.append(client.state(response.headers["x-stream-id"])["characters"])
            assert messages(client, f"{provider}-{session_id}")[1][1] in ("because", "<think>why</think>\nbecause")
        assert states == [{"content": 7, "reasoning": 3}, {"content": 26, "reasoning": 0}]
        assert messages(client, f"tagger-{session_id}")[1] == ("assistant", "because")
        wait_until(lambda: '"reasoning_characters": 3' in running.log("worker"), what="it stands in the log")
        assert "because" not in running.log("worker")
