"""Chunks in bulk: what is read and shown of many at once is what each of them would have been."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Damaged, LogError
from shared.log.blobs import BLOBS
from shared.log.bulk.runs import Part, Run, entries_of, events_in_pieces, events_of, told
from shared.log.decoding import Archived, decode
from shared.log.entry import SEAL, Entry, Kind, Position
from shared.log.envelope import MARK, EnvelopeEncoder, Envelopes

Raw = list[tuple[bytes, list[bytes]]]

CHUNKS: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=4).map(lambda text: {"content": text}),
    st.text(max_size=4).map(lambda text: {"reasoning": text}),
    st.sampled_from(["blob", "usage", "whole"]),
)
LOGS = st.lists(CHUNKS, max_size=80).flatmap(lambda some: st.sampled_from([some, some * 5]))


def written(chunks: list[Any], epoch: int = 1) -> Raw:
    """An attempt and its end as Redis tells them, chunks as a worker stores them."""
    raw: Raw = []
    encoder = EnvelopeEncoder()
    for seq, chunk in enumerate(chunks, 1):
        entry_id = b"%d-%d" % (epoch, seq)
        if chunk == "blob":
            raw.append((entry_id, [b"c", b'{"picture":""}', BLOBS, b'{"at":[],"rest":null}']))
        elif chunk == "usage":
            raw.append((entry_id, [b"u", b'{"choices":[]}']))
        elif chunk == "whole":
            raw.append((entry_id, [b"c", b"{}"]))
        else:
            head = {"id": "chatcmpl-d87108d7d9234b39a276f101d277d26a", "object": "chat.completion.chunk"}
            payload = json.dumps({**head, "choices": [{"index": 0, "delta": chunk}]}).encode()
            field, data, mark, encoder = encoder.take(payload)
            raw.append((entry_id, [field, data] if mark is None else [field, data, MARK, mark]))
    return [*raw, (b"%d-%d" % SEAL, [b"o", b'{"status":"completed"}'])]


def read(raw: Raw, after: Position, page: int) -> tuple[list[Part], LogError | None]:
    """All parts of what follows a position, read page by page, and what came instead of the next ones."""
    found: list[Part] = []
    shapes = Envelopes()
    for start in range(0, len(raw), page):
        try:
            for part in told(raw[start : start + page], after, shapes):
                found.append(part)
                after = part.last if isinstance(part, Run) else part[-1].position
        except LogError as problem:
            return found, problem
    return found, None


@settings(max_examples=200, deadline=None)
@given(LOGS, st.integers(1, 500))
def test_what_is_read_in_bulk_is_what_each_entry_says(chunks: list[Any], page: int) -> None:
    raw = written(chunks)
    found, problem = read(raw, Position(1, 0), page)
    assert problem is None
    assert entries_of(found) == decode(raw, Position(1, 0), Envelopes())


@settings(max_examples=200, deadline=None)
@given(LOGS, st.booleans(), st.integers(1, 4000), st.data())
def test_events_are_those_of_each_chunk(chunks: list[Any], shown: bool, most: int, data: Any) -> None:
    """From wherever a viewer goes on, with the usage chunk or without, and in pieces however small."""
    raw = written(chunks)
    after = Position(1, data.draw(st.integers(0, len(chunks))))
    found, _ = read(raw, Position(1, 0), 100)
    wanted = [one for one in decode(raw, Position(1, 0), Envelopes())[:-1] if one.position > after]

    def framed(entries: list[Entry]) -> bytes:
        events = [
            b"id: %d-%d\ndata: %b\n\n" % (*one.position, one.data) for one in entries if shown or one.kind is Kind.CHUNK
        ]
        return b"".join(events)

    made = events_of(found, after, with_usage=shown)
    last = Position(1, len(chunks))
    assert made == (framed(wanted), last, len(wanted))
    pieces = events_in_pieces(found, after, with_usage=shown, most=most)
    assert b"".join([one.frames for one in pieces]) == made.frames
    begin = 0
    for piece in pieces:
        assert piece.frames == framed(wanted[begin : begin + piece.chunks])
        begin += piece.chunks
        assert piece.last == wanted[begin - 1].position
        assert len(piece.frames) <= most * 2 or piece.frames.count(b"\n\n") <= 1
    assert begin == len(wanted)


@settings(max_examples=100, deadline=None)
@given(st.lists(CHUNKS.filter(lambda chunk: chunk != "usage"), max_size=80), st.booleans(), st.booleans(), st.data())
def test_of_events_that_are_made_those_after_a_position(chunks: list[Any], used: bool, shown: bool, data: Any) -> None:
    """A usage chunk is the last one, if there is any."""
    chunks = [*chunks, *(["usage"] if used else [])]
    found, _ = read(written(chunks), Position(1, 0), 100)
    whole = events_of(found, Position(1, 0), with_usage=shown)
    seq = data.draw(st.integers(0, len(chunks)))
    after = whole.after(Position(1, seq))
    if seq == len(chunks):
        assert after is None
    else:
        assert after == events_of(found, Position(1, seq), with_usage=shown)


@settings(max_examples=100, deadline=None)
@given(LOGS.filter(bool), st.integers(1, 500), st.data())
def test_where_an_entry_is_missing_there_is_what_stands_before_it(chunks: list[Any], page: int, data: Any) -> None:
    raw = written(chunks)
    missing = data.draw(st.integers(0, len(chunks) - 1))
    with_hole = raw[:missing] + raw[missing + 1 :]
    try:
        expected, problem = decode(with_hole, Position(1, 0), Envelopes()), None
    except Damaged as damage:
        expected, problem = list(damage.before), damage
    found, told_of = read(with_hole, Position(1, 0), page)
    before = list(told_of.before) if isinstance(told_of, Damaged) else []
    assert [*entries_of(found), *before] == expected
    assert str(told_of) == str(problem)
    assert problem is None or missing == len(chunks) - 1 or len(expected) == missing


def test_what_is_in_an_object_by_now_is_told() -> None:
    raw = written([{"content": f"w{number}"} for number in range(40)])
    gone = [*raw[:20], (b"1-40", [b"d", b"", b"x", b""]), raw[-1]]
    found, problem = read(gone, Position(1, 0), 100)
    assert isinstance(problem, Archived)
    assert entries_of(found) == decode(raw[:20], Position(1, 0), Envelopes())


def test_nobody_looks_at_each_of_many() -> None:
    raw = written([{"content": f"w{number}"} for number in range(5000)])
    found, _ = read(raw, Position(1, 0), 1000)
    assert sum(len(part.pieces) for part in found if isinstance(part, Run)) > 4900
    assert len(found) < 20


def test_what_is_not_of_one_line_is_no_event() -> None:
    raw = written([{"content": f"w{number}"} for number in range(40)])
    raw[30] = (raw[30][0], [b"d", b"w\nid: 1-1\n\n"])
    found, _ = read(raw, Position(1, 0), 100)
    with pytest.raises(ValueError, match="CR, LF and NUL"):
        events_of(found, Position(1, 0), with_usage=True)
