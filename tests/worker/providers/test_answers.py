"""Answers as providers really give them, kind by kind: in OpenAI's format and in formats of their own, in one form out.

Every chunk and every whole answer is read by the models of OpenAI's own SDK for Python, and the streams by its helper.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import UpstreamIncomplete, UpstreamRefused
from shared.generations.outcome import finished_status
from shared.lib import sse
from shared.log.entry import Status
from tests.support.answers import new_normalizer
from tests.support.written import (
    DIALECTS,
    DONE,
    FRAMED,
    USAGE,
    Value,
    answered,
    anthropic,
    calls_of,
    chunk,
    cohere_end,
    gemini,
    hear,
    native,
    only,
    refused,
    said,
    stream_of,
    words,
)
from worker.providers import finish
from worker.providers.tool_calls import ids_in

# ---- F1: a finish reason in the middle


@pytest.mark.parametrize("words_", [("one ", "two ", "three")])
@pytest.mark.parametrize("form", ["beside the text", "apart", "with usage in each"])
def test_f1_a_finish_reason_in_the_middle_is_none(words_: tuple[str, ...], form: str) -> None:
    events: list[Value] = []
    for text in words_:
        if form == "apart":
            events += [chunk({"content": text}), chunk({}, "stop")]
        else:
            more: dict[str, Any] = {"usage": USAGE} if form == "with usage in each" else {}
            events.append(chunk({"content": text}, "stop", **more))
    assert only(answered(*events, DONE)) == ("one two three", "stop")
    assert only(answered(*events)) == ("one two three", "stop"), "the end of the body ends it, too"


def test_f1_the_last_finish_reason_counts() -> None:
    assert only(answered(chunk({"content": "a"}, "stop"), chunk({"content": "b"}, "length"), DONE)) == ("ab", "length")
    assert only(answered(chunk({"content": "a"}, "length"), *said("b"), DONE)) == ("ab", "stop"), "it was none"


def test_f1_a_cut_after_more_content_is_incomplete() -> None:
    error, text = refused(*said("one "), chunk({}, "stop"), *said("two "))
    assert isinstance(error, UpstreamIncomplete)
    assert text == "one two "


def test_f1_each_choice_has_one_finish_reason_and_it_is_last() -> None:
    events = [chunk({"content": f"{i}{n}"}, "stop", index=i) for n in range(3) for i in range(2)]
    whole = answered(*events, DONE, choices=2)
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["000102", "101112"]


def test_f1_gemini_goes_on_after_a_built_in_tool() -> None:
    events = [
        gemini({"executableCode": {"code": "1+1"}}),
        gemini({"codeExecutionResult": {"output": "2"}}, reason="STOP", groundingMetadata={"a": ["x"]}),
        gemini({"text": "The answer is 2, because"}),
        gemini({"text": " one and one make two."}, reason="STOP", groundingMetadata={"a": ["x"]}),
    ]
    whole = answered(*events, dialect=DIALECTS["gemini"])
    assert only(whole) == ("The answer is 2, because one and one make two.", "stop")
    assert whole["choices"][0]["groundingMetadata"] == {"a": ["x"]}
    error, _ = refused(*events[:3], dialect=DIALECTS["gemini"])
    assert isinstance(error, UpstreamIncomplete)


# ---- F2, F3: failures that look like success

BARE_ERRORS = [
    ({"object": "error", "message": "out of memory", "type": "InternalServerError", "code": 500}, "out of memory", 502),
    ({"detail": "too long"}, "too long", 502),
    ({"detail": [{"loc": ["body"], "msg": "too long"}]}, "too long", 502),
    ({"code": "InvalidParameter", "message": "no such model", "request_id": "r"}, "no such model", 502),
    ({"message": "slow down", "code": 429}, "slow down", 429),
    ({"type": "error", "message": "broke"}, "broke", 502),
    ({"success": False, "errors": [{"code": 1001, "message": "broke"}]}, "broke", 502),
    ({"choices": None, "base_resp": {"status_code": 1004, "status_msg": "no login"}}, "no login", 502),
    ({"error_code": 17, "error_msg": "quota"}, "quota", 502),
]


@pytest.mark.parametrize(("value", "message", "status"), BARE_ERRORS)
@pytest.mark.parametrize("kind", FRAMED)
def test_f2_an_error_without_an_envelope_is_one(value: dict[str, Any], message: str, status: int, kind: str) -> None:
    error, text = refused(value, DONE, dialect=DIALECTS[kind])
    assert isinstance(error, UpstreamRefused)
    assert message in error.message
    assert (error.status, text) == (status, "")


def test_f2_what_came_before_such_an_error_is_kept() -> None:
    error, text = refused(*said("Half"), {"detail": "broke"}, DONE)
    assert (type(error), text) == (UpstreamRefused, "Half")


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"choices": []}],
        [{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}}],
        [chunk({"role": "assistant", "content": ""})],
        [chunk({"role": "assistant"}), chunk({})],
    ],
)
def test_f2_a_stream_that_says_nothing_is_no_answer(events: list[Value]) -> None:
    chunks, error, reader = hear(stream_of(*events, DONE))
    assert isinstance(error, UpstreamIncomplete)
    assert chunks == []
    assert reader.chunks == 0, "another provider may be asked"


def test_f2_an_end_or_a_figure_says_that_the_answer_is_empty() -> None:
    assert only(answered(chunk({"role": "assistant"}), chunk({}, "stop"), DONE)) == (None, "stop")
    assert only(answered({"choices": [], "usage": USAGE}, DONE)) == (None, "stop")


@pytest.mark.parametrize("error", [{"code": 502, "message": "timed out"}, "timed out"])
def test_f3_an_error_inside_a_choice_is_one(error: Any) -> None:
    failing = chunk({"content": ""}, "error")
    failing["choices"][0]["error"] = error
    found, text = refused(*said("Partial "), failing, DONE)
    assert isinstance(found, UpstreamRefused)
    assert ("timed out" in found.message, text) == (True, "Partial ")


@pytest.mark.parametrize("word", ["error", "network_error", "insufficient_system_resource", "abort", "ERROR"])
def test_f3_a_finish_that_is_an_error_is_one(word: str) -> None:
    found, text = refused(*said("Partial "), chunk({"content": "words"}, word), {"choices": [], "usage": USAGE}, DONE)
    assert isinstance(found, UpstreamRefused)
    assert (word in found.message, text) == (True, "Partial words")
    _, nothing = refused(chunk({"role": "assistant"}), chunk({}, word), DONE)
    assert nothing == ""


# ---- A3, N2: finish reasons

KNOWN = [(kind, word) for kind in FRAMED for word in finish.FORMATS[kind].endings]


@pytest.mark.parametrize(("kind", "word"), KNOWN)
def test_n2_every_word_of_every_format_is_one_of_openais_five(kind: str, word: str) -> None:
    meaning = finish.FORMATS[kind].endings[word]
    events = native(kind, word)
    if meaning.reason is None:
        error, text = refused(*events, dialect=DIALECTS[kind])
        assert isinstance(error, UpstreamRefused)
        assert text == "a"
        return
    whole = answered(*events, *([DONE] if kind == "openai" else []), dialect=DIALECTS[kind])
    assert only(whole) == ("a", meaning.reason)
    [choice] = whole["choices"]
    assert kind == "openai" or choice["native_finish_reason"] == word
    assert finished_status([choice["finish_reason"]]) == Status(meaning.status)


@pytest.mark.parametrize("kind", FRAMED)
def test_n2_an_unknown_word_is_not_silently_good(kind: str) -> None:
    whole = answered(*native(kind, "new_in_2030"), *([DONE] if kind == "openai" else []), dialect=DIALECTS[kind])
    [choice] = whole["choices"]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("length", "new_in_2030")
    assert finished_status([choice["finish_reason"]]) == Status.INCOMPLETE


def test_n2_an_unknown_word_and_nothing_said_is_no_answer() -> None:
    for kind, events in (("openai", [chunk({}, "new_in_2030"), DONE]), ("gemini", [gemini(reason="NEW_IN_2030")])):
        error, _ = refused(*events, dialect=DIALECTS[kind])
        assert isinstance(error, UpstreamIncomplete)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("model_length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("end_turn", "stop"),
        ("eos_token", "stop"),
        ("tool_use", "tool_calls"),
        ("sensitive", "content_filter"),
        ("SAFETY", "content_filter"),
        ("FinishReason.STOP", "stop"),
    ],
)
def test_a3_words_of_others_mean_in_openais_format_what_they_do_at_home(word: str, reason: str) -> None:
    whole = answered(*said("a"), chunk({}, word), DONE)
    assert only(whole) == ("a", reason)
    assert whole["choices"][0]["native_finish_reason"] == word


def test_a3_only_openais_five_words_are_good_or_cut() -> None:
    assert {finished_status([word]) for word in ("stop", "tool_calls", "function_call")} == {Status.COMPLETED}
    assert {finished_status([word]) for word in ("length", "content_filter", "eos", "x")} == {Status.INCOMPLETE}


# ---- F4 to F7, N1, A4: tool calls


def call(
    index: int | None, id: str | None = None, name: str | None = None, arguments: Any = None, **more: Any
) -> dict[str, Any]:
    function = {key: item for key, item in (("name", name), ("arguments", arguments)) if item is not None}
    told = {"index": index, "id": id, "function": function, **more}
    return chunk({"tool_calls": [{key: item for key, item in told.items() if item is not None}]})


END = (chunk({}, "tool_calls"), DONE)
OSLO, CET = '{"city":"Oslo"}', '{"tz":"CET"}'
BOTH = [("get_weather", OSLO), ("get_time", CET)]


@pytest.mark.parametrize(
    "events",
    [
        [call(0, "a", "get_weather", OSLO), call(0, "b", "get_time", CET)],
        [
            call(0, "a", "get_weather", ""),
            call(0, None, None, OSLO),
            call(0, "b", "get_time", ""),
            call(0, None, None, CET),
        ],
        [call(0, "", "get_weather", OSLO), call(0, "", "get_time", CET)],
        [call(0, None, "get_weather", OSLO), call(0, None, "get_time", CET)],
        [call(0, "a", "get_weather", OSLO), call(0, "a", "get_time", CET)],
        [
            call(0, "a", "get_weather", '{"city":'),
            call(0, "a", "get_weather", '"Oslo"}'),
            call(0, "b", "get_time", '{"tz":'),
            call(0, "", "", '"CET"}'),
        ],
    ],
)
def test_f4_parallel_calls_that_all_have_index_0(events: list[Value]) -> None:
    assert calls_of(answered(*events, *END)) == BOTH


def test_f4_the_same_function_twice_under_index_0() -> None:
    events = [call(0, None, "f", '{"a":1}'), call(0, None, "f", '{"a":2}')]
    assert calls_of(answered(*events, *END)) == [("f", '{"a":1}'), ("f", '{"a":2}')]


@pytest.mark.parametrize("indexes", [(1, 2), (3, 7), (2, 1), (None, None)])
def test_f5_indexes_are_numbered_from_0_in_order_of_appearance(indexes: tuple[int | None, int | None]) -> None:
    first, second = indexes
    events = [
        *said("I look."),
        call(first, "a", "get_weather", '{"city":'),
        call(first, None, None, '"Oslo"}'),
        call(second, "b", "get_time", '{"tz":'),
        call(second, None, None, '"CET"}'),
    ]
    assert calls_of(answered(*events, *END)) == BOTH


def test_f5_pieces_of_two_calls_in_turn() -> None:
    events = [
        call(1, "a", "get_weather", '{"city":'),
        call(2, "b", "get_time", '{"tz":'),
        call(1, None, None, '"Oslo"}'),
        call(2, None, None, '"CET"}'),
    ]
    assert calls_of(answered(*events, *END)) == BOTH


@pytest.mark.parametrize("id", ["", None, "same"])
def test_f6_ids_that_are_missing_or_not_unique_are_ours(id: str | None) -> None:
    events = [call(0, id, "get_weather", OSLO), call(1, id, "get_time", CET)]
    whole = answered(*events, *END)
    assert calls_of(whole) == BOTH
    own = [one["id"] for one in whole["choices"][0]["message"]["tool_calls"] if one["id"] != "same"]
    assert all(one.isalnum() and len(one) == 9 for one in own), "Mistral takes no other"


def test_f6_ids_of_the_conversation_are_not_used_again() -> None:
    history = [{"role": "assistant", "tool_calls": [{"id": "call_0"}, {"id": "call_1"}, "x"]}, {"role": "user"}, "x"]
    assert ids_in(history) == {"call_0", "call_1"}
    whole = answered(call(0, "call_0", "f", "{}"), call(1, "call_9", "f", "{}"), *END, ids=ids_in(history))
    first, second = (one["id"] for one in whole["choices"][0]["message"]["tool_calls"])
    assert first not in ("call_0", "call_1")
    assert second == "call_9"


def test_f6_a_name_that_comes_after_its_id() -> None:
    assert calls_of(answered(call(0, "a"), call(0, None, "f", '{"a'), call(0, None, None, '":1}'), *END)) == [
        ("f", '{"a":1}')
    ]


@pytest.mark.parametrize("word", ["stop", "STOP", "eos", None])
def test_f7_stop_beside_calls_is_tool_calls(word: str | None) -> None:
    whole = answered(call(0, "a", "f", "{}"), chunk({}, word), DONE)
    [choice] = whole["choices"]
    assert (choice["finish_reason"], choice.get("native_finish_reason")) == ("tool_calls", word)


def test_f7_openais_stop_for_the_one_function_that_was_asked_for_stays() -> None:
    whole = answered(call(0, "a", "f", "{}"), chunk({}, "stop"), DONE, forced=True)
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_f7_a_legacy_function_call_has_its_own_reason() -> None:
    whole = answered(chunk({"function_call": {"name": "f", "arguments": {"a": 1}}}), chunk({}, "stop"), DONE)
    [choice] = whole["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'}


@pytest.mark.parametrize("arguments", ["", None, " ", "null", {}])
def test_n1_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    [(name, told)] = calls_of(answered(call(0, "a", "f", arguments), *END))
    assert (name, json.loads(told)) == ("f", {})


def test_n1_arguments_are_text() -> None:
    assert calls_of(answered(call(0, "a", "f", {"a": ["é"]}), *END)) == [("f", '{"a":["é"]}')]


def test_n1_a_call_that_was_cut_before_its_arguments_is_not_made_whole() -> None:
    assert calls_of(answered(call(0, "a", "f", ""), chunk({}, "length"), DONE)) == [("f", "")]


def test_n1_in_formats_of_their_own() -> None:
    cohere = [
        {
            "type": "tool-call-start",
            "index": 0,
            "delta": {"message": {"tool_calls": {"id": "c", "function": {"name": "f", "arguments": ""}}}},
        },
        {"type": "tool-call-end", "index": 0},
        cohere_end("TOOL_CALL"),
    ]
    item = {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": ""}
    responses = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.function_call_arguments.done", "output_index": 0, "arguments": ""},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    block = ({"type": "tool_use", "id": "c", "name": "f", "input": {}},)
    for kind, events in (
        ("cohere", cohere),
        ("responses", responses),
        ("anthropic", anthropic(block, reason="tool_use")),
        ("gemini", [gemini({"functionCall": {"name": "f"}}, reason="STOP")]),
    ):
        whole = answered(*events, dialect=DIALECTS[kind])
        assert (calls_of(whole), whole["choices"][0]["finish_reason"]) == ([("f", "{}")], "tool_calls"), kind


def test_a4_items_without_an_id_and_a_place_are_told_apart_by_their_call() -> None:
    events: list[Value] = []
    for name, arguments in BOTH:
        item = {"type": "function_call", "call_id": f"fc_{name}", "name": name, "arguments": ""}
        done = {**item, "arguments": arguments}
        events += [
            {"type": "response.output_item.added", "item": item},
            {"type": "response.function_call_arguments.delta", "item_id": item["call_id"], "delta": arguments},
            {"type": "response.output_item.done", "item": done},
        ]
    events.append({"type": "response.completed", "response": {"status": "completed"}})
    assert calls_of(answered(*events, dialect=DIALECTS["responses"])) == BOTH


# ---- F8: the finish


def test_f8_an_empty_finish_reason_is_none() -> None:
    events = [chunk({"content": "a"}, ""), chunk({"content": "b"}, ""), chunk({}, "stop"), chunk({"content": ""}, "")]
    assert only(answered(*events, {"choices": [], "usage": USAGE}, DONE)) == ("ab", "stop")


def test_f8_a_finish_reason_that_is_missing_is_null() -> None:
    bare: Any = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    assert only(answered(bare, bare, chunk({}, "stop"), DONE)) == ("aa", "stop")


def test_f8_an_answer_that_is_whole_and_gave_no_reason_has_one() -> None:
    assert only(answered(*said("a"), {"choices": [], "usage": USAGE}, DONE)) == ("a", "stop")
    assert answered(call(0, "a", "f", "{}"), DONE)["choices"][0]["finish_reason"] == "tool_calls"


# ---- F9: usage


def test_f9_usage_inside_the_choice() -> None:
    figures = {"prompt_tokens": 1336, "completion_tokens": 31, "total_tokens": 1367, "cached_tokens": 1280}
    last = chunk({}, "stop")
    last["choices"][0]["usage"] = figures
    whole = answered(*said("a"), last, DONE)
    assert whole["usage"] == {**figures, "prompt_tokens_details": {"cached_tokens": 1280}}
    assert "usage" not in whole["choices"][0]


@pytest.mark.parametrize("zeros", [{"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, {}, None])
def test_f9_zeros_do_not_replace_figures(zeros: Any) -> None:
    events: list[Value] = [chunk({"content": "a"}, usage=USAGE), chunk({}, "stop"), {"choices": [], "usage": zeros}]
    assert answered(*events, DONE)["usage"] == USAGE


def test_f9_an_input_of_zero_does_not_replace_one_that_is_not() -> None:
    later = {"prompt_tokens": 0, "completion_tokens": 9, "total_tokens": 9}
    usage = answered(chunk({"content": "a"}, usage=USAGE), chunk({}, "stop", usage=later), DONE)["usage"]
    assert usage == {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}


def test_f9_anthropics_figures_are_cumulative() -> None:
    usage = answered(*anthropic(words("a"), input_tokens=0, output_tokens=9), dialect=DIALECTS["anthropic"])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 9, 16)


@pytest.mark.parametrize(
    ("figures", "cached", "reasoning"),
    [
        ({**USAGE, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 3}, 4, None),
        ({**USAGE, "cached_tokens": 4}, 4, None),
        ({**USAGE, "prompt_tokens_details": None, "cached_tokens": 0}, 0, None),
        ({**USAGE, "prompt_tokens_details": {"cached_tokens": 2}, "cached_tokens": 4}, 2, None),
        ({**USAGE, "reasoning_tokens": 3}, None, 3),
        ({"input_tokens": 7, "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 3}}, None, 3),
        (
            {**USAGE, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}},
            None,
            3,
        ),  # beside the answer's, as xAI counts
    ],
)
def test_f9_cached_and_reasoning_tokens_stand_where_openai_has_them(
    figures: dict[str, Any], cached: int | None, reasoning: int | None
) -> None:
    usage = answered(*said("a"), chunk({}, "stop"), {"choices": [], "usage": figures}, DONE)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 5, 12)
    assert (usage.get("prompt_tokens_details") or {}).get("cached_tokens") == cached
    assert (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") == reasoning


# ---- F18: whole answers

MESSAGE = {"role": "assistant", "content": "The whole answer"}
WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
    "usage": USAGE,
}


def test_f18_a_message_in_place_of_a_delta_is_the_answer() -> None:
    whole = answered(WHOLE, DONE)
    assert (only(whole), whole["usage"]) == (("The whole answer", "stop"), USAGE)


def test_f18_a_message_with_calls_is_the_answer() -> None:
    calls = [{"id": "a", "type": "function", "function": {"name": name, "arguments": args}} for name, args in BOTH]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": calls},
        "finish_reason": "stop",
    }
    whole = answered({"choices": [choice]}, DONE)
    assert (calls_of(whole), whole["choices"][0]["finish_reason"]) == (BOTH, "tool_calls")


def test_f18_a_message_that_repeats_what_was_said_is_not_said_again() -> None:
    assert only(answered(*said("The whole", " answer"), WHOLE, DONE)) == ("The whole answer", "stop")


@pytest.mark.parametrize("delta", [{}, {"role": "assistant"}, {"role": "assistant", "content": ""}])
def test_f18_a_message_beside_an_empty_delta_is_said_if_nothing_else_is(delta: dict[str, Any]) -> None:
    beside = {"choices": [{**WHOLE["choices"][0], "delta": delta}], "usage": USAGE}  # type: ignore[index]
    assert only(answered(beside, DONE)) == ("The whole answer", "stop")


def test_f18_in_formats_of_their_own() -> None:
    anthropic_message = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 7, "output_tokens": 5},
    }
    item = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}
    made = {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
    figures = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    response = {"object": "response", "status": "completed", "output": [item, made], "usage": figures}
    cohere_call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    cohere_message = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}], "tool_calls": [cohere_call]}
    cohere_usage = {"tokens": {"input_tokens": 7, "output_tokens": 5}}
    for kind, event in (
        ("anthropic", anthropic_message),
        ("responses", response),
        ("cohere", {"id": "x", "message": cohere_message, "finish_reason": "TOOL_CALL", "usage": cohere_usage}),
        ("gemini", gemini({"text": "Hi"}, {"functionCall": {"name": "f", "args": {"a": 1}}}, reason="STOP")),
    ):
        whole = answered(event, dialect=DIALECTS[kind])
        assert only(whole) == ("Hi", "tool_calls"), kind
        assert calls_of(whole) == [("f", '{"a":1}')], kind
        assert whole["usage"]["total_tokens"] == 12, kind


@pytest.mark.parametrize("begun", [False, True])
def test_a_responses_stream_whose_text_stands_only_at_its_end_is_an_answer(begun: bool) -> None:
    item = {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}
    opening = [{"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}}] * begun
    end = {"type": "response.completed", "response": {"status": "completed", "output": [item]}}
    assert only(answered(*opening, end, dialect=DIALECTS["responses"])) == ("Hi", "stop")


def test_what_a_response_says_again_at_its_end_is_not_said_twice() -> None:
    item = {"type": "message", "id": "other", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}
    delta = {"type": "response.output_text.delta", "item_id": "m", "delta": "Hi"}
    end = {"type": "response.completed", "response": {"status": "completed", "output": [item]}}
    assert only(answered(delta, end, dialect=DIALECTS["responses"])) == ("Hi", "stop")


# ---- N3, N4: annotations


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "url_citation", "url": "https://example.com/a"},
        {"type": "url_citation", "url_citation": {"url": "https://example.com/a"}},
    ],
)
def test_n3_a_citation_has_its_required_fields(annotation: dict[str, Any]) -> None:
    whole = answered(*said("abc"), chunk({"annotations": [annotation]}), chunk({}, "stop"), DONE)
    [told] = whole["choices"][0]["message"]["annotations"]
    place = {"start_index": 0, "end_index": 3}
    assert told == {"type": "url_citation", "url_citation": {"url": "https://example.com/a", "title": "", **place}}


def test_n3_in_a_responses_answer() -> None:
    events: list[Value] = [
        {"type": "response.output_text.delta", "output_index": 0, "delta": "abc"},
        {
            "type": "response.output_text.annotation.added",
            "output_index": 0,
            "annotation": {"type": "url_citation", "url": "https://example.com/a"},
        },
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    [told] = answered(*events, dialect=DIALECTS["responses"])["choices"][0]["message"]["annotations"]
    assert told["url_citation"].keys() == {"url", "title", "start_index", "end_index"}


def test_n4_annotations_of_other_types_stand_apart() -> None:
    events = [chunk({"annotations": [{"type": "file_citation", "file_id": "f", "index": 4}]}) for _ in range(2)]
    message = answered(*said("abc"), *events, chunk({}, "stop"), DONE)["choices"][0]["message"]
    assert message["other_annotations"] == [{"type": "file_citation", "file_id": "f"}] * 2
    assert "annotations" not in message


def test_two_citations_in_two_chunks_are_read_by_openais_helper() -> None:
    """It joins lists by `index`, and fails where there is none."""
    citation = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}
    events = [chunk({"annotations": [citation]}) for _ in range(2)]
    message = answered(*said("abc"), *events, chunk({}, "stop"), DONE)["choices"][0]["message"]
    assert message["annotations"] == [citation] * 2


def test_nothing_is_handed_out_before_the_answer_says_something() -> None:
    reader = new_normalizer()
    opening = sse.Event(json.dumps(chunk({"role": "assistant", "content": ""})).encode())
    assert reader.feed(opening) == []
    assert reader.begun
    first, second = (json.loads(one.payload) for one in reader.feed(sse.Event(json.dumps(said("a")[0]).encode())))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert second["choices"][0]["delta"] == {"content": "a"}
