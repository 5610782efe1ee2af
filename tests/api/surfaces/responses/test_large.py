"""Pictures of tens of megabytes in Responses, conversations and messages of sockets: kept out of Redis, sent whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.surfaces.responses.test_verbatim import answer as native_answer
from tests.api.surfaces.test_large import SMALL, files, kept, picture, reap
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.responses import PATH, events, text_of
from tests.support.sockets import Socket
from tests.support.wire import Client, Register, field, frames, refused

pytestmark = pytest.mark.timeout(300)
SIZE = 39_000_000
"""Of a picture that makes a request of just under 50 MiB."""


@pytest.fixture
def client(own_stack: Stack) -> Iterator[Client]:
    with Client(own_stack.url) as http:
        http.http.timeout = 120
        yield http


def showing(url: str, text: str = "What is it?") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url}]}
    ]


def asked(url: str, text: str = "What is it?") -> dict[str, Any]:
    """The same as the message of a chat."""
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}],
    }


def store_keeps(stack: Stack) -> int:
    """Bytes of all keys in Redis."""
    with open_store(stack.redis_url) as store:
        return sum(int(store.memory_usage(key, samples=0) or 0) for key in store.keys("streamspool:*"))


def peak_more_mb(stack: Stack, name: str, do: Any) -> float:
    before = memory_mb(stack, "VmRSS", name)
    Path(f"/proc/{stack.process(name).pid}/clear_refs").write_text("5")
    do()
    return memory_mb(stack, "VmHWM", name) - before


def test_a_response_to_50_mib_is_streamed_resumed_and_gone_on_from(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    model, script = scripted([*words(3), *ending()])
    url = picture(SIZE)
    body = {"model": model, "input": showing(url), "instructions": "be brief", "stream": True, "store": True}
    assert 51_000_000 < len(json.dumps(body)) < 50 * 1024 * 1024
    before = store_keeps(own_stack)
    posted = client.http.post(PATH, json=body)
    assert posted.status_code == 200, posted.text[:300]
    assert script.calls[0]["messages"] == [{"role": "system", "content": "be brief"}, asked(url)]
    told = events(posted.content)
    made = told[-1]["response"]
    assert (made["status"], text_of(made), made["instructions"]) == ("completed", "w0 w1 w2 ", "be brief")
    rest = client.get(f"{PATH}/{made['id']}", params={"stream": "true", "starting_after": "2"})
    shown = [frame for frame in frames(posted.content) if field(frame, b"event") != b"keepalive"]
    assert rest.content == b"".join(shown[3:])
    generation_id = posted.headers["x-stream-id"]
    assert kept(own_stack, generation_id) < SMALL
    assert store_keeps(own_stack) - before < SMALL
    assert sum(path.stat().st_size for path in files(own_stack)) == SIZE // 3 * 4

    more = {"model": model, "input": "And now?", "previous_response_id": made["id"], "store": True}
    second = client.http.post(PATH, json=more)
    assert second.status_code == 200, second.text[:300]
    said = {"role": "assistant", "content": "w0 w1 w2 "}
    assert script.calls[1]["messages"] == [asked(url), said, {"role": "user", "content": "And now?"}]
    named = {"type": "item_reference", "id": client.get(f"{PATH}/{made['id']}/input_items").json()["data"][0]["id"]}
    third = client.http.post(PATH, json={"model": model, "input": [named], "store": True})
    assert third.status_code == 200, third.text[:300]
    assert script.calls[2]["messages"][0]["content"][1]["image_url"] == {"url": url, "detail": "auto"}
    (item,) = client.get(f"{PATH}/{third.json()['id']}/input_items").json()["data"]
    assert item["content"][1]["image_url"] == url
    assert len(files(own_stack)) == 1
    for one in (third.json()["id"], second.json()["id"], made["id"]):
        assert client.http.delete(f"{PATH}/{one}").status_code == 200
    with open_store(own_stack.redis_url) as store:  # what was gone on from is hidden, and goes when it expires
        for log in store.keys("streamspool:{chatcmpl-*:log"):
            store.delete(log)
    reap(own_stack)
    wait_until(lambda: not files(own_stack), 60, "the reaper has removed it")
    refused(
        client.http.post(PATH, json={**body, "input": showing(picture(SIZE + 1_000_000))}), 413, "request_too_large"
    )


def test_it_takes_no_more_memory_than_the_same_as_a_chat(own_stack: Stack, client: Client, scripted: Register) -> None:
    model, script = scripted([*words(3), *ending()])
    url = picture(SIZE)
    chat = json.dumps({"model": model, "messages": [asked(url)]}).encode()
    response = json.dumps({"model": model, "input": showing(url)}).encode()
    headers = {"content-type": "application/json"}

    def post(path: str, content: bytes) -> None:
        answer = client.http.post(path, content=content, headers=headers)
        assert answer.status_code == 200, answer.text[:300]

    post("/v1/chat/completions", chat)  # what is made when it is first needed
    for name in ("api", "worker"):
        chats, responses = [], []
        for _ in range(2):  # what is freed goes back to the system now and then, and then the next one takes it anew
            chats.append(peak_more_mb(own_stack, name, lambda: post("/v1/chat/completions", chat)))
            responses.append(peak_more_mb(own_stack, name, lambda: post(PATH, response)))
        assert min(responses) < max(chats) + len(response) / 2e6, f"{name}: {responses} MB, as chats {chats} MB"
    assert len(script.calls) == 9


def test_a_provider_of_this_api_gets_it_as_it_came(
    own_stack: Stack, upstream: ScriptedUpstream, client: Client, scripted: Register, tmp_path: Path
) -> None:
    config = tmp_path / "native.toml"
    config.write_text(f'[providers.own]\nkind = "responses"\nbase_url = "{upstream.base_url}"\n')
    for name in ("api", "worker"):
        own_stack.kill(name)
        own_stack.start(name, STREAMSPOOL_CONFIG=str(config))
    own_stack.wait_ready()
    wait_until(lambda: client.get("/v1/models/own/any").status_code == 200, what="the new worker has said what it has")
    model, script = scripted(native_answer())
    url = picture(9_000_000)
    tools = [{"type": "mcp", "server_label": "s", "server_url": "https://x.test", "data": picture(30_000, 2)[22:]}]
    body = {"model": f"own/{model.partition('/')[2]}", "input": showing(url), "tools": tools}
    made = client.http.post(PATH, json=body)
    assert made.status_code == 200, made.text[:300]
    assert (script.calls[0]["input"], script.calls[0]["tools"]) == (showing(url), tools)
    assert made.json()["tools"] == tools
    assert client.get(f"{PATH}/{made.json()['id']}").json()["tools"] == tools
    assert kept(own_stack, made.headers["x-stream-id"]) < 2 * SMALL
    more = {"model": "fake/echo", "input": "And now?", "previous_response_id": made.json()["id"]}
    assert client.http.post(PATH, json=more).status_code == 200

    compaction = {"id": "c", "object": "response.compaction", "output": []}
    compacting = scripted([json.dumps(compaction).encode()], headers={"content-type": "application/json"})
    shown = {"model": f"own/{compacting.name}", "input": showing(url)}
    answer = client.http.post(f"{PATH}/compact", json=shown)
    assert answer.status_code == 200, answer.text[:300]
    assert compacting.script.calls[0]["input"] == showing(url)
    assert len(files(own_stack)) == 2


def test_a_moderation_and_a_completion_of_what_is_large(own_stack: Stack, client: Client, scripted: Register) -> None:
    found = {"id": "modr-1", "model": "up", "results": [{"flagged": False}]}
    moderating = scripted([json.dumps(found).encode()], headers={"content-type": "application/json"})
    parts = [{"type": "image_url", "image_url": {"url": picture(1_000_000)}}]
    answer = client.http.post("/v1/moderations", json={"model": moderating.model, "input": parts})
    assert (answer.status_code, answer.json()) == (200, found)
    assert moderating.script.calls[0]["input"] == parts

    model, script = scripted([*words(1), *ending()])
    answer = client.http.post("/v1/completions", json={"model": model, "prompt": picture(1_000_000)})
    assert answer.status_code == 200, answer.text[:300]
    assert script.calls[0]["prompt"] == picture(1_000_000)


def test_a_conversation_keeps_a_picture_once_and_sends_it_each_time(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    model, script = scripted([*words(1), *ending()])
    url = picture(9_000_000)
    path = "/v1/conversations"
    key = {"idempotency-key": "made-once"}
    made = client.http.post(path, json={"items": showing(url)}, headers=key)
    assert made.status_code == 200, made.text[:300]
    conversation = made.json()["id"]
    items = f"{path}/{conversation}/items"
    added = client.http.post(items, json={"items": showing(url, "Again.")}, headers=key)
    assert added.status_code == 200, added.text[:300]
    assert [part.get("image_url") for part in added.json()["data"][0]["content"]] == [None, url]
    own_stack.kill("api")  # another process tells the same request by the same key
    own_stack.start("api")
    own_stack.wait_ready()
    again = client.http.post(path, json={"items": showing(url)}, headers=key)
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (conversation, "true")
    again = client.http.post(items, json={"items": showing(url, "Again.")}, headers=key)
    assert (again.json(), again.headers["idempotent-replayed"]) == (added.json(), "true")
    other = showing(picture(9_000_000, 2), "Again.")
    refused(client.http.post(items, json={"items": other}, headers=key), 422)
    asking = {"model": model, "input": "Which one?", "conversation": conversation}
    assert client.http.post(PATH, json=asking).status_code == 200
    assert script.calls[0]["messages"] == [asked(url), asked(url, "Again."), {"role": "user", "content": "Which one?"}]
    assert len(files(own_stack)) == 1
    assert store_keeps(own_stack) < 4 * SMALL
    assert client.http.delete(f"{path}/{conversation}").status_code == 200


def test_a_large_message_of_a_socket(own_stack: Stack, client: Client, scripted: Register) -> None:
    model, script = scripted([*words(2), *ending()])
    url = picture(9_000_000)
    with Socket(own_stack.url) as socket:
        made = socket.whole(model=model, input=showing(url))
        assert text_of(made) == "w0 w1 "
        socket.whole(model=model, input="And now?", previous_response_id=made["id"])
        wide = {"type": "function", "name": "f", "description": "x" * 300_000}
        prepared = socket.whole(model=model, input=showing(picture(30_000)), tools=[wide], generate=False)
        socket.whole(model=model, input="And this?", previous_response_id=prepared["id"])
        socket.send(model=model, input=showing(url), generate=False)
        assert socket.until("error")["error"]["code"] == "request_too_large"
    assert [call["messages"][0] for call in script.calls] == [asked(url), asked(url), asked(picture(30_000))]
    assert len(files(own_stack)) == 1


def test_a_repeat_of_a_large_request_is_the_same_by_its_digest(
    own_stack: Stack, client: Client, scripted: Register
) -> None:
    model, script = scripted([*words(1), *ending()])
    body = {"model": model, "input": showing(picture(3_000_000)), "background": True}
    first = client.http.post(PATH, json=body, headers={"idempotency-key": "a"})
    own_stack.kill("api")
    own_stack.start("api")
    own_stack.wait_ready()
    again = client.http.post(PATH, json=body, headers={"idempotency-key": "a"})
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    joined = client.http.post(PATH, json=body, headers={"x-stainless-retry-count": "1"})
    assert joined.json()["id"] == first.json()["id"]
    body["input"] = showing(picture(3_000_000, 2))
    refused(client.http.post(PATH, json=body, headers={"idempotency-key": "a"}), 422)
    wait_until(lambda: len(script.calls) == 1, what="it was asked for once")
    events_of = client.get(f"{PATH}/{first.json()['id']}", params={"stream": "true"})
    assert field(frames(events_of.content)[-1], b"event") == b"response.completed"
