"""Answers of the kinds of test_answers.py that other gateways met, and that were silently read as something else here.

Each is read in packets of 1, 7 and 1,400 bytes. K1: ended too early, K2: a failure that looks like a success, K3: calls,
K5: figures, K8: no stream of deltas.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import UpstreamIncomplete, UpstreamRefused
from tests.support.answers import completion
from tests.support.written import (
    COHERE_WORDS,
    DONE,
    FRAMED,
    USAGE,
    anthropic,
    chunk,
    cohere_end,
    gemini,
    hear,
    heard,
    native,
    said,
    stream_of,
    words,
)
from worker.providers.formats.responses_verbatim import VerbatimTranslator

# ---- K2

FAILURES: list[dict[str, Any]] = [
    {"Error": {"Message": "boom", "Code": "x"}},
    {"ERROR": "boom"},
    {"err": "boom"},
    {"err_msg": "boom"},
    {"errcode": 1, "errmsg": "boom"},
    {"ret": -1, "msg": "boom"},
    {"ErrorMsg": {"Msg": "boom", "Code": 4001}},
    {"ResponseMetadata": {"Error": {"Message": "boom", "Code": "x"}}},
    {"Response": {"Error": {"Code": "x", "Message": "boom"}}},
    {"response": {"error": {"message": "boom"}}},
    {"result": {"error": "boom"}},
    {"header": {"code": 10013, "message": "boom"}},
    {"message": {"error": "boom"}},
    {"body": {"detail": {"message": "boom"}}},
    {"internalServerException": {"message": "boom"}},
    {"modelStreamErrorException": {"message": "boom"}},
    {"__type": "ThrottlingException", "message": "boom"},
    {"upstream_error": "boom"},
    {"stream_error": {"message": "boom"}},
    {"error_type": "x", "message": "boom"},
    {"error_description": "boom", "error_uri": "x"},
    {"failure": "boom"},
    {"failed": True, "message": "boom"},
    {"success": "false", "message": "boom"},
    {"success": 0, "message": "boom"},
    {"ok": False, "description": "boom"},
    {"state": "error", "message": "boom"},
    {"event": "error", "data": "boom"},
    {"type": "exception", "message": "boom"},
    {"type": "response.failed", "message": "boom"},
    {"statusCode": 500, "body": "boom"},
    {"error": {"error": {"message": "boom"}}},
    {"error": {"message": {"text": "boom"}}},
    {"error": "Internal Server Error", "status": 500, "message": "boom"},
    {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}, "message": "boom", "code": 500},
    {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}], "code": 500, "message": "boom"},
    {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "errors": ["boom"]},
    {"choices": [{"index": 0, "delta": {}}], "object": "error", "message": "boom"},
    {"choices": [{"index": 0, "delta": {}}], "detail": "boom"},
    {"choices": [{"index": 0, "message": {"error": "boom"}}]},
    chunk({}, None, x_groq={"id": "r", "error": "boom"}),
    chunk({}, "stop", x_groq={"id": "r", "error": "boom"}),
]


@pytest.mark.parametrize("value", FAILURES, ids=json.dumps)
def test_k2_an_error_in_words_of_others_is_one(value: dict[str, Any]) -> None:
    whole, error = heard("openai", [*said("Half"), value, DONE])
    assert (type(error), str(error)) == (UpstreamRefused, "boom")
    assert whole["choices"][0]["message"]["content"] == "Half"


@pytest.mark.parametrize("value", [one for one in FAILURES if "choices" not in one], ids=json.dumps)
@pytest.mark.parametrize("kind", FRAMED)
def test_k2_so_it_is_in_every_format(kind: str, value: dict[str, Any]) -> None:
    _, error = heard(kind, [value, DONE])
    assert (type(error), "boom" in str(error)) == (UpstreamRefused, True)


@pytest.mark.parametrize(
    "value",
    [
        {"error_code": 0, "error_msg": "success"},
        {"errcode": 0, "errmsg": "ok"},
        {"Response": {"RequestId": "r"}},
        {"header": {"code": 0, "message": "Success"}},
        {"result": {"message": "all is well"}},
        {"success": True, "message": "ok"},
        {"errcode": 0, "errmsg": "成功"},
        {"has_error": "false"},
        {"state": "thinking", "message": "The web is searched"},
        {**chunk({"role": "assistant", "content": ""}), "status": "in progress", "message": "The web is searched"},
        {"is_error": False, "last_error": None},
        {**chunk({"content": ""}), "code": 0, "message": "Success", "sid": "s"},
        {**chunk({}), "detail": None, "errors": []},
        {**chunk({}), "x_groq": {"id": "r", "error": ""}},
    ],
    ids=json.dumps,
)
def test_k2_what_tells_of_no_error_is_none(value: dict[str, Any]) -> None:
    whole, error = heard("openai", [value, *said("a"), value, chunk({}, "stop"), DONE])
    assert (error, whole["choices"][0]["message"]["content"]) == (None, "a")


@pytest.mark.parametrize("code", [b"1e999", b'"%b"' % (b"9" * 5000)])
def test_k2_a_code_beside_the_words_may_be_any_number(code: bytes) -> None:
    _, error = heard("openai", b'data: {"message":"boom","code":%b}\n\n' % code)
    assert (type(error), error.message) == (UpstreamRefused, "boom")


@pytest.mark.parametrize("name", [b"data", b"result", b"message"])
def test_k2_envelopes_have_an_end(name: bytes) -> None:
    nested = b'data: %b{"error":"boom"}%b\n\n' % (b'{"%b":' % name * 900, b"}" * 900)
    _, error = heard("openai", nested + stream_of(*said("a"), chunk({}, "stop"), DONE))
    assert error is None


def test_k2_a_status_beside_the_words_is_the_errors() -> None:
    _, error = heard("openai", [{"error": "Too Many Requests", "status": 429, "message": "boom"}, DONE])
    assert (error.provider_status, error.message) == (429, "boom")


def test_k2_an_error_within_an_error_does_not_hide_its_words() -> None:
    """Azure tells the cause as `innererror`."""
    told = {"error": {"message": "boom", "code": "content_filter", "innererror": {"code": "ResponsibleAI"}}}
    _, error = heard("openai", [told, DONE])
    assert (error.message, error.code) == ("boom", "content_filter")


# ---- K1


@pytest.mark.parametrize("reason", ["length", "content_filter"])
@pytest.mark.parametrize(
    "after",
    [
        {"content": "\n"},
        {"annotations": [{"type": "url_citation", "url_citation": {"url": "u"}}]},
        {"content": "", "reasoning_details": [{"type": "reasoning.encrypted", "data": "x", "index": 0}]},
    ],
)
def test_k1_an_answer_that_was_cut_is_so_though_something_follows_the_word_for_it(
    reason: str, after: dict[str, Any]
) -> None:
    """Unless another word, or more of the answer, follows: then that one was no end."""
    whole, error = heard("openai", [chunk({"content": "a"}, reason), chunk(after), DONE])
    assert (error, whole["choices"][0]["finish_reason"]) == (None, reason)
    whole, error = heard("openai", [chunk({"content": "a"}, reason), chunk(after), chunk({}, "stop"), DONE])
    assert (error, whole["choices"][0]["finish_reason"]) == (None, "stop")
    whole, error = heard("openai", [chunk({"content": "a"}, reason), chunk(after), *said("b"), DONE])
    assert (error, whole["choices"][0]["finish_reason"]) == (None, "stop")


def test_k1_white_space_in_pieces_does_not_make_a_cut_answer_whole() -> None:
    given = [*said("Some words. "), chunk({"content": "a"}, "length"), *said("\n", "\n"), DONE]
    whole, error = heard("openai", given)
    assert (error, whole["choices"][0]["finish_reason"]) == (None, "length")


HM, CALL = (
    chunk({"reasoning_content": "Hm."}),
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
)
NOTE = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}


@pytest.mark.parametrize("beside", [{}, {"delta": {}}, {"delta": {"role": "assistant", "content": ""}}])
@pytest.mark.parametrize(
    ("streamed", "message", "added"),
    [
        ([HM], {"content": "42"}, {"content": "42"}),
        ([HM], {"content": "42", "reasoning_content": "Hm."}, {"content": "42"}),
        ([HM], {"content": [{"type": "text", "text": "42"}]}, {"content": "42"}),
        ([HM], {"content": None, "tool_calls": [CALL]}, {"tool_calls": [CALL]}),
        (said("4", "2"), {"content": "42", "tool_calls": [CALL]}, {"tool_calls": [CALL]}),
        (said("4", "2"), {"content": "42", "annotations": [NOTE]}, {"annotations": [NOTE]}),
        ([*said("4", "2"), chunk({"tool_calls": [{**CALL, "index": 0}]})], {"content": "42", "tool_calls": [CALL]}, {}),
        ([chunk({"content": "42", "annotations": [NOTE]})], {"content": "42", "annotations": [NOTE]}, {}),
        # Of gateways that fill all fields.
        (said("4", "2"), {"content": "42", "function_call": {"name": "", "arguments": ""}}, {}),
        (said("4", "2"), {"content": "42", "tool_calls": ["none"], "annotations": ["none"]}, {}),
    ],
)
def test_k1_what_only_the_last_message_tells_is_told(
    streamed: list[Any], message: dict[str, Any], added: dict[str, Any], beside: dict[str, Any]
) -> None:
    """And nothing of it twice. Text that came as a message, after reasoning in deltas, was left out."""
    last = {"choices": [{"index": 0, **beside, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}
    before = completion(hear(stream_of(*streamed, chunk({}, "stop"), DONE))[0])["choices"][0]
    whole, error = heard("openai", [*streamed, last, DONE])
    [choice] = whole["choices"]
    assert (error, choice["message"]) == (None, {**before["message"], **added})
    assert choice["finish_reason"] == ("tool_calls" if "tool_calls" in choice["message"] else "stop")


# ---- K3


CALLED = (chunk({}, "tool_calls"), DONE)


def piece(index: Any = 0, id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call = {key: value for key, value in (("index", index), ("id", id), ("function", function)) if value is not None}
    return chunk({"tool_calls": [call]})


def called(*calls: Any) -> dict[str, Any]:
    return chunk({"tool_calls": list(calls)})


X = '{"x":1}'
CALLS: dict[str, tuple[list[Any], list[tuple[str, str]]]] = {
    "an index for each piece": (
        [piece(0, "a", "f", ""), piece(1, "a", None, '{"x"'), piece(2, "a", None, ":1}")],
        [("f", X)],
    ),
    "an id and the name in each piece": ([piece(0, "a1", "f", '{"x":'), piece(0, "a2", "f", "1}")], [("f", X)]),
    "names from their start on": (
        [piece(0, "a", "get_"), piece(0, "a", "get_weather"), piece(0, None, None, X)],
        [("get_weather", X)],
    ),
    "the same without ids": ([piece(0, None, "get_"), piece(0, None, "get_weather", X)], [("get_weather", X)]),
    "a list with a gap": (
        [called(None, {"index": 1, "id": "b", "function": {"name": "g", "arguments": X}})],
        [("g", X)],
    ),
    "an object by index": (
        [chunk({"tool_calls": {"0": {"id": "a", "function": {"name": "f", "arguments": X}}}})],
        [("f", X)],
    ),
    "arguments told twice": (
        [piece(0, "a", "f", '{"x":'), piece(0, None, None, "1}"), piece(0, None, None, X)],
        [("f", X)],
    ),
    "null after nothing": ([piece(0, "a", "f", ""), piece(0, None, None, "null")], [("f", "{}")]),
    "parameters": ([called({"id": "a", "function": {"name": "f", "parameters": {"x": 1}}})], [("f", X)]),
    "input beside the name": ([called({"id": "a", "type": "tool_use", "name": "f", "input": {"x": 1}})], [("f", X)]),
    "args": ([called({"id": "a", "name": "f", "args": X})], [("f", X)]),
    "a function that is a name": ([called({"id": "a", "function": "f", "arguments": X})], [("f", X)]),
    "two calls with new ids at one index": ([piece(0, "a", "f", X), piece(0, "b", "f", X)], [("f", X), ("f", X)]),
    "one after the other without ids": ([piece(0, None, "f", X), piece(0, None, "g", X)], [("f", X), ("g", X)]),
}


@pytest.mark.parametrize("name", CALLS)
def test_k3_calls_add_up(name: str) -> None:
    given, calls = CALLS[name]
    whole, error = heard("openai", [*given, *CALLED], tools=["f", "g", "get_weather"])
    found = whole["choices"][0]["message"]["tool_calls"]
    assert (error, [(call["function"]["name"], call["function"]["arguments"]) for call in found]) == (None, calls)
    assert len({call["id"] for call in found}) == len(calls)


def test_k3_what_a_free_form_call_is_given_may_be_null() -> None:
    pieces = [
        chunk({"tool_calls": [{"index": 0, **call}]})
        for call in (
            {"id": "a", "type": "custom", "custom": {"name": "f", "input": ""}},
            {"custom": {"input": "null"}},
            {"custom": {"input": "able"}},
        )
    ]
    first = chunk({"tool_calls": [{"index": 0, "id": "a", "custom": {"name": "f", "input": "null"}}]})
    for given in (pieces, [first, pieces[2]]):
        chunks, error, _ = hear(stream_of(*given, *CALLED))
        [call] = completion(chunks)["choices"][0]["message"]["tool_calls"]
        assert (error, call["custom"]["input"]) == (None, "nullable")


# ---- K5, K8: formats of their own


def test_k5_the_sum_is_one_of_what_was_told() -> None:
    """A last event that counts the prompt alone keeps the answer's figure, and the sum with it."""
    first = gemini({"text": "a"})
    last = {**gemini(reason="STOP"), "usageMetadata": {"promptTokenCount": 7, "totalTokenCount": 7}}
    whole, _ = heard("gemini", [first, last])
    assert figures(whole) == (7, 5, 12)


def figures(whole: dict[str, Any]) -> tuple[int, int, int] | None:
    usage = whole["usage"]
    return usage and (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"])


def claude(*, start: Any = None, delta: Any = None, stop: Any = None) -> list[Any]:
    """An answer of Claude's with these fields in its first and last events."""
    begun, *between, _, _ = anthropic(words("a"))
    ended: dict[str, Any] = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, **(delta or {})}
    return [
        {"type": "message_start", **(start if start is not None else {"message": begun["message"]})},
        *between,
        ended,
        {"type": "message_stop", **(stop or {})},
    ]


COUNTED: dict[str, tuple[str, list[Any]]] = {
    "text": (
        "anthropic",
        claude(start={"message": {"usage": {"input_tokens": "7"}}}, delta={"usage": {"output_tokens": "5"}}),
    ),
    "a point": ("anthropic", claude(delta={"usage": {"output_tokens": 5.0}})),
    "OpenAI's names": (
        "anthropic",
        claude(start={}, delta={"usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}),
    ),
    "beside the message": (
        "anthropic",
        claude(start={"message": None, "usage": {"input_tokens": 7}}, delta={"usage": {"output_tokens": 5}}),
    ),
    "within the delta": (
        "anthropic",
        claude(delta={"delta": {"stop_reason": "end_turn", "usage": {"output_tokens": 5}}}),
    ),
    "in an event of its own": (
        "anthropic",
        [
            *claude()[:-1],
            {"type": "message_delta", "delta": None, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ],
    ),
    "Gemini's as text": (
        "gemini",
        [
            {
                **gemini({"text": "a"}, reason="STOP"),
                "usageMetadata": {"promptTokenCount": "7", "candidatesTokenCount": "5", "totalTokenCount": "12"},
            }
        ],
    ),
    "Gemini's in Python's names": (
        "gemini",
        [
            {
                "candidates": [{"content": {"parts": [{"text": "a"}]}, "finish_reason": "STOP"}],
                "usage_metadata": {"prompt_token_count": 7, "candidates_token_count": 5, "total_token_count": 12},
            }
        ],
    ),
    "beside Cohere's delta": (
        "cohere",
        [COHERE_WORDS, {**cohere_end("COMPLETE"), "usage": {"tokens": {"input_tokens": 7, "output_tokens": 5}}}],
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_k5_figures_in_other_forms(name: str) -> None:
    kind, given = COUNTED[name]
    whole, error = heard(kind, given)
    assert (error, figures(whole), whole["choices"][0]["message"]["content"]) == (None, (7, 5, 12), "a")


@pytest.mark.parametrize(
    ("first", "last", "counted"),
    [
        ({"input_tokens": 8834}, {"input_tokens": 18, "cache_read_input_tokens": 8816}, (8834, 8816)),
        ({"input_tokens": 8834}, {"input_tokens": 0, "cache_read_input_tokens": 8834}, (8834, 8834)),
        ({"input_tokens": 18, "cache_read_input_tokens": 8816}, {"input_tokens": 0}, (8834, 8816)),
        (
            {"input_tokens": 18, "cache_read_input_tokens": 8816},
            {"input_tokens": 18, "cache_read_input_tokens": 8816},
            (8834, 8816),
        ),
    ],
)
def test_k5_what_came_from_claudes_cache_is_counted_once(
    first: dict[str, int], last: dict[str, int], counted: tuple[int, int]
) -> None:
    given = claude(start={"message": {"usage": first}}, delta={"usage": {**last, "output_tokens": 5}})
    usage = heard("anthropic", given)[0]["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == counted


def test_k5_a_sum_alone_leaves_both_at_nothing() -> None:
    whole, _ = heard("gemini", [{**gemini({"text": "a"}, reason="STOP"), "usageMetadata": {"totalTokenCount": 12}}])
    assert whole["usage"] is None


STARTED, OPENED, SPOKEN, STOPPED, LAST, OVER = anthropic(words("a"))
EMPTY = {"functionCall": None, "inlineData": None, "thought": None, "thoughtSignature": None}
GEMINI_CALL = {"functionCall": {"name": "f", "args": {"x": 1}}}
ODD: dict[str, tuple[str, list[Any]]] = {
    "a block that stops twice": ("anthropic", [STARTED, OPENED, SPOKEN, STOPPED, STOPPED, LAST, OVER]),
    "a stop of no block": ("anthropic", [STARTED, {**STOPPED, "index": 7}, OPENED, SPOKEN, STOPPED, LAST, OVER]),
    "blocks without an index": (
        "anthropic",
        [
            {key: item for key, item in one.items() if key != "index"}
            for one in (STARTED, OPENED, SPOKEN, STOPPED, LAST, OVER)
        ],
    ),
    "a delta that is null": ("anthropic", [STARTED, OPENED, {**SPOKEN, "delta": None}, SPOKEN, STOPPED, LAST, OVER]),
    "text that is null": (
        "anthropic",
        [STARTED, OPENED, {**SPOKEN, "delta": {"type": "text_delta", "text": None}}, SPOKEN, STOPPED, LAST, OVER],
    ),
    "a start without a message": ("anthropic", [{"type": "message_start"}, OPENED, SPOKEN, STOPPED, LAST, OVER]),
    "fields that are null": ("gemini", [gemini({"text": "a", **EMPTY}, reason="STOP")]),
    "a part that is null": ("gemini", [gemini(None, {"text": "a"}, reason="STOP")]),
    "parts that are text": ("gemini", [gemini("a", reason="STOP")]),
    "content that is text": ("gemini", [{"candidates": [{"content": "a", "finishReason": "STOP"}]}]),
    "a list of one": ("gemini", [json.dumps([gemini({"text": "a"}, reason="STOP")])]),
    "a list of one chunk": ("openai", [json.dumps(said("a")), chunk({}, "stop"), DONE]),
    "content that is null": (
        "cohere",
        [{"type": "content-delta", "delta": {"message": {"content": None}}}, COHERE_WORDS, cohere_end("COMPLETE")],
    ),
    "Cohere's as text": (
        "cohere",
        [{"type": "content-delta", "delta": {"message": {"content": "a"}}}, cohere_end("COMPLETE")],
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_k8_an_answer_that_is_spelled_oddly(name: str) -> None:
    kind, given = ODD[name]
    whole, error = heard(kind, given)
    [choice] = whole["choices"]
    assert (error, choice["message"]["content"], choice["finish_reason"]) == (None, "a", "stop")


TOOL = {
    "type": "content_block_start",
    "index": 0,
    "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
}
ARGUED = {"type": "content_block_delta", "index": 0}
ODD_CALLS: dict[str, tuple[str, list[Any]]] = {
    "arguments that are an object": (
        "anthropic",
        [
            STARTED,
            TOOL,
            {**ARGUED, "delta": {"type": "input_json_delta", "partial_json": {"x": 1}}},
            STOPPED,
            LAST,
            OVER,
        ],
    ),
    "arguments that are null first": (
        "anthropic",
        [
            STARTED,
            TOOL,
            *({**ARGUED, "delta": {"type": "input_json_delta", "partial_json": one}} for one in (None, X)),
            STOPPED,
            LAST,
            OVER,
        ],
    ),
    "fields that are null": ("gemini", [gemini({"text": None, **EMPTY, **GEMINI_CALL}, reason="STOP")]),
    "Python's names": (
        "gemini",
        [
            {
                "candidates": [
                    {"content": {"parts": [{"function_call": GEMINI_CALL["functionCall"]}]}, "finish_reason": "STOP"}
                ]
            }
        ],
    ),
    "a list of one": (
        "cohere",
        [
            {
                "type": "tool-call-start",
                "index": 0,
                "delta": {"message": {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": X}}]}},
            },
            cohere_end("TOOL_CALL"),
        ],
    ),
}


@pytest.mark.parametrize("name", ODD_CALLS)
def test_k3_a_call_that_is_spelled_oddly(name: str) -> None:
    kind, given = ODD_CALLS[name]
    whole, error = heard(kind, given)
    [choice] = whole["choices"]
    [call] = choice["message"]["tool_calls"]
    assert (error, call["function"], choice["finish_reason"]) == (None, {"name": "f", "arguments": X}, "tool_calls")


def test_k8_a_picture_beside_a_text_that_is_null_is_kept() -> None:
    part = {**EMPTY, "text": None, "inlineData": {"mimeType": "image/png", "data": "QQ=="}}
    whole, error = heard("gemini", [gemini(part, reason="STOP")])
    assert (error, len(whole["choices"][0]["message"]["images"])) == (None, 1)


def test_k8_thinking_keeps_its_signature_where_the_next_block_has_its_index_and_no_stop_came() -> None:
    thinking = [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {**ARGUED, "delta": {"type": "thinking_delta", "thinking": "t"}},
        {**ARGUED, "delta": {"type": "signature_delta", "signature": "S"}},
    ]
    whole, error = heard("anthropic", [STARTED, *thinking, OPENED, SPOKEN, STOPPED, LAST, OVER])
    assert error is None
    assert whole["choices"][0]["message"]["thinking_blocks"] == [
        {"type": "thinking", "thinking": "t", "signature": "S"}
    ]


@pytest.mark.parametrize(
    "body",
    [
        {
            "type": "message",
            "content": [{"type": "text", "text": "a"}],
            "usage": {"input_tokens": 7, "output_tokens": 5},
        },
        {"object": "response", "output": [{"type": "message"}], "usage": {"input_tokens": 7, "output_tokens": 5}},
        {"message": {"role": "assistant", "content": "a"}, "done": True, "usage": USAGE},
    ],
)
def test_k2_a_whole_answer_in_another_format_is_no_empty_success(body: dict[str, Any]) -> None:
    """Its figures alone counted for an answer, which had no words then."""
    _, error = heard("openai", json.dumps(body).encode())
    assert type(error) is UpstreamIncomplete


# ---- Responses


def spoke(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": 0, "content_index": 0, **more}


def ended(kind: str = "completed", **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "response": {"status": "completed", **more}}


CREATED = {"type": "response.created", "response": {}}
PART = {"type": "output_text", "text": "a"}
MESSAGE = {"type": "message", "id": "m", "content": [PART]}
RESPONSES: dict[str, list[Any]] = {
    "the text alone": [CREATED, spoke("output_text.done", text="a"), ended()],
    "the text, and all again": [
        spoke("output_text.done", text="a"),
        spoke("content_part.done", part=PART),
        ended(output=[MESSAGE]),
    ],
    "the part alone": [spoke("content_part.done", part=PART), ended()],
    "the item alone": [spoke("output_item.done", item=MESSAGE), ended()],
    "the item, and all again": [spoke("output_item.done", item=MESSAGE), ended(output=[MESSAGE])],
    "pieces, and all again": [
        spoke("output_text.delta", delta="a"),
        spoke("output_text.done", text="a"),
        spoke("content_part.done", part=PART),
        spoke("output_item.done", item=MESSAGE),
        ended(output=[MESSAGE]),
    ],
    "pieces that do not say of which part they are": [
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "id": "m"}},
        {"type": "response.output_text.delta", "output_index": 0, "delta": "a"},
        spoke("output_text.done", text="a"),
        spoke("content_part.done", part=PART),
        ended(output=[MESSAGE]),
    ],
    "a finished response with odd parts": [
        spoke("output_text.delta", delta="a"),
        ended(output=[{**MESSAGE, "content": [None, {**PART, "annotations": [None, {"url": "u"}]}]}]),
    ],
    "an end that is called done": [spoke("output_text.delta", delta="a"), ended("done")],
    "an end without a response": [spoke("output_text.delta", delta="a"), {"type": "response.completed"}],
}


@pytest.mark.parametrize("name", RESPONSES)
def test_k8_the_text_of_a_response_wherever_it_stands(name: str) -> None:
    whole, error = heard("responses", RESPONSES[name])
    [choice] = whole["choices"]
    assert (error, choice["message"]["content"], choice["finish_reason"]) == (None, "a", "stop")


def test_k8_events_of_a_response_that_are_named_outside_alone() -> None:
    named = b'event: response.output_text.delta\ndata: {"output_index":0,"delta":"a"}\n\n'
    whole, error = heard("responses", named + b'event: response.completed\ndata: {"response":{}}\n\n')
    assert (error, whole["choices"][0]["message"]["content"]) == (None, "a")


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ({"type": "response.completed"}, "response.completed"),
        ({"type": "response.completed", "response": None}, "response.completed"),
        (ended("done"), "response.completed"),
        (ended("done", status="incomplete"), "response.incomplete"),
    ],
)
def test_k8_such_an_end_is_one_for_clients_that_see_the_events_themselves(end: dict[str, Any], kind: str) -> None:
    translator = VerbatimTranslator()
    translator.feed("", spoke("output_text.delta", delta="a"))
    [last] = translator.feed("", end)
    [told] = last["responses_events"]
    assert (translator.done, told["type"], told["response"]) == (True, kind, end.get("response") or {})


def test_k8_a_refusal_that_comes_whole_is_told() -> None:
    whole, error = heard("responses", [spoke("refusal.done", refusal="no"), ended()])
    assert (error, whole["choices"][0]["message"]["refusal"]) == (None, "no")


def test_k2_a_response_with_an_error_is_not_completed() -> None:
    told = {"message": "boom", "code": "server_error"}
    _, error = heard("responses", [spoke("output_text.delta", delta="a"), ended(error=told)])
    assert (type(error), error.message) == (UpstreamRefused, "boom")


def test_k5_figures_beside_the_response() -> None:
    end = {**ended(), "usage": {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}}
    whole, _ = heard("responses", [spoke("output_text.delta", delta="a"), end])
    assert figures(whole) == (7, 5, 12)


def test_n3_citations_that_stand_in_the_finished_response_alone() -> None:
    part = {**PART, "annotations": [{"type": "url_citation", "url": "u"}]}
    whole, _ = heard(
        "responses", [spoke("output_text.delta", delta="a"), ended(output=[{**MESSAGE, "content": [part]}])]
    )
    [told] = whole["choices"][0]["message"]["annotations"]
    assert told["url_citation"]["url"] == "u"


# ---- what is added up


def test_k3_encrypted_reasoning_under_one_index_is_as_many_as_its_ids() -> None:
    def encrypted(data: str, id: str) -> dict[str, Any]:
        return chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": data, "id": id, "index": 0}]})

    whole, _ = heard("openai", [encrypted("A", "1"), encrypted("B", "2"), encrypted("C", "2"), chunk({}, "stop"), DONE])
    told = whole["choices"][0]["message"]["reasoning_details"]
    assert [(one["id"], one["data"]) for one in told] == [("1", "A"), ("2", "BC")]


def test_k8_citations_stay_where_an_empty_list_of_them_follows() -> None:
    first, last = {**chunk({"content": "a"}), "citations": ["u"]}, {**chunk({}, "stop"), "citations": []}
    whole, _ = heard("openai", [first, last, DONE])
    assert whole["citations"] == ["u"]


ELSEWHERE: dict[str, Any] = {
    "called text in the delta": {"delta": {"text": "a"}},
    "in a message in the delta": {"delta": {"role": "assistant", "message": {"content": "a"}}},
    "in the choice": {"content": "a"},
    "in messages": {"messages": [{"role": "assistant", "content": "a"}]},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_k8_text_that_stands_elsewhere_in_a_choice_is_content(name: str) -> None:
    whole, error = heard("openai", [{"choices": [{"index": 0, **ELSEWHERE[name]}]}, chunk({}, "stop"), DONE])
    [choice] = whole["choices"]
    assert (error, choice["message"]["content"], choice["message"].get("text")) == (None, "a", None)


@pytest.mark.parametrize("name", ["keep-alive", "heartbeat", "keepalive", "ping"])
@pytest.mark.parametrize("data", [b"", b"1", b"alive", b"{}"])
@pytest.mark.parametrize("kind", FRAMED)
def test_k8_a_sign_of_life_is_no_part_of_an_answer(kind: str, data: bytes, name: str) -> None:
    """Whatever it holds: gateways count in it, and say words."""
    alive = b"event: %b\ndata: %b\n\n" % (name.encode(), data)
    whole, error = heard(kind, alive + stream_of(*native(kind, "completed")) + alive + stream_of(DONE))
    assert (error, whole["choices"][0]["message"]["content"]) == (None, "a")


def test_k2_words_in_another_format_with_figures_are_no_empty_success() -> None:
    """Cloudflare's own stream, under the address of another."""
    events = [{"response": "a"}, {"response": "b"}, {"response": "", "usage": USAGE}, DONE]
    _, error = heard("openai", events)
    assert type(error) is UpstreamIncomplete
