"""The SSE codec against a slow, literal reading of the standard, and against every way a stream can be cut."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.lib import sse
from shared.lib.sse import Decoder, Event

LIMIT = 1 << 20


def decode(*pieces: bytes, limit: int = LIMIT) -> list[Event]:
    decoder = Decoder(limit)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.close()


def reference(stream: bytes) -> list[Event]:
    """WHATWG HTML §9.2.6, line by line as written there, plus our `error:` field."""
    lines = []
    line = b""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for at in range(len(stream)):
        byte = stream[at : at + 1]
        if byte == b"\n":
            lines.append(line)
            line = b""
        else:
            line += byte
    events: list[Event] = []
    data, name, last_id = b"", b"", b""
    errors: list[Any] = []
    for line in lines:
        if not line:
            if data:
                events.append(Event(data[:-1], name.decode("utf-8", "replace"), last_id.decode("utf-8", "replace")))
            events += [Event(error, "error", last_id.decode("utf-8", "replace")) for error in errors]
            data, name, errors = b"", b"", []
        elif line[:1] != b":":
            field, _, value = line.partition(b":")
            value = value[1:] if value[:1] == b" " else value
            if field == b"data":
                data += value + b"\n"
            elif field == b"event":
                name = value
            elif field == b"id" and b"\0" not in value:
                last_id = value
            elif field == b"error":
                errors.append(value)
    return events


fields = st.sampled_from([b"data", b"data", b"data", b"event", b"id", b"retry", b"unknown", b"", b"error", b" data"])
values = st.one_of(
    st.sampled_from([b"", b" ", b"  two", b"[DONE]", b"a:b", b"nul\0", "\u2028\u0085é\U0001f600".encode(), b"\xff"]),
    st.binary(max_size=12).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
)
lines = st.one_of(
    st.just(b""),
    st.just(b""),
    st.builds(lambda field, value: field + b":" + value, fields, values),
    st.builds(lambda field, value: field + b": " + value, fields, values),
    fields,
)
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])
streams = st.builds(
    lambda bom, pairs, rest: bom + b"".join(line + end for line, end in pairs) + rest,
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\xef\xbb"]),
    st.lists(st.tuples(lines, ends), max_size=25),
    st.sampled_from([b"", b"data: cut", b"data"]),
)


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]


@given(streams, st.lists(st.integers(0, 10_000), max_size=8))
def test_reads_what_the_standard_says_however_it_is_cut(stream: bytes, cuts: list[int]) -> None:
    decoder = Decoder(LIMIT)
    events = [event for piece in pieces_of(stream, cuts) for event in decoder.feed(piece)]
    assert events == reference(stream)


@given(st.lists(streams | values.map(lambda value: b"data: " + value + b"\n\n"), max_size=6), st.integers(1, 40))
def test_what_is_one_event_and_is_not_fed_is_what_it_would_be(pieces: list[bytes], limit: int) -> None:
    class Feeding(Decoder):
        def one(self, data: bytes) -> None:
            return None

    for size in (limit, LIMIT):
        decoder, feeding = Decoder(size), Feeding(size)
        for piece in pieces:
            try:
                fed = feeding.feed(piece)
            except sse.EventTooLarge:
                assert decoder.one(piece) is None
                break
            one = decoder.one(piece)
            assert [event.data for event in fed] == (
                [event.data for event in decoder.feed(piece)] if one is None else [one]
            )
            assert decoder.pending == feeding.pending


@given(streams)
def test_byte_by_byte_is_the_same(stream: bytes) -> None:
    assert decode(*(stream[at : at + 1] for at in range(len(stream)))) == decode(stream)


@example(b"\ndata: [DONE]\n\n", [14, 14], 13)  # nothing comes between the two halves of a blank line
@given(streams, st.lists(st.integers(0, 10_000), max_size=8), st.integers(1, 40))
def test_the_limit_does_not_depend_on_the_cut(stream: bytes, cuts: list[int], limit: int) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[Event], bool]:
        decoder, events = Decoder(limit), []
        try:
            for piece in pieces:
                events += decoder.feed(piece)
            decoder.close()
        except sse.EventTooLarge:
            return events, True
        return events, False

    assert outcome(pieces_of(stream, cuts)) == outcome([stream])


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [Event(b"a")]),
        (b"data:a\n\ndata:  b\n\n", [Event(b"a"), Event(b" b")]),
        (b"data: a\ndata\ndata: b\n\n", [Event(b"a\n\nb")]),
        (b"data\n\n", [Event(b"")]),
        (b"event: x\n\ndata: a\n\n", [Event(b"a")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Event(b"a", "x"), Event(b"b")]),
        (b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n", [Event(b"a", "", "1"), Event(b"b", "", "1"), Event(b"c")]),
        (b"id: 1\n\ndata: a\n\n", [Event(b"a", "", "1")]),
        (b"id: 1\0\ndata: a\n\n", [Event(b"a")]),
        (b": ping\n\n: ka\nretry: 10\ndata: a\n\n", [Event(b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a")]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", [Event(b"a"), Event(b"b"), Event(b"c")]),
        ("data: \u2028\x0b\x85\n\n".encode(), [Event("\u2028\x0b\x85".encode())]),
        (b"data: cut", []),
        (b"data: cut\n", []),
        (b'error: {"code": 1}\n\n', [Event(b'{"code": 1}', "error")]),
        (b"data: a\nerror: b\n\n", [Event(b"a"), Event(b"b", "error")]),
    ],
)
def test_examples(stream: bytes, events: list[Event]) -> None:
    assert decode(stream) == events == reference(stream)


def test_one_line_between_two_events_is_one() -> None:
    decoder = Decoder(LIMIT)
    assert decoder.one(b"data: a\n\n") is None  # a mark may come first
    decoder.feed(b"data: a\n\n")
    assert [decoder.one(b"data: b\n\n") for _ in range(2)] == [b"b", b"b"]
    decoder.feed(b"data: c\n")
    assert decoder.one(b"data: d\n\n") is None


def test_an_error_line_is_not_lost_when_the_stream_stops_there() -> None:
    assert decode(b"data: a\n\nerror: no memory\n") == [Event(b"a"), Event(b"no memory", "error")]


def test_pending_tells_an_event_that_was_cut() -> None:
    decoder = Decoder(LIMIT)
    for piece, pending in ((b"", False), (b"\xef", True), (b"\xbb\xbf", False), (b"data: a\n", True), (b"\n\n", False)):
        decoder.feed(piece)
        assert decoder.pending is pending


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 100, b"x" * 101 + b"\n\n", b": " + b"x" * 100 + b"\n"])
def test_too_large_whether_it_ends_or_not(piece: bytes) -> None:
    decoder = Decoder(100)
    with pytest.raises(sse.EventTooLarge):
        decoder.feed(piece)
    with pytest.raises(sse.EventTooLarge):
        decoder.feed(b"data: a\n\n")


def test_too_large_is_said_after_what_came_before() -> None:
    decoder = Decoder(100)
    assert decoder.feed(b"data: a\n\n" * 20 + b"x" * 101) == [Event(b"a")] * 20
    with pytest.raises(sse.EventTooLarge):
        decoder.close()


def test_never_holds_more_than_the_limit() -> None:
    decoder = Decoder(1000)
    with pytest.raises(sse.EventTooLarge):
        for _ in range(1000):
            decoder.feed(b"x" * 10)
    assert len(decoder._tail) <= 1000


def test_a_giant_event_in_thin_slices_is_linear() -> None:
    def seconds(size: int) -> float:
        """Of this thread: what others on the machine take is not counted."""
        decoder = Decoder(size + 100)
        started = time.thread_time()
        decoder.feed(b"data: ")
        for _ in range(size // 4):
            decoder.feed(b"xxxx")
        assert decoder.feed(b"\n\n") == [Event(b"x" * size)]
        return time.thread_time() - started

    small, large = min(seconds(100_000) for _ in range(3)), min(seconds(1_600_000) for _ in range(3))
    assert large < small * 16 * 5  # quadratic would be 256 times as long


@given(
    payload=st.binary(max_size=30),
    id=st.none() | st.binary(max_size=8),
    event=st.none() | st.sampled_from([b"attempt", b"error", b"x y"]),
)
def test_frames_are_read_back_or_refused(payload: bytes, id: bytes | None, event: bytes | None) -> None:
    parts = [part for part in (payload, id, event) if part is not None]
    if any(byte in part for part in parts for byte in (b"\r", b"\n", b"\0")):
        with pytest.raises(ValueError, match="CR, LF and NUL"):
            sse.frame(payload, id=id, event=event)
    else:
        text = (id or b"").decode("utf-8", "replace")
        assert decode(sse.frame(payload, id=id, event=event)) == [Event(payload, (event or b"").decode(), text)]


def test_frames_as_bytes() -> None:
    assert sse.data_frame(sse.DONE) == b"data: [DONE]\n\n"
    assert sse.frame(b"{}", id=b"2-17") == b"id: 2-17\ndata: {}\n\n"
    assert sse.frame(b"{}", id=b"2-17", event=b"attempt") == b"id: 2-17\nevent: attempt\ndata: {}\n\n"
    assert sse.frame(b"{}", event=b"error", retry_ms=2000) == b"event: error\nretry: 2000\ndata: {}\n\n"
    assert decode(sse.frame(b"{}", retry_ms=2000)) == [Event(b"{}")]
    assert decode(sse.KEEPALIVE + sse.data_frame(b"{}") + sse.KEEPALIVE) == [Event(b"{}")]


@given(
    st.lists(st.binary(max_size=5).filter(sse.is_one_line), min_size=1, max_size=20).flatmap(
        lambda some: st.sampled_from([some, some * 60, some * 700])
    ),
    st.one_of(st.integers(0, 1100), st.integers(0, 2**53)),
)
def test_many_frames_at_once_are_those_of_each(pieces: list[bytes], first: int) -> None:
    begin, end = b'{"a":"', b'"}'
    expected = [sse.numbered_frame(begin + piece + end, (3, first + at)) for at, piece in enumerate(pieces)]
    assert sse.numbered_frames(pieces, (begin, end), (3, first)) == b"".join(expected)


@pytest.mark.parametrize("odd", [b"\r", b"\n", b"\0"])
def test_many_frames_at_once_are_of_one_line_each(odd: bytes) -> None:
    for pieces, around in (([b"a", b"b" + odd], (b"", b"")), ([b"a"], (odd, b"")), ([b"a"], (b"", odd))):
        with pytest.raises(ValueError, match="CR, LF and NUL"):
            sse.numbered_frames(pieces, around, (1, 1))
