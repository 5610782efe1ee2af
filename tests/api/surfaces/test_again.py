"""What has ended asked for again, and many ended at once."""

from __future__ import annotations

import uuid

import pytest

from tests.harness.processes import wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.wire import Client, ask


def completed(client: Client, generation_id: str) -> None:
    wait_until(lambda: client.state(generation_id)["status"] == "completed")


def test_the_same_is_asked_again(client: Client, upstream: ScriptedUpstream) -> None:
    name = f"again-{uuid.uuid4().hex[:8]}"
    upstream.script(name, words(1))  # it is cut, and so it fails
    asked = ask(f"scripted/{name}", prompt="the same", temperature=0.3, metadata={"of": "one"})
    failed = client.http.post("/v1/chat/completions", json=asked, headers={"x-max-tokens-per-s": "400"})
    generation_id = failed.headers["x-stream-id"]
    assert client.state(generation_id)["status"] == "failed"
    whole = upstream.script(name, [*words(2), *ending()])
    again = client.http.post(f"/v1/streams/{generation_id}/retry")
    assert again.status_code == 202, again.text
    state = again.json()
    assert state["id"] != generation_id
    assert (state["retried_from"], state["background"], state["metadata"]) == (generation_id, True, {"of": "one"})
    assert again.headers["location"] == f"/v1/streams/{state['id']}"
    completed(client, state["id"])
    (call,) = whole.calls
    assert call["messages"] == asked["messages"]
    assert call["temperature"] == 0.3
    sent = [client.get(f"/v1/streams/{one}/request").content for one in (generation_id, state["id"])]
    assert sent[0] == sent[1]
    assert client.state(state["id"])["retried_from"] == generation_id


def test_with_a_key_it_is_asked_once(client: Client) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    path, headers = f"/v1/streams/{generation_id}/retry", {"idempotency-key": uuid.uuid4().hex}
    first, second = (client.http.post(path, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotent-replayed"] == "true"


def test_a_large_picture_is_named_again_and_arrives_whole(client: Client, upstream: ScriptedUpstream) -> None:
    name, url = f"again-{uuid.uuid4().hex[:8]}", "data:image/png;base64," + "iVBORw0KGgo" * 40_000
    script = upstream.script(name, [*words(1), *ending()])
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}]
    first = client.http.post("/v1/chat/completions", json={"model": f"scripted/{name}", "messages": messages})
    assert first.status_code == 200, first.text
    again = client.http.post(f"/v1/streams/{first.json()['id']}/retry").json()
    client.http.delete(f"/v1/streams/{first.json()['id']}")
    completed(client, again["id"])
    assert [call["messages"] for call in script.calls] == [messages] * 2


def test_what_runs_cannot_be_asked_again(client: Client, upstream: ScriptedUpstream) -> None:
    name, pause = f"again-{uuid.uuid4().hex[:8]}", Pause()
    upstream.script(name, [*words(1), pause, *ending()])
    state = client.post(ask(f"scripted/{name}", background=True)).json()
    refused = client.http.post(f"/v1/streams/{state['id']}/retry")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_ended")
    pause.go()


def test_another_apis_is_asked_again_there(client: Client) -> None:
    made = client.http.post("/v1/responses", json={"model": "fake/echo", "input": "hello"})
    refused = client.http.post(f"/v1/streams/{made.headers['x-stream-id']}/retry")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_a_chat")


def test_many_are_ended_at_once(client: Client) -> None:
    body = ask("fake/lorem?tokens=10000&rate=1", background=True)
    ids = [client.post(body).json()["id"] for _ in range(3)]
    ended = client.http.post("/v1/streams/cancel", json={"ids": [*ids, "chatcmpl-none", ids[0]]})
    assert ended.status_code == 200, ended.text
    data = ended.json()["data"]
    assert [one["id"] for one in data] == [*ids, "chatcmpl-none"]
    assert [one.get("status") for one in data] == ["cancelled"] * 3 + [None]
    assert data[-1]["error"]["code"] == "not_found"


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["a"] * 101}, {"ids": [1]}, {"ids": ["a"], "x": 1}, []])
def test_a_list_of_ids_has_a_form(client: Client, body: object) -> None:
    assert client.http.post("/v1/streams/cancel", json=body).status_code == 400
