"""An ended log as one object: what comes out is what went in, wherever a reader begins, or it is told that it is damaged."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Damaged
from shared.log.archive import form as archive
from shared.log.archive.form import ArchiveWriter, Block, Index, Name, Pointer, Whole, pointer_in
from shared.log.archive.kept import whole_header
from shared.log.blobs import BLOBS
from shared.log.bulk.runs import Run, events_of
from shared.log.bulk.runs import entries_of as entries_of_parts
from shared.log.decoding import ARCHIVED, Archived, by_name, decode, summarize
from shared.log.entry import BEGIN, HEADER, SEAL, Entry, Kind, Position
from shared.log.envelope import MARK, PIECE, EnvelopeEncoder, Envelopes
from shared.store.commands import pack

ID = "chatcmpl-d87108d7d9234b39a276f101d277d26a"
COPY = "5e1f3c0a"

Raw = list[tuple[bytes, list[bytes]]]

DELTAS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.text(max_size=4).map(lambda text: {"content": text}),
    st.text(max_size=4).map(lambda text: {"reasoning": text}),
    st.just({"content": None, "blob": True}),
    st.just({}),
)
ATTEMPTS = st.lists(st.lists(DELTAS, max_size=60), max_size=4)


def payload(delta: dict[str, Any]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return json.dumps({"id": ID, "object": "chat.completion.chunk", "choices": [choice]}).encode()


def written(attempts: list[list[dict[str, Any]]], body: bytes = b'{"messages":\n[]}', usage: bool = True) -> Raw:
    """A log as Redis tells it, its chunks as a worker stores them."""
    header = json.dumps({"v": 3, "id": ID, "owner": "ann", "created_at_ms": 1}).encode()
    raw: Raw = [(b"0-1", [b"r", header, b"t", b"0123456789abcdef"]), (b"0-2", [b"b", body])]
    for epoch, deltas in enumerate(attempts, 1):
        raw.append((b"%d-0" % epoch, [b"a", b'{"worker":"w","token":"t%d"}' % epoch]))
        encoder = EnvelopeEncoder()
        for seq, delta in enumerate(deltas, 1):
            entry_id = b"%d-%d" % (epoch, seq)
            if "blob" in delta:
                raw.append((entry_id, [b"c", b'{"picture":""}', BLOBS, b'{"at":[],"rest":null}']))
                continue
            field, data, mark, encoder = encoder.take(payload(delta))
            fields = [field, data] if mark is None else [field, data, MARK, mark]
            raw.append((entry_id, [*fields, b"at", b"7", b"s", b'{"model":"a/b"}'] if seq == 1 else fields))
    if attempts and attempts[-1] and usage:
        raw.append((b"%d-%d" % (len(attempts), len(attempts[-1]) + 1), [b"u", b'{"choices":[]}']))
    raw.append((b"%d-%d" % SEAL, [b"o", b'{"status":"completed"}']))
    return raw


def archived(raw: Raw, page: int = 1000, block: int = 64 * 1024) -> Whole:
    with patch.object(archive, "_BLOCK_BYTES", block):
        writer = ArchiveWriter(ID)
        for start in range(0, len(raw), page):
            writer.feed(raw[start : start + page])
        assert writer.tenant == "ann"
        return writer.finish(COPY)


def opened(whole: Whole) -> tuple[Pointer, Index]:
    pointer = pointer_in([whole.kept[-1]])
    assert pointer is not None
    return pointer, Index.parse(whole.data[pointer.index_at : pointer.index_end], pointer, ID)


def block_of(whole: Whole, block: Block) -> list[Entry]:
    return block.decode(whole.data[block.start : block.start + block.size])


def entries_of(raw: Raw) -> list[Entry]:
    return decode(raw, Position(0, 0), Envelopes())


@settings(max_examples=150, deadline=None)
@given(ATTEMPTS, st.integers(1, 50), st.integers(1, 3000), st.booleans())
def test_what_comes_out_is_what_went_in(attempts: Any, page: int, block: int, usage: bool) -> None:
    raw = written(attempts, usage=usage)
    whole, entries = archived(raw, page, block), entries_of(raw)
    _, index = opened(whole)
    assert [entry for one in index.blocks for entry in block_of(whole, one)] == entries
    assert [one.first for one in index.blocks[:2]] == [HEADER, entries[2].position]
    assert sum(one.entries for one in index.blocks) == whole.entries == len(entries)


@settings(max_examples=60, deadline=None)
@given(ATTEMPTS, st.integers(1, 1500), st.data())
def test_a_reader_may_begin_after_any_entry(attempts: Any, block: int, data: Any) -> None:
    """It needs one block more at most than the one that the index names, and nothing before it."""
    raw = written(attempts)
    whole, entries = archived(raw, block=block), entries_of(raw)
    _, index = opened(whole)
    at = data.draw(st.integers(1, len(entries) - 1))
    after = entries[at].position
    number = index.place(after)
    found = [entry for one in index.blocks[number:] for entry in block_of(whole, one) if entry.position > after]
    assert found == entries[at + 1 :]
    assert all(one.first > after for one in index.blocks[number + 1 :])


def test_a_position_that_is_not_there_leads_to_what_follows_it() -> None:
    raw = written([[{"content": f"w{number}"} for number in range(200)], [{"content": "again"}]])
    whole = archived(raw, block=500)
    _, index = opened(whole)
    for after in (Position(0, 0), HEADER, BEGIN, Position(1, 500), Position(2, 9)):
        number = index.place(after)
        found = [entry for one in index.blocks[number:] for entry in block_of(whole, one) if entry.position > after]
        assert found == [entry for entry in entries_of(raw) if entry.position > after]
    assert index.place(SEAL) == len(index.blocks) - 1


def test_chunks_stand_side_by_side_with_their_envelope_once() -> None:
    """And every block can be read alone."""
    whole = archived(written([[{"content": f"w{number}"} for number in range(500)]]), block=9000)
    _, index = opened(whole)
    runs = 0
    for block in index.blocks[1:]:
        parts = block.parts(whole.data[block.start : block.start + block.size])
        assert block.first == entries_of_parts(parts)[0].position
        for run in (part for part in parts if isinstance(part, Run)):
            runs += len(run.pieces)
            assert run.envelope.prefix.startswith(b'{"id": "chatcmpl-')
            assert b"chatcmpl" not in b"".join(run.pieces)
    assert len(index.blocks) > 5
    assert runs > 490


@settings(max_examples=150, deadline=None)
@given(ATTEMPTS, st.integers(1, 3000), st.booleans(), st.booleans(), st.data())
def test_events_are_those_of_each_chunk(attempts: Any, block: int, usage: bool, shown: bool, data: Any) -> None:
    """From wherever a viewer goes on, and with the usage chunk or without."""
    raw = written(attempts, usage=usage)
    whole = archived(raw, block=block)
    _, index = opened(whole)
    epoch = max(1, len(attempts))
    chunks = [one for one in entries_of(raw) if one.position.epoch == epoch and one.kind in (Kind.CHUNK, Kind.USAGE)]
    after = Position(epoch, data.draw(st.integers(0, len(chunks))))
    expected = [
        b"id: %d-%d\ndata: %b\n\n" % (*one.position, one.data)
        for one in chunks
        if one.position > after and (one.kind is Kind.CHUNK or shown)
    ]
    found, count, last = b"", 0, after
    for one in index.blocks[index.place(after) :]:
        made = events_of(one.parts(whole.data[one.start : one.start + one.size]), after, with_usage=shown)
        found, count = found + made.frames, count + made.chunks
        last = max(last, made.last)
    assert found == b"".join(expected)
    assert count == len(chunks) - after.seq
    assert last == Position(epoch, len(chunks))


@pytest.mark.parametrize("text", ["a\\rb", "a\\u0000b", "a b", "\u2028"])
def test_pieces_are_one_line_each(text: str) -> None:
    """What would not be, or could not be the data of an event, stands by itself, as it is."""
    raw = written([[{"content": f"w{number}"} for number in range(9)]])
    for odd in (b'{"a":\n1}', b'{"a":\r1}', b'{"a":"\0"}', b'{"a":"%b"}' % text.encode()):
        raw[6] = (b"1-4", [b"c", odd])
        assert read(archived(raw)) == entries_of(raw)


def first_version(raw: Raw) -> tuple[bytes, bytes]:
    """An object as it was written at first, and the pointer to it: entries as Redis told them, pieces among them."""

    def packed(entry_id: bytes, fields: list[bytes]) -> bytes:
        return b"*2\r\n$%d\r\n%b\r\n%b" % (len(entry_id), entry_id, pack(*fields))

    data, rows = b"", []
    for some in (raw[:2], raw[2:]):
        block = zlib.compress(b"*%d\r\n" % len(some) + b"".join(packed(*one) for one in some))
        digest = hashlib.sha256(block).hexdigest()
        rows.append([some[0][0].decode(), len(data), len(block), len(some), digest])
        data += block
    index = json.dumps({"v": 1, "id": ID, "blocks": rows}, separators=(",", ":")).encode()
    whole = data + index + len(data).to_bytes(8, "big") + b"SPLOG\x00\x00\x01"
    told = {"copy": COPY, "size": len(whole), "index": [len(data), hashlib.sha256(index).hexdigest()]}
    return whole, json.dumps(told).encode()


@settings(max_examples=60, deadline=None)
@given(ATTEMPTS)
def test_an_object_of_the_first_version_is_read(attempts: Any) -> None:
    raw = written(attempts)
    data, text = first_version(raw)
    pointer = Pointer.parse(text)
    index = Index.parse(data[pointer.index_at : pointer.index_end], pointer, ID)
    blocks = [block.decode(data[block.start : block.start + block.size]) for block in index.blocks]
    assert [entry for block in blocks for entry in block] == entries_of(raw)
    assert index.blobs  # as far as is known: its chunks are looked at one by one


def wrong(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


def read(whole: Whole) -> list[Entry]:
    _, index = opened(whole)
    return [entry for one in index.blocks for entry in block_of(whole, one)]


def test_a_wrong_byte_anywhere_is_damage() -> None:
    whole = archived(written([[{"content": f"w{number}"} for number in range(30)]]), block=300)
    pointer, _ = opened(whole)
    for at in range(pointer.index_end):
        with pytest.raises(Damaged):
            read(whole._replace(data=wrong(whole.data, at)))


def test_an_object_that_is_too_short_is_damage() -> None:
    whole = archived(written([[{"content": f"w{number}"} for number in range(30)]]), block=300)
    pointer, _ = opened(whole)
    for length in random.Random(1).sample(range(pointer.index_end), 60):
        with pytest.raises(Damaged):
            read(whole._replace(data=whole.data[:length]))


def test_an_object_tells_what_it_is_without_redis() -> None:
    """Its last 16 bytes say where the index is."""
    whole = archived(written([[{"content": "x"}]]))
    end = whole.data[-16:]
    assert end[8:] == b"SPLOG\x00\x00\x01"
    found = json.loads(whole.data[int.from_bytes(end[:8], "big") : -16])
    assert (found["v"], found["id"], found["blobs"], found["blocks"][0][0]) == (2, ID, False, "0-1")


# ---- what stays in Redis


@settings(max_examples=60, deadline=None)
@given(ATTEMPTS)
def test_what_stays_tells_the_same_of_the_log(attempts: Any) -> None:
    raw = written(attempts)
    kept: Raw = archived(raw).kept

    def told(one: Raw) -> Any:
        after = [entry for entry in one if entry[0] not in (b"0-1", b"0-2")]
        found = summarize(one[:1], after[:2], one[-2:][::-1], None)
        assert found is not None
        tokens = [{**attempt, "token": ""} for attempt in found.attempts]
        return whole_header({**found.header}), tokens, found.position, found.outcome

    assert told(kept) == told(raw)
    assert len(kept) <= 3 + 3 * len(attempts)
    for epoch in range(1, len(attempts) + 1):
        begun = [[entry for entry in one if entry[0].startswith(b"%d-" % epoch)][:2] for one in (raw, kept)]
        assert [[entry.note for entry in decode(one)] for one in begun][0] == [entry.note for entry in decode(begun[1])]


def test_no_word_stays_twice() -> None:
    """What the outcome says of the only attempt, what is as usual, and what was done with at the settlement."""
    raw = written([[{"content": f"w{number}"} for number in range(9)]])
    header = {"v": 3, "id": ID, "owner": "ann", "created_at_ms": 1, "surface": "chat", "server": "5c1f", "store": True}
    raw[0] = (b"0-1", [b"r", json.dumps({**header, "webhook": None, "limited": {"scopes": []}}).encode()])
    raw[2] = (b"1-0", [b"a", b'{"worker":"w","token":"t","reason":"queued","number":1}'])
    outcome: dict[str, Any] = {"status": "completed", "served": {"model": "a/b"}, "spoke_at_ms": 7}
    outcome["cost"] = {"picodollars": 9, "source": "settings", "version": "5d41402abc4b", "price": {"input": "2.5"}}
    raw[-1] = (raw[-1][0], [b"o", json.dumps(outcome).encode()])
    kept = archived(raw).kept
    assert [entry_id for entry_id, _ in kept] == [b"0-1", b"0-2", b"1-0", b"1-10", b"%d-%d" % SEAL]
    assert json.loads(kept[0][1][1]) == {"v": 3, "id": ID, "owner": "ann", "created_at_ms": 1, "store": True}
    assert json.loads(kept[2][1][1]) == {"worker": "w"}
    assert json.loads(kept[-1][1][1])["cost"] == {"picodollars": 9, "source": "settings"}
    assert read(archived(raw)) == entries_of(raw)
    found = summarize(kept[:1], kept[2:4], kept[:-3:-1], None)
    assert found is not None
    assert (found.attempts[0]["served"], found.attempts[0]["spoke_at_ms"]) == ({"model": "a/b"}, 7)
    assert (found.header["surface"], found.header["limited"], found.header["store"]) == ("chat", None, True)
    outcome["spoke_at_ms"] = 8  # of another attempt, say
    raw[-1] = (raw[-1][0], [b"o", json.dumps(outcome).encode()])
    assert by_name(archived(raw).kept[3][1])[b"at"] == b"7"


def test_pointers() -> None:
    pointer = Pointer(COPY, 28123, 27800, "f0" * 16)
    assert Pointer.parse(pointer.to_bytes()) == pointer
    assert len(pointer.to_bytes()) < 50
    first = json.dumps({"copy": COPY, "size": 28123, "index": [27800, "f0" * 32]}).encode()
    assert Pointer.parse(first) == pointer._replace(digest="f0" * 32)


@settings(max_examples=60, deadline=None)
@given(ATTEMPTS)
def test_what_stays_is_no_answer_to_anyone(attempts: Any) -> None:
    """A reader of this version looks for the object; one of a version that knows none finds a part missing."""
    raw = written(attempts)
    kept = archived(raw).kept
    older = [(entry_id, _without(fields, ARCHIVED)) for entry_id, fields in kept]
    shown = [entry for entry in entries_of(raw) if entry.position > BEGIN]
    for before, entry in pairwise([Entry(BEGIN, Kind.BODY, b""), *shown]):
        rest = [one for one in kept if _position(one) > before.position]
        with pytest.raises(Archived):
            decode(rest, before.position, Envelopes())
        if entry.position == SEAL or all(one.kind in (Kind.ATTEMPT, Kind.OUTCOME) for one in shown if one >= entry):
            assert decode(rest, before.position)[-1].kind is Kind.OUTCOME  # nothing of it is missing
            continue
        with pytest.raises(Damaged):
            decode([one for one in older if _position(one) > before.position], before.position, Envelopes())


def _position(raw: tuple[bytes, list[bytes]]) -> Position:
    return Position.parse(raw[0].decode())


def _without(fields: list[bytes], name: bytes) -> list[bytes]:
    return [word for one, value in by_name(fields).items() if one != name for word in (one, value)]


def test_the_body_goes_with_the_rest() -> None:
    kept = archived(written([[{"content": "x"}]], body=b"x" * 9000)).kept
    assert sum(len(field) for _, fields in kept for field in fields) < 700


# ---- what is no object


def test_a_log_that_lacks_an_entry_is_none() -> None:
    raw = written([[{"content": f"w{number}"} for number in range(30)]])
    for at in range(3, len(raw) - 2):  # of the very last one before the end nobody can tell
        with pytest.raises(Damaged):
            ArchiveWriter(ID).feed(raw[:at] + raw[at + 1 :])


def test_an_object_is_not_made_of_one() -> None:
    with pytest.raises(Archived):
        ArchiveWriter(ID).feed(archived(written([[{"content": "x"}]])).kept)


def test_a_piece_of_a_replaced_envelope_keeps_its_own() -> None:
    """A block that begins with a piece which brings the next envelope itself."""
    raw = written([[{"reasoning": f"r{number}"} for number in range(40)] + [{"content": "so"}] * 40])
    assert any(fields[0] == PIECE and MARK in fields[2::2] for _, fields in raw)
    for block in range(1, 1200, 7):
        assert read(archived(raw, block=block)) == entries_of(raw)


def test_names() -> None:
    name = Name("team-a", ID, COPY)
    assert str(name) == f"logs/of-team-a/{ID}.{COPY}"
    assert Name.parse(str(name)) == name
    for text in (f"logs/of-team-a/{ID}", f"logs/of-../{ID}.{COPY}x", f"blobs/of-a/{ID}.{COPY}", ""):
        assert Name.parse(text) is None
