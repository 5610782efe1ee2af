"""Every recorded stream of a real provider as a Responses stream: taken by OpenAI's models and by its client's own fold, and
the same in its deltas, in what closes an item, and in the response at its end."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

import pytest
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from api.surfaces.responses.events import ResponseEvents
from shared.errors import UpstreamError
from shared.log.entry import Chunk, Entry, Kind, Position
from tests.api.surfaces.responses.test_events import COMPLETED, HEADER, view
from tests.harness.records import outcome_with
from tests.support import recordings
from tests.support.recordings import Row, wire
from tests.support.responses import Event, events
from worker.normalizer import Normalizer
from worker.providers.dialect import Dialect
from worker.providers.formats import anthropic, cohere, gemini, openai, responses

DIALECTS: dict[str, Dialect] = {
    "chat": openai.DIALECT,
    "anthropic": anthropic.DIALECT,
    "gemini": gemini.DIALECT,
    "cohere": cohere.DIALECT,
    "responses": responses.DIALECT,
}
RECORDINGS = recordings.recordings(*DIALECTS)
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "summarised": {"reasoning": {"summary": "auto"}},
    "background": {"background": True},
}


def chunks_of(row: Row) -> tuple[list[Chunk], list[str | None]]:
    """What a worker appends of a recording, and how its choices ended; as far as it came, where it is a failure."""
    dialect = DIALECTS[row["format"]]
    answer = Normalizer(id=HEADER["id"], created=1, model="m/x", show_usage=False)
    answer.begin(dialect)
    decoder = dialect.decoder(100_000_000)
    found: list[Chunk] = []
    try:
        for event in [*decoder.feed(wire(row, done=row["format"] == "chat")), *decoder.close()]:
            found += answer.feed(event)
        found += answer.end()
    except UpstreamError:
        pass
    return found, answer.finish_reasons


def told(chunks: list[Chunk], asked: ResponseEvents, reasons: list[str | None]) -> list[Event]:
    frames, fold = asked.start(HEADER)
    body = b"".join(frames)
    for number, chunk in enumerate(chunks, 1):
        frames, fold = fold.feed(Entry(Position(1, number), Kind.CHUNK, chunk.payload))
        body += b"".join(frames)
    return events(body + b"".join(fold.end(outcome_with({**COMPLETED, "finish_reasons": reasons}))))


def in_deltas(found: list[Event]) -> dict[tuple[str, int], str]:
    """What the deltas say, by item and part."""
    said: dict[tuple[str, int], str] = defaultdict(str)
    for event in found:
        if event["type"].endswith(".delta"):
            part: Any = event.get("content_index", event.get("summary_index", 0))
            said[event["item_id"], part] += event["delta"]
    return said


def in_items(items: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    said: dict[tuple[str, int], str] = {}
    for item in items:
        parts = item.get("content") or item.get("summary") or [{"text": item.get("arguments") or item.get("input")}]
        for number, part in enumerate(parts):
            if text := part.get("text") or part.get("refusal"):
                said[item["id"], number] = text
    return said


@pytest.mark.skipif(not RECORDINGS, reason=recordings.MISSING)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("row", RECORDINGS, ids=lambda row: row["file"])
def test_deltas_items_and_the_last_event_say_the_same(row: Row, way: str) -> None:
    chunks, reasons = chunks_of(row)
    if not chunks:
        assert row["expected"]["error"]
        return
    found = told(chunks, view(**WAYS[way]), reasons)
    state = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in found:
        state.handle_event(cast(ResponseStreamEvent, construct_type(type_=ResponseStreamEvent, value=event)))
    output = found[-1]["response"]["output"]
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert done == output
    assert in_items(output) == in_deltas(found)
    added = [event["item"]["id"] for event in found if event["type"] == "response.output_item.added"]
    assert added == [item["id"] for item in output]
