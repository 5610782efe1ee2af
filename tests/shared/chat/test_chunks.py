"""The fold that makes an answer out of chunks."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.live.answer import accumulate
from shared.chat.chunks import Accumulator


def chunk(delta: dict[str, Any], finish: str | None = None, *, index: int = 0, **choice: Any) -> dict[str, Any]:
    return {
        "id": "i",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish, **choice}],
    }


def fold(*chunks: dict[str, Any]) -> Accumulator:
    accumulator = Accumulator()
    for part in chunks:
        accumulator.feed(part)
    return accumulator


def message(*deltas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fold(*(chunk(delta) for delta in deltas)).result()["choices"][0]["message"]
    return found


def test_nothing_folds_to_an_answer_without_choices() -> None:
    nothing = fold()
    assert nothing.result() == {"object": "chat.completion", "choices": [], "usage": None}
    assert nothing.finish_reasons == []
    assert nothing.messages == []


def test_the_required_fields_are_there_before_anything_is_said() -> None:
    (choice,) = fold(chunk({})).result()["choices"]
    said = {"role": "assistant", "content": None, "refusal": None}
    assert choice == {"index": 0, "finish_reason": None, "logprobs": None, "message": said}


@given(st.lists(st.text(max_size=5), max_size=10), st.lists(st.text(max_size=5), max_size=10))
def test_text_is_joined_however_it_was_split(content: list[str], reasoning: list[str]) -> None:
    said = message(
        {"role": "assistant", "content": ""},
        *({"reasoning_content": piece} for piece in reasoning),
        *({"content": piece} for piece in content),
    )
    assert said["content"] == "".join(content)
    assert said.get("reasoning_content", "") == "".join(reasoning)
    assert said["role"] == "assistant"


@st.composite
def split_answers(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """An answer of several choices with parallel tool calls, and chunks that say it in some split and interleaving."""
    choices, streams = [], []
    for index in range(draw(st.integers(1, 3))):
        text = draw(st.text(max_size=12))
        arguments = draw(st.lists(st.text(max_size=12), max_size=3))
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in split(draw, text)]
        calls: list[list[dict[str, Any]]] = []
        for at, whole in enumerate(arguments):
            first = {"index": at, "id": f"c{at}", "type": "function", "function": {"name": f"f{at}", "arguments": ""}}
            pieces = [{"index": at, "function": {"arguments": piece}} for piece in split(draw, whole)]
            calls.append([{"tool_calls": [part]} for part in (first, *pieces)])
        # Calls open in the order of their index, as providers send them; their fragments come in any order.
        deltas += [call.pop(0) for call in calls]
        deltas += interleave(draw, calls)
        said: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if arguments:
            said["content"] = text or None
            said["tool_calls"] = [
                {"id": f"c{at}", "type": "function", "function": {"name": f"f{at}", "arguments": whole}}
                for at, whole in enumerate(arguments)
            ]
        reason = "tool_calls" if arguments else "stop"
        choices.append({"index": index, "finish_reason": reason, "logprobs": None, "message": said})
        streams.append([*(chunk(delta, index=index) for delta in deltas), chunk({}, reason, index=index)])
    return choices, interleave(draw, streams)


def split(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def interleave(draw: st.DrawFn, streams: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    streams = [list(stream) for stream in streams if stream]
    merged = []
    while streams:
        stream = draw(st.sampled_from(streams))
        merged.append(stream.pop(0))
        streams = [left for left in streams if left]
    return merged


@given(split_answers())
def test_any_split_of_an_answer_folds_to_it(case: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    expected, chunks = case
    before = copy.deepcopy(chunks)
    folded = fold(*chunks)
    assert folded.result()["choices"] == expected
    assert folded.finish_reasons == [choice["finish_reason"] for choice in expected]
    assert chunks == before, "a fold changes nothing of what it is fed"


@given(split_answers(), st.data())
def test_a_result_on_the_way_changes_nothing(
    case: tuple[list[dict[str, Any]], list[dict[str, Any]]], data: st.DataObject
) -> None:
    expected, chunks = case
    accumulator = Accumulator()
    for part in chunks:
        if data.draw(st.booleans()):
            accumulator.result()
        accumulator.feed(part)
    assert accumulator.result()["choices"] == expected


def test_choices_are_in_order_however_they_came() -> None:
    folded = fold(chunk({"content": "b"}, "stop", index=1), chunk({"content": "a"}, index=0), chunk({}, "length"))
    assert [choice["message"]["content"] for choice in folded.result()["choices"]] == ["a", "b"]
    assert folded.finish_reasons == ["length", "stop"]


def test_a_choice_without_an_index_is_the_first() -> None:
    folded = fold({"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"delta": None}]}, {"choices": None}, {})
    assert folded.result()["choices"][0]["message"]["content"] == "a"


def test_a_finish_reason_is_never_joined_and_never_lost() -> None:
    folded = fold(chunk({}, "stop"), chunk({}, "stop"), chunk({}, None))
    assert folded.finish_reasons == ["stop"]


def test_with_tool_calls_empty_content_is_null() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    assert message({"content": ""}, {"tool_calls": [call]})["content"] is None
    assert message({"content": "a"}, {"tool_calls": [call]})["content"] == "a"


@pytest.mark.parametrize("field", ["annotations", "thinking_blocks", "anthropic_blocks", "gemini_parts", "images"])
def test_lists_keep_their_order_and_not_their_indexes(field: str) -> None:
    first, second = {"index": 0, "type": "t", "signature": "a"}, {"index": 1, "type": "t", "signature": "b"}
    folded = fold(chunk({field: [first]}), chunk({field: [{**first, "signature": "c"}, second]}), chunk({field: None}))
    whole = [{"type": "t", "signature": "c"}, {"type": "t", "signature": "b"}]
    assert folded.result()["choices"][0]["message"][field] == folded.messages[0][field] == whole
    assert message({field: "odd"})[field] == "odd"


def test_what_ends_a_choice_is_said_once() -> None:
    end: dict[str, Any] = {"native_finish_reason": "end_turn", "stop_sequence": "x"}
    (choice,) = fold(chunk({}, "stop", **end), chunk({}, "stop", **end)).result()["choices"]
    assert end.items() <= choice.items()


@pytest.mark.parametrize("calls", [None, []])
def test_no_tool_calls_are_no_failure(calls: list[Any] | None) -> None:
    """Some providers send the field in every delta."""
    said = message({"content": "a", "tool_calls": calls}, {"content": "b", "tool_calls": calls})
    assert said["content"] == "ab"


def test_tool_calls_without_an_index_follow_each_other() -> None:
    said = message({"tool_calls": [{"id": "a"}]}, {"tool_calls": [{"id": "b"}]})
    assert said["tool_calls"] == [{"id": "a"}, {"id": "b"}]


def test_content_may_be_text_and_parts_in_one_answer() -> None:
    """Mistral's reasoning models begin with "", think in parts, and may go on with plain text."""

    def thinking(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}], "closed": True}

    image = {"type": "image_url", "image_url": "u"}
    said = message(
        {"role": "assistant", "content": ""},
        {"content": [thinking("I ")]},
        {"content": [thinking("see"), {"type": "text", "text": "1"}]},
        {"content": "4"},
        {"content": [{"type": "text", "text": "4"}, image, image]},
        {"content": ""},
    )
    assert said["content"] == [thinking("I see"), {"type": "text", "text": "144"}, image, image]


def test_a_message_beside_the_delta_is_not_said_twice() -> None:
    """Writer sends every delta under both names."""
    (choice,) = fold(*(chunk({"content": text}, message={"content": text}) for text in "ab")).result()["choices"]
    assert choice["message"]["content"] == "ab"


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("a", "b", "ab"),
        (None, "b", "b"),
        ("a", None, "a"),
        (1, 2, 2),
        (True, False, False),
        ("a", 1, 1),
        ([1], [2], [1, 2]),
        ([1], "x", "x"),
        ({"a": "x"}, {"a": "y", "b": 1}, {"a": "xy", "b": 1}),
        ({"a": {"b": [1]}}, {"a": {"b": [2]}}, {"a": {"b": [1, 2]}}),
        ([{"index": 0, "t": "a"}], [{"index": 0, "t": "b"}], [{"index": 0, "t": "ab"}]),
        ([{"index": 1, "t": "b"}], [{"index": 0, "t": "a"}], [{"index": 1, "t": "b"}, {"index": 0, "t": "a"}]),
        ([{"t": "a"}], [{"t": "b"}], [{"t": "a"}, {"t": "b"}]),
    ],
)
def test_unknown_fields_add_up(first: Any, second: Any, merged: Any) -> None:
    assert message({"x": first}, {"x": second})["x"] == merged
    (choice,) = fold(chunk({}, x=first), chunk({}, x=second)).result()["choices"]
    assert choice["x"] == merged


@pytest.mark.parametrize(
    "field",
    "id name role type format signature thought_signature object channel severity".split(),
)
def test_what_is_sent_whole_is_not_joined(field: str) -> None:
    assert message({field: "a"}, {field: "a"}) [field] == "a"  # fmt: skip
    assert message({"x": {field: "a"}}, {"x": {field: "b"}})["x"] == {field: "b"}


def test_labels_that_come_with_every_chunk_stay_what_they_are() -> None:
    """Azure's filter results, OpenRouter's own reason, Groq's channel: all strings, none of them a piece."""
    filtered = {"hate": {"filtered": False, "severity": "safe"}}
    parts = [
        chunk({"content": piece, "channel": "final"}, content_filter_results=filtered, native_finish_reason="end")
        for piece in "ab"
    ]
    (choice,) = fold(*parts).result()["choices"]
    assert choice["content_filter_results"] == filtered
    assert choice["native_finish_reason"] == "end"
    assert choice["message"]["channel"] == "final"


def test_padding_is_no_part_of_the_answer() -> None:
    assert "obfuscation" not in fold({**chunk({"content": "a"}), "obfuscation": "xyz"}).result()


def test_a_field_that_is_null_later_keeps_its_value() -> None:
    folded = fold({**chunk({}), "service_tier": "default"}, {**chunk({}), "service_tier": None, "new": None})
    assert folded.result()["service_tier"] == "default"
    assert folded.result()["new"] is None


def test_a_legacy_function_call_is_joined() -> None:
    said = message(
        {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a"'}},
        {"function_call": {"arguments": ":1}"}},
    )
    assert said["function_call"] == {"name": "f", "arguments": '{"a":1}'}
    assert said["content"] is None


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_calls_that_say_nothing_are_left_out(nothing: Any) -> None:
    said = message({"content": "a", "tool_calls": nothing, "function_call": nothing})
    assert said == {"role": "assistant", "content": "a", "refusal": None}


def test_audio_is_joined_and_its_id_and_end_are_not() -> None:
    said = message(
        {"role": "assistant", "content": None},
        {"audio": {"id": "audio_1", "transcript": "He"}},
        {"audio": {"id": "audio_1", "data": "AAAA", "transcript": "llo"}},
        {"audio": {"data": "BBBB"}},
        {"audio": {"expires_at": 1}},
        {"audio": {"expires_at": 2}},
    )
    assert said["audio"] == {"id": "audio_1", "data": "AAAABBBB", "transcript": "Hello", "expires_at": 2}


def test_logprobs_of_text_and_of_a_refusal_are_lists() -> None:
    one, two = {"token": "a", "logprob": -1}, {"token": "b", "logprob": -2}
    parts = [
        chunk({"content": "a"}, logprobs={"content": [one], "refusal": None}),
        chunk({"refusal": "b"}, logprobs={"content": None, "refusal": [two]}),
        chunk({"refusal": "b"}, logprobs={"content": [], "refusal": [two]}),
        chunk({}, "stop", logprobs=None),
    ]
    (choice,) = fold(*parts).result()["choices"]
    assert choice["logprobs"] == {"content": [one], "refusal": [two, two]}


def test_what_has_one_index_and_two_types_is_two_things() -> None:
    """OpenRouter's reasoning_details."""
    text, more = ({"index": 0, "type": "reasoning.text", "text": piece} for piece in ("a", "b"))
    signed = {"index": 0, "type": "reasoning.encrypted", "data": "x"}
    said = message(*({"reasoning_details": [part]} for part in (text, more, signed)))
    assert said["reasoning_details"] == [{**text, "text": "ab"}, signed]


def thinking(piece: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": piece}]}


@pytest.mark.parametrize(
    ("pieces", "content"),
    [
        ([[thinking("a")], [thinking("b")], "c", "d"], [thinking("ab"), {"type": "text", "text": "cd"}]),
        (["", [thinking("a")], "b"], [thinking("a"), {"type": "text", "text": "b"}]),
        (["a", None, [{"type": "text", "text": "b"}]], [{"type": "text", "text": "ab"}]),
        ([[thinking("a"), {"type": "text", "text": "b"}], "", "c"], [thinking("a"), {"type": "text", "text": "bc"}]),
        ([[{"type": "reference", "ids": [1]}], [{"type": "reference", "ids": [2]}]], None),
        ([["odd"], [1]], ["odd", 1]),
    ],
)
def test_content_that_is_now_text_and_now_parts_loses_nothing(pieces: list[Any], content: Any) -> None:
    """Mistral's reasoning models."""
    expected = content or [part for piece in pieces for part in piece]
    deltas = [{"content": piece} for piece in pieces]
    before = copy.deepcopy(deltas)
    assert message(*deltas)["content"] == expected
    assert deltas == before


class Piece(str):
    """Text that does not let itself be joined to what there is: that would copy all of it, for every piece."""

    def __radd__(self, other: str) -> str:
        raise AssertionError(f"{len(other)} characters were copied")

    __add__ = __radd__


def test_a_chunk_costs_the_same_however_many_were_before_it() -> None:
    count = 1000
    token = {"token": "word ", "logprob": -1, "top_logprobs": []}
    one = chunk({"content": Piece("word "), "reasoning": Piece("why ")}, logprobs={"content": [token]})
    call = chunk({"tool_calls": [{"index": 7, "function": {"arguments": Piece("[1]")}}]})
    part = chunk({"parts": [{"index": 0, "type": "text", "text": Piece("a")}]})
    folded = fold(*itertools.chain.from_iterable(itertools.repeat((one, call, part), count)))
    (choice,) = folded.result()["choices"]
    assert choice["message"]["content"] == "word " * count
    assert choice["message"]["reasoning"] == "why " * count
    assert choice["logprobs"]["content"] == [token] * count
    assert choice["message"]["tool_calls"] == [{"function": {"arguments": "[1]" * count}}]
    assert choice["message"]["parts"] == [{"index": 0, "type": "text", "text": "a" * count}]
    many = fold(*(chunk({"tool_calls": [{"index": index, "id": str(index)}]}) for index in range(count)))
    assert [one["id"] for one in many.messages[0]["tool_calls"]] == [str(index) for index in range(count)]


async def test_others_have_their_turns_while_a_long_answer_is_put_together() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(other())
    payload = json.dumps(chunk({"content": "word "})).encode()
    folded = await accumulate(itertools.repeat(payload, 20_000))
    task.cancel()
    assert folded.messages == [{"content": "word " * 20_000}]
    assert turns >= 19


def test_what_was_read_on_the_way_stays_what_it_was() -> None:
    folded, delta = Accumulator(), {"content": "a", "x": [{"index": 0, "t": "a"}], "y": {"z": "a"}}
    for number in (1, 2, 3):
        folded.feed(chunk(copy.deepcopy(delta)))
        if number == 2:
            then = folded.result(), folded.messages
            before = copy.deepcopy(then)
    assert then == before
    said = "aaa"
    assert folded.messages == [{"content": said, "x": [{"index": 0, "t": said}], "y": {"z": said}}]


def test_an_index_that_is_no_number_is_no_failure() -> None:
    assert message({"x": [{"index": None, "t": "a"}]}, {"x": [{"index": None, "t": "b"}]})["x"][0]["t"] == "a"


def test_the_top_of_the_answer_is_the_chunks() -> None:
    folded = fold({**chunk({}), "system_fingerprint": "fp", "x": {"a": 1}}, {**chunk({}), "x": {"b": 2}})
    result = folded.result()
    assert {"id": "i", "created": 1, "model": "m", "system_fingerprint": "fp", "x": {"b": 2}}.items() <= result.items()
    assert result["object"] == "chat.completion"


def test_usage_is_the_last_there_was() -> None:
    first, last = {"total_tokens": 1}, {"total_tokens": 2}
    folded = fold({**chunk({}), "usage": first}, {"choices": [], "usage": last}, {**chunk({}), "usage": None})
    assert folded.usage == folded.result()["usage"] == last
