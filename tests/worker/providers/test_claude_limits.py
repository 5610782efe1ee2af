"""What Claude refuses is not asked: blank text, thinking where it cannot be, options that exclude each other, schemas."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadRequest
from worker.providers import schemas
from worker.providers.formats import anthropic_request, gemini_request, ollama

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "done"}
TOOL = {"type": "function", "function": {"name": "f"}}
THOUGHT = {"type": "thinking", "thinking": "why", "signature": "s"}
BUDGET, ADAPTIVE, NEWEST = "claude-sonnet-4-5", "claude-opus-4-6", "claude-opus-4-8"


def build(*messages: dict[str, Any], model: str = BUDGET, **fields: Any) -> dict[str, Any]:
    return anthropic_request.build_request({"model": "a/m", "messages": list(messages) or [USER], **fields}, model)


# ---- F11


@pytest.mark.parametrize("blank", ["\n\n", " ", "\t", "\u00a0"])
def test_f11_text_of_white_space_alone_is_not_said(blank: str) -> None:
    part = {"type": "text", "text": blank}
    for content in (blank, [part], [part, part]):
        system = {"role": "system", "content": content}
        before_call = {**CALLS, "content": content}
        request = build(
            system, USER, before_call, {**RESULT, "content": content}, {"role": "assistant", "content": content}, USER
        )
        assert "system" not in request
        user, answer, last = request["messages"]
        assert [block["type"] for block in answer["content"]] == ["tool_use"]
        assert last["content"][0] == {"type": "tool_result", "tool_use_id": "c1"}
        assert len(last["content"]) == 2, "the answer that says nothing is none, so the user goes on"
        assert user["content"] == [{"type": "text", "text": "hi"}]
    [turn] = build({"role": "user", "content": [part, {"type": "text", "text": "real "}]})["messages"]
    assert turn["content"] == [{"type": "text", "text": "real "}]


def test_what_claude_goes_on_with_does_not_end_with_white_space() -> None:
    assert build(USER, {"role": "assistant", "content": "Once \n"})["messages"][-1]["content"][-1]["text"] == "Once"


# ---- F12


@pytest.mark.parametrize("effort", ["minimal", "medium", "max"])
def test_f12_no_thinking_in_a_loop_that_began_without(effort: str) -> None:
    request = build(USER, CALLS, RESULT, tools=[TOOL], reasoning_effort=effort)
    assert "thinking" not in request
    assert request["max_tokens"] == 8192
    again = {**CALLS, "tool_calls": [{**CALL, "id": "c2"}], "thinking_blocks": [THOUGHT]}
    assert "thinking" not in build(
        USER, CALLS, RESULT, again, {**RESULT, "tool_call_id": "c2"}, reasoning_effort=effort
    )
    own: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert "thinking" not in build(USER, CALLS, RESULT, **own), "the client's own words cannot be met, either"


def test_f12_thinking_goes_on_where_it_can() -> None:
    thought = {**CALLS, "thinking_blocks": [THOUGHT]}
    for history in (
        [USER, thought, RESULT],
        [USER, thought, RESULT, {**CALLS, "tool_calls": [{**CALL, "id": "c2"}]}, {**RESULT, "tool_call_id": "c2"}],
        [USER, CALLS, RESULT, {"role": "assistant", "content": "so"}, USER],
        [USER, {"role": "assistant", "content": "so"}, USER],
        [USER],
    ):
        request = build(*history, reasoning_effort="medium")
        assert request["thinking"] == {"type": "enabled", "budget_tokens": 8192}
    adaptive = build(USER, CALLS, RESULT, model=ADAPTIVE, reasoning_effort="medium")
    assert adaptive["thinking"]["type"] == "adaptive", "these may begin to think at any time"


# ---- F13


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"temperature": 0.2}, {}),
        ({"temperature": 1}, {}),
        ({"top_p": 0.5}, {}),
        ({"top_p": 0.97}, {"top_p": 0.97}),
        ({"top_k": 5}, {}),
    ],
)
@pytest.mark.parametrize("model", [BUDGET, ADAPTIVE])
@pytest.mark.parametrize(
    "asked", [{"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}]
)
def test_f13_thinking_excludes_sampling(
    model: str, asked: dict[str, Any], fields: dict[str, Any], kept: dict[str, Any]
) -> None:
    request = build(model=model, **asked, **fields)
    assert {key: request[key] for key in ("temperature", "top_p", "top_k") if key in request} == kept
    assert request["thinking"]["type"] in ("enabled", "adaptive")
    assert build(model=model, **fields, reasoning_effort="none").items() >= fields.items()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}, {"type": "any"}])
@pytest.mark.parametrize("model", [BUDGET, ADAPTIVE])
def test_f13_a_forced_call_is_meant_and_thinking_is_a_wish(model: str, choice: Any) -> None:
    request = build(tools=[TOOL], tool_choice=choice, reasoning_effort="high", temperature=0.2, model=model)
    assert "thinking" not in request
    assert request["tool_choice"]["type"] in ("any", "tool")
    assert request["temperature"] == 0.2
    with pytest.raises(BadRequest, match="cannot think and be forced"):
        build(tools=[TOOL], tool_choice=choice, thinking={"type": "enabled", "budget_tokens": 2000}, model=model)
    for free in ("auto", "none"):
        assert "thinking" in build(tools=[TOOL], tool_choice=free, reasoning_effort="high", model=model)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("claude-3-5-haiku-latest", {"temperature", "top_p", "top_k"}),
        ("claude-sonnet-4-20250514", {"temperature", "top_p", "top_k"}),
        ("claude-opus-4-1-20250805", {"temperature", "top_k"}),
        ("claude-sonnet-4-5", {"temperature", "top_k"}),
        ("anthropic.claude-opus-4-6-v1", {"temperature", "top_k"}),
        ("claude-opus-4-7", set()),
        ("claude-opus-4-8", set()),
        ("claude-sonnet-5", set()),
        ("claude-haiku-5-5", set()),
        ("claude-mythos-preview", set()),
        ("kimi-k2", {"temperature", "top_p", "top_k"}),
    ],
)
def test_f13_models_that_have_no_sampling_options_are_sent_none(model: str, kept: set[str]) -> None:
    request = build(model=model, temperature=0.2, top_p=0.5, top_k=5)
    assert request.keys() & {"temperature", "top_p", "top_k"} == kept


# ---- F20


def test_f20_a_schema_is_what_claude_can_be_held_to() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "description": "whose"},
            "tags": {
                "type": "array",
                "items": {"type": "string", "format": "color"},
                "minItems": 2,
                "uniqueItems": True,
            },
            "one": {"oneOf": [{"type": "integer", "minimum": 1}, {"$ref": "#/$defs/other"}]},
            "maybe": {"type": ["string", "null"], "maxLength": 5},
            "kind": {"const": "x"},
            "due": {"type": "string", "format": "date"},
        },
        "required": ["name"],
        "$defs": {"other": {"type": "object", "additionalProperties": True}},
    }
    request = build(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    closed = {"additionalProperties": False}
    assert request["output_config"]["format"]["schema"] == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "whose\n\n{minLength: 3}"},
            "tags": {
                "type": "array",
                "items": {"type": "string", "description": "{format: color}"},
                "description": "{minItems: 2, uniqueItems: true}",
            },
            "one": {"anyOf": [{"type": "integer", "description": "{minimum: 1}"}, {"$ref": "#/$defs/other"}]},
            "maybe": {"anyOf": [{"type": "string", "description": "{maxLength: 5}"}, {"type": "null"}]},
            "kind": {"const": "x"},
            "due": {"type": "string", "format": "date"},
        },
        "required": ["name"],
        "$defs": {"other": {"type": "object", "properties": {}, **closed}},
        **closed,
    }


names = st.sampled_from(
    "type properties items anyOf oneOf allOf enum const required format minItems $ref $defs x".split()
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["object", "array", "string", "date", "#/$defs/x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, anything, max_size=5))
def test_f20_any_schema_is_said_somehow(schema: dict[str, Any]) -> None:
    """Whatever it is: a client's mistake is the provider's to name, not ours to trip over."""

    before = repr(schema)
    fit = schemas.for_claude(schema)
    schemas.for_gemini(schema)
    assert repr(schema) == before
    if "type" in fit and fit["type"] == "object":
        assert fit["additionalProperties"] is False


def test_f20_gemini_is_told_nothing_about_the_schemas_own_version() -> None:
    schema = {
        "$schema": "x",
        "type": "object",
        "properties": {"$schema": {"const": 1}, "a": {"$comment": "c", "type": "string"}},
    }
    fit = {"type": "object", "properties": {"$schema": {"enum": [1]}, "a": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    request = gemini_request.build_request(
        {"messages": [USER], "tools": [tool], "response_format": form}, "gemini-3-pro"
    )
    assert request["generationConfig"]["responseJsonSchema"] == fit
    assert request["tools"][0]["functionDeclarations"][0]["parametersJsonSchema"] == fit


def test_f20_strict_tools_have_the_same_limits() -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}}
    [loose, strict] = build(tools=[{"function": function}, {"function": {**function, "strict": True}}])["tools"]
    assert loose["input_schema"] == function["parameters"]
    assert strict["strict"] is True
    assert strict["input_schema"] == {
        "type": "object",
        "properties": {"a": {"type": "integer", "description": "{minimum: 1}"}},
        "additionalProperties": False,
    }


# ---- F22


def test_f22_no_limit_is_the_houses_own() -> None:
    assert build(max_tokens=-1)["max_tokens"] == build()["max_tokens"] == 8192
    assert build(max_tokens=-1, reasoning_effort="medium")["max_tokens"] == 16384


def test_stops_that_are_white_space_are_refused_with_words() -> None:
    assert build(stop=["", "x"])["stop_sequences"] == ["x"]
    with pytest.raises(BadRequest, match="stop: Anthropic cannot stop at white space"):
        build(stop="\n\n")


# ---- J5, J6


def test_j6_instructions_alone_are_what_the_user_says() -> None:
    said = [{"role": "system", "content": "one"}, {"role": "developer", "content": "two"}]
    claude = build(*said)
    assert claude["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": text} for text in ("one", "two")]}
    ]
    assert "system" not in claude
    gemini = gemini_request.build_request({"messages": said}, "gemini-3-pro")
    assert gemini["contents"] == [{"role": "user", "parts": [{"text": "one"}, {"text": "two"}]}]
    assert "systemInstruction" not in gemini
    for blank in (" ", ""):
        assert build(*said, {"role": "user", "content": blank})["messages"] == claude["messages"]
        with pytest.raises(BadRequest, match="nobody says anything"):
            build({"role": "system", "content": blank})


def test_j5_parts_of_a_text_begin_lines_of_their_own() -> None:
    parts = [{"type": "text", "text": text} for text in ("First.", "Second.")]
    for role in ("system", "user", "assistant"):
        [message, *_] = ollama.build_request({"messages": [{"role": role, "content": parts}, USER]}, "qwen3")[
            "messages"
        ]
        assert message["content"] == "First.\nSecond."
    result = ollama.build_request({"messages": [USER, CALLS, {**RESULT, "content": parts}]}, "qwen3")["messages"][-1]
    assert result["content"] == "First.\nSecond."
