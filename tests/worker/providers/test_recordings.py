"""Every recorded chat stream of a real provider, through decoder and normalizer, cut at random points."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from shared.chat.chunks import Accumulator
from shared.lib import sse
from shared.log.entry import Chunk
from tests.support import recordings
from tests.support.answers import assert_readable, new_normalizer, play
from tests.support.recordings import fold_whole, in_one_form, summary, wire
from worker.normalizer import Normalizer

RECORDINGS = recordings.recordings("chat")

pytestmark = pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)


def normalizer_for(row: dict[str, Any], *, show_usage: bool) -> Normalizer:
    return new_normalizer(show_usage=show_usage, choices=max(1, len(row["expected"]["choices"])))


def fold(chunks: list[Chunk]) -> dict[str, dict[str, Any]]:
    return recordings.fold(json.loads(chunk.payload) for chunk in chunks)


@pytest.mark.parametrize("show_usage", [False, True])
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_recording(row: dict[str, Any], show_usage: bool) -> None:
    expected = in_one_form(row["expected"])
    normalizer = normalizer_for(row, show_usage=show_usage)
    chunks, error = play(wire(row), normalizer, row["file"])

    choices = fold(chunks)
    assert summary(choices) == expected["choices"]
    assert normalizer.content_chars == sum(len(choice["content"]) for choice in choices.values())
    assert normalizer.reasoning_chars == sum(len(choice["reasoning"]) for choice in choices.values())
    assert normalizer.finish_reasons == [choice["finish"] for _, choice in sorted(choices.items())]
    assert normalizer.chunks == len(chunks)

    if expected["error"]:
        assert error is not None
        assert error.message == expected["error"]["message"]
        assert error.code == expected["error"]["code"]
        assert error.status == expected["error"].get("status_code", 502)
        return
    assert error is None
    assert_counted(normalizer.usage, expected["usage"])
    assert [chunk.is_usage for chunk in chunks].count(True) == bool(expected["usage"])
    if expected["usage"]:
        assert chunks[-1].is_usage
        last = json.loads(chunks[-1].payload)
        assert last["choices"] == []
        assert last["usage"] == normalizer.usage


def assert_counted(usage: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    """All figures the provider gave, and nothing else but cached and reasoning tokens where OpenAI has them."""
    assert (usage is None) is (expected is None)
    added = dict(usage or {})
    for key, value in (expected or {}).items():
        found = added.pop(key)
        assert found == value or (key.endswith("_details") and value.items() <= found.items())
    assert added.keys() <= {"prompt_tokens_details", "completion_tokens_details"}


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_the_whole_answer_says_what_the_stream_said(row: dict[str, Any]) -> None:
    chunks, _ = play(wire(row), normalizer_for(row, show_usage=False), "3")
    answer = Accumulator()
    for chunk in chunks:
        answer.feed(json.loads(chunk.payload))
    assert summary(fold_whole(answer.result())) == in_one_form(row["expected"])["choices"]


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_every_chunk_is_one_that_official_clients_can_read(row: dict[str, Any]) -> None:
    chunks, _ = play(wire(row), normalizer_for(row, show_usage=True), "1")
    assert_readable(chunks)


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_a_recording_cut_anywhere_never_passes_for_whole(row: dict[str, Any]) -> None:
    stream = wire(row)
    whole = summary(fold(play(stream, normalizer_for(row, show_usage=False), "2")[0]))
    cuts = random.Random(row["file"])
    for _ in range(8):
        cut = cuts.randrange(len(stream))
        chunks, error = play(stream[:cut], normalizer_for(row, show_usage=False), str(cut))
        assert error is not None or summary(fold(chunks)) == whole


@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_unknown_fields_pass_untouched(row: dict[str, Any]) -> None:
    """Each with its values, in their order. They may be in a chunk of their neighbour's: of two ends one is left, and what has
    no choices rides on what has."""
    chunks, _ = play(wire(row), normalizer_for(row, show_usage=False), "4")
    given, told = [], [json.loads(chunk.payload) for chunk in chunks]
    for event in (event for event in sse.Decoder(1 << 20).feed(wire(row)) if event.data != sse.DONE):
        if (value := json.loads(event.data)).get("error"):
            break
        given.append(value)
    last_usage = [value for value in given if value.get("usage") and not value.get("choices")][-1:]
    given = [value for value in given if value.get("choices") or not value.get("usage")] + last_usage
    assert recordings.unknown_fields(told) == recordings.unknown_fields(given)
