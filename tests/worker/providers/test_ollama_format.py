"""Ollama's own format: its lines, what is asked for, what an answer means. Streams are written by hand, after
docs.ollama.com/api/chat; there is no recording of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest, UpstreamError, UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from shared.lib import sse
from shared.log.entry import Chunk
from tests.support.answers import assert_readable, completion, hear, read_by_sdk, values
from tests.support.recordings import fold
from worker.providers.formats.ollama import DIALECT, build_request

USER: dict[str, Any] = {"role": "user", "content": "hi"}


def sdk_message(chunks: list[Chunk]) -> dict[str, Any]:
    message: dict[str, Any] = read_by_sdk(chunks)["choices"][0]["message"]
    return message


def asked(**fields: Any) -> dict[str, Any]:
    return build_request({"model": "acme/m", "messages": [USER], **fields}, "m")


# ---- lines


def decode(*pieces: bytes, limit: int = 100) -> list[bytes]:
    decoder = DIALECT.decoder(limit)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [event.data for event in events + decoder.close()]


text = st.binary(max_size=12).map(lambda data: b"x" + data.replace(b"\n", b"").replace(b"\r", b"x"))
line = st.one_of(text, st.sampled_from([b"", b"  "]))


@given(st.lists(line), st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_any_split_gives_the_same_lines(lines: list[bytes], end: bytes, data: st.DataObject) -> None:
    stream = end.join([*lines, b""])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == [line for line in lines if line.strip()]


@given(st.integers(0, 8), st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_the_limit_does_not_depend_on_the_split(over: int, end: bytes, data: st.DataObject) -> None:
    stream = b"ok\n" + b"x" * (16 + over) + end + b"ok\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    decoder = DIALECT.decoder(16)
    events: list[sse.Event] = []

    def read() -> None:
        for piece in pieces:
            events.extend(decoder.feed(piece))
        events.extend(decoder.close())

    if over:
        with pytest.raises(sse.EventTooLarge):
            read()
        assert [event.data for event in events] == [b"ok"]
    else:
        read()
        assert [event.data for event in events] == [b"ok", b"x" * 16, b"ok"]


def test_an_endless_line_is_not_kept() -> None:
    decoder = DIALECT.decoder(16)
    with pytest.raises(sse.EventTooLarge):
        for _ in range(3):
            decoder.feed(b"x" * 16)


def test_a_last_line_without_an_end_counts_if_it_is_whole() -> None:
    assert decode(b'{"a":1}\n{"b":2}') == [b'{"a":1}', b'{"b":2}']
    assert decode(b'{"a":1}\n{"b":{"c":2}') == [b'{"a":1}']


# ---- the request


def test_a_plain_question() -> None:
    assert asked(stream=False) == {"model": "m", "messages": [USER], "stream": True}


def test_options() -> None:
    sent = asked(
        temperature=0.5, top_p=0.9, top_k=3, seed=0, stop="x", max_tokens=5, max_completion_tokens=7,
        presence_penalty=1.0, num_ctx=10, options={"repeat_penalty": 2}, keep_alive="5m", min_p=None,
    )  # fmt: skip
    assert sent["options"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 0,
        "stop": ["x"],
        "num_predict": 7,
        "presence_penalty": 1.0,
        "num_ctx": 10,
        "repeat_penalty": 2,
    }
    assert sent.keys() == {"model", "messages", "stream", "options", "keep_alive"}
    with pytest.raises(BadRequest, match="said twice"):
        asked(temperature=0.5, options={"temperature": 0.6})


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("xhigh", "high"), ("max", "high")],
)
def test_f23_levels_are_for_models_that_have_them(effort: str, think: bool | str) -> None:
    """Ollama refuses a level for any model but gpt-oss: `think value "medium" is not supported for this model`."""
    body = {"model": "acme/m", "messages": [USER], "reasoning_effort": effort}
    assert build_request(body, "gpt-oss:20b")["think"] == think
    assert build_request(body, "qwen3:8b")["think"] is (effort != "none")


def test_formats_and_logprobs() -> None:
    schema = {"type": "object"}
    assert asked(response_format={"type": "json_schema", "json_schema": {"schema": schema}})["format"] == schema
    assert asked(response_format={"type": "json_object"})["format"] == "json"
    assert asked(response_format={"type": "text"}) == asked(logprobs=False) == asked()
    assert asked(logprobs=True, top_logprobs=2).items() >= {"logprobs": True, "top_logprobs": 2}.items()


def test_messages() -> None:
    content = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    sent = asked(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": content},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "1"}]},
            {"role": "assistant", "refusal": "no"},
        ]
    )
    assert sent["messages"] == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "see", "images": ["AAAA"]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "1", "tool_call_id": "c1", "tool_name": "f"},
        {"role": "assistant", "content": "no"},
    ]


TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}


def test_tools() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert asked(tools=[TOOL])["tools"] == [{"type": "function", "function": function}]
    assert asked(tools=[TOOL], tool_choice="none") == asked()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"verbosity": "low"}, "verbosity"),
        ({"options": 1, "seed": 1}, "options"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("url", ["https://x/y.png", "data:image/png,x", "AAAA"])
def test_images_that_ollama_cannot_have(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert caught.value.param == "messages[0].content[0]"


# ---- the answer


def lines(*values: dict[str, Any], end: bytes = b"\n") -> bytes:
    common = {"model": "m", "created_at": "2026-01-01T00:00:00Z"}
    return b"".join(json.dumps({**common, **value}).encode() + end for value in values)


def said(content: str = "", **message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **message}, "done": False}


COUNTS = {"total_duration": 9, "load_duration": 1, "prompt_eval_count": 3, "prompt_eval_duration": 2, "eval_count": 4}
END: dict[str, Any] = {**said(), "done": True, "done_reason": "stop", **COUNTS}


def answer(*values: dict[str, Any]) -> tuple[list[Chunk], UpstreamError | None]:
    return hear(DIALECT, lines(*values))


def test_an_answer() -> None:
    chunks, error = answer(said(thinking="h"), said(thinking="m"), said("a"), said("b"), END)
    assert error is None
    assert_readable(chunks)
    assert sdk_message(chunks)["content"] == "ab"
    whole = completion(chunks)
    [choice] = whole["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("ab", "hm")
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "stop")
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert chunks[-1].is_usage
    assert whole["ollama"] == {"total_duration": 9, "load_duration": 1, "prompt_eval_duration": 2}


def test_calls_without_an_id_get_one() -> None:
    def call(arguments: Any, **more: Any) -> dict[str, Any]:
        return {"function": {"name": "f", "arguments": arguments}, **more}

    values = (said(tool_calls=[call({"a": "é"}), call({}, id="x")]), said(tool_calls=[call('{"b":1}')]), END)
    chunks, _ = answer(*values)
    [choice] = completion(chunks)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == 3
    assert calls == [
        {"id": calls[0]["id"], "type": "function", "function": {"name": "f", "arguments": '{"a":"é"}'}},
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": calls[2]["id"], "type": "function", "function": {"name": "f", "arguments": '{"b":1}'}},
    ]
    assert len(sdk_message(chunks)["tool_calls"]) == 3
    assert answer(*values) == (chunks, None)


@pytest.mark.parametrize(
    ("native", "finish"), [("stop", "stop"), ("length", "length"), ("load", "stop"), ("unload", "stop"), (None, "stop")]
)
def test_ends(native: str | None, finish: str) -> None:
    end = {key: value for key, value in {**END, "done_reason": native}.items() if value is not None}
    [choice] = completion(answer(said("a"), end)[0])["choices"]
    assert (choice["finish_reason"], choice.get("native_finish_reason")) == (finish, native)


def test_logprobs() -> None:
    odds = [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]
    chunks, _ = answer({**said("a"), "logprobs": odds}, END)
    [choice] = completion(chunks)["choices"]
    assert choice["logprobs"]["content"] == [
        {
            "bytes": None,
            "token": "a",
            "logprob": -0.5,
            "top_logprobs": [{"bytes": None, "token": "a", "logprob": -0.5}],
        }
    ]
    sdk_message(chunks)


def test_a_prompt_that_was_kept_is_not_counted_and_old_servers_count_nothing() -> None:
    bare = {key: value for key, value in END.items() if key not in COUNTS}
    chunks, _ = answer(said("a"), {**bare, "eval_count": 2})
    assert completion(chunks)["usage"] is None, "half of it: the other half is measured here"
    chunks, error = answer(said("a"), bare)
    assert (error, completion(chunks)["usage"]) == (None, None)


def test_an_error_in_the_middle() -> None:
    chunks, error = answer(said("a"), {"error": "out of memory"})
    assert isinstance(error, UpstreamRefused)
    assert (error.message, error.status) == ("out of memory", 502)
    assert fold(values(chunks))["0"]["content"] == "a"


def test_what_is_no_json() -> None:
    chunks, error = hear(DIALECT, lines(said("a")) + b"{oops\n")
    assert isinstance(error, UpstreamInvalid)
    assert fold(values(chunks))["0"]["content"] == "a"


@given(
    st.lists(st.sampled_from(["a", "bc", "é", "\u2028", ""]), max_size=5),
    st.sampled_from([b"\n", b"\r\n"]),
    st.text(),
)
def test_any_split(words: list[str], end: bytes, pieces: str) -> None:
    stream = lines(*map(said, words), END, end=end)
    chunks, error = hear(DIALECT, stream, pieces)
    assert error is None
    assert fold(values(chunks))["0"]["content"] == "".join(words)


@given(st.data())
def test_a_stream_cut_anywhere_never_passes_for_whole(data: st.DataObject) -> None:
    call = {"function": {"name": "f", "arguments": {"a": {"b": 1}}}}
    stream = lines(said(thinking="h"), said("a"), said(tool_calls=[call]), END)
    cut = data.draw(st.integers(0, len(stream) - 2))
    _, error = hear(DIALECT, stream[:cut], str(cut))
    assert isinstance(error, UpstreamIncomplete)
