"""Cursors: "go on from here", as clients say it.

Hidden here: the three places a cursor may stand in, how clients spell them, its two forms, and where each leads in a given
log, whatever the surface that shows it. Every cursor has one meaning or is refused; none makes a viewer wait for what will
never come. A surface whose events have numbers of their own makes a count of them: number 6, counted from 0, is the count 7.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from api.live.folding import Folding, Start, Stateless
from api.live.livelog import LiveLog
from shared.errors import BadCursor, CursorExpired, CursorRestart, Gone
from shared.log.entry import SEAL, Position
from shared.log.streamlog import StreamLog

_NAMES = ("last_event_id", "starting_after")
_COUNT = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)

Cursor = Position | int
"""A position: "I have everything up to this entry"; or a number N: "I have the first N events of this view"."""


class Behind(Exception):
    """This process has not read yet what the viewer has got from another one: look again when more has come."""


def is_cursor(name: str) -> bool:
    """Whether a query of this name is one: `last_event_id` or `starting_after`, or what others call them (`lastEventId` of
    EventSource polyfills, `Last-Event-ID` of Mercure, `starting-after`). To ignore one would send everything again."""
    return _plain(name) in map(_plain, _NAMES)


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def read(request: Request) -> Cursor | None:
    """The request's cursor; None: from the start. Raises BadCursor.

    `Last-Event-ID` beats the query, because an EventSource that reconnects keeps the URL it was made with. For the same
    reason what only a polyfill adds when it reconnects, its own `lastEventId`, beats the names that people write.
    """
    text = given(request)
    return None if text is None else parse(text)


def given(request: Request) -> str | None:
    """The text of a request's cursor; None without one. Raises BadCursor if two differ."""
    headers = request.headers.getlist("last-event-id")
    if len(set(headers)) > 1:
        raise BadCursor("Two Last-Event-IDs say different things. Send one.", param="last_event_id")
    if headers:
        return headers[0]
    added, written = [], []
    for name, value in request.query_params.multi_items():
        if name in _NAMES or _plain(name) == "startingafter":
            written.append(value)
        elif is_cursor(name) and value:  # empty: no event was received (HTML, 9.2.3)
            added.append(value)
    values = added or written
    if len(set(values)) > 1:
        raise BadCursor("Two cursors in the query say different things. Send one.", param="starting_after")
    return values[0] if values else None


def parse(text: str) -> Cursor:
    """Raises BadCursor for anything but a position (`2-17`) or a whole number."""
    if _COUNT.fullmatch(text):
        return int(text)
    try:
        return Position.parse(text)
    except ValueError:
        raise BadCursor(
            "A cursor is the `id:` of the last event received (like `1-17`), or the number of events received.",
            param="starting_after",
        ) from None


async def resolve(cursor: Cursor | None, live: LiveLog, log: StreamLog, shown: Stateless | Folding) -> Start | None:
    """Where the cursor leads; None if the viewer has everything and the stream is over.

    Raises BadCursor (ahead of the log), CursorRestart (counted in an attempt that is gone), CursorExpired, Behind.
    """
    if isinstance(cursor, Position):
        start = await _after_position(cursor, live, log, shown)
    elif cursor is not None:
        start = await _after_count(cursor, live, log, shown)
    else:
        start = Start(live.epoch, 0, first=shown.opening)
    if start and start.epoch == live.epoch and start.chunk < live.lost:
        floor = f"{live.epoch}-{live.lost}"
        raise CursorExpired(f"The events up to {floor} are not kept any more. Resume from there.", floor=floor)
    return start


async def _after_position(cursor: Position, live: LiveLog, log: StreamLog, shown: Stateless | Folding) -> Start | None:
    if cursor == SEAL and live.outcome:
        return None
    if cursor == SEAL and live.problem:  # it is sealed, but not whole here: they are told why
        return Start(live.epoch, live.end)
    if cursor == SEAL:
        await _must_exist(cursor, live, log)
        raise Behind
    chunk = cursor.seq if cursor.epoch else 0
    if cursor.epoch >= live.epoch and cursor.epoch and (cursor.epoch, cursor.seq) > (live.epoch, live.end):
        await _must_exist(cursor, live, log)
    return Start(cursor.epoch, chunk, first=b"" if chunk else shown.opening)


async def _after_count(count: int, live: LiveLog, log: StreamLog, shown: Stateless | Folding) -> Start | None:
    if live.replaced:
        restart = f"{live.epoch}-0"
        raise CursorRestart(
            f"A newer attempt has replaced the one these events were counted in. Start from {restart}.",
            restart_from=restart,
        )
    there = shown.events(live)
    if count <= there:
        return await shown.locate(count, live, log)
    if live.outcome is None:
        return await _ahead(count, live, log, shown)
    ending = len(shown.end(live.outcome))
    if count - there > ending:
        raise BadCursor(f"The cursor is ahead: this stream has {there + ending} events.", code="cursor_ahead")
    return None if count - there == ending else Start(live.epoch, live.end, skip_end=count - there)


async def _ahead(count: int, live: LiveLog, log: StreamLog, shown: Stateless | Folding) -> Start:
    """Of a stream that goes on: another process may have read more."""
    if not shown.numbered:
        cursor = Position(max(live.epoch, 1), count)
        await _must_exist(cursor, live, log)
        return Start(*cursor)
    known = live.position
    end = (await log.ends([live.id]))[live.id]
    if end is None:
        raise Gone(live.id)
    if end > known:
        raise Behind
    raise BadCursor(
        f"The cursor is ahead of the stream, which has {shown.events(live)} events.",
        code="cursor_ahead",
        param="starting_after",
    )


async def _must_exist(cursor: Position, live: LiveLog, log: StreamLog) -> None:
    """This process may be a moment behind another that sent the viewer this far: ask the log itself."""
    end = None if live.outcome else (await log.ends([live.id]))[live.id]
    if end is None and not live.outcome:
        raise Gone(live.id)
    if end is None or end < cursor:
        raise BadCursor(
            f"The cursor {cursor} is ahead of the stream, whose last event is {live.epoch}-{live.end}.",
            code="cursor_ahead",
            param="starting_after",
        )
