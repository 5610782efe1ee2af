"""Generations as resources: state, list, partial answers, cancel, delete."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.processes import Stack, wait_until
from tests.harness.store import Store
from tests.harness.upstream import Pause, ending, words
from tests.support.names import keys
from tests.support.wire import Client, Register, ask, end_error, error_of, frames, refused

STATE_FIELDS = {
    *"id object status model created_at started_at ended_at attempts position usage usage_source".split(),
    *"finish_reasons error metadata session_id viewers links".split(),
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def said(client: Client, generation_id: str) -> dict[str, Any]:
    response = client.get(f"/v1/chat/completions/{generation_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("include_usage", [True, False])
def test_an_answer_that_has_ended_is_shown_as_it_was_live(
    client: Client, scripted: Register, include_usage: bool
) -> None:
    """Byte for byte, however it is read then, and with the same headers; and so is one that was cut."""
    for begin, end in ((words(700), [*words(500), *ending()]), (words(40), words(2))):
        pause = Pause()
        model, options = scripted([*begin, pause, *end]).model, {"include_usage": include_usage}
        with client.streaming(model, stream_options=options) as first, client.watching(first.id) as viewer:
            viewer.take(2)
            pause.go()
            viewer.rest()
        headers = [{**viewer.response.headers, "date": "", "x-request-id": ""}]
        for _ in range(2):
            again = client.get(f"/v1/streams/{first.id}")
            assert again.content == viewer.body
            headers.append({**again.headers, "date": "", "x-request-id": ""})
        assert headers == headers[:1] * 3
        assert (
            client.whole(first.id, params={"last_event_id": "1-20"})
            == viewer.body.partition(b"id: 1-21\n")[1] + (viewer.body.partition(b"id: 1-21\n")[2])
        )
        assert client.http.head(f"/v1/streams/{first.id}").headers["x-served-by"] == again.headers["x-served-by"]


# ---- state


def test_the_state_of_a_finished_stream(client: Client, scripted: Register) -> None:
    model = scripted([*words(2), *ending()]).model
    generation_id = client.stream(model, metadata={"k": "v"}).headers["x-stream-id"]
    state = client.state(generation_id)
    assert state.keys() >= STATE_FIELDS
    assert state["created_at"] <= state["started_at"] <= state["ended_at"]
    expected = {
        "id": generation_id,
        "object": "stream",
        "status": "completed",
        "model": model,
        "attempts": 1,
        "position": "1-5",
        "usage": USAGE,
        "usage_source": "provider",
        "finish_reasons": ["stop"],
        "error": None,
        "metadata": {"k": "v"},
    }
    assert expected.items() <= state.items()
    for link in ("self", "completion"):
        assert client.get(state["links"][link]).status_code == 200


def test_the_state_of_a_running_stream(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(2), pause, *ending()]).model) as first, client.watching(first.id):
        first.take(3)
        wait_until(lambda: client.state(first.id)["viewers"] == 2)
        state = client.state(first.id)
        expected: dict[str, Any] = {
            "status": "in_progress",
            "position": "1-3",
            "ended_at": None,
            "usage": None,
            "finish_reasons": [],
        }
        assert expected.items() <= state.items()
    wait_until(lambda: not client.state(first.id)["viewers"])


def test_the_state_of_a_failed_stream(client: Client) -> None:
    generation_id = client.stream("fake/lorem?cut=2").headers["x-stream-id"]
    state = client.state(generation_id)
    assert state["status"] == "failed"
    assert state["error"].keys() == {"message", "type", "param", "code", "status"}
    assert state["error"]["code"] == "upstream_incomplete"


def test_state_or_stream_is_the_clients_choice(client: Client) -> None:
    path = f"/v1/streams/{client.stream('fake/echo').headers['x-stream-id']}"
    for accept in ("text/event-stream", "*/*", ""):
        response = client.get(path, headers={"accept": accept})
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "accept" in response.headers["vary"]
    assert client.get(path, headers={"accept": "application/json"}).headers["content-type"] == "application/json"


# ---- the answer so far


def test_the_answer_so_far(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(3), pause, *ending()]).model) as first:
        first.take(4)
        answer = said(client, first.id)
        assert answer["status"] == "in_progress"
        assert answer["choices"][0]["message"]["content"] == "w0 w1 w2 "
        assert answer["choices"][0]["finish_reason"] is None
        pause.go()
        first.rest()
    answer = said(client, first.id)
    assert answer["status"] == "completed"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == USAGE


def test_the_answer_of_a_failed_generation_keeps_its_text_and_its_error(client: Client) -> None:
    generation_id = client.stream("fake/lorem?cut=2").headers["x-stream-id"]
    answer = said(client, generation_id)
    assert answer["status"] == "failed"
    assert answer["choices"][0]["message"]["content"] == "lorem ipsum "
    assert error_of({"error": answer["error"]})["code"] == "upstream_incomplete"


def test_the_openai_view_resumes(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(3), pause, *ending()]).model) as first:
        first.take(2)
        path = f"/v1/chat/completions/{first.id}?stream=true&starting_after=2"
        with client.view("GET", path) as viewer:
            pause.go()
            rest = viewer.rest()
    assert rest == b"".join(frames(client.whole(first.id))[2:])


@pytest.mark.parametrize("value", ["maybe", "2", ""])
def test_a_wrong_stream_parameter_is_refused(client: Client, value: str) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    error = refused(client.get(f"/v1/chat/completions/{generation_id}?stream={value}"), 400)
    assert error["param"] == "stream"


# ---- list


def test_the_list_has_pages(newcomer: Client, scripted: Register) -> None:
    client = newcomer
    model = scripted([*words(1), *ending()]).model
    ids = [client.stream(model).headers["x-stream-id"] for _ in range(5)][::-1]
    pages, after = [], ""
    while True:
        page = client.get(f"/v1/streams?limit=2&model={model}{after}").json()
        pages.append(page)
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    assert [state["id"] for page in pages for state in page["data"]] == ids
    assert [len(page["data"]) for page in pages] == [2, 2, 1]
    for page in pages:
        assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
        assert page["object"] == "list"
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
    assert pages[0]["data"][0] == client.state(ids[0])


def test_a_full_last_page_says_that_there_is_no_more(newcomer: Client, scripted: Register) -> None:
    client = newcomer
    model = scripted([*words(1), *ending()]).model
    for _ in range(2):
        client.stream(model)
    assert client.get(f"/v1/streams?limit=2&model={model}").json()["has_more"] is False


def test_an_empty_list_has_null_ids(newcomer: Client) -> None:
    client = newcomer
    empty: dict[str, Any] = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert client.get("/v1/streams?model=fake/never-asked").json() == empty
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    assert client.get(f"/v1/streams?model=fake/never-asked&after={generation_id}").json() == empty


def test_the_list_can_be_filtered(client: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(1), pause, *ending()])
    with client.streaming(asked.model) as first:
        first.take(2)

        def listed(status: str) -> list[str]:
            found = client.get(f"/v1/streams?model={asked.model}&status={status}").json()["data"]
            return [state["id"] for state in found]

        assert listed("in_progress") == [first.id]
        assert listed("completed") == []
        pause.go()
        first.rest()
        assert listed("completed") == [first.id]
        assert listed("in_progress") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=-1", "limit=x", "limit=", "limit=1.5", "status=done"])
def test_a_wrong_filter_is_refused(client: Client, query: str) -> None:
    error = refused(client.get(f"/v1/streams?{query}"), 400)
    assert error["param"] == query.partition("=")[0]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("after", ["chatcmpl-" + "0" * 32, "x", "", "*"])
def test_an_unknown_page_is_not_found(client: Client, after: str) -> None:
    refused(client.get(f"/v1/streams?after={after}"), 404)


# ---- cancel


def test_cancelling_keeps_what_was_said(client: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(3), pause, *ending()])
    with client.streaming(asked.model) as first, client.watching(first.id) as viewer:
        first.take(4)
        viewer.take(4)
        # An official client sends a content type and an empty body.
        cancelled = client.http.post(
            f"/v1/streams/{first.id}/cancel", headers={"content-type": "application/json"}, content=b""
        )
        assert cancelled.status_code == 200
        for watched in (first, viewer):
            assert end_error(watched.rest())["code"] == "generation_cancelled"
    state = cancelled.json()
    assert state.keys() >= STATE_FIELDS
    assert state["status"] == "cancelled"
    assert state["usage_source"] == "estimate"
    assert state["usage"]["completion_tokens"] == len("w0 w1 w2 ") // 4
    wait_until(lambda: asked.script.hung_up == 1, what="the upstream is hung up on")
    answer = said(client, first.id)
    assert answer["choices"][0]["message"]["content"] == "w0 w1 w2 "
    assert answer["status"] == "cancelled"
    wait_until(lambda: not client.state(first.id)["viewers"])
    again = [client.cancel(first.id).json() for _ in range(2)]
    assert again == [{**state, "viewers": 0}] * 2


@pytest.mark.parametrize("stream", [True, False])
def test_cancelling_before_the_first_chunk_has_a_status(client: Client, scripted: Register, stream: bool) -> None:
    asked = scripted([Pause(), *words(1), *ending()])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, ask(asked.model, stream=stream))
        wait_until(lambda: asked.script.live)
        (state,) = client.get(f"/v1/streams?model={asked.model}").json()["data"]
        assert client.cancel(state["id"]).json()["position"] == "1-0"
        refused(waiting.result(60), 499, "generation_cancelled")
    wait_until(lambda: asked.script.hung_up == 1, what="the upstream is hung up on")


def test_cancelling_what_has_ended_changes_nothing(client: Client) -> None:
    for model in ("fake/echo", "fake/lorem?cut=2"):
        generation_id = client.stream(model).headers["x-stream-id"]
        wait_until(lambda: not client.state(generation_id)["viewers"])  # noqa: B023
        before = client.state(generation_id)
        assert client.cancel(generation_id).json() == before
        assert client.state(generation_id) == before


@pytest.mark.parametrize("generation_id", ["chatcmpl-" + "0" * 32, "x"])
def test_what_is_not_there_cannot_be_cancelled_or_deleted(client: Client, generation_id: str) -> None:
    refused(client.cancel(generation_id), 404, "not_found")
    refused(client.http.delete(f"/v1/streams/{generation_id}"), 404, "not_found")


# ---- delete


def test_a_deleted_stream_is_nowhere(client: Client, scripted: Register, store: Store) -> None:
    model = scripted([*words(1), *ending()]).model
    generation_id = client.stream(model).headers["x-stream-id"]
    deleted = client.http.delete(f"/v1/streams/{generation_id}")
    assert deleted.json() == {"id": generation_id, "object": "stream.deleted", "deleted": True}
    for path in (
        f"/v1/streams/{generation_id}",
        f"/v1/chat/completions/{generation_id}",
        f"/v1/chat/completions/{generation_id}?stream=true",
        f"/v1/streams?after={generation_id}",
    ):
        refused(client.get(path), 404)
    refused(client.cancel(generation_id), 404)
    refused(client.http.delete(f"/v1/streams/{generation_id}"), 404)
    assert client.get(f"/v1/streams?model={model}").json()["data"] == []
    assert not store.exists(keys.log(generation_id))


def test_deleting_a_running_stream_stops_it(client: Client, scripted: Register, store: Store) -> None:
    asked = scripted([*words(1), Pause(), *ending()])
    with client.streaming(asked.model) as first:
        first.take(2)
        assert client.http.delete(f"/v1/streams/{first.id}").status_code == 200
    wait_until(lambda: asked.script.hung_up == 1, what="the upstream is hung up on")
    wait_until(lambda: not store.exists(keys.job(first.id)), what="the job is gone")
    assert not store.exists(keys.log(first.id))


# ---- without a worker


def test_without_a_worker(own_stack: Stack, scripted: Register) -> None:
    """Requests queue; what is cancelled there never reaches the provider, the rest is answered once a worker is back."""
    own_stack.kill("worker", signal.SIGTERM)
    own_stack.process("worker").wait(60)
    never, later = (scripted([*words(count), *ending()]) for count in (1, 2))
    with Client(own_stack.url) as client, ThreadPoolExecutor(2) as pool:
        probe = client.get("/readyz")
        assert probe.status_code == 503
        assert probe.json()["status"] == "unavailable"
        assert (probe.json()["checks"]["accept"], probe.json()["checks"]["serve"]) == ("no_worker", "ok")
        assert client.get("/readyz?for=serve").status_code == 200
        assert client.get("/healthz").status_code == client.get("/health").status_code == 200
        waiting = {asked.model: pool.submit(client.post, ask(asked.model)) for asked in (never, later)}
        listed = "/v1/streams?status=queued"
        queued = wait_until(lambda: len(found := client.get(listed).json()["data"]) == 2 and found)
        ids = {state["model"]: state["id"] for state in queued}
        assert {(state["attempts"], state["started_at"], state["position"]) for state in queued} == {(0, None, None)}
        assert client.get(f"/v1/chat/completions/{ids[later.model]}").json()["choices"] == []
        ahead = client.get(f"/v1/streams/{ids[later.model]}?starting_after=1")
        refused(ahead, 400, "cursor_ahead")

        cancelled = client.cancel(ids[never.model]).json()
        assert (cancelled["status"], cancelled["attempts"]) == ("cancelled", 0)
        refused(waiting[never.model].result(60), 499, "generation_cancelled")

        own_stack.start("worker")
        answer = waiting[later.model].result(60)
        assert answer.json()["choices"][0]["message"]["content"] == "w0 w1 "
        wait_until(lambda: client.get("/readyz").status_code == 200)
    assert not never.script.calls
