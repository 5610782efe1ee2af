"""Answers of the same kinds as in test_answers.py, spelled in other ways: what a normalizer that knew those alone got wrong.

K1: an answer is taken for ended too early, K2: a failure looks like a success, K3: the pieces of tool calls, K4: the finish
reason, K5: figures elsewhere, K8: an answer that is no stream of deltas. N: formats of their own.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import UpstreamError, UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from shared.generations.outcome import finished_status
from tests.support.answers import completion, values
from tests.support.written import (
    COHERE_WORDS,
    DIALECTS,
    DONE,
    FRAMED,
    USAGE,
    answered,
    anthropic,
    assert_reads,
    calls_of,
    chunk,
    cohere_end,
    gemini,
    hear,
    only,
    refused,
    said,
    stream_of,
    words,
)

FIGURES = (7, 5, 12)


def heard(body: bytes, kind: str = "openai") -> dict[str, Any]:
    """The whole answer in a body, which is the same in packets of 1, 7 and 1,400 bytes."""
    chunks, error, _ = hear(body, dialect=DIALECTS[kind])
    assert error is None
    for size in (1, 7):
        assert hear(body, dialect=DIALECTS[kind], size=size)[:2] == (chunks, None)
    assert_reads(chunks)
    return completion(chunks)


def failed(body: bytes, kind: str = "openai") -> tuple[UpstreamError, str]:
    """The error a body ends in, and the text before it, in packets of 1, 7 and 1,400 bytes the same."""
    found: list[tuple[UpstreamError, str]] = []
    for size in (1, 7, 1400):
        chunks, error, _ = hear(body, dialect=DIALECTS[kind], size=size)
        assert error is not None
        texts = [choice["delta"].get("content") or "" for value in values(chunks) for choice in value["choices"]]
        found.append((error, "".join(texts)))
    assert len({(type(error), error.message, text) for error, text in found}) == 1
    return found[0]


def figures(whole: dict[str, Any]) -> tuple[int, int, int] | None:
    usage = whole["usage"]
    return usage and (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])


# ---- K1


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n", b"data: [DONE]\r"])
def test_k1_the_last_event_counts_without_the_blank_line_after_it(end: bytes) -> None:
    assert only(heard(stream_of(*said("a")) + end)) == ("a", "stop")
    last = b"data: " + json.dumps(chunk({"content": "b"}, "length", usage=USAGE)).encode()
    whole = heard(stream_of(*said("a")) + last)
    assert (only(whole), figures(whole)) == (("ab", "length"), FIGURES)
    native = b"data: " + json.dumps(gemini({"text": "b"}, reason="STOP")).encode()
    assert only(heard(stream_of(gemini({"text": "a"})) + native, "gemini")) == ("ab", "stop")


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_k1_an_event_that_was_cut_does_not_count(cut: int) -> None:
    last = b"data: " + json.dumps(chunk({"content": "b"}, "stop", usage=USAGE)).encode()
    error, text = failed(stream_of(*said("a")) + last[:-cut])
    assert (type(error), text) == (UpstreamIncomplete, "a")


@pytest.mark.parametrize(("first", "reason"), [("length", "length"), ("content_filter", "content_filter")])
def test_k1_an_answer_that_was_cut_is_not_made_whole_by_a_second_end(first: str, reason: str) -> None:
    for second in (chunk({}, "stop"), chunk({"content": ""}, "stop"), chunk({}, "tool_calls")):
        assert only(answered(chunk({"content": "a"}, first), second, DONE)) == ("a", reason)
    assert only(answered(chunk({"content": "a"}, "stop"), chunk({}, first), DONE)) == ("a", reason)


# ---- K2

FAILURES = [
    ({"error": {}}, ""),
    ({"error": True, "message": "broke"}, "broke"),
    ({"error": [{"message": "broke"}]}, "broke"),
    ({"code": 500, "msg": "broke", "success": False}, "broke"),
    ({"code": 1302, "msg": "broke"}, "broke"),
    ({"message": "broke"}, "broke"),
    ({"Message": "broke"}, "broke"),
    ({"title": "broke", "status": 500, "type": "about:blank"}, "broke"),
    ({"errorCode": "X", "errorMessage": "broke"}, "broke"),
    ({"status": "error", "reason": "broke"}, "broke"),
    ({"success": False}, ""),
    ({"fault": {"faultstring": "broke"}}, "broke"),
    ({"data": {"error": {"message": "broke"}}}, ""),
    ({"exception": "broke"}, "broke"),
    ({"errors": {"message": "broke"}}, "broke"),
]


@pytest.mark.parametrize(("value", "message"), FAILURES)
@pytest.mark.parametrize("kind", FRAMED)
def test_k2_an_error_in_other_words_is_one(value: dict[str, Any], message: str, kind: str) -> None:
    error, text = refused(value, DONE, dialect=DIALECTS[kind])
    assert isinstance(error, UpstreamRefused)
    assert (message in error.message, text) == (True, "")
    if kind == "openai":
        error, text = refused(*said("Half"), value, DONE)
        assert (type(error), text) == (UpstreamRefused, "Half")


@pytest.mark.parametrize(
    "value",
    [
        {"code": 0, "message": "success"},
        {"code": 200, "msg": "ok"},
        {"status": "processing", "message": "in the queue"},
        {"type": "conversation.note", "message": "thinking"},
        {"object": "chat.completion.chunk", "choices": [], "error": None},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
    ],
)
def test_k2_what_tells_of_no_error_is_none(value: dict[str, Any]) -> None:
    assert only(answered(value, *said("a"), value, DONE)) == ("a", "stop")


@pytest.mark.parametrize("name", ["Error", "response.error", "server_error", "exception"])
def test_k2_an_event_that_is_called_an_error_is_one(name: str) -> None:
    error, text = failed(stream_of(*said("Half")) + f'event: {name}\ndata: {{"a":"b"}}\n\ndata: [DONE]\n\n'.encode())
    assert (type(error), text) == (UpstreamRefused, "Half")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"error":{"message":"broke","code":500}}', UpstreamRefused),
        (b'{\n "error":{"message":"broke"}\n}', UpstreamInvalid),
        (b"<html><body>502 Bad Gateway</body></html>", UpstreamInvalid),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_k2_an_error_that_was_written_into_the_stream_as_it_is(
    line: bytes, error: type[UpstreamError], end: bytes
) -> None:
    body = stream_of(*said("Half")) + line + b"\n\n" + stream_of(DONE)
    found, text = failed(body.replace(b"\n", end))
    assert (type(found), text) == (error, "Half")


@pytest.mark.parametrize(
    "choice", [{"delta": {"content": "", "error": "broke"}}, {"delta": {}, "error": {"message": "broke"}}]
)
def test_k2_an_error_in_a_choice_or_in_its_delta_is_one(choice: dict[str, Any]) -> None:
    error, text = refused(*said("Half"), {"choices": [{"index": 0, **choice}]}, DONE)
    assert ("broke" in error.message, text) == (True, "Half")


def test_k2_an_error_beside_choices_that_say_nothing_is_one() -> None:
    minimax = {"choices": [{"index": 0, "delta": {}}], "base_resp": {"status_code": 1002, "status_msg": "broke"}}
    error, text = refused(*said("Half"), minimax, DONE)
    assert ("broke" in error.message, text) == (True, "Half")


# ---- K3


def call(index: Any = 0, id: Any = None, name: Any = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    inner = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    given = {key: value for key, value in (("index", index), ("id", id)) if value is not None}
    return {**given, "function": inner, **more}


def calls(*pieces: Any) -> dict[str, Any]:
    return answered(*(chunk({"tool_calls": piece}) for piece in pieces), chunk({}, "tool_calls"), DONE)


def test_k3_indexes_that_are_text_or_have_a_point() -> None:
    assert calls_of(calls([call("0", "a", "f", "{}")], [call(1.0, "b", "g", "{}")])) == [("f", "{}"), ("g", "{}")]


def test_k3_one_call_that_is_no_list() -> None:
    assert calls_of(calls(call(0, "a", "f", '{"x":1}'))) == [("f", '{"x":1}')]


def test_k3_name_and_arguments_beside_the_id() -> None:
    flat = {"index": 0, "id": "a", "name": "f", "arguments": '{"x":1}'}
    assert calls_of(calls([flat])) == [("f", '{"x":1}')]


@pytest.mark.parametrize("index", [0, None])
def test_k3_two_calls_in_one_delta_are_two_though_they_are_the_same(index: int | None) -> None:
    assert calls_of(calls([call(index, None, "f", "{}"), call(index, None, "f", "{}")])) == [("f", "{}")] * 2


@pytest.mark.parametrize("kind", ["tool", "builtin_function", "", None, "tool_call"])
def test_k3_a_call_is_a_function_whatever_it_is_called(kind: str | None) -> None:
    assert calls_of(calls([call(0, "a", "f", "{}", type=kind)])) == [("f", "{}")]


def test_k3_a_call_that_is_never_named_is_one() -> None:
    assert calls_of(calls([call(0, "a")])) == [("", "{}")]


def test_k3_all_of_coheres_calls_at_one_place_and_without_ids() -> None:
    events: list[Any] = []
    for number in range(3):
        opening = {"type": "function", "function": {"name": "f", "arguments": ""}}
        events.append({"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": opening}}})
        piece = {"function": {"arguments": f'{{"x":{number}}}'}}
        events.append({"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": piece}}})
    whole = answered(*events, cohere_end("TOOL_CALL"), dialect=DIALECTS["cohere"])
    assert calls_of(whole) == [("f", f'{{"x":{number}}}') for number in range(3)]


def item(id: str, call_id: str, name: str, arguments: Any = "") -> dict[str, Any]:
    return {"type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments}


def test_k3_arguments_that_stand_only_in_the_finished_response() -> None:
    events: list[Any] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item("i", "c", "f")},
        {"type": "response.completed", "response": {"status": "completed", "output": [item("i", "c", "f", '{"x":1}')]}},
    ]
    assert calls_of(answered(*events, dialect=DIALECTS["responses"])) == [("f", '{"x":1}')]


def test_k3_items_of_a_response_that_are_all_at_one_place() -> None:
    def argue(id: str, words_: str) -> dict[str, Any]:
        kind = "response.function_call_arguments.delta"
        return {"type": kind, "output_index": 0, "item_id": id, "delta": words_}

    events: list[Any] = [
        {"type": "response.output_item.added", "output_index": 0, "item": item("i", "c", "f")},
        {"type": "response.output_item.added", "output_index": 0, "item": item("j", "d", "g")},
        argue("i", '{"x":1}'),
        argue("j", '{"y":2}'),
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    assert calls_of(answered(*events, dialect=DIALECTS["responses"])) == [("f", '{"x":1}'), ("g", '{"y":2}')]


def test_k3_a_call_of_claudes_without_an_id_gets_one() -> None:
    block = ({"type": "tool_use", "name": "f", "input": {}}, {"type": "input_json_delta", "partial_json": '{"x":1}'})
    assert calls_of(answered(*anthropic(block, reason="tool_use"), dialect=DIALECTS["anthropic"])) == [("f", '{"x":1}')]


# ---- K4


@pytest.mark.parametrize("nothing", ["null", "None", "NULL", " ", False])
def test_k4_a_finish_reason_that_says_nothing_is_none(nothing: Any) -> None:
    events = [chunk({"content": "a"}, nothing), chunk({"content": "b"}, nothing)]
    assert only(answered(*events, chunk({}, "length"), chunk({}, nothing), DONE)) == ("ab", "length")
    assert only(answered(*events, DONE)) == ("ab", "stop")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("stopSequence", "stop"),
        ("endTurn", "stop"),
        ("toolUse", "tool_calls"),
        ("maxTokens", "length"),
        ("contentFilter", "content_filter"),
        ("FINISH_REASON_STOP", "stop"),
        ("FINISH_REASON_MAX_TOKENS", "length"),
        ("blocked", "content_filter"),
        ({"type": "length"}, "length"),
        (["stop"], "stop"),
    ],
)
def test_k4_known_words_in_another_spelling_mean_the_same(word: Any, reason: str) -> None:
    assert only(answered(*said("a"), chunk({}, word), DONE)) == ("a", reason)


@pytest.mark.parametrize(
    "last",
    [
        chunk({"content": "", "finish_reason": "length"}),
        chunk({}, finish_reason="length"),
        {"choices": [{"index": 0, "delta": {}, "finishReason": "length"}]},
        {"choices": [{"index": 0, "delta": {}, "stop_reason": "max_tokens"}]},
    ],
)
def test_k4_a_finish_reason_at_another_place_is_one(last: dict[str, Any]) -> None:
    whole = answered(*said("a"), last, DONE)
    assert (only(whole), finished_status(["length"])) == (("a", "length"), "incomplete")
    assert "finish_reason" not in whole["choices"][0]["message"]


def test_k4_the_text_an_answer_stopped_at_is_no_finish_reason() -> None:
    last = chunk({}, "stop")
    last["choices"][0]["stop_reason"] = "length"
    assert only(answered(*said("a"), last, DONE)) == ("a", "stop")


@pytest.mark.parametrize(
    "end",
    [
        {"type": "response.incomplete", "response": {"status": "completed"}},
        {"type": "response.completed", "response": {"incomplete_details": {"reason": "max_output_tokens"}}},
    ],
)
def test_k4_a_response_that_is_incomplete_by_any_word_is(end: dict[str, Any]) -> None:
    text = {"type": "response.output_text.delta", "output_index": 0, "delta": "a"}
    assert only(answered(text, end, dialect=DIALECTS["responses"])) == ("a", "length")


def test_k4_a_stop_reason_in_claudes_first_event_is_the_end_of_one_without_another() -> None:
    events = [{"type": "message_start", "message": {"stop_reason": "max_tokens"}}, *anthropic(words("a"))[1:4]]
    end = {"type": "message_stop"}
    assert only(answered(*events, end, dialect=DIALECTS["anthropic"])) == ("a", "length")


# ---- K5


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens": "7", "completion_tokens": "5", "total_tokens": "12"},
        {"prompt_tokens": 7.0, "completion_tokens": 5.0},
        {"prompt_eval_count": 7, "eval_count": 5},
        {"promptTokenCount": 7, "candidatesTokenCount": 5},
    ],
)
def test_k5_figures_in_other_forms(told: dict[str, Any]) -> None:
    assert figures(answered(*said("a"), chunk({}, "stop"), {"choices": [], "usage": told}, DONE)) == FIGURES


@pytest.mark.parametrize("place", ["usage_metadata", "metrics", "x_groq"])
@pytest.mark.parametrize("inner", [USAGE, {"usage": USAGE}])
def test_k5_figures_at_other_places(place: str, inner: dict[str, Any]) -> None:
    assert figures(answered(*said("a"), {**chunk({}, "stop"), place: inner}, DONE)) == FIGURES


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens": -1, "completion_tokens": -1, "total_tokens": -2},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": True},
        {"total_tokens": 12},
    ],
)
def test_k5_figures_that_tell_nothing_are_none(told: dict[str, Any]) -> None:
    """So that our own, which say where they are from, stand there instead."""
    chunks, error, reader = hear(stream_of(*said("a"), chunk({}, "stop"), {"choices": [], "usage": told}, DONE))
    assert (error, reader.lacks_usage, completion(chunks)["usage"]) == (None, True, None)


def test_k5_cached_tokens_beside_a_zero_in_their_place() -> None:
    told = {**USAGE, "cached_tokens": 4, "prompt_tokens_details": {"cached_tokens": 0}}
    whole = answered(*said("a"), chunk({}, "stop"), {"choices": [], "usage": told}, DONE)
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


@pytest.mark.parametrize(
    "events",
    [
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 5}}},
            *anthropic(words("a"))[1:4],
            {"type": "message_stop"},
        ],
        [
            {"type": "message_start", "message": {}},
            *anthropic(words("a"))[1:4],
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {
                "type": "message_stop",
                "amazon-bedrock-invocationMetrics": {"inputTokenCount": 7, "outputTokenCount": 5},
            },
        ],
    ],
)
def test_k5_claudes_figures_wherever_they_stand(events: list[dict[str, Any]]) -> None:
    assert figures(answered(*events, dialect=DIALECTS["anthropic"])) == FIGURES


@pytest.mark.parametrize(
    "told",
    [{"promptTokenCount": 7, "candidatesTokenCount": 5}, {"promptTokenCount": 7, "totalTokenCount": 12}],
)
def test_k5_geminis_figures_without_one_of_them(told: dict[str, int]) -> None:
    event = {**gemini({"text": "a"}, reason="STOP"), "usageMetadata": told}
    assert figures(answered(event, dialect=DIALECTS["gemini"])) == FIGURES


@pytest.mark.parametrize(
    "told",
    [
        {
            "tokens": {"input_tokens": 0, "output_tokens": 0},
            "billed_units": {"input_tokens": 7.0, "output_tokens": 5.0},
        },
        {"tokens": {"input_tokens": 7}, "billed_units": {"input_tokens": 6, "output_tokens": 5}},
        {"input_tokens": 7, "output_tokens": 5},
    ],
)
def test_k5_coheres_figures_without_some_of_them(told: dict[str, Any]) -> None:
    whole = answered(COHERE_WORDS, cohere_end("COMPLETE", usage=told), dialect=DIALECTS["cohere"])
    assert figures(whole) == FIGURES


# ---- K8

WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}],
    "usage": USAGE,
}


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + json.dumps(WHOLE).encode(),
        b" \r\n" * 4000 + json.dumps(WHOLE, indent=2).encode(),
        b"\r\n \xef\xbb\xbf\n" + json.dumps(WHOLE).encode(),
        json.dumps([WHOLE]).encode(),
        json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n",
        json.dumps(WHOLE).encode() + b"\n" + json.dumps(WHOLE).encode(),
        b"\n".join(json.dumps(one).encode() for one in (*said("H", "i"), chunk({}, "length", usage=USAGE))),
    ],
)
def test_k8_a_body_that_is_json(body: bytes) -> None:
    whole = heard(body)
    assert (only(whole), figures(whole)) == (("Hi", "length"), FIGURES)


def test_k8_the_first_line_of_a_body_in_lines_is_not_the_answer() -> None:
    for body in (said("a"), said("a", "b")):
        error, _ = failed(b"\n".join(json.dumps(one).encode() for one in body))
        assert isinstance(error, UpstreamIncomplete)
    error, _ = failed(json.dumps(WHOLE).encode()[:-20])
    assert isinstance(error, UpstreamIncomplete)


@pytest.mark.parametrize("texts", [("one ", "two ", "three"), ("one ", "one two ", "one two three")])
@pytest.mark.parametrize("last", [chunk({}, "stop"), {"choices": [{"index": 0, "finish_reason": "stop"}]}])
def test_k8_messages_in_place_of_deltas(texts: tuple[str, ...], last: dict[str, Any]) -> None:
    events = [{"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]} for text in texts]
    assert only(answered(*events, last, DONE)) == ("one two three", "stop")


def test_k8_the_chunks_of_the_older_completions() -> None:
    events = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("one ", "two ", "three")]
    last = {"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "usage": USAGE}
    whole = answered(*events, last, DONE)
    assert (only(whole), figures(whole)) == (("one two three", "length"), FIGURES)


def test_k8_a_delta_that_is_text() -> None:
    assert only(answered({"choices": [{"index": "0", "delta": "a"}]}, chunk({}, "stop"), DONE)) == ("a", "stop")


OLLAMA = {"message": {"role": "assistant", "content": "a"}, "done": True, "done_reason": "length"}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(OLLAMA, indent=2).encode(),
        b"\xef\xbb\xbf" + json.dumps(OLLAMA).encode() + b"\r\n",
        b": ka\n\nevent: message\n" + stream_of(OLLAMA),
        json.dumps({"response": "a", "done": True, "done_reason": "length"}).encode(),
    ],
)
def test_k8_ollamas_answers_as_proxies_pass_them_on(body: bytes) -> None:
    assert only(heard(body, "ollama")) == ("a", "length")


CLAUDE = {"content": [{"type": "text", "text": "a"}], "stop_reason": "max_tokens"}


@pytest.mark.parametrize(
    ("kind", "event", "reason"),
    [
        ("anthropic", CLAUDE, "length"),
        ("gemini", {"response": gemini({"text": "a"}, reason="MAX_TOKENS")}, "length"),
        (
            "responses",
            {"status": "completed", "output": [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]},
            "stop",
        ),
    ],
)
def test_k8_whole_answers_without_their_names(kind: str, event: dict[str, Any], reason: str) -> None:
    assert only(heard(json.dumps(event, indent=1).encode(), kind)) == ("a", reason)


@pytest.mark.parametrize("starts", [True, False])
def test_k8_claudes_blocks_without_their_start(starts: bool) -> None:
    first = {"type": "message_start", "message": {"content": [] if starts else [CLAUDE["content"][0]]}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}
    events = [first, delta] if starts else [first]
    assert only(answered(*events, {"type": "message_stop"}, dialect=DIALECTS["anthropic"])) == ("a", "stop")


def test_k8_a_second_message_that_stands_only_in_the_finished_response() -> None:
    def message(id: str, text: str) -> dict[str, Any]:
        return {"type": "message", "id": id, "content": [{"type": "output_text", "text": text}]}

    events: list[Any] = [
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "other"}},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "one "},
        {"type": "response.completed", "response": {"output": [message("m", "one "), message("n", "two")]}},
    ]
    assert only(answered(*events, dialect=DIALECTS["responses"])) == ("one two", "stop")


# ---- N


@pytest.mark.parametrize(
    "annotation",
    [
        {"url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}},
        {"type": "url_citation", "url_citation": {"url": "u", "start_index": "3", "end_index": None}},
    ],
)
def test_n3_a_citation_is_one_without_its_type_and_with_places_that_are_none(annotation: dict[str, Any]) -> None:
    for given in ([annotation], annotation):
        whole = answered(chunk({"content": "ab", "annotations": given}), chunk({}, "stop"), DONE)
        [told] = whole["choices"][0]["message"]["annotations"]
        assert (told["type"], told["url_citation"]["url"]) == ("url_citation", "u")
        assert all(type(told["url_citation"][place]) is int for place in ("start_index", "end_index"))


def test_n1_arguments_of_a_response_that_are_an_object() -> None:
    events: list[Any] = [
        {"type": "response.output_item.done", "output_index": 0, "item": item("i", "c", "f", {"x": 1})},
        {"type": "response.completed", "response": {"status": "completed"}},
    ]
    assert calls_of(answered(*events, dialect=DIALECTS["responses"])) == [("f", '{"x":1}')]


# ---- what clients refuse


@pytest.mark.parametrize("role", ["model", "ASSISTANT", "", None, "ai"])
def test_k4_the_role_is_the_assistants_whatever_it_is_called(role: str | None) -> None:
    whole = answered(chunk({"role": role, "content": "a"}), chunk({}, "stop"), DONE)
    assert whole["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("nothing", [None, [], "", False])
def test_k3_calls_and_annotations_that_are_none(nothing: Any) -> None:
    told = {"content": "a", "tool_calls": nothing, "annotations": nothing}
    whole = answered(chunk(told), chunk({"tool_calls": nothing}, "stop"), DONE)
    assert (only(whole), whole["choices"][0]["message"].get("tool_calls")) == (("a", "stop"), None)


def test_k8_text_in_parts_is_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert only(answered(chunk({"content": parts}), chunk({"content": "c"}, "stop"), DONE)) == ("abc", "stop")
    message = {"role": "assistant", "content": parts}
    assert only(heard(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode())) == (
        "ab",
        "stop",
    )
