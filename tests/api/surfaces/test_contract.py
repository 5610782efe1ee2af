"""OpenAI's contract on the wire, field by field: what a chunk and an answer always have, and in which order."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest

from shared.chat.chunks import Accumulator
from tests.harness.upstream import DONE, USAGE, chunk, ending, words
from tests.support.wire import Client, Register, ask, chunks

WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


def test_an_answer_has_all_that_is_required(client: Client, scripted: Register) -> None:
    answer = client.post(ask(scripted([chunk({"content": "a"}), *ending()]).model)).json()
    assert {"id", "object", "created", "model", "choices", "usage"} <= answer.keys()
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {"role": "assistant", "content": "a", "refusal": None},
        }
    ]


def test_every_chunk_has_all_that_is_required(client: Client, scripted: Register) -> None:
    found = chunks(client.stream(scripted([*words(3), *ending()]).model).content)
    for part in found:
        assert {"id", "object", "created", "model", "choices"} <= part.keys()
        assert part["object"] == "chat.completion.chunk"
        for choice in part["choices"]:
            assert {"delta", "finish_reason", "index"} <= choice.keys()
    assert len({(part["id"], part["created"], part["model"]) for part in found}) == 1


@pytest.mark.parametrize("usage", ["last", "with the finish reason", "in every chunk", "before the end", "twice"])
def test_usage_is_null_in_every_chunk_but_one_and_that_is_the_last(
    client: Client, scripted: Register, usage: str
) -> None:
    figures = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    beside: dict[str, Any] = {"usage": figures}
    role = chunk({"role": "assistant", "content": "a"}, **(beside if usage == "in every chunk" else {}))
    finish = chunk({}, "stop", **(beside if usage != "last" and usage != "twice" else {}))
    parts = {
        "before the end": [role, USAGE, finish, DONE],
        "twice": [role, finish, USAGE, USAGE, DONE],
        "last": [role, finish, USAGE, DONE],
    }.get(usage, [role, finish, DONE])
    asked = scripted(parts)
    *before, last = chunks(client.stream(asked.model, **WITH_USAGE).content)
    assert [part["usage"] for part in before] == [None] * len(before)
    assert (last["choices"], last["usage"]) == ([], figures)
    assert all(part["choices"] for part in before)
    unasked = chunks(client.stream(asked.model).content)
    assert not any("usage" in part for part in unasked)
    assert len(unasked) == len(before)
    assert client.post(ask(asked.model)).json()["usage"] == figures


@pytest.mark.parametrize("roles", [["assistant"] * 3, [None] * 3, ["assistant", None, None], ["", "assistant", ""]])
def test_the_role_is_said_once_and_first(client: Client, scripted: Register, roles: list[str | None]) -> None:
    parts = [chunk({"content": "a", **({} if role is None else {"role": role})}) for role in roles]
    found = chunks(client.stream(scripted([*parts, *ending()]).model).content)
    assert [part["choices"][0]["delta"].get("role") for part in found] == ["assistant", *[None] * 3]


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (1, 0, 1, 0), (1, 1, 0, 0)])
def test_two_choices_appear_in_order(client: Client, scripted: Register, order: tuple[int, ...]) -> None:
    said = [chunk({"content": f"{at}"}, index=index) for at, index in enumerate(order)]
    parts = [*said, *(chunk({}, "stop", index=index) for index in (1, 0)), USAGE, DONE]
    asked = scripted(parts)
    found = chunks(client.stream(asked.model, n=2).content)
    indexes = [choice["index"] for part in found for choice in part["choices"]]
    assert [index for index, _ in groupby(dict.fromkeys(indexes))] == [0, 1]
    texts = ["".join(str(at) for at, index in enumerate(order) if index == wanted) for wanted in (0, 1)]
    answer = client.post(ask(asked.model, n=2)).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == texts


AUDIO = [
    {"role": "assistant", "content": None, "refusal": None},
    {"audio": {"id": "audio_1", "transcript": "Hel"}},
    {"audio": {"id": "audio_1", "data": "AAAA"}},
    {"audio": {"data": "BBBB", "transcript": "lo"}},
    {"audio": {"expires_at": 1700000000}},
]
UNKNOWN = [
    {"role": "assistant", "content": "a", "x_text": "p", "x_list": [1], "x_object": {"deep": [None, "é\u2028"]}},
    {"content": "b", "x_text": "q", "x_list": [2], "x_number": 2**60},
]
DETAILS = [
    {"role": "assistant", "content": "", "reasoning_details": [{"type": "reasoning.text", "text": piece, "index": 0}]}
    for piece in ("let me ", "see")
]
LEGACY = [
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
    {"function_call": {"arguments": '{"a":'}},
    {"function_call": {"arguments": "1}"}},
]


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        (
            AUDIO,
            {
                "content": None,
                "audio": {"id": "audio_1", "transcript": "Hello", "data": "AAAABBBB", "expires_at": 1700000000},
            },
        ),
        (
            UNKNOWN,
            {
                "content": "ab",
                "x_text": "pq",
                "x_list": [1, 2],
                "x_object": {"deep": [None, "é\u2028"]},
                "x_number": 2**60,
            },
        ),
        (
            DETAILS,
            {"content": "", "reasoning_details": [{"type": "reasoning.text", "text": "let me see", "index": 0}]},
        ),
        (LEGACY, {"content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}}),
    ],
    ids=["audio", "unknown", "reasoning_details", "function_call"],
)
def test_deltas_pass_untouched_and_fold_to_the_answer(
    client: Client, scripted: Register, deltas: list[dict[str, Any]], message: dict[str, Any]
) -> None:
    asked = scripted([*(chunk(delta) for delta in deltas), *ending()])
    posted = client.stream(asked.model)
    found = chunks(posted.content)
    streamed = [part["choices"][0]["delta"] for part in found[: len(deltas)]]
    assert streamed == [deltas[0], *({k: v for k, v in delta.items() if k != "role"} for delta in deltas[1:])]
    expected = {"role": "assistant", "refusal": None, **message}
    assert client.post(ask(asked.model)).json()["choices"][0]["message"] == expected
    fold = Accumulator()
    for part in found:
        fold.feed(part)
    assert fold.result()["choices"][0]["message"] == expected
    stored = client.get(f"/v1/chat/completions/{posted.headers['x-stream-id']}").json()
    assert stored["choices"][0]["message"] == expected


ODD: dict[str, Any] = {
    "stream_options": None,
    "tools": [],
    "max_tokens": None,
    "max_completion_tokens": None,
    "stop": None,
    "user": "",
    "functions": [],
    "tool_choice": None,
    "logit_bias": {},
    "response_format": None,
    "metadata": None,
    "store": None,
    "top_logprobs": None,
    "logprobs": False,
}


def test_what_clients_send_without_meaning_it_is_accepted(client: Client) -> None:
    for stream in (True, False, None):
        response = client.post(ask("fake/echo", stream=stream, **ODD))
        assert response.status_code == 200, response.text


def test_what_other_providers_know_is_forwarded(client: Client, scripted: Register) -> None:
    asked = scripted([*words(1), *ending()])
    theirs: dict[str, Any] = {
        "temperature": 3.5,
        "top_k": 40,
        "min_p": 0.05,
        "reasoning_effort": "very high",
        "stop": list("abcdefgh"),
        "tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}],
        "tool_choice": "any",
        "response_format": {"type": "grammar", "grammar": 'root ::= "x"'},
    }
    assert client.post(ask(asked.model, **theirs)).status_code == 200
    assert theirs.items() <= asked.script.calls[0].items()
