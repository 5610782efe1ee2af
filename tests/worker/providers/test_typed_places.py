"""What other vendors have under OpenAI's names: every chunk and every whole answer is one that OpenAI's own models take.

`answered` validates each chunk as `ChatCompletionChunk` and the whole as `ChatCompletion`, in every spelling of the stream.
"""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError

from shared.chat.chunks import FOREIGN, Accumulator
from tests.support import recordings
from tests.support.answers import completion, new_normalizer, play, read_by_sdk, values
from tests.support.recordings import Row, wire
from tests.support.written import DIALECTS, DONE, USAGE, answered, chunk, hear, only, said, stream_of

RECORDINGS = recordings.recordings("chat", "anthropic", "gemini", "cohere", "responses")
ENTRY = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
MODERATION = {
    "model": "omni",
    "type": "moderation_results",
    "results": [
        {
            "categories": {"hate": False},
            "category_applied_input_types": {"hate": ["text"]},
            "category_scores": {"hate": 0.1},
            "flagged": False,
            "model": "omni",
            "type": "moderation_result",
        }
    ],
}


def refuses(place: str, value: Any) -> bool:
    """Whether OpenAI's model of a whole answer does, or that of a chunk."""
    envelope = {"id": "x", "created": 1, "model": "m", "choices": []}
    try:
        ChatCompletionChunk.model_validate({**envelope, "object": "chat.completion.chunk", place: value})
        ChatCompletion.model_validate({**envelope, "object": "chat.completion", place: value})
    except ValidationError:
        return True
    return False


TOPS = [
    ("service_tier", "on_demand"),
    ("service_tier", "standard"),
    ("service_tier", {"tier": "priority"}),
    ("service_tier", ["auto"]),
    ("service_tier", 3),
    ("system_fingerprint", 12345),
    ("system_fingerprint", {"build": "b1"}),
    ("metadata", {"weight_version": 7}),
    ("metadata", {"k": None, "nested": {"a": 1}}),
    ("metadata", "text"),
    ("metadata", ["a"]),
    ("moderation", {"hate": {"filtered": False}}),
    ("moderation", {"input": MODERATION}),
    ("moderation", {"input": MODERATION, "output": {**MODERATION, "results": [{"flagged": 1}]}}),
    ("moderation", True),
    ("obfuscation", 7),
]


@pytest.mark.parametrize(("place", "value"), TOPS)
def test_what_stands_on_top_of_a_chunk(place: str, value: Any) -> None:
    assert refuses(place, value)
    whole = answered(*(chunk({"content": text}, **{place: value}) for text in "ab"), chunk({}, "stop"), DONE)
    assert only(whole) == ("ab", "stop")
    assert (whole[FOREIGN], whole.get(place)) == ({place: value}, None)
    at_the_end = answered(*said("a"), chunk({}, "stop"), {"choices": [], "usage": USAGE, place: value}, DONE)
    assert (at_the_end[FOREIGN], at_the_end["usage"]["total_tokens"]) == ({place: value}, 12)
    alone = answered({"choices": [], place: value, "other": 1}, *said("a"), chunk({}, "stop"), DONE)
    assert (alone[FOREIGN], alone["other"]) == ({place: value}, 1)
    at_once = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}], place: value}
    assert answered(at_once)[FOREIGN] == {place: value}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("service_tier", "priority"),
        ("service_tier", "fast"),
        ("system_fingerprint", "fp_1"),
        ("obfuscation", "xyz"),
        ("moderation", {"input": MODERATION, "output": {"type": "error", "code": "c", "message": "m"}}),
    ],
)
def test_what_is_openais_stays(place: str, value: Any) -> None:
    whole = answered(chunk({"content": "a"}, **{place: value}), chunk({}, "stop"), DONE)
    assert FOREIGN not in whole
    assert whole.get(place) == (value if place != "obfuscation" else None)


@pytest.mark.parametrize("value", ["", None, {}, [], False])
def test_what_says_nothing_is_left_out(value: Any) -> None:
    places = ("service_tier", "system_fingerprint", "metadata", "moderation")
    whole = answered(chunk({"content": "a"}, **dict.fromkeys(places, value)), chunk({}, "stop"), DONE)
    assert FOREIGN not in whole
    assert not whole.get("service_tier")


@pytest.mark.parametrize(
    ("events", "tier"),
    [
        ([chunk({"content": "a"}, service_tier="flex"), chunk({}, "stop", service_tier=None), DONE], "flex"),
        ([chunk({"content": "a"}), chunk({}, "stop"), {"choices": [], "usage": USAGE, "service_tier": "flex"}], "flex"),
        ([chunk({"content": "a"}, service_tier="on_demand"), chunk({}, "stop"), DONE], None),
        ([chunk({"content": "a"}, service_tier={"a": 1}), chunk({}, "stop"), DONE], None),
    ],
)
def test_the_tier_that_an_answer_is_priced_by(events: list[Any], tier: str | None) -> None:
    """The worker that reads it knows it, and so does whoever ends it with what the log has."""
    normalizer, fold = new_normalizer(), Accumulator()
    chunks, error = play(stream_of(*events), normalizer, "")
    assert error is None
    for value in values(chunks):
        fold.feed(value)
    assert (normalizer.tier, fold.tier) == (tier, tier)


def test_metadata_are_those_of_the_client_alone() -> None:
    whole = answered(chunk({"content": "a"}, metadata={"weight_version": "default"}), chunk({}, "stop"), DONE)
    assert ("metadata" in whole, whole[FOREIGN]) == (False, {"metadata": {"weight_version": "default"}})


def test_fields_of_several_chunks_meet() -> None:
    first = {"choices": [], "metadata": {"a": 1}, "other": 2}
    whole = answered(first, chunk({"content": "a"}, service_tier="on_demand"), chunk({}, "stop"), DONE)
    assert whole[FOREIGN] == {"metadata": {"a": 1}, "service_tier": "on_demand"}


# ---- choices

LOGPROBS = [
    ({"content": [{"token": "a", "logprob": -0.5}]}, [{"token": "a", "logprob": -0.5, "top_logprobs": []}]),
    (
        {"content": [{"token": "a", "logprob": 0, "bytes": None, "top_logprobs": None}]},
        [{"token": "a", "logprob": 0, "bytes": None, "top_logprobs": []}],
    ),
    ({"content": [{**ENTRY, "bytes": "YQ=="}]}, [ENTRY]),
    (
        {"content": [{**ENTRY, "top_logprobs": {"b": -1.5}}]},
        [{**ENTRY, "top_logprobs": [{"token": "b", "logprob": -1.5}]}],
    ),
    ({"content": [{**ENTRY, "token_id": 3}], "more": 1}, [{**ENTRY, "token_id": 3}]),
]


@pytest.mark.parametrize(("given", "fit"), LOGPROBS)
def test_log_probabilities_are_brought_into_openais_form(given: dict[str, Any], fit: list[dict[str, Any]]) -> None:
    first, second = chunk({"content": "12345678"}), chunk({"content": "b"})
    for one in (first, second):
        one["choices"][0]["logprobs"] = given
    whole = answered(first, second, chunk({}, "stop"), DONE)
    assert whole["choices"][0]["logprobs"]["content"] == [*fit, *fit]
    assert FOREIGN not in whole["choices"][0]


@pytest.mark.parametrize(
    "given",
    [
        -0.25,
        [-0.25],
        {"tokens": ["a"], "token_logprobs": [-0.25], "top_logprobs": None},
        {"content": "a"},
        {"content": [{"token": "a", "logprob": None}]},
        {"content": [{"token": 5, "logprob": -1}]},
    ],
)
def test_log_probabilities_in_another_form_are_kept_beside(given: Any) -> None:
    first, second = chunk({"content": "12345678"}), chunk({"content": "b"})
    second["choices"][0]["logprobs"] = given
    whole = answered(first, second, chunk({}, "stop"), DONE)
    (choice,) = whole["choices"]
    assert (choice["logprobs"], choice[FOREIGN]) == (None, {"logprobs": given})


# ---- deltas

CONTENTS = [
    ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab", None, None),
    ([{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]}], None, "why", None),
    ([{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "a"}], "a", "why", None),
    (
        [{"type": "text", "text": "a"}, {"type": "reference", "reference_ids": [1]}],
        "a",
        None,
        [{"type": "reference", "reference_ids": [1]}],
    ),
    (
        [{"type": "image_url", "image_url": "https://x.test/a.png"}],
        None,
        None,
        [{"type": "image_url", "image_url": "https://x.test/a.png"}],
    ),
    (
        [{"type": "text", "text": "a", "annotations": [{"x": 1}]}],
        "a",
        None,
        [{"type": "text", "annotations": [{"x": 1}]}],
    ),
    (["a", "b"], "ab", None, None),
    ({"type": "text", "text": "a"}, "a", None, None),
    (42, "42", None, None),
    ([], None, None, None),
]


@pytest.mark.parametrize(("content", "text", "reasoning", "others"), CONTENTS)
@pytest.mark.parametrize("late", [False, True])
def test_content_is_text(content: Any, text: str | None, reasoning: str | None, others: Any, *, late: bool) -> None:
    before, after = (["12345678"], "12345678") if late else ([], "")
    whole = answered(*said(*before), chunk({"content": content}), *said("z"), chunk({}, "stop"), DONE)
    message = whole["choices"][0]["message"]
    assert message["content"] == f"{after}{text or ''}z"
    assert message.get("reasoning_content") == reasoning
    assert message.get(FOREIGN) == (None if others is None else {"content": others})


def _seen(at: Any, **more: Any) -> dict[str, Any]:
    return {"type": "reference", "reference_ids": [at], **more}


@pytest.mark.parametrize(
    ("deltas", "place", "items"),
    [
        ([{"content": [_seen(1)]}, {"content": [_seen(2)]}], (FOREIGN, "content"), [_seen(1), _seen(2)]),
        (
            [{"content": [_seen(1, index=0)]}, {"content": [_seen(2, index=0)]}],
            (FOREIGN, "content"),
            [_seen(1), _seen(2)],
        ),
        (
            [{"content": [_seen(1), [2]]}, {"content": [[3]]}],
            (FOREIGN, "content"),
            [_seen(1), {"value": [2]}, {"value": [3]}],
        ),
        (
            [{"refusal": [{"a": 1}]}, {"refusal": [{"a": 2}, {"a": 3}]}],
            (FOREIGN, "refusal"),
            [{"a": 1}, {"a": 2}, {"a": 3}],
        ),
        ([{FOREIGN: {"seen": [_seen(1)]}}, {FOREIGN: {"seen": [_seen(2)]}}], (FOREIGN, "seen"), [_seen(1), _seen(2)]),
        ([{"images": [_seen(1)]}, {"images": [_seen(2)]}], ("images",), [_seen(1), _seen(2)]),
        ([{"sources": [_seen(1), _seen(2)]}, {"sources": [_seen(3)]}], ("sources",), [_seen(1), _seen(2), _seen(3)]),
    ],
)
def test_lists_that_come_twice_add_up_in_openais_sdk(
    deltas: list[dict[str, Any]], place: tuple[str, ...], items: list[dict[str, Any]]
) -> None:
    """Its helper fails where a second list has no `index`: two references of Mistral's ended the whole stream. To the broker
    they are in order, without it."""
    events = [event for delta in deltas for event in (*said("a"), chunk(delta))]
    chunks, error, _ = hear(stream_of(*events, chunk({}, "stop"), DONE))
    assert error is None
    ours, theirs = completion(chunks)["choices"][0]["message"], read_by_sdk(chunks)["choices"][0]["message"]
    assert ours["content"] == theirs["content"] == "aa"
    for name in place:
        ours, theirs = ours[name], theirs[name]
    assert ours == items
    assert [{key: value for key, value in one.items() if key != "index"} for one in theirs] == items


def test_a_list_whose_items_have_an_index_keeps_it() -> None:
    details = [
        {"type": "a", "text": "1", "index": 0},
        {"type": "a", "text": "2", "index": 0},
        {"type": "b", "data": "3"},
    ]
    chunks, _, _ = hear(
        stream_of(*(chunk({"reasoning_details": [one]}) for one in details), *said("a"), chunk({}, "stop"))
    )
    ours, theirs = completion(chunks)["choices"][0]["message"], read_by_sdk(chunks)["choices"][0]["message"]
    assert ours["reasoning_details"] == theirs["reasoning_details"]
    assert ours["reasoning_details"] == [
        {"type": "a", "text": "12", "index": 0},
        {"type": "b", "data": "3", "index": 1},
    ]


def test_a_list_that_comes_once_stays_as_it_came() -> None:
    chunks, _, _ = hear(stream_of(*said("a"), chunk({"sources": [{"a": 1}]}), chunk({}, "stop"), DONE))
    [told] = [
        one["choices"][0]["delta"]["sources"] for one in values(chunks) if one["choices"][0]["delta"].get("sources")
    ]
    assert told == [{"a": 1}]


def test_thinking_that_a_message_tells_twice_is_told_once() -> None:
    parts = [{"type": "thinking", "thinking": [{"text": "why"}]}, {"type": "text", "text": "a"}]
    at_once = {
        "choices": [{"index": 0, "message": {"content": parts, "reasoning_content": "why"}, "finish_reason": "stop"}]
    }
    message = answered(at_once)["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("a", "why")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("refusal", {"reason": "no"}),
        ("refusal", True),
        ("audio", "UklGRg=="),
        ("audio", {"data": "x", "expires_at": "soon"}),
        ("function_call", {"name": 5, "arguments": "{}"}),
    ],
)
def test_what_a_delta_has_in_another_form_is_kept_beside(place: str, value: Any) -> None:
    if place == "function_call":
        value = {**value}
    whole = answered(chunk({"content": "a", place: value}), chunk({}, "stop"), DONE)
    message = whole["choices"][0]["message"]
    assert (message[FOREIGN], message.get(place)) == ({place: value}, None)


@pytest.mark.parametrize("value", [False, "", [], {}])
def test_no_refusal_is_none(value: Any) -> None:
    message = answered(chunk({"content": "a", "refusal": value}), chunk({}, "stop"), DONE)["choices"][0]["message"]
    assert (not message["refusal"], FOREIGN in message) == (True, False)


def test_sound_has_all_fields_in_a_whole_answer() -> None:
    deltas = [chunk({"audio": {"data": "AA", "transcript": "he"}}), chunk({"audio": {"data": "BB", "transcript": "y"}})]
    message = answered(*deltas, chunk({}, "stop"), DONE)["choices"][0]["message"]
    assert message["audio"] == {"id": "", "data": "AABB", "expires_at": 0, "transcript": "hey"}


def test_a_citation_with_names_that_are_no_text() -> None:
    inner = {"url": "https://x.test", "title": 5, "start_index": "0", "end_index": 1}
    cited = chunk({"content": "a", "annotations": [{"type": "url_citation", "url_citation": inner}]})
    message = answered(cited, chunk({}, "stop"), DONE)["choices"][0]["message"]
    found = {"url": "https://x.test", "title": "", "start_index": 0, "end_index": 1}
    assert message["annotations"] == [{"type": "url_citation", "url_citation": found}]


# ---- usage


@pytest.mark.parametrize(
    ("details", "fit"),
    [
        (
            [{"modality": "TEXT", "token_count": 7}],
            {FOREIGN: {"prompt_tokens_details": [{"modality": "TEXT", "token_count": 7}]}},
        ),
        (
            {"audio_tokens": 1.5, "text_tokens": 7},
            {"prompt_tokens_details": {"text_tokens": 7, FOREIGN: {"audio_tokens": 1.5}}},
        ),
        ({"image_tokens": "many"}, {"prompt_tokens_details": {FOREIGN: {"image_tokens": "many"}}}),
        ({"image_tokens": {"high": 5}}, {"prompt_tokens_details": {FOREIGN: {"image_tokens": {"high": 5}}}}),
    ],
)
def test_details_of_usage(details: Any, fit: dict[str, Any]) -> None:
    usage = {**USAGE, "prompt_tokens_details": details}
    whole = answered(*said("a"), chunk({}, "stop"), {"choices": [], "usage": usage}, DONE)
    assert whole["usage"] == {**USAGE, **fit}


@pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_openais_models_take_every_recorded_answer(row: Row) -> None:
    kind = "openai" if row["format"] == "chat" else row["format"]
    choices = max(1, len(row["expected"]["choices"])) if kind == "openai" else 1
    reader = new_normalizer(show_usage=True, choices=choices, dialect=DIALECTS[kind])
    chunks, error = play(wire(row, done=kind == "openai"), reader, row["file"], DIALECTS[kind])
    for value in values(chunks):
        ChatCompletionChunk.model_validate(value)
    if error is None:
        ChatCompletion.model_validate(completion(chunks))
