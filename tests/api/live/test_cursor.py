"""Reading a cursor from a request: three places, two forms, one meaning or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from api.live import cursor
from shared.errors import BadCursor
from shared.log.entry import SEAL, Position


def request(query: str = "", header: str | None = None) -> Request:
    headers = [(b"last-event-id", header.encode("latin-1"))] if header is not None else []
    return Request({"type": "http", "query_string": query.encode(), "headers": headers})


@given(st.integers(0, 999_999_999))
def test_a_whole_number(number: int) -> None:
    assert cursor.parse(str(number)) == number


@given(st.integers(0, SEAL.epoch), st.integers(0, 2**53 - 1))
def test_a_position(epoch: int, seq: int) -> None:
    assert cursor.parse(f"{epoch}-{seq}") == Position(epoch, seq)


@given(st.text(max_size=30) | st.from_regex(r"\A\d{1,5}(-\d{1,5})?\Z"))
def test_one_meaning_has_one_spelling(text: str) -> None:
    """What is accepted is spelled as we would spell it, in ASCII."""
    try:
        parsed = cursor.parse(text)
    except BadCursor:
        return
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    ["", "-", "1-", "-1", "1--1", "01", "1-01", "+1", " 1", "1 ", "1\n", "1-1\n", "1.0", "1e1", "$", "*", "9" * 10],
)
def test_what_is_malformed(text: str) -> None:
    with pytest.raises(BadCursor):
        cursor.parse(text)


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ("", None, None),
        ("other=1", None, None),
        ("starting_after=3", None, 3),
        ("last_event_id=1-3", None, Position(1, 3)),
        ("starting_after=3&last_event_id=3", None, 3),
        ("", "2-7", Position(2, 7)),
        ("", "0", 0),
        ("starting_after=3", "2-7", Position(2, 7)),
        ("starting_after=3&last_event_id=4", "2-7", Position(2, 7)),
        ("starting_after=garbage", "2-7", Position(2, 7)),
        ("lastEventId=1-3", None, Position(1, 3)),  # event-source-polyfill
        ("lastEventID=1-3", None, Position(1, 3)),
        ("Last-Event-ID=1-3", None, Position(1, 3)),  # Mercure
        ("last-event-id=3", None, 3),
        ("starting-after=3", None, 3),
        ("startingAfter=3", None, 3),
        ("lastEventId=3", "2-7", Position(2, 7)),
        ("last_event_id=1-2&lastEventId=1-9", None, Position(1, 9)),  # added by a polyfill to the URL it was made with
        ("starting_after=1-2&lastEventId=1-9", None, Position(1, 9)),
        ("starting_after=1-2&lastEventId=", None, Position(1, 2)),
        ("lastEventId=", None, None),
    ],
)
def test_where_it_may_stand(query: str, header: str | None, expected: cursor.Cursor | None) -> None:
    assert cursor.read(request(query, header)) == expected


@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("starting_after=3&last_event_id=4", None),
        ("starting_after=3&last_event_id=1-3", None),
        ("starting_after=3&starting_after=4", None),
        ("starting_after=", None),
        ("last_event_id", None),
        ("", ""),
        ("starting_after=3", ""),
        ("", "garbage"),
        ("lastEventId=garbage", None),
        ("lastEventId=3&lastEventID=4", None),
        ("starting_after=3&starting-after=4", None),
        ("", "é"),
    ],
)
def test_what_is_refused(query: str, header: str | None) -> None:
    with pytest.raises(BadCursor):
        cursor.read(request(query, header))
