"""What leaves in OpenAI's format fits the vendor who gets it, wherever that vendor answers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from shared.config.settings import Settings
from shared.errors import BadRequest
from worker.providers.accepts import HINTS, OPENAI, REASONING_TEXTS
from worker.providers.formats import dialect_of
from worker.providers.registry import VENDORS, Provider, load_providers

USER = {"role": "user", "content": "hi"}
ANSWER: dict[str, Any] = {
    "role": "assistant",
    "content": "because",
    "refusal": None,
    "annotations": [],
    "audio": None,
    "reasoning_content": "why",
    "thinking_blocks": [{"type": "thinking", "thinking": "why", "signature": "s"}],
    "anthropic_blocks": [{"type": "server_tool_use"}],
    "gemini_parts": [{"executableCode": {}}],
    "reasoning_items": [{"type": "reasoning"}],
    "responses_items": [{"type": "web_search_call"}],
    "cohere_citations": [{"start": 0}],
    "native_finish_reason": "end_turn",
    "extra_content": {"google": {"thought_signature": "s"}},
    "parsed": None,
    "tool_calls": [
        {
            "id": "c1",
            "index": 0,
            "type": "function",
            "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}},
            "extra_content": {"google": {"thought_signature": "s"}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "done"}
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
OPENAIS = [vendor.name for vendor in VENDORS if vendor.kind == "openai"]


def vendor(name: str, **environ: str) -> Provider:
    """The vendor at another address than its own, as behind a proxy: what it accepts is the same."""
    row = next(row for row in VENDORS if row.name == name)
    return load_providers(Settings(), {row.base_variables[0]: "http://127.0.0.1:9/v1", **environ})[name]


def sent(name: str, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    provider = vendor(name)
    body = {"model": f"{name}/m", "messages": list(messages) or [USER], **fields}
    before = copy.deepcopy(body)
    request = dialect_of(provider).call(provider, body, "m").body
    assert body == before
    return request


def said(name: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sent(name, *messages)["messages"]
    return found


# ---- F14


@pytest.mark.parametrize("name", OPENAIS)
def test_f14_fields_this_product_invented_go_to_nobody_who_did_not_ask(name: str) -> None:
    _, answer, *_ = said(name, USER, ANSWER, RESULT)
    known = {"role", "content", "tool_calls", "reasoning_content", "reasoning", *vendor(name).accepts.message_fields}
    assert answer.keys() <= known
    [call] = answer["tool_calls"]
    assert call.keys() == {"id", "type", "function"}
    assert call["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("openai", None),
        ("azure", None),
        ("mistral", None),
        ("groq", None),
        ("perplexity", None),
        ("huggingface", None),
        ("deepseek", "reasoning_content"),
        ("moonshot", "reasoning_content"),
        ("zai", "reasoning_content"),
        ("alibaba", "reasoning_content"),
        ("openrouter", "reasoning"),
        ("cerebras", "reasoning"),
        ("vllm", "reasoning_content"),
    ],
)
@pytest.mark.parametrize("given", REASONING_TEXTS)
def test_f14_reasoning_goes_to_those_who_want_it_under_their_name(name: str, field: str | None, given: str) -> None:
    _, answer, *_ = said(name, USER, {"role": "assistant", "content": "a", given: "why"}, USER)
    expected = given if name == "vllm" else field
    assert {key: value for key, value in answer.items() if value == "why"} == ({expected: "why"} if expected else {})


@pytest.mark.parametrize(("name", "stand_in"), [("deepseek", ""), ("moonshot", " ")])
def test_f12_reasoning_that_has_to_come_back_and_is_not_there_is_said_to_be_empty(name: str, stand_in: str) -> None:
    """Thinking models of these two refuse an answer of another's: `reasoning_content … must be passed back`."""
    _, answer, *_ = said(name, USER, {**ANSWER, "reasoning_content": None, "thinking_blocks": None}, RESULT)
    assert answer["reasoning_content"] == stand_in


def test_an_unknown_server_gets_reasoning_as_it_is_and_nothing_we_invented() -> None:
    box = load_providers(Settings.model_validate({"providers": {"box": {"base_url": "http://127.0.0.1:9"}}}), {})["box"]
    message = {**ANSWER, "x_own": 1, "reasoning_details": [{"type": "reasoning.text"}]}
    answer = dialect_of(box).call(box, {"messages": [USER, message, RESULT]}, "m").body["messages"][1]
    assert answer.keys() == {"role", "content", "tool_calls", "reasoning_content", "reasoning_details", "x_own"}


def test_a_table_may_say_whose_rules_hold() -> None:
    table = {"base_url": "http://127.0.0.1:9", "vendor": "mistral"}
    box = load_providers(Settings.model_validate({"providers": {"box": table}}), {})["box"]
    assert box.accepts == vendor("mistral").accepts
    moved = load_providers(Settings.model_validate({"providers": {"groq": {"base_url": "http://127.0.0.1:9"}}}), {})[
        "groq"
    ]
    assert moved.accepts == vendor("groq").accepts
    other = {"base_url": "http://127.0.0.1:9", "kind": "anthropic", "vendor": "mistral"}
    claude = load_providers(Settings.model_validate({"providers": {"box": other}}), {})["box"]
    assert claude.accepts == vendor("anthropic").accepts, "a vendor's rules are those of its format"
    with pytest.raises(ValueError, match=r"vendor of \[providers.box\] must be one of alibaba, anthropic"):
        load_providers(Settings.model_validate({"providers": {"box": {**table, "vendor": "mistrall"}}}), {})


def test_f14_a_gateway_that_made_them_gets_them_back() -> None:
    table: dict[str, Any] = {"base_url": "http://127.0.0.1:9", "message_fields": ["thinking_blocks", "extra_content"]}
    box = load_providers(Settings.model_validate({"providers": {"box": table}}), {})["box"]
    answer = dialect_of(box).call(box, {"messages": [USER, ANSWER, RESULT]}, "m").body["messages"][1]
    for field in table["message_fields"]:
        assert answer[field] == ANSWER[field]
    assert answer["tool_calls"][0]["extra_content"] == ANSWER["extra_content"]
    assert "anthropic_blocks" not in answer


# ---- F15, F16, names


@pytest.mark.parametrize("name", OPENAIS)
def test_f15_developer_is_system_for_those_who_do_not_know_it(name: str) -> None:
    [message, _] = said(name, {"role": "developer", "content": "x"}, USER)
    assert message == {
        "role": "developer" if name in ("openai", "azure", "openrouter", "cerebras") else "system",
        "content": "x",
    }


@pytest.mark.parametrize("name", OPENAIS)
def test_f16_text_in_parts_is_one_text_for_those_who_want_a_string(name: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}
    history: list[dict[str, Any]] = [
        {"role": "system", "content": PARTS},
        {"role": "user", "content": [*PARTS, picture]},
        ANSWER,
        {**RESULT, "content": PARTS},
    ]
    system, user, _, result = said(name, *history)
    whole = name in ("deepseek", "mistral", "moonshot", "sambanova", "huggingface")
    assert system["content"] == ("one\ntwo" if whole else PARTS)
    assert result["content"] == ("one\ntwo" if whole else PARTS)
    assert user["content"] == [*PARTS, picture]


def test_cache_marks_are_for_those_who_skip_what_they_do_not_know() -> None:
    marked = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "f"}, "cache_control": {"type": "ephemeral"}}
    for name, mark in (("openrouter", True), ("alibaba", True), ("openai", False), ("groq", False)):
        request = sent(name, {"role": "user", "content": [marked]}, tools=[tool])
        assert ("cache_control" in request["messages"][0]["content"][0]) is mark
        assert ("cache_control" in request["tools"][0]) is mark


def test_names_of_speakers() -> None:
    named = {**USER, "name": "ann"}
    assert said("openai", named) == [named]
    for name in ("groq", "mistral"):
        assert said(name, named) == [USER]
        with pytest.raises(BadRequest, match="cannot tell speakers apart"):
            said(name, named, {**USER, "name": "bob"})
    assert said("mistral", USER, ANSWER, {**RESULT, "name": "f"})[-1]["name"] == "f"


# ---- empty things


@pytest.mark.parametrize("name", OPENAIS)
@pytest.mark.parametrize("nothing", ["", None, []])
def test_an_answer_that_said_nothing(name: str, nothing: Any) -> None:
    empty = {"role": "assistant", "content": nothing, "tool_calls": [], "function_call": None, "reasoning_content": ""}
    messages = said(name, USER, empty, USER)
    if name in ("openai", "azure"):
        assert messages == [USER, {"role": "assistant", "content": nothing}, USER]
    else:
        assert messages == [USER, USER]


def test_tools_that_are_none_ask_for_nothing() -> None:
    for name in OPENAIS:
        request = sent(name, tools=[], tool_choice="auto", parallel_tool_calls=True, stop=[])
        assert not request.keys() & {"tools", "tool_choice", "parallel_tool_calls", "stop"}
    assert sent("openai", tool_choice="required")["tool_choice"] == "required", (
        "the provider says what is wrong with it"
    )
    [tool] = sent("mistral", tools=[{"function": {"name": "f", "description": None}}])["tools"]
    assert tool == {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


# ---- F22 and other fields


@pytest.mark.parametrize("name", [vendor.name for vendor in VENDORS])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_f22_a_limit_of_minus_one_is_none(name: str, field: str) -> None:
    request = sent(name, **{field: -1})
    text = str(request)
    assert ("-1" in text) is (name in ("lmstudio", "llamacpp", "local")), "whose own way of saying it this is"


def test_stops_are_counted() -> None:
    five = list("abcde")
    for name, most in (("openai", 4), ("groq", 4), ("gemini", 5), ("cohere", 5)):
        sent(name, stop=five[:most])
        with pytest.raises(BadRequest, match=f"takes {most} at most"):
            sent(name, stop=[*five, "f"])
    assert sent("openai", stop=["", "x"])["stop"] == ["x"]
    assert sent("openai", stop="x")["stop"] == "x"


def test_mistral_is_told_nothing_it_forbids() -> None:
    hints = {**dict.fromkeys(HINTS, "x"), "service_tier": "auto", "stream_options": {"include_usage": True}}
    request = sent("mistral", seed=1, temperature=0, max_completion_tokens=5, **hints)
    assert request.keys() == {"model", "messages", "stream", "random_seed", "temperature", "max_tokens"}
    assert request["random_seed"] == 1


def test_mistral_goes_on_with_what_it_is_told_to_and_hears_no_user_after_a_tool() -> None:
    begun = {"role": "assistant", "content": "Once"}
    assert said("mistral", USER, begun)[-1] == {**begun, "prefix": True}
    assert [message["role"] for message in said("mistral", USER, ANSWER, RESULT, USER)][-3:] == [
        "tool",
        "assistant",
        "user",
    ]
    assert said("moonshot", USER, begun)[-1]["partial"] is True


@pytest.mark.parametrize(
    ("name", "effort", "told"),
    [
        ("groq", "minimal", "low"),
        ("groq", "xhigh", "high"),
        ("groq", "none", "none"),
        ("groq", "default", "default"),
        ("cerebras", "max", "high"),
        ("openai", "xhigh", "xhigh"),
        ("vllm", "minimal", "minimal"),
    ],
)
def test_efforts_are_those_the_vendor_knows(name: str, effort: str, told: str) -> None:
    assert sent(name, reasoning_effort=effort)["reasoning_effort"] == told


def test_f10_openai_takes_ids_of_forty_characters() -> None:
    long = "x" * 41
    call = {"id": long, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    _, answer, result = said(
        "openai", USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {**RESULT, "tool_call_id": long}
    )
    assert answer["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) <= OPENAI.call_ids.most


def test_a_moved_vendor_keeps_its_limits_name_unless_anybody_may_be_there() -> None:
    assert vendor("deepseek").limit_field == "max_tokens"
    assert vendor("openai").limit_field is None
