"""A chat request said in Anthropic's words, and Anthropic's events in OpenAI's."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from shared.chat.chunks import EXTENSION_FIELDS, Accumulator
from shared.errors import BadRequest, UpstreamError, UpstreamInvalid
from shared.lib import sse
from tests.support.answers import new_normalizer, values
from worker.providers.formats import anthropic, anthropic_request, dialect_of
from worker.providers.registry import Provider

WHO = Provider("anthropic", "anthropic", "http://127.0.0.1/v1", "sk-ant-secret")
USER = {"role": "user", "content": "hi"}
SAID = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "x": 1}}}
CLOSED = {"type": "object", "properties": {}, "additionalProperties": False}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def build(*messages: dict[str, Any], model: str = "claude-x", **fields: Any) -> dict[str, Any]:
    return anthropic_request.build_request({"model": "a/m", "messages": list(messages) or [USER], **fields}, model)


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = build(*messages)["messages"]
    return found


def refused(*messages: dict[str, Any], **fields: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        build(*messages, **fields)
    return caught.value.param


# ---- requests


def test_the_call() -> None:
    assert dialect_of(WHO) is anthropic.DIALECT
    call = anthropic_request.call(WHO, {"messages": [USER], "betas": ["a-1", "b.2"]}, "claude-x")
    assert call.path == "/messages"
    assert call.headers == {
        "x-api-key": "sk-ant-secret",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a-1,b.2",
    }
    assert call.body == {"model": "claude-x", "messages": [SAID], "stream": True, "max_tokens": 8192}
    assert "x-api-key" not in anthropic_request.call(Provider("a", "anthropic", ""), {"messages": [USER]}, "m").headers


@pytest.mark.parametrize("betas", ["a", [1], ["a\r\nx: y"], ["a,b"], [""]])
def test_betas_are_names(betas: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        anthropic_request.call(WHO, {"messages": [USER], "betas": betas}, "m")
    assert caught.value.param == "betas"


def test_our_own_and_openais_own_fields_stay_here() -> None:
    fields: dict[str, Any] = dict.fromkeys(EXTENSION_FIELDS - {"metadata"}, "x") | {
        "seed": 1,
        "store": True,
        "prediction": {},
        "stream_options": {},
    }
    labels: dict[str, Any] = {
        "metadata": {"label": "x"},
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "n": 1,
        "logprobs": False,
    }
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "logit_bias": {},
        "modalities": ["text"],
        "response_format": {"type": "text"},
    }
    ignored: dict[str, Any] = {**fields, **labels, **neutral}
    assert build(**ignored) == build()


def test_fields_that_are_anthropics_own_pass_untouched() -> None:
    own: dict[str, Any] = {
        "top_k": 5,
        "container": "c",
        "mcp_servers": [{}],
        "system": [{"type": "text", "text": "s"}],
        "unknown": None,
    }
    assert build(**own).items() >= own.items()


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"user": "u", "metadata": {"user_id": "v", "label": "x"}}, {"metadata": {"user_id": "v"}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_tokens": 7}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": CLOSED}}},
        ),
    ],
)
def test_fields_with_another_name(fields: dict[str, Any], made: dict[str, Any]) -> None:
    assert build(**fields) == {**build(), **made}


@pytest.mark.parametrize(
    ("model", "fields", "made"),
    [
        ("claude-sonnet-4-5", {}, {"type": "enabled", "budget_tokens": 8192, "max_tokens": 16384}),
        ("claude-opus-4-20250514", {"max_tokens": 20000}, {"budget_tokens": 8192, "max_tokens": 20000}),
        ("claude-haiku-4-5-20251001", {"max_tokens": 4000}, {"budget_tokens": 2000, "max_tokens": 4000}),
        ("claude-3-7-sonnet-latest", {"max_tokens": 1025}, {"budget_tokens": 1024, "max_tokens": 1025}),
        ("claude-sonnet-4", {"max_tokens": 500}, {"budget_tokens": 1024, "max_tokens": 1524}),
        ("somebody-elses", {}, {"type": "enabled", "budget_tokens": 8192, "max_tokens": 16384}),
        ("claude-opus-4-6", {}, {"type": "adaptive", "display": "summarized", "max_tokens": 16384}),
        ("claude-sonnet-5", {"max_tokens": 9}, {"type": "adaptive", "display": "summarized", "max_tokens": 9}),
    ],
)
def test_effort_becomes_thinking(model: str, fields: dict[str, Any], made: dict[str, Any]) -> None:
    request = build(model=model, reasoning_effort="medium", **fields)
    assert {**request["thinking"], "max_tokens": request["max_tokens"]} == {"type": "enabled", **made}
    assert request["max_tokens"] > request["thinking"].get("budget_tokens", 0)
    assert (request.get("output_config") == {"effort": "medium"}) is (made.get("type") == "adaptive")


def test_thinking_in_anthropics_own_words() -> None:
    own: dict[str, Any] = {"type": "enabled", "budget_tokens": 5000}
    assert build(thinking=own).items() >= {"thinking": own, "max_tokens": 13192}.items()
    assert build(reasoning_effort="none")["thinking"] == {"type": "disabled"}
    assert refused(thinking=own, reasoning_effort="low") == "thinking.type"


def test_the_system_is_said_apart() -> None:
    first, second = (
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "text", "text": "b"}]},
    )
    assert build(first, USER, second)["system"] == "a\n\nb"
    marked = {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}
    assert build(first, {"role": "system", "content": [marked]}, USER)["system"] == [
        {"type": "text", "text": "a"},
        marked,
    ]
    assert refused(first, USER, system="x") == "system"


def test_one_side_speaks_once_at_a_time() -> None:
    said: list[dict[str, Any]] = [
        USER,
        {"role": "user", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "b"}]},
    ]
    assert turns(*said) == [{"role": "user", "content": [*SAID["content"], {"type": "text", "text": "b"}]}]


def test_calls_and_their_results() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}}
    assert turns(
        USER,
        {"role": "assistant", "content": "I look", "refusal": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
        {"role": "tool", "tool_call_id": "c2", "content": [picture], "is_error": True},
        {"role": "user", "content": "and?"},
    ) == [
        SAID,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "r"},
                {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": [image]},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


def test_thinking_goes_back_first() -> None:
    thought = {"type": "thinking", "thinking": "t", "signature": "s"}
    hidden = {"type": "redacted_thinking", "data": "d"}
    block = {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}
    message = {
        "role": "assistant",
        "content": "a",
        "refusal": "no",
        "reasoning_content": "t",
        "thinking_blocks": [{**thought, "index": 0}, hidden, {"type": "thinking", "thinking": "another's"}],
        "anthropic_blocks": [{**block, "index": 0}],
        "tool_calls": [{**CALL, "function": {"name": "f", "arguments": ""}}],
    }
    [_, turn] = turns(USER, message)
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    said = [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}]
    assert turn["content"] == [thought, hidden, block, *said, call]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        ({"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "a", "cache_control": {}}),
        ({"type": "search_result", "x": 1}, {"type": "search_result", "x": 1}),
        ({"type": "refusal", "refusal": "no"}, {"type": "text", "text": "no"}),
        (
            {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "low"}, "cache_control": {}},
            {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}, "cache_control": {}},
        ),
        (
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}},
            {
                "type": "document",
                "title": "a.pdf",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "QUJD"},
            },
        ),
        (
            {
                "type": "file",
                "file": {"file_data": "data:text/plain;base64," + base64.b64encode("ä".encode()).decode()},
            },
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ä"}},
        ),
        (
            {"type": "file", "file": {"file_id": "f1"}},
            {"type": "document", "source": {"type": "file", "file_id": "f1"}},
        ),
    ],
)
def test_parts(part: dict[str, Any], block: dict[str, Any]) -> None:
    assert turns({"role": "user", "content": [part]})[0]["content"] == [block]


def test_tools_and_the_choice_among_them() -> None:
    own: dict[str, Any] = {"type": "web_search_20250305", "name": "web_search"}
    marked = {"type": "function", "function": {"name": "g", "strict": True}, "cache_control": {}}
    request = build(tools=[TOOL, own, marked])
    assert request["tools"] == [
        own,
        {"name": "f", "description": "d", "input_schema": {"type": "object", "x": 1}},
        {"name": "g", "input_schema": CLOSED, "strict": True, "cache_control": {}},
    ]
    assert "tool_choice" not in request


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"tool_choice": {"type": "any", "x": 1}}, {"type": "any", "x": 1}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": False, "tool_choice": "none"}, {"type": "none"}),
        (
            {"parallel_tool_calls": False, "tool_choice": "required"},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_tool_choice(fields: dict[str, Any], choice: dict[str, Any]) -> None:
    assert build(tools=[TOOL], **fields)["tool_choice"] == choice


def user(part: Any) -> dict[str, Any]:
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([], {"n": 2}, "n"),
        ([], {"logprobs": True}, "logprobs"),
        ([], {"top_logprobs": 2}, "top_logprobs"),
        ([], {"logit_bias": {"1": 2}}, "logit_bias"),
        ([], {"presence_penalty": 0.5}, "presence_penalty"),
        ([], {"modalities": ["text", "audio"]}, "modalities"),
        ([], {"verbosity": "low"}, "verbosity"),
        ([], {"functions": [{}]}, "functions"),
        ([], {"web_search_options": {"x": 1}}, "web_search_options"),
        ([], {"response_format": {"type": "json_object"}}, "response_format"),
        ([], {"response_format": {"type": "grammar"}}, "response_format"),
        ([], {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ([], {"reasoning_effort": "much"}, "reasoning_effort"),
        ([], {"stop": "a", "stop_sequences": ["b"]}, "stop_sequences"),
        ([], {"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        ([], {"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ([], {"tool_choice": "required"}, "tool_choice"),
        ([], {"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ([{"role": "user", "content": ""}], {}, "messages"),
        ([{**USER, "name": "a"}, {**USER, "name": "b"}], {}, "messages[1].name"),
        ([{"role": "system", "content": [{"type": "image_url"}]}], {}, "messages[0].content[0]"),
        ([{"role": "tool", "content": "x"}], {}, "messages[0].tool_call_id"),
        ([user({"type": "input_audio"})], {}, "messages[0].content[0]"),
        ([user({"type": "text", "text": 5})], {}, "messages[0].content[0].text"),
        ([user({"x": 1})], {}, "messages[0].content[0].type"),
        ([user({"type": "image_url", "image_url": {"url": "ftp://a"}})], {}, "messages[0].content[0]"),
        ([user({"type": "image_url", "image_url": {"url": "data:image/png,AB"}})], {}, "messages[0].content[0]"),
        ([user({"type": "file", "file": {}})], {}, "messages[0].content[0].file.file_data"),
        (
            [user({"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}})],
            {},
            "messages[0].content[0].file.file_data",
        ),
        ([], {"tools": [{"type": "function", "function": 5}]}, "tools[0].function"),
        ([{"role": "assistant", "tool_calls": 5}], {}, "messages[0].tool_calls"),
        ([{"role": "assistant", "audio": {"id": "x"}}], {}, "messages[0].audio"),
        ([{"role": "assistant", "thinking_blocks": [{"type": "text"}]}], {}, "messages[0].thinking_blocks[0]"),
    ],
)
def test_what_cannot_be_asked(messages: list[dict[str, Any]], fields: dict[str, Any], param: str) -> None:
    assert refused(*messages, **fields) == param


# ---- answers


def block(at: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": at, "content_block": start},
        *({"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": at},
    ]


def end(reason: str = "end_turn", **delta: Any) -> list[dict[str, Any]]:
    message = {"type": "message_delta", "delta": {"stop_reason": reason, **delta}, "usage": {"output_tokens": 7}}
    return [message, {"type": "message_stop"}]


def text(*pieces: str) -> list[dict[str, Any]]:
    return block(0, {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces))


START = {
    "type": "message_start",
    "message": {"usage": {"input_tokens": 3, "output_tokens": 1, "cache_creation": {"x": 1}}},
}


def answer(*events: dict[str, Any]) -> dict[str, Any]:
    """The whole answer that these events amount to, and nothing must be left out of it."""
    normalizer, fold = new_normalizer(dialect=anthropic.DIALECT), Accumulator()
    chunks = [chunk for event in (START, *events) for chunk in normalizer.feed(as_sse(event))]
    for value in values([*chunks, *normalizer.end()]):
        fold.feed(value)
    return fold.result()


def as_sse(event: dict[str, Any]) -> sse.Event:
    return sse.Event(json.dumps(event).encode(), event["type"])


def choice(*events: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answer(*events)["choices"][0]
    return found


def test_text_and_usage() -> None:
    told = answer(*text("a", "b"), *end())
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert told["usage"] == {
        "cache_creation": {"x": 1},
        "prompt_tokens": 3,
        "completion_tokens": 7,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    }


def test_nothing_is_handed_out_before_something_is_said() -> None:
    """So an overload at the start is a refusal that another provider can make good."""
    normalizer = new_normalizer(dialect=anthropic.DIALECT)
    assert normalizer.feed(as_sse(START)) == []
    assert normalizer.feed(as_sse({"type": "ping"})) == normalizer.feed(as_sse({"type": "new_in_2030"})) == []
    assert not normalizer.finished


def test_figures_are_cumulative() -> None:
    finish = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    figures = {"input_tokens": 10, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2, "output_tokens": 9}
    details = {"output_tokens_details": {"thinking_tokens": 5}, "server_tool_use": None}
    usage = answer(*text("a"), {**finish, "usage": {**figures, **details}})["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (16, 9, 25)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 2}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert "server_tool_use" not in usage


@pytest.mark.parametrize(
    ("native", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("new_in_2030", "length"),
    ],
)
def test_stop_reasons(native: str, reason: str) -> None:
    told = choice(*text("a"), *end(native))
    assert (told["finish_reason"], told["native_finish_reason"]) == (reason, native)


def test_what_is_said_about_the_end_is_kept() -> None:
    finish = {**end("stop_sequence", stop_sequence="x", stop_details={"a": 1})[0], "context_management": {"b": 1}}
    told = choice(*text("a"), finish)
    assert told["stop_sequence"] == "x"
    assert told["anthropic"] == {"stop_details": {"a": 1}, "context_management": {"b": 1}}


def test_thinking_comes_in_pieces_and_whole() -> None:
    pieces = [{"type": "thinking_delta", "thinking": "t1"}, {"type": "thinking_delta", "thinking": "t2"}]
    thought = block(0, {"type": "thinking", "thinking": "", "signature": ""}, *pieces, *signatures("s1", "s2"))
    hidden = block(1, {"type": "redacted_thinking", "data": "d"})
    omitted = block(2, {"type": "thinking", "thinking": ""}, *signatures("s"))
    message = choice(*thought, *hidden, *omitted, *end())["message"]
    assert message["reasoning_content"] == "t1t2"
    assert message["thinking_blocks"] == [
        {"type": "thinking", "thinking": "t1t2", "signature": "s1s2"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "thinking", "thinking": "", "signature": "s"},
    ]


def signatures(*pieces: str) -> list[dict[str, Any]]:
    return [{"type": "signature_delta", "signature": piece} for piece in pieces]


def test_tool_calls() -> None:
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"a"', ":1}")]
    first = block(0, {"type": "tool_use", "id": "t1", "name": "f", "input": {}}, *pieces)
    without = block(1, {"type": "tool_use", "id": "t2", "name": "g", "input": {}}, pieces[0])
    at_once = block(2, {"type": "tool_use", "id": "t3", "name": "h", "input": {"b": 2}})
    calls = choice(*first, *without, *at_once, *end("tool_use"))["message"]["tool_calls"]
    assert [(call["id"], call["type"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("t1", "function", "f", '{"a":1}'),
        ("t2", "function", "g", "{}"),
        ("t3", "function", "h", '{"b":2}'),
    ]


def test_blocks_openai_has_nothing_like_are_kept_whole() -> None:
    query = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"q":', "1}")]
    search = block(0, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, *query)
    result = block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"url": "u"}]})
    summary = block(
        2, {"type": "compaction", "content": None}, *[{"type": "compaction_delta", "content": c} for c in "ab"]
    )
    assert choice(*search, *result, *summary, *end())["message"]["anthropic_blocks"] == [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": 1}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"url": "u"}]},
        {"type": "compaction", "content": "ab"},
    ]


def test_citations_stand_where_the_text_stands() -> None:
    page = {"type": "web_search_result_location", "url": "u", "title": "t", "cited_text": "c"}
    place = {"type": "char_location", "document_index": 0}
    cite = [{"type": "citations_delta", "citation": citation} for citation in (page, place)]
    cited = block(1, {"type": "text", "text": "", "citations": []}, *cite, {"type": "text_delta", "text": "äb"})
    message = choice(*text("123"), *cited, *end())["message"]
    assert message["annotations"] == [
        {
            "type": "url_citation",
            "url_citation": {"url": "u", "title": "t", "cited_text": "c", "start_index": 3, "end_index": 5},
        },
    ]
    assert message["other_annotations"] == [
        {"type": "char_location", "char_location": {"document_index": 0, "start_index": 3, "end_index": 5}},
    ]


def test_a_block_may_begin_with_words_and_figures_come_without_an_end() -> None:
    begun = block(0, {"type": "text", "text": "a"}, {"type": "text_delta", "text": "b"})
    figures = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 1}}
    told = answer(*begun, figures, *end())
    assert (told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]) == ("ab", 7)


def test_a_block_that_was_never_closed_is_kept() -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    [opened] = choice({"type": "content_block_start", "index": 0, "content_block": call}, *end())["message"][
        "tool_calls"
    ]
    assert opened["function"]["arguments"] == "{}"


def inputs(*pieces: str) -> list[dict[str, Any]]:
    return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]


F = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
SEARCH = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
CUT = [("max_tokens", "length"), ("model_context_window_exceeded", "length"), ("refusal", "content_filter")]


def cut_answers(*blocks: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The last block with its end, and without."""
    return [list(blocks), list(blocks[:-1])]


@pytest.mark.parametrize(("native", "reason"), CUT)
@pytest.mark.parametrize("kind", ["server_tool_use", "mcp_tool_use"])
@pytest.mark.parametrize("pieces", [(), ("",), ('{"query": "weat',), ("", "{")])
def test_an_answer_that_was_cut_within_a_search_keeps_what_came_before_it_and_its_figures(
    native: str, reason: str, kind: str, pieces: tuple[str, ...]
) -> None:
    """It failed, as if the provider had sent rubbish; and a search without its words would be refused when it goes back."""
    whole = block(1, {**SEARCH, "id": "s0"}, *inputs('{"query": "a"}'))
    for last in cut_answers(*block(2, {**SEARCH, "type": kind}, *inputs(*pieces))):
        told = answer(*text("a"), *whole, *last, *end(native))
        [found] = told["choices"]
        assert (found["finish_reason"], found["native_finish_reason"]) == (reason, native)
        assert (found["message"]["content"], told["usage"]["completion_tokens"]) == ("a", 7)
        assert found["message"]["anthropic_blocks"] == [{**SEARCH, "id": "s0", "input": {"query": "a"}}]


@pytest.mark.parametrize("native", ["end_turn", "tool_use", "pause_turn", "stop_sequence", None])
def test_a_search_that_is_no_json_where_nothing_was_cut_is_a_damaged_answer(native: str | None) -> None:
    broken = block(1, SEARCH, *inputs('{"query": "weat'))
    for last in cut_answers(*broken):
        with pytest.raises(UpstreamInvalid):
            answer(*text("a"), *last, *end(native))  # type: ignore[arg-type]
    with pytest.raises(UpstreamInvalid):
        answer(*broken, *block(2, {"type": "text", "text": "a"}), *end("max_tokens"))


@pytest.mark.parametrize(("native", "reason"), CUT)
@pytest.mark.parametrize("pieces", [(), ("",)])
def test_a_call_that_was_cut_before_its_arguments_has_none(native: str, reason: str, pieces: tuple[str, ...]) -> None:
    """`{}` would be run."""
    for last in cut_answers(*block(1, F, *inputs(*pieces))):
        told = choice(*text("a"), *last, *end(native))
        assert (told["finish_reason"], told["message"]["tool_calls"][0]["function"]["arguments"]) == (reason, "")


@pytest.mark.parametrize("after", [block(1, {"type": "text", "text": "b"}), block(1, {**F, "id": "u"}, *inputs('{"a'))])
def test_a_call_without_arguments_before_the_block_that_was_cut_is_whole(after: list[dict[str, Any]]) -> None:
    for first in cut_answers(*block(0, F)):
        told = choice(*first, *after, *end("max_tokens"))
        assert [one["function"]["arguments"] for one in told["message"]["tool_calls"]] in (["{}"], ["{}", '{"a'])
        assert told["finish_reason"] == "length"


@pytest.mark.parametrize("reason", ["max_tokens", "end_turn", None])
def test_blocks_without_input_in_a_message_that_comes_whole(reason: str | None) -> None:
    message = {"type": "message", "content": [{"type": "text", "text": "a"}, SEARCH, F], "stop_reason": reason}
    told = choice(message)["message"]
    assert told["anthropic_blocks"] == [SEARCH]
    assert told["tool_calls"][0]["function"]["arguments"] == ("" if reason == "max_tokens" else "{}")


@pytest.mark.parametrize(("reason", "arguments"), [("max_tokens", ""), ("tool_use", "{}"), (None, "{}")])
def test_where_only_the_start_says_how_it_ended(reason: str | None, arguments: str) -> None:
    start = {"type": "message_start", "message": {"stop_reason": reason, "usage": {"input_tokens": 3}}}
    told = choice(start, *block(0, F), {"type": "message_stop"})
    assert told["message"]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request_error", 400),
        ("authentication_error", 502),
        ("billing_error", 402),
        ("permission_error", 502),
        ("not_found_error", 404),
        ("request_too_large", 413),
        ("rate_limit_error", 429),
        ("timeout_error", 504),
        ("overloaded_error", 502),
        ("api_error", 502),
    ],
)
def test_errors_in_the_stream(kind: str, status: int) -> None:
    normalizer = new_normalizer(dialect=anthropic.DIALECT)
    for event in (START, *text("a")):
        normalizer.feed(as_sse(event))
    with pytest.raises(UpstreamError) as caught:
        normalizer.feed(as_sse({"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "r"}))
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert caught.value.message.startswith("m")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "content_block_start", "index": 0},
        {"type": "content_block_start", "index": [], "content_block": {"type": "text"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": 5}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "c", "name": 5}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "x"}},
        {"type": "message_delta", "delta": {"stop_reason": {}}},
    ],
)
def test_events_of_another_shape_are_refused(event: dict[str, Any]) -> None:
    with pytest.raises(UpstreamInvalid):
        new_normalizer(dialect=anthropic.DIALECT).feed(as_sse(event))
