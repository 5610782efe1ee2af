"""Requests: what is accepted, what is refused, and how the first wrong field is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chat.chunks import EXTENSION_FIELDS
from shared.chat.request import ChatRequest, MetadataUpdate
from shared.errors import BadRequest

VALID: dict[str, Any] = {"model": "fake/echo", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FUNCTION = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}}
SCHEMA = {"name": "x", "schema": {"type": "object"}, "strict": True}


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        ChatRequest.check({**VALID, **fields})
    return caught.value


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [*VALID["messages"], message]}


OPENAI = [
    {},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"temperature": 0, "top_p": 1, "n": 128, "max_tokens": 1, "seed": -5, "stop": ["a"]},
    {"temperature": 2, "top_p": 0.0, "frequency_penalty": -2, "presence_penalty": 2, "stop": ["a", "b", "c", "d"]},
    {"logprobs": True, "top_logprobs": 20, "logit_bias": {"50256": -100, "1": 1.5}},
    {"tools": [FUNCTION], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "text"}}}], "tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "f"}}, "stop": "x"},
    {"tool_choice": {"type": "custom", "custom": {"name": "f"}}},
    {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}}},
    {"functions": [{"name": "f", "parameters": {}}], "function_call": {"name": "f"}},
    {"function_call": "none"},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    {"metadata": {"k" * 64: "v" * 512}, "store": True},
    {"reasoning_effort": "minimal", "verbosity": "low", "service_tier": "flex"},
    {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}},
    {"prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]}, "web_search_options": {}},
    {"user": "u", "safety_identifier": "s", "prompt_cache_key": "p", "max_completion_tokens": 5},
    with_message(role="user", content=[{"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}]),
    with_message(role="user", content=[{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]),
    with_message(role="user", content=[{"type": "file", "file": {"file_id": "f"}}], name="n"),
    with_message(role="assistant", content=None, tool_calls=[CALL]),
    with_message(role="assistant", tool_calls=[CALL]),
    with_message(role="assistant", content=None, function_call={"name": "f", "arguments": "{}"}),
    with_message(role="assistant", content=[{"type": "refusal", "refusal": "no"}]),
    with_message(role="assistant", refusal="no"),
    with_message(role="assistant", audio={"id": "a"}),
    with_message(role="tool", tool_call_id="c", content="42"),
    with_message(role="tool", tool_call_id="c", content=[{"type": "text", "text": "42"}]),
    with_message(role="function", name="f", content=None),
    with_message(role="developer", content="x"),
    with_message(role="system", content=""),
]

OTHER_PROVIDERS = [
    {"temperature": 5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1, "reasoning_effort": "whatever"},
    {"stop": [str(i) for i in range(16)]},
    {"logprobs": 5},
    {"logit_bias": {"1": False}},
    {"logit_bias": [[1, 2.0]]},
    {"max_tokens": -1},
    {"tools": [{"type": "web_search", "web_search": {"enable": True}}]},
    {"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]},
    {"tools": [{"function": {"name": "f"}}]},
    {"tools": [{"type": "function", "function": {"name": "ns.tool:x" + "y" * 100}}]},
    {"tool_choice": "any"},
    {"response_format": {"type": "json_object", "schema": {}}},
    {"response_format": {"type": "json_schema", "schema": {"type": "object"}}},
    {"response_format": {"type": "grammar", "grammar": "root ::= x"}},
    {"reasoning": {"effort": "high"}, "thinking": {"type": "enabled"}, "provider": {"order": ["x"]}, "models": ["a"]},
    with_message(role="user", content=[{"type": "video_url", "video_url": {"url": "x"}}]),
    with_message(role="user", content=[{"type": "image_url", "image_url": "https://x"}]),
    with_message(role="user", content=[{"type": "image_url", "image_url": None, "uuid": "u"}]),
    with_message(role="user", content=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]),
    with_message(role="assistant", content=None, reasoning_content="let me see"),
    with_message(role="assistant", content="a", prefix=True, tool_calls=[]),
    with_message(role="assistant", content=[{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]),
]

ODD_BUT_HARMLESS = [
    {"stream": None, "n": None, "stop": None, "tools": None, "metadata": None, "stream_options": None},
    {"tools": [], "functions": [], "stop": [], "user": "", "metadata": {}, "logit_bias": {}, "max_tokens": None},
    {"tool_choice": None, "response_format": None, "logprobs": None, "top_logprobs": None, "modalities": None},
    {"logprobs": False, "top_logprobs": 0, "stream": False, "stream_options": None, "stop": ""},
    {"unknown": object, "x": {"deep": [1]}},
    with_message(role="assistant", content=None, tool_calls=[CALL], function_call=None, refusal=None, name=None),
    with_message(role="user", content=[], x=1),
]


@pytest.mark.parametrize("fields", [*OPENAI, *OTHER_PROVIDERS, *ODD_BUT_HARMLESS], ids=repr)
def test_what_is_accepted(fields: dict[str, Any]) -> None:
    request = ChatRequest.check({**VALID, **fields})
    assert request.model == "fake/echo"
    assert request.model_dump(exclude_unset=True) == {**VALID, **fields}


@pytest.mark.parametrize(
    ("fields", "include_usage"),
    [
        ({}, False),
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {}}, False),
        ({"stream": True, "stream_options": {"include_usage": None}}, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
    ],
)
def test_usage_is_for_those_who_ask(fields: dict[str, Any], include_usage: bool) -> None:
    assert ChatRequest.check({**VALID, **fields}).include_usage is include_usage


@pytest.mark.parametrize("body", [None, [], "x", 1, True, [VALID]])
def test_a_body_must_be_an_object(body: Any) -> None:
    for kind in (ChatRequest, MetadataUpdate):
        with pytest.raises(BadRequest, match="must be a JSON object"):
            kind.check(body)


def values(field: str, *wrong: Any) -> list[tuple[dict[str, Any], str]]:
    return [({field: value}, field) for value in wrong]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": "a\nb"}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    (with_message(role="wizard", content="x"), "messages[1].role"),
    (with_message(role="user"), "messages[1].content"),
    (with_message(role="user", content=None), "messages[1].content"),
    (with_message(role="system", content=None), "messages[1].content"),
    (with_message(role="user", content=5), "messages[1].content"),
    (with_message(role="user", content={"type": "text"}), "messages[1].content"),
    (with_message(role="user", content=["x"]), "messages[1].content[0]"),
    (with_message(role="user", content=[{"text": "x"}]), "messages[1].content[0].type"),
    (with_message(role="user", content=[{"type": "text", "text": "x"}, {"type": 1}]), "messages[1].content[1].type"),
    (with_message(role="user", content=[{"type": "text"}]), "messages[1].content[0].text"),
    (with_message(role="user", content=[{"type": "text", "text": None}]), "messages[1].content[0].text"),
    (with_message(role="user", content=[{"type": "image_url", "image_url": 1}]), "messages[1].content[0].image_url"),
    (with_message(role="user", content=[{"type": "file", "file": "x"}]), "messages[1].content[0].file"),
    (with_message(role="user", content="x", name=1), "messages[1].name"),
    (with_message(role="assistant"), "messages[1].content"),
    (with_message(role="assistant", content=None, name="a", tool_calls=None), "messages[1].content"),
    (with_message(role="assistant", tool_calls="x"), "messages[1].tool_calls"),
    (with_message(role="assistant", tool_calls=[1]), "messages[1].tool_calls[0]"),
    (with_message(role="tool", content="x"), "messages[1].tool_call_id"),
    (with_message(role="tool", content="x", tool_call_id=1), "messages[1].tool_call_id"),
    (with_message(role="tool", content=None, tool_call_id="c"), "messages[1].content"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": False, "stream_options": {}}, "stream_options"),
    *values("n", 0, 129, True, 1.0, "1"),
    *values("temperature", -0.1, "1", True, []),
    *values("top_p", -0.1, 1.1, "1", False),
    *(({name: value}, name) for name in ("frequency_penalty", "presence_penalty") for value in (-2.1, 2.1, "1")),
    *(({name: value}, name) for name in ("max_tokens", "max_completion_tokens") for value in (0, -2, 1.5, "5", True)),
    *values("stop", 5, {}, True),
    ({"stop": ["a", 1]}, "stop[1]"),
    *values("seed", "1", 1.5, True),
    *values("logprobs", "true", 21, -1),
    *(({"logprobs": True, "top_logprobs": value}, "top_logprobs") for value in (-1, 21, "1", 1.5)),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
    ({"logit_bias": "x"}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"logit_bias": {"1": True}}, "logit_bias"),
    *(({name: 1}, name) for name in ("user", "safety_identifier", "prompt_cache_key", "service_tier")),
    *(({name: 1}, name) for name in ("reasoning_effort", "verbosity")),
    ({"tools": {}}, "tools"),
    ({"tools": [1]}, "tools[0]"),
    ({"tools": [FUNCTION, {}]}, "tools[1].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "not this"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 129}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": "x"}}]}, "tools[0].function.strict"),
    ({"tools": [{"type": "custom"}]}, "tools[0].custom"),
    ({"tool_choice": "always"}, "tool_choice"),
    *values("tool_choice", 1, [], True),
    ({"tool_choice": {}}, "tool_choice.type"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
    *values("parallel_tool_calls", 1, "true"),
    ({"functions": [{"description": "x"}]}, "functions[0].name"),
    ({"functions": [{"name": "not this"}]}, "functions[0].name"),
    ({"function_call": "required"}, "function_call"),
    ({"function_call": {}}, "function_call.name"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x" * 65}}},
        "response_format.json_schema.name",
    ),
    ({"modalities": "text"}, "modalities"),
    ({"audio": "wav"}, "audio"),
    ({"prediction": {"type": "content"}}, "prediction.content"),
    ({"web_search_options": True}, "web_search_options"),
    ({"store": "true"}, "store"),
    ({"metadata": "x"}, "metadata"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ({"on_interruption": "x"}, "on_interruption"),
    ({"on_disconnect": "x"}, "on_disconnect"),
    *values("max_tokens_per_s", 0, -1, 10_001, "5", True, float("inf")),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: repr(value)[:60])
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    if param == "metadata":  # a name that is wrong itself may be a part of it
        assert (error.param or "").startswith(param)
    else:
        assert error.param == param
    assert error.message.startswith(f"{error.param}: ")
    assert error.message.endswith(".")
    assert error.status == 400


def test_the_first_wrong_field_is_the_one_named() -> None:
    assert refused(temperature="x", n=0).param == "n"
    assert refused(**with_message(role="user", content=1), n=0).param == "messages[1].content"


def test_a_wrong_branch_is_not_what_the_error_is_about() -> None:
    assert "array of parts" in refused(**with_message(role="user", content=5)).message
    assert "string" in refused(stop=[1]).message
    assert "none, auto, required" in refused(tool_choice=5).message


def test_a_refusal_never_quotes_the_request() -> None:
    canaries: list[dict[str, Any]] = [
        {"messages": [{"role": "canary", "content": {}}]},
        {"stop": {"canary": 1}},
        {"model": "canary\n"},
        {"logit_bias": {"canary1": "canary"}},
        {"tools": [{"type": "function", "function": {"name": "canary canary"}}]},
        {"tool_choice": "canary"},
        {"metadata": {"k": 1, "canary-1": 1}},
    ]
    for fields in canaries:
        assert "canary" not in refused(**fields).message


@given(st.dictionaries(st.sampled_from([*ChatRequest.model_fields, "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5,
)))  # fmt: skip
def test_anything_is_accepted_or_refused(body: dict[str, Any]) -> None:
    before = copy.deepcopy(body)
    try:
        ChatRequest.check({**VALID, **body})
    except BadRequest as error:
        assert error.message  # noqa: PT017 - both ways are right
    assert repr(body) == repr(before)


def test_what_is_for_the_broker_is_not_forwarded() -> None:
    own = {"on_interruption", "on_disconnect", "max_tokens_per_s", "store", "metadata"}
    assert own <= EXTENSION_FIELDS & ChatRequest.model_fields.keys()


@pytest.mark.parametrize("metadata", [None, {}, {"k": "v"}])
def test_metadata_are_replaced_by_such_a_body(metadata: Any) -> None:
    assert MetadataUpdate.check({"metadata": metadata}).metadata == metadata


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"metadata": {}, "model": "x"}, "model"),
    ],
)
def test_other_updates_are_refused(body: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        MetadataUpdate.check(body)
    assert caught.value.param == param
