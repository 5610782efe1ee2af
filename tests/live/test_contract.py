"""The contract of docs/api/ against a real model: every answer here was said by one, through the whole stack.

SmolLM2 is no clever model, so nothing depends on what it means to say. Where the words matter, llama.cpp's own `grammar`
leaves it no choice of them; it is one more field of the request that has to arrive.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from shared.cli.local_model import SLOTS
from shared.config.providers import NAME
from tests.live.conftest import Live
from tests.support.wire import ask, chunks, frames, position, refused, text

COUNTING = 'root ::= "one two three four five"'
QUESTION = "Why is the sky blue?"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def reasons(found: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """The finish reasons by choice index."""
    choices = [choice for chunk in found for choice in chunk["choices"]]
    return sorted((choice["index"], choice["finish_reason"]) for choice in choices if choice["finish_reason"])


def whole(live: Live, **fields: Any) -> dict[str, Any]:
    response = live.client.post(ask(NAME, **{"prompt": QUESTION, **fields}))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_the_model_is_listed(live: Live) -> None:
    assert NAME in [model["id"] for model in live.client.get("/v1/models").json()["data"]]


def test_a_stream_says_what_the_log_keeps(live: Live) -> None:
    response = live.client.stream(NAME, QUESTION, max_tokens=24, ignore_eos=True)
    found = chunks(response.content)
    said = text(found)
    assert len(said) > 24
    assert reasons(found) == [(0, "length")]
    assert {(chunk["model"], chunk["id"]) for chunk in found} == {(NAME, response.headers["x-stream-id"])}
    kept = live.client.get(f"/v1/chat/completions/{response.headers['x-stream-id']}").json()
    assert kept["choices"][0]["message"]["content"] == said
    assert text(chunks(live.client.whole(response.headers["x-stream-id"]))) == said


def test_a_whole_answer(live: Live) -> None:
    answer = whole(live, grammar=COUNTING)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "one two three four five"
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] > 5
    assert usage["completion_tokens"] >= 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    state = live.client.state(answer["id"])
    assert (state["status"], state["usage_source"]) == ("completed", "provider")
    assert state["usage"]["completion_tokens"] == usage["completion_tokens"]


def test_a_limit_is_kept_and_named(live: Live) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        answer = whole(live, **{field: 7, "ignore_eos": True})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 7
    assert live.client.state(answer["id"])["status"] == "incomplete"


def test_it_stops_where_it_is_told_to(live: Live) -> None:
    found = chunks(live.client.stream(NAME, QUESTION, grammar=COUNTING, stop=["three"]).content)
    assert text(found) == "one two "
    assert reasons(found) == [(0, "stop")]


def test_usage_comes_once_and_last_and_only_if_asked_for(live: Live) -> None:
    fields: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True}
    options = {"include_usage": True}
    *before, last = chunks(live.client.stream(NAME, QUESTION, stream_options=options, **fields).content)
    assert [chunk["usage"] for chunk in before] == [None] * len(before)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert not any(chunk.get("usage") for chunk in chunks(live.client.stream(NAME, QUESTION, **fields).content))


@pytest.mark.parametrize("stream", [True, False])
def test_two_choices(live: Live, stream: bool) -> None:
    fields: dict[str, Any] = {"n": 2, "max_tokens": 6, "ignore_eos": True}
    if stream:
        found = chunks(live.client.stream(NAME, QUESTION, stream_options={"include_usage": True}, **fields).content)
        assert reasons(found) == [(0, "length"), (1, "length")]
        assert sum(bool(chunk.get("usage")) for chunk in found) == 1
        seen = [choice["index"] for chunk in found for choice in chunk["choices"]]
        assert seen.index(0) < seen.index(1), "OpenAI's helper places choices by counting"
    else:
        choices = whole(live, **fields)["choices"]
        assert [(choice["index"], choice["finish_reason"]) for choice in choices] == [(0, "length"), (1, "length")]
        assert all(choice["message"]["content"] for choice in choices)


def test_the_servers_own_refusal_is_passed_on(live: Live) -> None:
    error = refused(live.client.post(ask(NAME, n=SLOTS + 1)), 400)
    assert str(SLOTS) in error["message"]
    refused(live.client.post(ask(NAME, prompt="long " * 5000)), 400)


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_that_has_to_be_called(live: Live, stream: bool) -> None:
    """The beginning of the call is laid in the model's mouth: what `required` forbids is to end without one."""
    messages = [
        {"role": "user", "content": "What is the weather in Rome?"},
        {"role": "assistant", "content": "<tool_call>["},
    ]
    fields: dict[str, Any] = {
        "messages": messages,
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    if stream:
        found = chunks(live.client.stream(NAME, **fields).content)
        assert reasons(found) == [(0, "tool_calls")]
        deltas = [delta for chunk in found for delta in chunk["choices"][0]["delta"].get("tool_calls", ())]
        assert {delta["index"] for delta in deltas} == {0}
        assert [delta["function"]["name"] for delta in deltas if "name" in delta["function"]] == ["weather"]
        assert [bool(delta["id"]) for delta in deltas if "id" in delta] == [True]
        arguments = "".join(delta["function"].get("arguments", "") for delta in deltas)
    else:
        (choice,) = whole(live, **fields)["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert (choice["finish_reason"], call["type"], call["function"]["name"]) == (
            "tool_calls",
            "function",
            "weather",
        )
        arguments = call["function"]["arguments"]
    assert json.loads(arguments)["city"] in ("Paris", "Rome")


def test_an_answer_by_a_schema(live: Live) -> None:
    schema = {"type": "object", "properties": {"blue": {"type": "boolean"}}, "required": ["blue"]}
    form = {"type": "json_schema", "json_schema": {"name": "sky", "strict": True, "schema": schema}}
    content = whole(live, response_format=form, max_tokens=60)["choices"][0]["message"]["content"]
    assert isinstance(json.loads(content)["blue"], bool)


def test_the_official_client(live: Live) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    extra = {"grammar": COUNTING}
    with openai.OpenAI(base_url=f"{live.up.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(model=NAME, messages=messages, extra_body=extra)
        assert answer.choices[0].message.content == "one two three four five"
        with client.chat.completions.stream(model=NAME, messages=messages, extra_body=extra) as stream:
            assert stream.get_final_completion().choices[0].message.content == "one two three four five"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model=NAME, messages=messages, n=SLOTS + 1)


def test_more_at_once_than_the_model_takes(live: Live) -> None:
    """What waits in the model server is waited for."""
    body = ask(NAME, QUESTION, grammar=COUNTING, background=True)
    started = [live.client.post(body).json()["id"] for _ in range(SLOTS + 2)]
    answers = [text(chunks(live.client.whole(generation_id))) for generation_id in started]
    assert answers == ["one two three four five"] * (SLOTS + 2)


def test_a_viewer_that_leaves_and_one_that_comes_late_miss_nothing(live: Live) -> None:
    with live.client.streaming(NAME, QUESTION, max_tokens=40, ignore_eos=True) as first:
        seen = first.take(8)
        with live.client.watching(first.id) as second:
            followed = second.take(8)
            missing = live.client.whole(first.id, headers={"last-event-id": position(followed[-1])})
        generation_id = first.id
    said = text(chunks(live.client.whole(generation_id)))
    *rest, _ = frames(missing)
    assert text([json.loads(frame.partition(b"data: ")[2]) for frame in [*followed, *rest]]) == said
    assert said.startswith(text([json.loads(frame.partition(b"data: ")[2]) for frame in seen]))
    assert live.client.state(generation_id)["attempts"] == 1
