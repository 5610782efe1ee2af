"""Pieces: whatever is taken comes back, from anywhere, and what is alike is stored once."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Damaged
from shared.log.decoding import decode
from shared.log.entry import Entry, Kind, Position
from shared.log.envelope import MARK, PIECE, WHOLE, Envelope, EnvelopeEncoder, Envelopes, _common, _matching

ENVELOPE = (
    b'{"id":"chatcmpl-d87108d7","object":"chat.completion.chunk","choices":[{"delta":{%b},"finish_reason":null}]}'
)
SHORT = st.binary(max_size=6)
PAYLOADS = st.one_of(
    SHORT,
    st.sampled_from([b"a", b"aa", b"aaa"]).map(lambda text: text * 30),
    st.builds(lambda kind, text: ENVELOPE % (kind % text), st.sampled_from([b"%b", b'"c":"%b"', b'"r":"%b"']), SHORT),
    st.builds(lambda text: ENVELOPE % b'"content":" %b."' % text, SHORT),
)
ANSWERS = st.lists(PAYLOADS, max_size=60)


def stored(payloads: list[bytes], epoch: int = 1) -> list[tuple[bytes, list[bytes]]]:
    """An attempt as it is in Redis, its first entry included."""
    shaper, entries = EnvelopeEncoder(), [(b"%d-0" % epoch, [b"a", b"{}"])]
    for seq, payload in enumerate(payloads, 1):
        field, data, value, shaper = shaper.take(payload)
        entries.append((b"%d-%d" % (epoch, seq), [field, data] if value is None else [field, data, MARK, value]))
    return entries


def said(entries: list[Entry]) -> list[bytes]:
    assert {entry.kind for entry in entries} <= {Kind.ATTEMPT, Kind.CHUNK}
    return [entry.data for entry in entries if entry.kind is Kind.CHUNK]


def words(kind: bytes, *texts: str) -> list[bytes]:
    return [ENVELOPE % (b'"%b":"%b"' % (kind, text.encode())) for text in texts]


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.sampled_from([1, 12, 100]))
def test_what_two_have_in_common_is_the_longest(start: bytes, one: bytes, other: bytes, times: int) -> None:
    one, other = start * times + one, start * times + other * times
    assert one[: _matching(one, other)] == os.path.commonprefix([one, other])


@given(st.binary(max_size=12), st.binary(max_size=12), PAYLOADS)
def test_a_shape_in_common_uses_no_byte_twice(prefix: bytes, suffix: bytes, payload: bytes) -> None:
    for shape in (Envelope(prefix, suffix), Envelope(payload[:5], payload[-5:]), Envelope(payload, payload)):
        common = _common(shape, payload)
        assert shape.prefix.startswith(common.prefix)
        assert shape.suffix.endswith(common.suffix)
        middle = payload[len(common.prefix) : len(payload) - len(common.suffix)]
        assert common.prefix + middle + common.suffix == payload


@given(ANSWERS, ANSWERS, st.data())
def test_what_is_stored_is_what_was_said_however_it_is_read(
    first: list[bytes], second: list[bytes], data: st.DataObject
) -> None:
    raw = [*stored(first), *stored(second, 2)]
    shapes, after = Envelopes(), Position(0, 2)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    entries: list[Entry] = []
    for start, end in pairwise([0, *cuts, len(raw)]):
        entries += decode(raw[start:end], after, shapes)
        after = entries[-1].position if entries else after
    assert said(entries) == first + second
    for start in cuts:  # and again from the middle, by who has read it all
        if start:
            assert decode(raw[start:], entries[start - 1].position, shapes) == entries[start:]
    assert decode(raw, None, Envelopes()) == entries
    assert [entry.position for entry in decode(raw)] == [entry.position for entry in entries]


def told_apart(payloads: list[bytes], gone: set[int], cut: int) -> None:
    """Every chunk is what was said, or is not shown as one; the strict are told."""
    left = [entry for seq, entry in enumerate(stored(payloads)) if seq not in gone]
    shapes = Envelopes()
    entries = decode(left[:cut], Position(0, 2), shapes, strict=False)
    entries += decode(left[cut:], entries[-1].position, shapes, strict=False)
    assert [str(entry.position).encode() for entry in entries] == [entry_id for entry_id, _ in left]
    pieces = [entry for entry in entries if entry.kind is Kind.PIECE]
    assert all(entry.data == payloads[entry.position.seq - 1] for entry in entries[1:] if entry not in pieces)
    if pieces:
        first = next(at for at, entry in enumerate(entries) if entry.kind is Kind.PIECE)
        with pytest.raises(Damaged):
            decode(left[first:], entries[first - 1].position, shapes)


@given(ANSWERS, st.sets(st.integers(1, 60), max_size=3), st.integers(1, 60))
def test_after_what_is_missing_nothing_is_made_up(payloads: list[bytes], gone: set[int], cut: int) -> None:
    told_apart(payloads, gone, cut)


def test_the_shape_before_the_one_that_is_missing_is_not_taken_for_it() -> None:
    payloads = words(b"reasoning", *map(str, range(15))) + words(b"content", *map(str, range(15)))
    for gone in range(1, len(payloads) + 1):
        for cut in range(1, len(payloads)):
            told_apart(payloads, {gone}, cut)


@given(ANSWERS)
def test_to_take_a_chunk_again_changes_nothing(payloads: list[bytes]) -> None:
    shaper = EnvelopeEncoder()
    for payload in payloads:
        *taken, following = shaper.take(payload)
        assert [*shaper.take(payload)][:3] == taken
        shaper = following


@pytest.mark.parametrize(
    ("payloads", "largest"),
    [
        (words(b"content", *(f" word{i}" for i in range(100))), 7),
        ([ENVELOPE % b'"role":"assistant","content":""', *words(b"content", *map(str, range(100)))], 4),
        (words(b"reasoning", *map(str, range(100))) + words(b"content", *map(str, range(100))), 4),
    ],
)
def test_short_deltas_are_stored_without_what_is_around_them(payloads: list[bytes], largest: int) -> None:
    """Also where an answer follows its reasoning, or an empty beginning: as short as if it were alone."""
    entries = stored(payloads)[1:]
    pieces = [fields[1] for _, fields in entries if fields[0] == PIECE]
    assert len(pieces) >= len(payloads) - 4
    assert max(map(len, pieces[-50:])) <= largest


@given(st.integers(1, 40), st.integers(2, 5))
def test_what_alternates_is_stored_whole_only_now_and_then(run: int, kinds: int) -> None:
    """Choices in turn, or reasoning and answer: however long each runs, the wrong shape is tried ever less."""
    payloads = [words(b"k%d" % (i // run % kinds), f"x{i}")[0] for i in range(1000)]
    whole = [fields for _, fields in stored(payloads)[1:] if fields[0] == WHOLE]
    assert len(whole) <= 30


def test_what_has_nothing_in_common_is_stored_whole() -> None:
    payloads = [bytes([i]) * 100 for i in range(50)]
    assert [fields for _, fields in stored(payloads)[1:]] == [[WHOLE, payload] for payload in payloads]


def test_one_that_has_nothing_in_common_does_not_cost_the_others_their_shape() -> None:
    payloads = words(b"content", *map(str, range(20)))
    fields = [entry[1][0] for entry in stored([*payloads, b"x" * 500, *payloads])[1:]]
    assert fields[2:20] == [PIECE] * 18
    assert fields[20:] == [WHOLE, *[PIECE] * 20]
