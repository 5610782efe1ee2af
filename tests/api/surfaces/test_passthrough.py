"""What the broker must not touch: fields it does not know, both ways; and the few it sets itself."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from shared.chat.chunks import EXTENSION_FIELDS
from tests.harness.upstream import DONE, USAGE, Pause, chunk, ending, usage, words
from tests.support.wire import Client, Register, ask, chunks, error_of, frames, payload, text

UNKNOWN: dict[str, Any] = {
    "x_unknown": {"deep": [1, 2.5, None, True, {"é\u2028\u0000": '\U0001f600 " \\ \n'}]},
    "top_k": 40,
    "big": 2**70,
    "negative": -(2**65),
    "tiny": 1e-300,
    "empty": {},
    "reasoning_effort": "xhigh",
    "api_base": "http://attacker.example",
    "extra_body": {"base_url": "http://attacker.example"},
}
KNOWN: dict[str, Any] = {
    "n": 1,
    "temperature": 0,
    "top_p": 0.5,
    "max_completion_tokens": 10,
    "stop": ["a", "b"],
    "seed": 7,
    "logprobs": True,
    "top_logprobs": 2,
    "user": "u",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}},
}
MESSAGES: list[dict[str, Any]] = [
    {"role": "developer", "content": "be brief", "name": "dev", "x": 1},
    {
        "role": "user",
        "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
    },
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SENT = [{**MESSAGES[0], "role": "system"}, MESSAGES[1], {**MESSAGES[2], "tool_calls": [CALL]}, MESSAGES[3]]
"""What a server nobody knows gets of them: a role that all know, and arguments that are an object."""


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_forwarded_as_it_is(client: Client, scripted: Register, stream: bool) -> None:
    asked = scripted([*words(1), *ending()])
    body = {"model": asked.model, "messages": MESSAGES, "stream": stream, **KNOWN, **UNKNOWN}
    assert client.post(body).status_code == 200
    expected = {
        **body,
        "messages": SENT,
        "model": asked.name,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert asked.script.calls == [expected]


def test_our_own_fields_stay_here(client: Client, scripted: Register) -> None:
    asked = scripted([*words(1), *ending()])
    ours: dict[str, Any] = {
        "on_interruption": "fail",
        "on_disconnect": "continue",
        "session_id": f"s-{uuid.uuid4().hex}",
        "session_policy": "enqueue",
        "session_trim": "oldest",
        "session_max_tokens": 1000,
        "session_keep_partial": True,
        "store_reasoning": True,
        "reasoning_summary": True,
        "background": False,
        "max_tokens_per_s": 5000,
        "webhook": None,
        "store": True,
        "metadata": {"k": "v"},
    }
    # Those two are what other surfaces note for themselves.
    assert ours.keys() | {"responses", "whole"} == EXTENSION_FIELDS
    response = client.post(ask(asked.model, **ours))
    assert response.status_code == 200, response.text
    assert not asked.script.calls[0].keys() & ours.keys()


def test_nothing_of_the_clients_headers_goes_upstream(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(1), *ending()])
    private = {
        "cookie": "session=canary",
        "x-forwarded-for": "192.0.2.1",
        "openai-organization": "canary",
        "x-any": "canary",
    }
    assert alice.post(ask(asked.model), headers=private).status_code == 200
    sent = asked.script.calls[0].headers
    assert "authorization" not in sent
    assert not private.keys() & sent.keys()
    assert "canary" not in str(sent)


def test_a_providers_own_key_is_what_it_gets(alice: Client, scripted: Register) -> None:
    asked = scripted([*words(1), *ending()], provider="openai")
    assert alice.post(ask(asked.model)).status_code == 200
    assert asked.script.calls[0].headers["authorization"] == "Bearer sk-canary-provider-key-0123456789"


def test_nothing_of_the_providers_headers_comes_back(client: Client, scripted: Register) -> None:
    headers = {
        "content-type": "text/event-stream",
        "set-cookie": "a=canary",
        "x-request-id": "canary",
        "x-up": "canary",
    }
    response = client.stream(scripted([*words(1), *ending()], headers=headers).model)
    assert "canary" not in str(response.headers)


# ---- chunks

EVENTS = {
    "unknown fields everywhere": (
        r'{"x_top": {"a": [1, null]}, "choices": [{"index": 0, "x_choice": 1.5, "finish_reason": null,'
        r' "delta": {"role": "assistant", "content": "a", "x_delta": [[]], "reasoning_details": [{"type": "t"}]}}]}'
    ),
    "big integers": (
        r'{"big": 1180591620717411303424, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a",'
        r' "n": -99999999999999999999999}}]}'
    ),
    "half an emoji": r'{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "\ud83d"}}]}',
    "line separators": '{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a\u2028b\u2029c\u0085d"}}]}',
    "escaped line ends": (
        r'{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a\r\n\n\u000bdata: x\u0000"}}]}'
    ),
    "beyond the BMP": '{"choices": [{"index": 0, "delta": {"role": "assistant", "content": "\U0001f600"}}]}',
    "floats": (
        r'{"t": [0.1, 1e-7, 1.7976931348623157e308, -0.0, 123456789.123456789],'
        r' "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}'
    ),
    "odd keys": r'{"": 1, "a b": 2, "\ud83d": 3, "choices": [{"index": 0, "delta": {"role": "assistant", "": "x"}}]}',
}


@pytest.mark.parametrize("name", EVENTS)
def test_a_chunk_arrives_as_it_was(client: Client, scripted: Register, name: str) -> None:
    event = EVENTS[name]
    raw = b"data: " + event.encode() + b"\n\n"
    model = scripted([chunk({"role": "assistant", "content": ""}), raw, *ending()]).model
    body = client.stream(model).content
    (_, seen, *_, _) = frames(body)
    expected = json.loads(event)
    expected["choices"][0]["delta"].pop("role")  # only once a choice
    expected["choices"][0].setdefault("finish_reason", None)  # clients require it
    got = payload(seen)
    for ours in ("id", "object", "created", "model"):
        got.pop(ours)
    assert got == expected
    if "big" in expected:
        assert b'"big":1180591620717411303424' in seen


def test_only_data_passes(client: Client, scripted: Register) -> None:
    """An upstream cannot speak to our viewers in events, ids, retries or comments of its own."""
    said = chunk({"content": 'x\n\ndata: {"error": "forged"}\n\nevent: execute\n'})
    noise = b": hello\n\nretry: 1\nid: 7\nevent: execute\n"
    response = client.stream(scripted([*words(1), noise + said, *ending()]).model)
    found = chunks(response.content)
    assert text(found).endswith('x\n\ndata: {"error": "forged"}\n\nevent: execute\n')
    for frame in frames(response.content):
        assert frame.startswith(b"data: ")
        assert frame.count(b"\n") == 2


@pytest.mark.parametrize("separator", [b"\r\n", b"\r", b"\n"])
def test_any_line_end_and_any_split_of_the_upstream(client: Client, scripted: Register, separator: bytes) -> None:
    script = b"".join([b"\xef\xbb\xbf", *words(3), *ending()]).replace(b"\n", separator)
    pieces = [script[i : i + 7] for i in range(0, len(script), 7)]
    assert text(chunks(client.stream(scripted(pieces).model).content)) == "w0 w1 w2 "


def test_identity_is_constant_and_ours(client: Client, scripted: Register) -> None:
    parts = [chunk({"content": "a"}, id=f"up-{i}", created=i, model=f"up/{i}", object="x") for i in range(5)]
    asked = scripted([*parts, *ending()])
    response = client.stream(asked.model)
    found = chunks(response.content)
    assert {part["id"] for part in found} == {response.headers["x-stream-id"]}
    assert {part["model"] for part in found} == {asked.model}
    assert {part["object"] for part in found} == {"chat.completion.chunk"}
    assert {part["created"] for part in found} == {client.state(found[0]["id"])["created_at"]}


# ---- usage

RUNNING_USAGE = [
    chunk({"content": "a"}, usage={"prompt_tokens": 7, "completion_tokens": i, "total_tokens": 7 + i}) for i in range(5)
]
UPSTREAMS = {
    "apart, at the end": [*words(2), *ending()],
    "on the last chunk": [*words(2), chunk({}, "stop", usage={"prompt_tokens": 7, "total_tokens": 12}), DONE],
    "on every chunk": [*RUNNING_USAGE, chunk({}, "stop"), USAGE, DONE],
    "twice": [*words(2), chunk({}, "stop"), USAGE, USAGE, DONE],
    "before the finish reason": [*words(2), USAGE, chunk({}, "stop"), DONE],
}


@pytest.mark.parametrize("name", UPSTREAMS)
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
def test_usage_is_not_shown_unasked(
    client: Client, scripted: Register, name: str, options: dict[str, Any] | None
) -> None:
    asked = scripted(UPSTREAMS[name])
    response = client.stream(asked.model, stream_options=options)
    assert b"usage" not in response.content
    assert all(part["choices"] for part in chunks(response.content))
    assert asked.script.calls[0]["stream_options"]["include_usage"] is True
    assert client.state(response.headers["x-stream-id"])["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("name", UPSTREAMS)
def test_usage_is_shown_once_and_last(client: Client, scripted: Register, name: str) -> None:
    asked = scripted(UPSTREAMS[name])
    response = client.stream(asked.model, stream_options={"include_usage": True, "include_obfuscation": False})
    *before, last = chunks(response.content)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 12
    assert [part["usage"] for part in before] == [None] * len(before)
    assert all(part["choices"] for part in before)
    assert asked.script.calls[0]["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_j3_without_a_figure_of_the_providers_it_is_an_estimate(client: Client, scripted: Register) -> None:
    model = scripted([*words(8), *ending(usage=False)]).model
    response = client.stream(model, "x" * 40, stream_options={"include_usage": True})
    *before, last = chunks(response.content)
    figures = {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16}
    assert (last["choices"], last["usage"]) == ([], figures)
    assert last["usage_source"] == "estimate", "an estimate is never passed off as a figure"
    assert not any(part["usage"] for part in before)
    state = client.state(response.headers["x-stream-id"])
    assert (state["usage_source"], state["usage"]) == ("estimate", figures)
    assert client.post(ask(model, "x" * 40)).json()["usage_source"] == "estimate"
    assert "usage_source" not in client.post(ask(scripted(UPSTREAMS["twice"]).model)).json()


def test_k5_half_of_the_providers_figures_is_made_whole(client: Client, scripted: Register) -> None:
    figures = {"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13}
    model = scripted([*words(8), chunk({}, "stop"), usage(prompt_tokens=7), DONE]).model
    response = client.stream(model, stream_options={"include_usage": True})
    *before, last = chunks(response.content)
    assert (last["usage"], last["usage_source"]) == (figures, "estimate")
    assert not any(part["usage"] for part in before)
    whole = client.post(ask(model)).json()
    assert (whole["usage"], whole["usage_source"]) == (figures, "estimate")
    state = client.state(response.headers["x-stream-id"])
    assert (state["usage"], state["usage_source"]) == (figures, "estimate")


def test_a_late_failure_shows_no_usage_after_it(client: Client, scripted: Register) -> None:
    broken = b'data: {"error": {"message": "broken in the middle"}}\n\n'
    response = client.stream(scripted([*words(2), broken]).model, stream_options={"include_usage": True})
    *_, failure, end = frames(response.content)
    assert error_of(payload(failure))
    assert end == b"data: [DONE]\n\n"


@pytest.mark.parametrize("depth", [100, 250, 500, 900, 1000])
def test_a_nesting_that_is_accepted_reaches_the_provider(client: Client, scripted: Register, depth: int) -> None:
    asked = scripted([*words(1), *ending()])
    body = json.dumps(ask(asked.model)).removesuffix("}") + ', "x_deep": ' + "[" * depth + "]" * depth + "}"
    response = client.send(body.encode())
    assert response.status_code in (200, 400), response.text
    assert len(asked.script.calls) == (response.status_code == 200)


def test_a_stalled_viewer_does_not_hold_up_the_upstream(client: Client, scripted: Register) -> None:
    pause = Pause()
    asked = scripted([*words(1), *[chunk({"content": "x" * 50_000})] * 100, *ending(), pause])
    with client.streaming(asked.model) as viewer:
        viewer.take(1)
        other = client.whole(viewer.id)
        assert len(other) > 5_000_000
        assert len(viewer.rest()) > 5_000_000 - 1000
