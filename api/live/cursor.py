"""Cursors: "go on from here", as clients say it.

Hidden here: the three places a cursor may stand in, its two forms, and where each leads in a given log, whatever the
surface that shows it. Every cursor has one meaning or is refused; none makes a viewer wait for what will never come. A
surface whose events have numbers of their own makes a count of them: number 6, counted from 0, is the count 7.
"""

from __future__ import annotations

import re

from starlette.requests import Request

from api.live.folding import Folding, Start, Stateless
from api.live.livelog import LiveLog
from shared.errors import BadCursor, CursorExpired, CursorRestart, Gone
from shared.log.entry import SEAL, Position
from shared.log.streamlog import StreamLog

_COUNT = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)

Cursor = Position | int
"""A position: "I have everything up to this entry"; or a number N: "I have the first N events of this view"."""


class Behind(Exception):
    """This process has not read yet what the viewer has got from another one: look again when more has come."""


def read(request: Request) -> Cursor | None:
    """The request's cursor; None: from the start. Raises BadCursor.

    `Last-Event-ID` beats the query, because an EventSource that reconnects keeps the URL it was made with.
    """
    header = request.headers.get("last-event-id")
    if header is not None:
        return parse(header)
    given = [value for name in ("last_event_id", "starting_after") for value in request.query_params.getlist(name)]
    if len(set(given)) > 1:
        raise BadCursor("`last_event_id` and `starting_after` say different things. Send one.", param="starting_after")
    return parse(given[0]) if given else None


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
