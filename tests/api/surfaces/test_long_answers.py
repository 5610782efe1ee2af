"""An answer that does not end is ended: with what it said, a finish reason that every client knows, and the reason why."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from openai import LengthFinishReasonError, OpenAI

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import ScriptedUpstream, chunk, ending
from tests.support.batch import ended, jsonl, line, results, start
from tests.support.wire import Client, Register, ask, chunks, text

LIMIT = 100_000


class Endless:
    """Parts of a script that goes on for ever, however often it is played."""

    def __init__(self, part: Callable[[int], bytes]) -> None:
        self._part = part

    def __iter__(self) -> Iterator[bytes | float]:
        for number in itertools.count():
            yield self._part(number)
            yield 0  # the provider has others to serve


def call(arguments: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **more, "function": {"arguments": arguments, **more}}]}


SHAPES: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "words": (1, lambda _: chunk({"content": "word "})),
    "reasoning": (1, lambda _: chunk({"reasoning_content": "hmm "})),
    "arguments": (1, lambda n: chunk(call("[1,", **({} if n else {"id": "c", "type": "function", "name": "f"})))),
    "three choices": (3, lambda n: chunk({"content": "word "}, index=n % 2)),
    "large events": (1, lambda n: chunk({"content": str(n % 10) * 30_000})),
    "unknown fields": (1, lambda n: chunk({"content": ""}, padding=str(n) * 100)),
}


@pytest.fixture(scope="module")
def limited(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    url = emptied(valkey.url.replace("db=0", "db=10"))
    settings = {"STREAMSPOOL_MAX_ANSWER_BYTES": str(LIMIT)}
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("limited"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(limited: Stack) -> Iterator[Client]:
    with Client(limited.url) as http:
        yield http


@pytest.mark.parametrize("name", SHAPES)
def test_a_stream_without_an_end_gets_one(client: Client, scripted: Register, name: str) -> None:
    choices, part = SHAPES[name]
    model, script = scripted(Endless(part))
    response = client.stream(model, n=choices, on_interruption="restart")
    found = chunks(response.content)  # no error: whoever reads it has an answer that is too short
    last = {choice["index"]: choice["finish_reason"] for one in found for choice in one["choices"]}
    assert last == dict.fromkeys(range(choices), "length")
    said = sum(len(json.dumps(choice["delta"])) for one in found for choice in one["choices"])
    assert said > LIMIT / 25  # empty words, and what is around each of them counts, too

    generation_id = response.headers["x-stream-id"]
    state = client.state(generation_id)
    assert (state["status"], state["error"]["code"]) == ("incomplete", "upstream_too_long")
    assert "STREAMSPOOL_MAX_ANSWER_BYTES" in state["error"]["message"]
    assert state["finish_reasons"] == ["length"] * choices
    assert (state["usage_source"], state["retries"], state["attempts"]) == ("estimate", 0, 1)
    assert client.whole(generation_id) == client.whole(generation_id, headers={"x-stream-ids": "1"})
    answer = client.get(f"/v1/chat/completions/{generation_id}").json()
    assert (answer["status"], answer.get("error")) == ("incomplete", None)
    assert (answer["choices"][0]["message"]["content"] or "") == text(found)

    wait_until(lambda: script.live == 0, what="the provider is hung up on")
    assert len(script.calls) == 1


@pytest.mark.parametrize("name", ["words", "large events"])
def test_no_more_is_stored_than_the_limit_and_one_read(client: Client, scripted: Register, name: str) -> None:
    model, _ = scripted(Endless(SHAPES[name][1]))
    answer = client.post(ask(model)).json()
    said = answer["choices"][0]["message"]["content"]
    assert LIMIT / 20 < len(said) < LIMIT + 256_000


def test_a_whole_answer_is_whole_as_far_as_it_goes(client: Client, scripted: Register) -> None:
    response = client.post(ask(scripted(Endless(SHAPES["words"][1])).model))
    assert response.status_code == 200
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith("word word ")


def test_the_official_client_takes_it_for_an_answer(limited: Stack, scripted: Register) -> None:
    model = scripted(Endless(SHAPES["words"][1])).model
    asked: Any = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    with OpenAI(base_url=f"{limited.url}/v1", api_key="none", max_retries=0) as openai:
        whole = openai.chat.completions.create(**asked)
        assert whole.choices[0].finish_reason == "length"
        deltas = [one.choices[0] for one in openai.chat.completions.create(**asked, stream=True)]
        assert deltas[-1].finish_reason == "length"
        assert "".join(one.delta.content or "" for one in deltas).startswith("word word ")
        with openai.chat.completions.stream(**asked) as stream, pytest.raises(LengthFinishReasonError):
            stream.get_final_completion()  # its word for every answer with this reason


def test_what_ends_by_itself_is_left_alone(client: Client, scripted: Register) -> None:
    """Also where the last that it says leads beyond the limit, and where usage and end come after that."""
    parts = [chunk({"content": "x" * 3 * LIMIT}, "stop"), *ending()[1:]]
    for script in ([b"".join(parts)], parts):
        model, played = scripted(script)
        response = client.stream(model)
        state = client.state(response.headers["x-stream-id"])
        assert (state["status"], state["error"]) == ("completed", None)
        assert len(text(chunks(response.content))) == 3 * LIMIT
        assert len(played.calls) == 1


def test_what_follows_a_finish_reason_without_end_is_not_waited_for(client: Client, scripted: Register) -> None:
    model, script = scripted(Endless(lambda n: chunk({"content": "x" * 1000}, None if n < 5 else "stop")))
    response = client.stream(model)
    state = client.state(response.headers["x-stream-id"])
    assert (state["status"], state["error"], state["finish_reasons"]) == ("completed", None, ["stop"])
    assert len(script.calls) == 1


@pytest.mark.parametrize("keep_partial", [False, True])
def test_a_session_goes_on_without_it_unless_it_is_wanted(
    client: Client, scripted: Register, keep_partial: bool
) -> None:
    session_id = f"s-{uuid.uuid4().hex}"
    fields = {"session_id": session_id, "session_keep_partial": keep_partial}
    client.post(ask(scripted(Endless(SHAPES["words"][1])).model, "runaway", **fields))
    model, script = scripted([chunk({"role": "assistant", "content": "fine"}), *ending()])
    assert client.post(ask(model, "next", **fields)).status_code == 200
    sent = [message["content"] for message in script.calls[0]["messages"]]
    assert sent[-1] == "next"
    assert len(sent) == (3 if keep_partial else 1)


def test_a_line_of_a_batch_is_answered(client: Client, scripted: Register) -> None:
    model, script = scripted(Endless(SHAPES["words"][1]))
    batch = ended(client.http, start(client.http, jsonl([line("long", model), line("short")])))
    assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    found = results(client.http, batch["output_file_id"])
    body = found["long"]["response"]["body"]
    assert (found["long"]["response"]["status_code"], body["choices"][0]["finish_reason"]) == (200, "length")
    assert len(script.calls) == 1
