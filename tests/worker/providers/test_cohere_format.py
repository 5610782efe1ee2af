"""Cohere's Chat API, version 2: what is asked for, what its events mean, and every recorded stream of it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest, UpstreamError, UpstreamRefused
from shared.lib import sse
from shared.log.entry import Chunk
from tests.support import recordings
from tests.support.answers import assert_readable, completion, hear, read_by_sdk, values
from tests.support.recordings import fold, payloads, wire
from worker.providers.formats.cohere import DIALECT, build_request

RECORDINGS = recordings.recordings("cohere")
recorded = pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)
USER: dict[str, Any] = {"role": "user", "content": "hi"}


def sdk_message(chunks: list[Chunk]) -> dict[str, Any]:
    message: dict[str, Any] = read_by_sdk(chunks)["choices"][0]["message"]
    return message


def natives(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in payloads(row)]


def asked(**fields: Any) -> dict[str, Any]:
    return build_request({"model": "acme/m", "messages": [USER], **fields}, "m")


# ---- the request


def test_fields_with_another_name() -> None:
    sent = asked(
        max_tokens=5, max_completion_tokens=7, top_p=0.5, top_k=3, stop=["x"], seed=0, temperature=0.0,
        frequency_penalty=0.5, presence_penalty=0.1, logprobs=True, stream=False, safety_mode="NONE",
    )  # fmt: skip
    assert sent == {
        "model": "m",
        "messages": [USER],
        "stream": True,
        "max_tokens": 7,
        "p": 0.5,
        "k": 3,
        "stop_sequences": ["x"],
        "seed": 0,
        "temperature": 0.0,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.1,
        "logprobs": True,
        "safety_mode": "NONE",
    }
    with pytest.raises(BadRequest, match="said twice"):
        asked(top_p=0.5, p=0.6)


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [
        ("none", {"type": "disabled"}),
        ("low", {"type": "enabled", "token_budget": 2048}),
        ("high", {"type": "enabled"}),
    ],
)
def test_effort(effort: str, thinking: dict[str, Any]) -> None:
    assert asked(reasoning_effort=effort)["thinking"] == thinking


def test_formats() -> None:
    schema = {"type": "object"}
    native = {"type": "json_object", "json_schema": schema}
    assert (
        asked(response_format={"type": "json_schema", "json_schema": {"schema": schema}})["response_format"] == native
    )
    assert asked(response_format=native)["response_format"] == native
    assert asked(response_format={"type": "text"}) == asked()


def test_messages() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    document = {"type": "document", "document": {"data": {"x": 1}}}
    sent = asked(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
            {"role": "assistant", "tool_plan": "p", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [document]},
            {"role": "assistant", "content": "x", "refusal": "no"},
            {"role": "user", "content": ""},
        ]
    )
    assert sent["messages"] == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
        {
            "role": "assistant",
            "tool_plan": "p",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": [document]},
        {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "no"}]},
        {"role": "user", "content": ""},
    ]


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def test_tools() -> None:
    empty = {"type": "object", "properties": {}}
    both = [tool("f", strict=True), tool("g", description="d")]
    sent = asked(tools=both)
    assert sent["tools"] == [tool("f", parameters=empty), tool("g", description="d", parameters=empty)]
    assert not {"strict_tools", "tool_choice"} & sent.keys()
    assert asked(tools=[tool("f", strict=True)])["strict_tools"] is True
    assert asked(tools=both, tool_choice="required")["tool_choice"] == "REQUIRED"
    assert asked(tools=both, tool_choice="none")["tool_choice"] == "NONE"
    one = asked(tools=both, tool_choice=tool("g"))
    assert (one["tool_choice"], one["tools"]) == ("REQUIRED", sent["tools"][1:])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("f")], "tool_choice": tool("g")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("f")], "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"verbosity": "low"}, "verbosity"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


# ---- the answer


def event(kind: str, index: int | None = None, **message: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"type": kind, "delta": {"message": message}}
    return value if index is None else {**value, "index": index}


def end(reason: str = "COMPLETE", **delta: Any) -> dict[str, Any]:
    return {"type": "message-end", "delta": {"finish_reason": reason, **delta}}


def words(text: str, **more: Any) -> dict[str, Any]:
    return {**event("content-delta", 0, content={"text": text}), **more}


def events(*values: dict[str, Any]) -> bytes:
    frames = [sse.frame(json.dumps(value).encode(), event=value.get("type", "x").encode()) for value in values]
    return b"".join([*frames, sse.data_frame(sse.DONE)])


def answer(*values: dict[str, Any], show_usage: bool = True) -> tuple[list[Chunk], UpstreamError | None]:
    return hear(DIALECT, events(*values))


def test_a_plan_two_calls_and_what_they_cost() -> None:
    def call(at: int, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        return event("tool-call-start", at, tool_calls={"id": f"{name}_1", "type": "function", "function": function})

    def more(at: int, arguments: str) -> dict[str, Any]:
        return event("tool-call-delta", at, tool_calls={"function": {"arguments": arguments}})

    billed, tokens = {"input_tokens": 2.0, "output_tokens": 3.0}, {"input_tokens": 20.0, "output_tokens": 5.0}
    chunks, error = answer(
        {"type": "message-start", "id": "x", "delta": {"message": {"role": "assistant"}}},
        event("tool-plan-delta", tool_plan="I "),
        event("tool-plan-delta", tool_plan="will"),
        call(0, "f"),
        more(0, "{"),
        more(0, "}"),
        {"type": "tool-call-end", "index": 0},
        call(1, "g"),
        more(1, "{}"),
        end("TOOL_CALL", usage={"billed_units": billed, "tokens": tokens, "cached_tokens": 4.0}),
    )
    assert error is None
    assert_readable(chunks)
    assert len(sdk_message(chunks)["tool_calls"]) == 2
    whole = completion(chunks)
    [choice] = whole["choices"]
    assert choice["message"]["reasoning_content"] == "I will"
    assert choice["message"]["tool_calls"] == [
        {"id": "f_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "g_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("tool_calls", "TOOL_CALL")
    assert whole["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 25,
        "billed_units": billed,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_what_was_billed_counts_where_nothing_else_is_known() -> None:
    chunks, _ = answer(words("a"), end(usage={"billed_units": {"input_tokens": 2, "output_tokens": 3}}))
    assert completion(chunks)["usage"]["total_tokens"] == 5
    assert completion(answer(words("a"), end())[0])["usage"] is None


def test_citations_are_kept() -> None:
    cited = {"start": 0, "end": 1, "text": "a", "sources": [{"type": "document", "id": "d"}], "type": "TEXT_CONTENT"}
    chunks, error = answer(
        words("a"),
        event("citation-start", 0, citations=cited),
        {"type": "citation-end", "index": 0},
        event("citation-start", 1, citations=cited),
        end(),
    )
    assert error is None
    [choice] = completion(chunks)["choices"]
    assert choice["message"]["cohere_citations"] == [cited, cited]
    placed = sdk_message(chunks)["cohere_citations"]
    assert placed == [{**cited, "index": 0}, {**cited, "index": 1}]
    for found in (placed, choice["message"]["cohere_citations"]):
        [message] = asked(messages=[{"role": "assistant", "content": "a", "cohere_citations": found}])["messages"]
        assert message == {"role": "assistant", "content": "a", "citations": [cited, cited]}


def test_logprobs_of_a_piece() -> None:
    chunks, _ = answer(words("ab", logprobs={"text": "ab", "token_ids": [1, 2], "logprobs": [-0.5, -0.25]}), end())
    entry = {"token": "ab", "logprob": -0.75, "bytes": None, "top_logprobs": []}
    assert completion(chunks)["choices"][0]["logprobs"] == {"content": [entry], "refusal": None}


@pytest.mark.parametrize(
    ("native", "finish"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("ERROR_LIMIT", "length"),
        ("ERROR_TOXIC", "content_filter"),
        ("SOMETHING_NEW", "length"),
    ],
)
def test_ends(native: str, finish: str) -> None:
    [choice] = completion(answer(words("a"), end(native))[0])["choices"]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, native)


@pytest.mark.parametrize(
    ("value", "code", "status", "text"),
    [
        (end("ERROR", error="broke"), "error", 502, "broke"),
        (end("TIMEOUT"), "timeout", 504, "TIMEOUT"),
        (end("ERROR_NEW"), "error_new", 502, "ERROR_NEW"),
        ({"id": "x", "message": "internal server error"}, "upstream_refused", 502, "internal server error"),
    ],
)
def test_errors(value: dict[str, Any], code: str, status: int, text: str) -> None:
    chunks, error = answer(words("a"), value)
    assert isinstance(error, UpstreamRefused)
    assert (error.code, error.status) == (code, status)
    assert text in error.message
    assert fold(values(chunks))["0"]["content"] == "a"


@given(st.lists(st.sampled_from(["a", "bc", "é"]), max_size=5), st.text())
def test_any_split(pieces: list[str], cuts: str) -> None:
    chunks, error = hear(DIALECT, events(*map(words, pieces), end()), cuts)
    assert error is None
    assert fold(values(chunks))["0"]["content"] == "".join(pieces)


# ---- recordings


def natively(native: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer as Cohere's reference tells it: blocks by index, calls by index, the last usage."""
    blocks: dict[int, dict[str, str]] = {}
    calls: dict[int, dict[str, Any]] = {}
    told: dict[str, Any] = {"plan": "", "citations": 0}
    for value in native:
        message = (value.get("delta") or {}).get("message") or {}
        match value["type"]:
            case "content-start" | "content-delta":
                for kind in ("text", "thinking"):
                    block = blocks.setdefault(value["index"], {"text": "", "thinking": ""})
                    block[kind] += message["content"].get(kind) or ""
            case "tool-plan-delta":
                told["plan"] += message["tool_plan"]
            case "tool-call-start":
                call = message["tool_calls"]
                calls[value["index"]] = {"id": call["id"], **call["function"]}
            case "tool-call-delta":
                calls[value["index"]]["arguments"] += message["tool_calls"]["function"]["arguments"]
            case "citation-start":
                told["citations"] += 1
            case "message-end":
                told["end"] = value["delta"]
    text, thinking = ("".join(block[kind] for block in blocks.values()) for kind in ("text", "thinking"))
    return {**told, "text": text, "thinking": thinking, "calls": list(calls.values())}


@recorded
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_recording(row: dict[str, Any]) -> None:
    stream = wire(row, done=False)
    told = natively(natives(row))
    chunks, error = hear(DIALECT, stream, row["file"])
    assert error is None
    assert_readable(chunks)
    choice = fold(values(chunks))["0"]
    assert choice["content"] == told["text"] == (sdk_message(chunks)["content"] or "")
    assert choice["reasoning"] == told["plan"] + told["thinking"]
    calls = [{key: call[key] for key in ("id", "name", "arguments")} for call in told["calls"]]
    assert list(choice["tools"].values()) == calls
    assert (
        choice["finish"]
        == {"COMPLETE": "stop", "TOOL_CALL": "tool_calls", "MAX_TOKENS": "length"}[told["end"]["finish_reason"]]
    )
    whole = completion(chunks)
    assert len(whole["choices"][0]["message"].get("cohere_citations", ())) == told["citations"]
    usage = told["end"]["usage"]
    assert whole["usage"]["prompt_tokens"] == usage["tokens"]["input_tokens"]
    assert whole["usage"]["completion_tokens"] == usage["tokens"]["output_tokens"]
    assert whole["usage"]["billed_units"] == usage["billed_units"]
    cached = whole["usage"].get("prompt_tokens_details", {}).get("cached_tokens")
    assert cached == usage.get("cached_tokens")


@recorded
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recording_cut_anywhere_never_passes_for_whole(row: dict[str, Any]) -> None:
    stream, cuts = wire(row, done=False), random.Random(row["file"])
    whole = fold(values(hear(DIALECT, stream)[0]))
    for _ in range(20):
        cut = cuts.randrange(len(stream))
        chunks, error = hear(DIALECT, stream[:cut], str(cut))
        assert error is not None or fold(values(chunks)) == whole
