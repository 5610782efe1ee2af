"""/v1/conversations over HTTP: what is kept, what a response adds, and what a deletion leaves."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from openai.types.conversations import Conversation
from openai.types.conversations.conversation_item import ConversationItem
from pydantic import TypeAdapter

from tests.harness.processes import Stack
from tests.harness.upstream import Pause, chunk, ending, words
from tests.support.responses import PATH, events
from tests.support.wire import KEY_A, Client, Register, refused

CONVERSATIONS = "/v1/conversations"
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def made(client: Client, *items: Any, **fields: Any) -> str:
    answer = client.http.post(CONVERSATIONS, json={"items": list(items), **fields})
    assert answer.status_code == 200, answer.text
    return Conversation.model_validate(answer.json()).id


def items(client: Client, conversation: str, **query: Any) -> list[dict[str, Any]]:
    page = client.get(f"{CONVERSATIONS}/{conversation}/items", params={"order": "asc", "limit": 100, **query}).json()
    for item in page["data"]:
        ITEM.validate_python(item)
    found: list[dict[str, Any]] = page["data"]
    return found


def texts(found: list[dict[str, Any]]) -> list[str]:
    return [part["text"] for item in found for part in item.get("content") or ()]


def ask(client: Client, model: str, conversation: Any, given: Any = "now", **fields: Any) -> Any:
    return client.http.post(PATH, json={"model": model, "input": given, "conversation": conversation, **fields})


def test_a_conversation_and_its_items(alice: Client, bob: Client) -> None:
    conversation = made(alice, user("one"), {"role": "assistant", "content": "two"}, metadata={"a": "b"})
    path = f"{CONVERSATIONS}/{conversation}"
    assert alice.get(path).json()["metadata"] == {"a": "b"}
    assert alice.http.post(path, json={"metadata": {"c": "d"}}).json()["metadata"] == {"c": "d"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    added = alice.http.post(f"{path}/items", json={"items": [user("three"), call]}).json()
    assert (added["object"], [item["type"] for item in added["data"]]) == ("list", ["message", "function_call"])
    output = {"type": "function_call_output", "call_id": "c", "output": "7"}
    assert alice.http.post(f"{path}/items", json={"items": [output]}).status_code == 200
    found = items(alice, conversation)
    assert texts(found) == ["one", "two", "three"]
    assert [item["type"] for item in found[-2:]] == ["function_call", "function_call_output"]
    assert found[2:4] == added["data"]
    assert alice.get(f"{path}/items/{found[1]['id']}").json() == found[1]
    newest = alice.get(f"{path}/items", params={"limit": "2"}).json()
    assert ([item["id"] for item in newest["data"]], newest["has_more"]) == ([found[4]["id"], found[3]["id"]], True)
    rest = alice.get(f"{path}/items", params={"after": newest["last_id"]}).json()
    assert [item["id"] for item in rest["data"]] == [item["id"] for item in reversed(found[:3])]
    for method, tail in (("GET", ""), ("GET", "/items"), ("DELETE", ""), ("GET", f"/items/{found[0]['id']}")):
        refused(bob.http.request(method, path + tail), 404)
    assert alice.http.delete(path).json() == {"id": conversation, "object": "conversation.deleted", "deleted": True}
    refused(alice.get(path), 404)


@pytest.mark.parametrize("large", ["", "x" * 400_000], ids=["small", "in a blob"])
def test_what_is_deleted_at_once_of_one_turn_is_gone(alice: Client, large: str) -> None:
    """Each deletion wrote the turn as it was before the others."""
    conversation = made(alice, *(user(f"t{number}") for number in range(8)), *([user(large)] if large else ()))
    gone = [item["id"] for item in items(alice, conversation)[:7]]
    path = f"{CONVERSATIONS}/{conversation}/items"
    with ThreadPoolExecutor(7) as pool:
        answers = list(pool.map(lambda item: alice.http.delete(f"{path}/{item}").status_code, gone))
    assert answers == [200] * 7
    assert texts(items(alice, conversation)) == ["t7", *([large] if large else ())]


def test_a_turn_that_was_large_is_what_is_left_of_it(alice: Client) -> None:
    """It still named the blob that it had been in, with what was deleted."""
    conversation = made(alice, user("one"), user("x" * 400_000))
    _, large = items(alice, conversation)
    assert alice.http.delete(f"{CONVERSATIONS}/{conversation}/items/{large['id']}").status_code == 200
    assert texts(items(alice, conversation)) == ["one"]


def test_large_items_that_are_added_again_with_their_key_are_there_once(alice: Client) -> None:
    conversation, text = made(alice, user("one")), "x" * 400_000
    key = {"idempotency-key": uuid.uuid4().hex}
    path = f"{CONVERSATIONS}/{conversation}/items"
    first, again = (alice.http.post(path, json={"items": [user(text)]}, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["data"] == first.json()["data"]
    assert texts(items(alice, conversation)) == ["one", text]


def test_a_response_goes_on_from_its_conversation_and_adds_to_it(alice: Client, scripted: Register) -> None:
    script = scripted([chunk({"role": "assistant", "reasoning_content": "why"}), *words(2), *ending()])
    conversation = made(alice, user("one"))
    answer = ask(alice, script.model, conversation, instructions="be brief").json()
    assert answer["conversation"] == {"id": conversation}
    answer = ask(alice, script.model, {"id": conversation}, "and").json()
    said = [(message["role"], message["content"]) for message in script.script.calls[1]["messages"]]
    assert said == [("user", "one"), ("user", "now"), ("assistant", "w0 w1 "), ("user", "and")]
    assert "reasoning_content" not in script.script.calls[1]["messages"][2]
    found = items(alice, conversation)
    assert texts(found) == ["one", "now", "w0 w1 ", "and", "w0 w1 "]
    assert found[-1]["id"] == answer["output"][-1]["id"]


def test_a_tool_loop_in_a_conversation(alice: Client, scripted: Register) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    first = chunk({"role": "assistant", "reasoning_content": "why", "tool_calls": [call]})
    script = scripted([first, chunk({}, "tool_calls"), *ending()[1:]])
    conversation = made(alice)
    called = ask(alice, script.model, conversation).json()["output"][-1]
    ask(alice, script.model, conversation, [{"type": "function_call_output", "call_id": "c1", "output": "7"}])
    sent = script.script.calls[1]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["reasoning_content"] == "why"
    kinds = [item["type"] for item in items(alice, conversation)]
    assert kinds == ["message", "function_call", "function_call_output", "function_call"]
    assert items(alice, conversation)[1]["id"] == called["id"]
    unknown = [{"type": "function_call_output", "call_id": "c9", "output": "7"}]
    assert refused(ask(alice, script.model, conversation, unknown), 400)["param"] == "input[0].call_id"


def test_one_response_of_a_conversation_at_a_time(alice: Client, scripted: Register) -> None:
    pause = Pause()
    script = scripted([*words(1), pause, *ending()])
    conversation = made(alice)
    body = {"model": script.model, "input": "x", "conversation": conversation, "stream": True}
    with alice.view("POST", PATH, json=body) as viewer:
        viewer.until(b"w0 ")
        for busy in (
            ask(alice, script.model, conversation),
            alice.http.post(f"{CONVERSATIONS}/{conversation}/items", json={"items": [user("x")]}),
        ):
            assert refused(busy, 409, "session_busy")
            assert busy.headers["x-should-retry"] == "false"
        assert items(alice, conversation) == []
        pause.go()
        viewer.rest()
        assert events(viewer.body)[-1]["type"] == "response.completed"
    assert texts(items(alice, conversation)) == ["x", "w0 "]


def test_what_failed_or_was_cancelled_adds_nothing(alice: Client, scripted: Register) -> None:
    conversation = made(alice)
    assert ask(alice, "fake/lorem?error=400", conversation).status_code == 400
    script = scripted([*words(1), Pause()])
    body = {"model": script.model, "input": "x", "conversation": conversation, "stream": True}
    with alice.view("POST", PATH, json=body) as viewer:
        viewer.until(b"w0 ")
        response_id = events(viewer.body, ended=False)[0]["response"]["id"]
        alice.http.post(f"{PATH}/{response_id}/cancel")
        viewer.rest()
    assert items(alice, conversation) == []


@pytest.mark.parametrize("other", ["unknown", "not mine"])
def test_a_conversation_has_to_be_there(alice: Client, bob: Client, other: str) -> None:
    conversation = made(bob) if other == "not mine" else f"conv_{uuid.uuid4().hex}"
    assert refused(ask(alice, "fake/echo", conversation), 404)["param"] == "conversation"


def test_it_is_one_or_the_other(alice: Client) -> None:
    both = ask(alice, "fake/echo", made(alice), previous_response_id="resp_" + "0" * 32)
    assert refused(both, 400)["param"] == "conversation"


def test_what_is_deleted_is_neither_shown_nor_sent_and_moves_nothing(alice: Client, scripted: Register) -> None:
    calls = [{"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"} for name in "ab"]
    outputs = [{"type": "function_call_output", "call_id": name, "output": "7"} for name in "ab"]
    conversation = made(alice, user("one"), {"role": "assistant", "content": "two"}, *calls, *outputs, user("three"))
    before = items(alice, conversation)
    for at in (1, 2, 4, 0):
        gone = alice.http.delete(f"{CONVERSATIONS}/{conversation}/items/{before[at]['id']}")
        assert gone.json()["id"] == conversation
    assert items(alice, conversation) == [before[3], before[5], before[6]]
    refused(alice.http.delete(f"{CONVERSATIONS}/{conversation}/items/{before[1]['id']}"), 404)
    script = scripted([*words(1), *ending()])
    ask(alice, script.model, conversation)
    sent = script.script.calls[0]["messages"]
    assert [(message["role"], message.get("content")) for message in sent] == [
        ("assistant", None),
        ("tool", "7"),
        ("user", "three"),
        ("user", "now"),
    ]
    assert [call["id"] for call in sent[0]["tool_calls"]] == ["b"]


def test_a_session_of_chat_is_a_conversation(alice: Client) -> None:
    session = f"s-{uuid.uuid4().hex}"
    alice.post({"model": "fake/echo", "messages": [{"role": "user", "content": "one"}], "session_id": session})
    assert alice.get(f"{CONVERSATIONS}/{session}").json()["metadata"] == {}
    assert texts(items(alice, session)) == ["one", "one"]
    assert ask(alice, "fake/echo", session).status_code == 200
    assert texts(items(alice, session)) == ["one", "one", "now", "now"]
    listed = alice.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert [message["content"] for message in listed] == ["one", "one", "now", "now"]


def test_the_official_client(keyed: Stack) -> None:
    with OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY_A, max_retries=0) as client:
        conversation = client.conversations.create()
        given: Any = [user(str(number)) for number in range(20)]
        client.conversations.items.create(conversation.id, items=given)
        answer = client.responses.create(model="fake/echo", input="last", conversation=conversation.id)
        found = list(client.conversations.items.list(conversation.id, order="asc"))
        assert len(found) == 22
        assert found[-1].id == answer.output[0].id
        changed = client.conversations.update(conversation.id, metadata={"a": "b"})
        assert changed.metadata == {"a": "b"}
        assert found[0].id
        assert client.conversations.items.delete(found[0].id, conversation_id=conversation.id).id == conversation.id
        assert client.conversations.delete(conversation.id).deleted


def test_with_an_idempotency_key_a_conversation_and_its_items_are_made_once(alice: Client, bob: Client) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    body = {"items": [user("a")], "metadata": {"x": "1"}}
    first, again = (alice.http.post(CONVERSATIONS, json=body, headers=key) for _ in range(2))
    assert first.json() == again.json()
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    refused(alice.http.post(CONVERSATIONS, json={}, headers=key), 422, "idempotency_key_reused")
    assert bob.http.post(CONVERSATIONS, json=body, headers=key).json()["id"] != first.json()["id"]

    conversation = first.json()["id"]
    path = f"{CONVERSATIONS}/{conversation}/items"
    with ThreadPoolExecutor(4) as pool:
        send = lambda _: alice.http.post(path, json={"items": [user("b"), user("c")]}, headers=key)  # noqa: E731
        answers = list(pool.map(send, range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert [answer.headers.get("idempotent-replayed") for answer in answers].count("true") == 7
    assert texts(items(alice, conversation)) == ["a", "b", "c"]
    refused(alice.http.post(path, json={"items": [user("d")]}, headers=key), 422, "idempotency_key_reused")
    alice.http.post(path, json={"items": [user("b"), user("c")]})
    assert texts(items(alice, conversation)) == ["a", "b", "c", "b", "c"]
