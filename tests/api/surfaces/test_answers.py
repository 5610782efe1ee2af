"""Whole answers: the same log as the stream, folded into one object."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shared.chat.chunks import Accumulator
from tests.harness.processes import wait_until
from tests.harness.upstream import DONE, USAGE, Pause, chunk, ending, words
from tests.support.wire import Client, Register, ask, chunks, refused


def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
    """A delta of one tool call; `first` is what only its first one carries."""
    name = {"name": first.pop("name")} if "name" in first else {}
    return {"tool_calls": [{"index": index, **first, "function": {**name, "arguments": arguments}}]}


def tool(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


ROLE = chunk({"role": "assistant", "content": ""})
LOGPROB = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
TEXT = {"role": "assistant", "content": "w0 w1 ", "refusal": None}

CASES: dict[str, tuple[list[bytes], list[dict[str, Any]]]] = {
    "text": (
        [*words(2), *ending()],
        [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": TEXT}],
    ),
    "a tool call in fragments": (
        [
            chunk({"role": "assistant", "content": None}),
            chunk(call(0, "", id="c1", type="function", name="weather")),
            *(chunk(call(0, piece)) for piece in ('{"ci', 'ty":', ' "Oslo"', "}")),
            chunk({}, "tool_calls"),
            DONE,
        ],
        [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "logprobs": None,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [tool("c1", "weather", '{"city": "Oslo"}')],
                },
            }
        ],
    ),
    "parallel calls, interleaved": (
        [
            ROLE,
            chunk(call(0, "", id="c1", type="function", name="f")),
            chunk(call(1, "", id="c2", type="function", name="f")),
            chunk(call(1, "[2")),
            chunk(call(0, "[1")),
            chunk(call(0, "]")),
            chunk(call(1, "]")),
            chunk({}, "tool_calls"),
            DONE,
        ],
        [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "logprobs": None,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    "tool_calls": [tool("c1", "f", "[1]"), tool("c2", "f", "[2]")],
                },
            }
        ],
    ),
    "reasoning": (
        [ROLE, chunk({"reasoning_content": "let me "}), chunk({"reasoning_content": "see"}), *words(2)[1:], *ending()],
        [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {**TEXT, "reasoning_content": "let me see"},
            }
        ],
    ),
    "a refusal": (
        [ROLE, chunk({"refusal": "I "}), chunk({"refusal": "will not"}), chunk({}, "stop"), DONE],
        [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "", "refusal": "I will not"},
            }
        ],
    ),
    "unknown fields": (
        [ROLE, chunk({"x_text": "a", "x_number": 1}), chunk({"x_text": "b", "x_number": 2}), *ending()],
        [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "", "refusal": None, "x_text": "ab", "x_number": 2},
            }
        ],
    ),
    "logprobs": (
        [
            ROLE,
            *(
                b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null,"logprobs":{"content":'
                b'[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}],"refusal":null}}]}\n\n'
                for _ in range(2)
            ),
            *ending(),
        ],
        [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": {"content": [LOGPROB, LOGPROB], "refusal": None},
                "message": {"role": "assistant", "content": "aa", "refusal": None},
            }
        ],
    ),
    "two choices": (
        [
            *(chunk({"role": "assistant", "content": ""}, index=i) for i in (0, 1)),
            *(chunk({"content": f"{part}{i} "}, index=i) for part in "ab" for i in (1, 0)),
            *(chunk({}, reason, index=i) for i, reason in ((1, "stop"), (0, "length"))),
            USAGE,
            DONE,
        ],
        [
            {
                "index": i,
                "finish_reason": reason,
                "logprobs": None,
                "message": {"role": "assistant", "content": f"a{i} b{i} ", "refusal": None},
            }
            for i, reason in ((0, "length"), (1, "stop"))
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_what_the_stream_says(client: Client, scripted: Register, name: str) -> None:
    parts, expected = CASES[name]
    model = scripted(parts).model
    options: dict[str, Any] = {"n": len(expected)}
    answer = client.post(ask(model, **options)).json()
    assert answer["choices"] == expected
    assert answer["object"] == "chat.completion"
    assert answer["model"] == model
    streamed = Accumulator()
    posted = client.stream(model, **options)
    for part in chunks(posted.content):
        streamed.feed(part)
    assert streamed.result()["choices"] == expected
    assert client.get(f"/v1/chat/completions/{posted.headers['x-stream-id']}").json()["choices"] == expected


def test_an_answer_has_usage_and_every_other_field(client: Client, scripted: Register) -> None:
    extra: dict[str, Any] = {"system_fingerprint": "fp", "service_tier": "default", "x_top": {"a": 1}}
    parts = [chunk({"role": "assistant", "content": "a"}, **extra), *ending()]
    answer = client.post(ask(scripted(parts).model)).json()
    assert extra.items() <= answer.items()
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert answer["status"] == "completed"
    assert "error" not in answer


def test_an_emoji_in_two_halves_becomes_whole(client: Client, scripted: Register) -> None:
    halves = [
        rb'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"%b"}}]}' % half + b"\n\n"
        for half in (rb"\ud83d", rb"\ude00")
    ]
    model = scripted([*halves, *ending()]).model
    answer = client.post(ask(model))
    assert answer.status_code == 200, answer.text
    assert (
        answer.json()["choices"][0]["message"]["content"].encode("utf-16", "surrogatepass").decode("utf-16")
        == "\U0001f600"
    )
    assert client.get(f"/v1/chat/completions/{answer.json()['id']}").status_code == 200


def test_half_an_emoji_alone_is_no_failure(client: Client, scripted: Register) -> None:
    half = rb'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a\ud83d"}}]}' + b"\n\n"
    answer = client.post(ask(scripted([half, *ending()]).model))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "a\ud83d"


@pytest.mark.parametrize("nothing", [None, []])
def test_fields_that_say_nothing_are_no_failure(client: Client, scripted: Register, nothing: Any) -> None:
    """Many providers send every field in every delta."""
    fields = {"tool_calls": nothing, "function_call": None, "refusal": None, "reasoning_content": None, "audio": None}
    parts = [chunk({"role": "assistant", "content": part, **fields}, logprobs=None) for part in ("a", "b", "")]
    answer = client.post(ask(scripted([*parts, *ending()]).model))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "ab"


def test_numbers_of_any_size_stay_as_they_are(client: Client, scripted: Register) -> None:
    event = chunk({"role": "assistant", "content": "a"}, big=2**70)
    answer = client.post(ask(scripted([event, *ending()]).model))
    assert b'"big":1180591620717411303424' in answer.content


def test_a_long_answer_that_left_memory_is_whole(client: Client, scripted: Register) -> None:
    """More than the hub keeps: the answer is then folded from the log."""
    parts = [ROLE, *[chunk({"content": "x" * 60_000})] * 100, *ending()]
    model = scripted(parts).model
    answer = client.post(ask(model)).json()
    assert answer["choices"][0]["message"]["content"] == "x" * 6_000_000
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_cut_short_by_length_is_an_answer(client: Client) -> None:
    answer = client.post(ask("fake/lorem", max_tokens=3)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["status"] == "incomplete"
    assert "error" not in answer


def test_a_cancelled_answer_says_so(client: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(2), pause, *ending()])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, ask(asked.model))
        listed = f"/v1/streams?model={asked.model}&status=in_progress"
        (state,) = wait_until(lambda: client.get(listed).json()["data"])
        assert client.cancel(state["id"]).status_code == 200
        response = waiting.result(60)
    refused(response, 499, "generation_cancelled")
    assert response.headers["x-should-retry"] == "false"


def test_an_answer_goes_on_without_its_client(client: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(3), pause, *ending()])
    with client.view("POST", "/v1/chat/completions", json=ask(asked.model, stream=True)) as viewer:
        viewer.take(1)
    pause.go()
    wait_until(lambda: client.state(viewer.id)["status"] == "completed")
    assert client.get(f"/v1/chat/completions/{viewer.id}").json()["choices"][0]["message"]["content"] == "w0 w1 w2 "
    assert not asked.script.hung_up


def test_many_answers_at_once_stay_apart(client: Client) -> None:
    barrier = threading.Barrier(8)

    def one(i: int) -> str:
        barrier.wait(60)
        said: str = client.post(ask("fake/echo", f"I am number {i}")).json()["choices"][0]["message"]["content"]
        return said

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [f"I am number {i}" for i in range(8)]
