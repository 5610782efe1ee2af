"""Errors under status 200, halves of answers and calls at one place, as sessions, batches and fallbacks see them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.store import emptied
from tests.harness.upstream import DONE, Answer, ScriptedUpstream, chunk, ending, words
from tests.support.batch import ended, jsonl, line, results, start
from tests.support.wire import Client, ask, chunks, end_error, text

pytestmark = pytest.mark.timeout(300)

BARE = b'data: {"detail":"the engine broke"}\n\n'
STRAY = b'{"error":{"message":"the engine broke","code":503}}\n\n'
IN_CHOICE = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error","error":{"message":"the engine broke"}}]}\n\n'
)
FAILURES = {"bare": BARE, "stray": STRAY, "in a choice": IN_CHOICE, "none": b""}


def call(id: str, name: str, arguments: str) -> bytes:
    return chunk({"tool_calls": [{"index": 0, "id": id, "function": {"name": name, "arguments": arguments}}]})


MERGED = [call("a", "f", '{"x":1}'), call("b", "g", '{"y":2}'), chunk({}, "stop"), DONE]
CALLS = [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')]


def called(message: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["id"], one["function"]["name"], one["function"]["arguments"]) for one in message["tool_calls"]]


@pytest.fixture(scope="module")
def own(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server with a name of its own, on a database of its own."""
    models = json.dumps({"smart": ["scripted/first", "scripted/second"]})
    directory = tmp_path_factory.mktemp("own")
    url = emptied(valkey.url.replace("db=0", "db=11"))
    with (
        Stack(url, upstream.base_url, directory, STREAMSPOOL_MODELS=models) as running,
        Client(running.url) as client,
    ):
        client.http.timeout = 120
        yield client


@pytest.mark.parametrize("failure", ["bare", "stray", "in a choice"])
def test_k2_who_said_nothing_before_an_error_is_not_the_one_who_answers(
    own: Client, upstream: ScriptedUpstream, failure: str
) -> None:
    upstream.script("first", [*words(0), FAILURES[failure], DONE])
    upstream.script("second", [*words(2), *ending()])
    response = own.stream("smart")
    assert (text(chunks(response.content)), response.headers["x-served-by"]) == ("w0 w1 ", "scripted/second")


@pytest.mark.parametrize("failure", ["bare", "in a choice"])
def test_k2_who_said_half_of_it_is_not_followed_by_another(
    own: Client, upstream: ScriptedUpstream, failure: str
) -> None:
    upstream.script("first", [*words(2), FAILURES[failure], DONE])
    second = upstream.script("second", [*words(2), *ending()])
    response = own.stream("smart")
    assert end_error(response.content)["code"]
    assert text(chunks(response.content)[:-1]) == "w0 w1 "
    assert own.state(response.headers["x-stream-id"])["status"] == "failed"
    assert second.calls == []


@pytest.mark.parametrize("failure", list(FAILURES))
def test_k1_k2_a_session_keeps_no_half_of_an_answer(own: Client, upstream: ScriptedUpstream, failure: str) -> None:
    end = [] if failure == "none" else [FAILURES[failure], DONE]
    good = Answer([chunk("Better."), *ending()])
    script = upstream.plan("first", Answer([chunk("Half"), *end]), good)
    session = f"half-{failure.replace(' ', '-')}"
    own.post(ask("scripted/first", "one", session_id=session))
    assert own.post(ask("scripted/first", "two", session_id=session)).status_code == 200
    assert "Half" not in json.dumps(script.calls[-1]["messages"])
    kept = own.get(f"/v1/sessions/{session}/messages").json()["data"]
    assert [one["content"] for one in kept if one["role"] == "assistant"] == ["Better."]


def test_k3_a_session_keeps_calls_apart_and_sends_them_so(own: Client, upstream: ScriptedUpstream) -> None:
    script = upstream.plan("first", Answer(MERGED), Answer([chunk("Done."), *ending()]))
    first = own.post(ask("scripted/first", "go", session_id="merged")).json()
    assert called(first["choices"][0]["message"]) == CALLS
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    told = [{"role": "tool", "tool_call_id": one, "content": one} for one in "ab"]
    second = own.post({"model": "scripted/first", "session_id": "merged", "messages": told})
    assert second.status_code == 200, second.text
    (asked,) = [message for message in script.calls[-1]["messages"] if message["role"] == "assistant"]
    assert called(asked) == CALLS


@pytest.mark.parametrize("failure", ["bare", "in a choice", "none"])
def test_k1_k2_a_line_of_a_batch_is_asked_again_and_never_half(
    own: Client, upstream: ScriptedUpstream, failure: str
) -> None:
    end = [] if failure == "none" else [FAILURES[failure], DONE]
    good = Answer([chunk("Better."), *ending()])
    script = upstream.plan("first", Answer([chunk("Half"), *end]), good)
    batch = ended(own.http, start(own.http, jsonl([line("a", "scripted/first")])), 120)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    (found,) = results(own.http, batch["output_file_id"]).values()
    assert found["response"]["body"]["choices"][0]["message"]["content"] == "Better."
    assert len(script.calls) == 2


def test_k2_a_line_that_is_refused_in_the_stream_is_an_error(own: Client, upstream: ScriptedUpstream) -> None:
    upstream.script("first", [chunk("Half"), STRAY.replace(b"503", b"400"), DONE])
    batch = ended(own.http, start(own.http, jsonl([line("a", "scripted/first")])), 120)
    assert batch["request_counts"]["failed"] == 1
    (found,) = results(own.http, batch["error_file_id"]).values()
    assert (found["response"]["status_code"], "Half" in json.dumps(found)) == (400, False)


def test_k3_a_line_of_a_batch_has_its_calls_apart(own: Client, upstream: ScriptedUpstream) -> None:
    upstream.script("first", MERGED)
    batch = ended(own.http, start(own.http, jsonl([line("a", "scripted/first")])), 120)
    (found,) = results(own.http, batch["output_file_id"]).values()
    assert called(found["response"]["body"]["choices"][0]["message"]) == CALLS
