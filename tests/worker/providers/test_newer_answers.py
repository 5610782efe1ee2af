"""More answers of the kinds of test_answers.py and test_stranger_answers.py, none of which stands in a report.

Each is read in packets of 1, 7 and 1,400 bytes, and by OpenAI's own models. K1: ended too early, K2: a failure that looks
like a success, K3: calls, K4: the finish reason, K5: figures, K8: no stream of deltas.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from shared.errors import UpstreamIncomplete, UpstreamInvalid, UpstreamRefused
from tests.support.answers import completion, values
from tests.support.written import (
    COHERE_WORDS,
    DIALECTS,
    DONE,
    anthropic,
    chunk,
    cohere_end,
    gemini,
    hear,
    heard,
    said,
    stream_of,
    words,
)

Call = tuple[str, str]


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def piece(index: Any = 0, id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    call = {key: value for key, value in (("index", index), ("id", id), ("function", function)) if value is not None}
    return chunk({"tool_calls": [call]})


CALLED = (chunk({}, "tool_calls"), DONE)


def claude(*deltas: str, **start: Any) -> list[dict[str, Any]]:
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}, **start}
    return anthropic(
        (block, *({"type": "input_json_delta", "partial_json": text} for text in deltas)), reason="tool_use"
    )


def ran(*parts: Any) -> list[dict[str, Any]]:
    return [gemini(*parts, reason="STOP")]


def ollama(**message: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **message}, "done": False}


ENDED = {"message": {"content": ""}, "done": True, "done_reason": "stop"}


def text_delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "output_index": 0, "delta": text}


def over(status: str = "completed", **more: Any) -> dict[str, Any]:
    return {"type": f"response.{status}", "response": {"status": status, **more}}


def item(kind: str, **more: Any) -> dict[str, Any]:
    found = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "", **more}
    return {"type": f"response.output_item.{kind}", "output_index": 0, "item": found}


def arguments(kind: str, **more: str) -> dict[str, Any]:
    return {"type": f"response.function_call_arguments.{kind}", "output_index": 0, "item_id": "fc", **more}


SPOKEN: list[tuple[str, Any, str | None, str]] = [
    (
        "openai",
        [*said("a"), chunk({}, "stop"), chunk({"reasoning_content": "r"}), chunk({"content": "b"}, "stop"), DONE],
        "ab",
        "stop",
    ),
    ("openai", [*said("a"), chunk({}, "stop"), DONE, *said("b"), chunk({}, "stop"), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, "sensitive"), DONE], "a", "content_filter"),
    ("openai", [{"code": 0, "message": "ok"}, *said("a"), chunk({}, "stop"), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, "engine_overloaded"), DONE], "a", "length"),
    ("openai", [*said("a"), chunk({}, "billing"), DONE], "a", "length"),
    ("openai", [*said("a"), chunk({}, "repetition"), DONE], "a", "length"),
    ("openai", [*said("a"), chunk({}, " stop "), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, {"type": "eos"}), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, ["stop"]), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, "None"), DONE], "a", "stop"),
    ("openai", [*said("a"), chunk({}, "max_output_tokens"), DONE], "a", "length"),
    ("openai", [*said("a"), chunk({}, "tool-calls"), DONE], "a", "tool_calls"),
    ("openai", [*said("a"), chunk({}, "content-filter"), DONE], "a", "content_filter"),
    ("anthropic", [*anthropic(words("a"))[:-1], *anthropic(words("b"))[1:]], "ab", "stop"),
    ("anthropic", anthropic(words("a"), reason="pause_turn"), "a", "stop"),
    ("anthropic", anthropic(words("a"), reason="refusal"), "a", "content_filter"),
    ("anthropic", [*anthropic(words("a")), DONE], "a", "stop"),
    (
        "gemini",
        [
            gemini({"text": "a"}, reason="STOP"),
            gemini({"text": "t", "thought": True}),
            gemini({"text": "b"}, reason="STOP"),
        ],
        "ab",
        "stop",
    ),
    ("gemini", [gemini({"text": "a"}, reason="MAX_TOKENS"), gemini(reason="STOP")], "a", "length"),
    ("gemini", [gemini({"text": None}, {"text": "a"}, reason="STOP"), DONE], "a", "stop"),
    (
        "gemini",
        [gemini({"text": "a"}), {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}],
        "a",
        "content_filter",
    ),
    ("cohere", [COHERE_WORDS, cohere_end("COMPLETE"), COHERE_WORDS, cohere_end("COMPLETE")], "a", "stop"),
    ("ollama", lines(ollama(content="a"), {**ENDED, "done_reason": "unload"}), "a", "stop"),
    (
        "responses",
        [text_delta("a"), over("incomplete", incomplete_details={"reason": "content_filter"})],
        "a",
        "content_filter",
    ),
    (
        "responses",
        [text_delta("a"), {"type": "response.completed", "response": {"status": "in_progress"}}],
        "a",
        "length",
    ),
    ("responses", [text_delta("a"), over(), DONE], "a", "stop"),
]


@pytest.mark.parametrize(("kind", "given", "text", "reason"), SPOKEN)
def test_k1_k4_what_was_said_and_how_it_ended(kind: str, given: Any, text: str | None, reason: str) -> None:
    whole, error = heard(kind, given)
    assert error is None
    [choice] = whole["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


def test_k1_one_of_several_choices_may_end_early() -> None:
    events = [chunk({"content": "a"}), chunk({"content": "x"}, "stop", 1), chunk({"content": "b"}, "stop"), DONE]
    whole, error = heard("openai", events, choices=2)
    assert error is None
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["ab", "x"]
    _, error = heard("openai", [chunk({"content": "a"}, "stop"), chunk({"content": "x"}, None, 1)], choices=2)
    assert type(error) is UpstreamIncomplete


FAILED: list[tuple[str, Any, str | None, type, str]] = [
    ("openai", [chunk({}, "stop", error={"message": "boom"}), DONE], None, UpstreamRefused, "boom"),
    ("openai", [*said("a"), chunk({}, "stop", error={"message": "boom"}), DONE], "a", UpstreamRefused, "boom"),
    ("openai", [{"choices": [], "error": "boom"}, DONE], None, UpstreamRefused, "boom"),
    ("openai", [*said("a"), chunk({"error": {"message": "boom"}}), DONE], "a", UpstreamRefused, "boom"),
    ("openai", [*said("a"), chunk({}, "network_error"), DONE], "a", UpstreamRefused, "network_error"),
    ("openai", [{"code": "InternalError", "message": "boom", "request_id": "r"}, DONE], None, UpstreamRefused, "boom"),
    ("openai", stream_of(*said("a")) + b"<html><body>502 Bad Gateway</body></html>\n", "a", UpstreamIncomplete, ""),
    ("openai", [chunk({"role": "assistant"}), DONE], None, UpstreamIncomplete, "without an answer"),
    ("openai", ["null", DONE], None, UpstreamInvalid, ""),
    ("anthropic", [*anthropic(words("a"))[:3], {"type": "error", "error": "boom"}], "a", UpstreamRefused, "boom"),
    ("anthropic", [*anthropic(words("a"))[:3], DONE], "a", UpstreamIncomplete, ""),
    ("gemini", [gemini({"text": "a"}), DONE], "a", UpstreamIncomplete, ""),
    ("gemini", [gemini({"text": "a"}), {"error": {"code": 503, "message": "boom"}}], "a", UpstreamRefused, "boom"),
    ("gemini", [gemini(reason="UNEXPECTED_TOOL_CALL")], None, UpstreamRefused, "UNEXPECTED_TOOL_CALL"),
    ("cohere", [COHERE_WORDS, DONE], "a", UpstreamIncomplete, ""),
    ("cohere", [COHERE_WORDS, cohere_end("ERROR", error="boom")], "a", UpstreamRefused, "boom"),
    ("ollama", lines({**ENDED, "done_reason": "load"}), None, UpstreamIncomplete, "load"),
    ("ollama", lines(ollama(content="a"), {"error": "boom"}), "a", UpstreamRefused, "boom"),
    ("responses", [text_delta("a"), DONE], "a", UpstreamIncomplete, ""),
    ("responses", [text_delta("a"), over("failed")], "a", UpstreamRefused, "did not say which"),
    ("responses", [text_delta("a"), over("cancelled")], "a", UpstreamRefused, "cancelled"),
    (
        "responses",
        [text_delta("a"), {"type": "error", "code": "server_error", "message": "boom"}],
        "a",
        UpstreamRefused,
        "boom",
    ),
    (
        "responses",
        [
            text_delta("a"),
            {"type": "response.completed", "response": {"status": "failed", "error": {"message": "boom"}}},
        ],
        "a",
        UpstreamRefused,
        "boom",
    ),
]


@pytest.mark.parametrize(("kind", "given", "text", "error", "told"), FAILED)
def test_k2_a_failure_is_one(kind: str, given: Any, text: str | None, error: type, told: str) -> None:
    whole, found = heard(kind, given)
    assert (type(found), told in str(found)) == (error, True)
    assert "".join(choice["message"]["content"] or "" for choice in whole["choices"]) == (text or "")


CALLS: list[tuple[str, Any, list[Call]]] = [
    ("openai", [piece("0", "a", "f", "{}"), piece("1", "b", "g", "{}"), *CALLED], [("f", "{}"), ("g", "{}")]),
    ("openai", [piece(-1, "a", "f", "{}"), piece(-1, "b", "g", "{}"), *CALLED], [("f", "{}"), ("g", "{}")]),
    ("openai", [piece(10**9, "a", "f", "{}"), *CALLED], [("f", "{}")]),
    (
        "openai",
        [piece(None, "a", "f", '{"x":'), piece(None, arguments="1}"), piece(None, "b", "g", "{}"), *CALLED],
        [("f", '{"x":1}'), ("g", "{}")],
    ),
    (
        "openai",
        [piece(0, "a", "f", {}), piece(0, arguments='{"x":'), piece(0, arguments="1}"), *CALLED],
        [("f", '{"x":1}')],
    ),
    ("openai", [piece(0, "a", "f", "{}"), piece(0, arguments='{"x":1}'), *CALLED], [("f", '{"x":1}')]),
    ("openai", [piece(0, "a", "f", " {} "), piece(1, "b", "g", '{"y":2}'), *CALLED], [("f", "{}"), ("g", '{"y":2}')]),
    ("openai", [piece(0, "a", "f", "{}"), piece(0, "a", "f", "{}"), *CALLED], [("f", "{}")]),
    (
        "openai",
        [piece(None, None, "f", "{}"), piece(None, None, "f", '{"x":1}'), *CALLED],
        [("f", "{}"), ("f", '{"x":1}')],
    ),
    ("openai", [piece(0, "a", "f", [1, 2]), *CALLED], [("f", "[1,2]")]),
    ("openai", [piece(0, "a", "f", "{}"), piece(1, "a", "g", "{}"), *CALLED], [("f", "{}"), ("g", "{}")]),
    (
        "openai",
        [chunk({"tool_calls": [{"id": "a", "function": {"index": 0, "name": "f", "arguments": "{}"}}]}), *CALLED],
        [("f", "{}")],
    ),
    ("anthropic", claude(input={"x": 1}), [("f", '{"x":1}')]),
    ("anthropic", claude('{"x":1}', input={"x": 1}), [("f", '{"x":1}')]),
    ("anthropic", claude(""), [("f", "{}")]),
    ("anthropic", claude("{}", id=None), [("f", "{}")]),
    ("gemini", ran({"functionCall": {"name": "f", "args": None}}), [("f", "{}")]),
    ("gemini", ran({"functionCall": {"name": "f", "args": '{"x":1}'}}), [("f", '{"x":1}')]),
    ("gemini", ran({"functionCall": {"name": "f", "args": [1]}}), [("f", "[1]")]),
    (
        "gemini",
        ran(*({"functionCall": {"id": "x", "name": name, "args": {}}} for name in "fg")),
        [("f", "{}"), ("g", "{}")],
    ),
    (
        "ollama",
        lines(ollama(tool_calls=[{"function": {"name": "f", "arguments": '{"x":1}'}}]), ENDED),
        [("f", '{"x":1}')],
    ),
    (
        "ollama",
        lines(
            *(ollama(tool_calls=[{"function": {"index": 0, "name": name, "arguments": {}}}]) for name in "fg"), ENDED
        ),
        [("f", "{}"), ("g", "{}")],
    ),
    ("responses", [item("done", arguments="{}"), over()], [("f", "{}")]),
    ("responses", [over(output=[item("done", arguments='{"x":1}')["item"]])], [("f", '{"x":1}')]),
    (
        "responses",
        [item("added"), arguments("delta", delta='{"x":'), arguments("done", arguments='{"x":1}'), over()],
        [("f", '{"x":1}')],
    ),
    (
        "responses",
        [item("added"), arguments("delta", delta='{"x":'), item("done", arguments='{"x":1}'), over()],
        [("f", '{"x":1}')],
    ),
    (
        "responses",
        [item("added", arguments='{"x'), over(output=[item("done", arguments='{"x":1}')["item"]])],
        [("f", '{"x":1}')],
    ),
    (
        "responses",
        [item("added"), arguments("delta", delta='{"x":1}'), arguments("done", arguments='{"x":1}'), over()],
        [("f", '{"x":1}')],
    ),
]


@pytest.mark.parametrize(("kind", "given", "calls"), CALLS)
def test_k3_calls_add_up(kind: str, given: Any, calls: list[Call]) -> None:
    whole, error = heard(kind, given)
    assert error is None
    [choice] = whole["choices"]
    found = choice["message"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == calls
    assert len({call["id"] for call in found}) == len(calls)
    assert (choice["finish_reason"], {call["type"] for call in found}) == ("tool_calls", {"function"})


def test_k3_what_looks_like_no_arguments_is_held_back_until_the_end() -> None:
    """Clients join what they are told: `{}` and then the arguments would be no JSON."""
    events: list[Any] = [piece(0, "a", "f", "{}"), piece(0, arguments='{"x":1}'), *CALLED]
    chunks, _, _ = hear(stream_of(*events))
    told = [
        call["function"].get("arguments")
        for one in values(chunks)
        for call in one["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert told == ["", '{"x":1}']


FIGURES: list[tuple[str, Any, tuple[int, int, int]]] = [
    ("openai", {"prompt_tokens": "7", "completion_tokens": "5"}, (7, 5, 12)),
    ("openai", {"prompt_tokens": 7.0, "completion_tokens": 5.0, "total_tokens": 12.0}, (7, 5, 12)),
    ("openai", {"input_tokens": 7, "output_tokens": 5}, (7, 5, 12)),
    ("openai", {"prompt_tokens": 7, "total_tokens": 12}, (7, 5, 12)),
]


@pytest.mark.parametrize(("kind", "usage", "figures"), FIGURES)
def test_k5_figures_in_other_words(kind: str, usage: dict[str, Any], figures: tuple[int, int, int]) -> None:
    whole, error = heard(kind, [*said("a"), chunk({}, "stop"), {"choices": [], "usage": usage}, DONE])
    assert error is None
    found = whole["usage"]
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == figures


def test_k5_figures_of_formats_of_their_own() -> None:
    tools = {"promptTokenCount": 7, "toolUsePromptTokenCount": 100, "candidatesTokenCount": 5, "thoughtsTokenCount": 3}
    asked = [
        (
            "gemini",
            [{**gemini({"text": "a"}, reason="STOP"), "usageMetadata": {**tools, "totalTokenCount": 115}}],
            (107, 8, 115),
        ),
        (
            "anthropic",
            anthropic(words("a"), input_tokens=900, output_tokens=5, cache_read_input_tokens=100),
            (1000, 5, 1005),
        ),
        (
            "cohere",
            [COHERE_WORDS, cohere_end("COMPLETE", usage={"billed_units": {"input_tokens": 7.0, "output_tokens": 5.0}})],
            (7, 5, 12),
        ),
    ]
    for kind, events, figures in asked:
        usage = heard(kind, events)[0]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == figures


# ---- K3: names in pieces

TOOLS = ("get_weather", "get_time", "f")


def named(whole: dict[str, Any]) -> list[Call]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in whole_calls(whole)]


def whole_calls(whole: dict[str, Any]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = whole["choices"][0]["message"].get("tool_calls") or []
    assert len({call["id"] for call in calls}) == len(calls)
    return calls


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        ([(0, "c", "get_", ""), (0, None, "weather"), (0, None, None, '{"a":1}')], ["get_weather"]),
        ([(0, "c", "get_", ""), (0, "c", "weat"), (0, "c", "her", '{"a":1}')], ["get_weather"]),
        ([(0, None, "ge"), (0, None, "t_weather", '{"a":1}'), (0, None, "f", '{"a":1}')], ["get_weather", "f"]),
        ([(0, "c", "get_", ""), (1, "d", "get_time", '{"a":1}'), (0, "c", None, '{"a":1}')], ["get_", "get_time"]),
        ([(0, "c", "get_time", ""), (0, "c", "get_time", '{"a":1}')], ["get_time"]),
        ([(0, "c", "g", '{"a":1}'), (0, None, "get_time", '{"a":1}')], ["g", "get_time"]),
    ],
)
def test_k3_a_name_that_comes_in_pieces(pieces: list[tuple[Any, ...]], calls: list[str]) -> None:
    whole, error = heard("openai", [*(piece(*one) for one in pieces), *CALLED], tools=TOOLS)
    assert (error, named(whole)) == (None, [(name, '{"a":1}') for name in calls])


def test_k3_a_name_in_pieces_of_a_call_without_arguments() -> None:
    begun = [piece(0, "c", "get_"), piece(0, None, "time")]
    assert named(heard("openai", [*begun, *CALLED], tools=TOOLS)[0]) == [("get_time", "{}")]
    assert named(heard("openai", [begun[0], *CALLED], tools=TOOLS)[0]) == [("get_", "{}")]


@pytest.mark.parametrize("arguments", [['{"a":', "1}"], []])
def test_k3_an_older_call_has_its_name_once(arguments: list[str]) -> None:
    told = [{"name": "get_", "arguments": ""}, {"name": "time"}, *({"arguments": one} for one in arguments)]
    chunks, error, _ = hear(
        stream_of(*(chunk({"function_call": one}) for one in told), chunk({}, "function_call"), DONE), tools=TOOLS
    )
    names = [delta["function_call"].get("name") for delta in deltas(chunks) if "function_call" in delta]
    assert (error, [name for name in names if name]) == (None, ["get_time"])
    [choice] = completion(chunks)["choices"]
    assert choice["message"]["function_call"] == {"name": "get_time", "arguments": "".join(arguments) or "{}"}


def deltas(chunks: list[Any]) -> list[dict[str, Any]]:
    return [choice["delta"] for value in values(chunks) for choice in value["choices"]]


# ---- K5: half of the figures


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("openai", [*said("a"), chunk({}, "stop", usage={"prompt_tokens": 7}), DONE]),
        ("openai", [*said("a"), chunk({}, "stop", usage={"prompt_tokens": 0, "completion_tokens": 5}), DONE]),
        ("anthropic", anthropic(words("a"), input_tokens=7, output_tokens=0)),
        ("gemini", [{**gemini({"text": "a"}, reason="STOP"), "usageMetadata": {"promptTokenCount": 7}}]),
        ("ollama", lines({"message": {"content": "a"}, "done": True, "done_reason": "stop", "eval_count": 5})),
    ],
)
def test_k5_half_of_the_figures_is_no_usage_yet(kind: str, body: Any) -> None:
    """What is missing is measured here (generate.py): no client is told that nothing was counted where something was."""
    stream = body if isinstance(body, bytes) else stream_of(*body)
    chunks, error, reader = hear(stream, dialect=DIALECTS[kind])
    assert (error, reader.half_told, reader.lacks_usage, completion(chunks)["usage"]) == (None, True, True, None)
    told, error, reader = hear(stream_of(chunk({}, "stop", usage={"prompt_tokens": 7}), DONE))
    assert (error, reader.half_told) == (None, False), "nothing was said, so nothing is missing"
    assert completion(told)["usage"]["completion_tokens"] == 0


# ---- K8

WHOLE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a b"}, "finish_reason": "stop"}]}
PIECES = [chunk({"content": "a "}), chunk({"content": "b"}, "stop")]
CLAUDES = {"type": "message", "content": [{"type": "text", "text": "a b"}], "stop_reason": "end_turn", "usage": {}}
GEMINIS = gemini({"text": "a b"}, reason="STOP")
RESPONSE = {"object": "response", "status": "completed", "output": []}


def as_text(value: Any) -> bytes:
    return json.dumps(value).encode()


PACKED: list[tuple[str, bytes]] = [
    *(("openai", as_text({name: WHOLE, "code": 0})) for name in ("data", "result", "response", "output", "body")),
    ("openai", stream_of(*({"data": one} for one in PIECES), DONE)),
    ("openai", stream_of(*(json.dumps(json.dumps(one)) for one in PIECES), json.dumps(DONE))),
    ("openai", stream_of(*("data: " + json.dumps(one) for one in PIECES), "data: [DONE]")),
    ("openai", as_text({"choices": [{"message": "a b", "finish_reason": "stop"}]})),
    ("openai", as_text(PIECES)),
    ("openai", as_text(WHOLE) + b"\n\ndata: [DONE]\n\n"),
    ("anthropic", as_text({**CLAUDES, "content": "a b"})),
    ("anthropic", as_text({"data": {**CLAUDES}})),
    ("gemini", as_text({"response": GEMINIS})),
    ("gemini", as_text([{"response": GEMINIS}])),
    ("cohere", as_text({"message": {"content": "a b"}, "finish_reason": "COMPLETE"})),
    ("responses", as_text({**RESPONSE, "output": [{"type": "message", "content": "a b"}]})),
    ("responses", as_text({**RESPONSE, "output_text": "a b"})),
    ("responses", stream_of({"type": "response.completed", "response": {**RESPONSE, "output_text": "a b"}})),
]


@pytest.mark.parametrize(("kind", "body"), PACKED)
def test_k8_an_answer_that_is_packed_in_something(kind: str, body: bytes) -> None:
    decoder = DIALECTS[kind].decoder(1 << 20)
    decoder.feed(body)
    assert getattr(decoder, "other", None) is None, "it is an answer, and no error's body"
    whole, error = heard(kind, body)
    [choice] = whole["choices"]
    assert (error, choice["message"]["content"], choice["finish_reason"]) == (None, "a b", "stop")


@pytest.mark.parametrize("mark", ["[done]", "DONE", '"[DONE]"', " [DONE] ", "data: [DONE]"])
def test_k8_the_end_in_another_spelling(mark: str) -> None:
    """It proves the end as [DONE] does; in a format of its own it proves nothing."""
    whole, error = heard("openai", [*said("a"), mark])
    assert (error, whole["choices"][0]["finish_reason"]) == (None, "stop")
    _, error = heard("gemini", [gemini({"text": "a"}), mark])
    assert isinstance(error, UpstreamIncomplete)


@pytest.mark.parametrize("mark", ["[END]", "end", "<|end|>", "bye"])
def test_k8_a_word_behind_an_end_costs_no_answer(mark: str) -> None:
    figures = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    whole, error = heard("openai", [*said("a"), chunk({}, "stop"), mark, figures, mark])
    assert (error, whole["choices"][0]["finish_reason"], whole["usage"]["total_tokens"]) == (None, "stop", 12)
    assert isinstance(heard("openai", [*said("a"), mark, *said("b")])[1], UpstreamInvalid), "it may be a part of it"


def test_k8_choices_without_an_index_are_in_their_order() -> None:
    both = {"choices": [{"message": {"content": text}, "finish_reason": "stop"} for text in "ab"]}
    whole, error = heard("openai", as_text(both), choices=2)
    assert (error, [choice["message"]["content"] for choice in whole["choices"]]) == (None, ["a", "b"])


@pytest.mark.parametrize("body", [{"data": {"error": {"message": "x"}}}, {"data": WHOLE, "error": {"message": "x"}}])
def test_k8_an_error_beside_or_in_what_it_is_packed_in(body: dict[str, Any]) -> None:
    assert isinstance(heard("openai", stream_of(body, DONE))[1], UpstreamRefused)
