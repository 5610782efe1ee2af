"""Cursors: "go on from here", as clients say it.

Hidden here: the three places a cursor may stand in, its two forms, and where each leads in a given log. Every cursor
has one meaning or is refused; none makes a viewer wait for what will never come.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from starlette.requests import Request

from api.live.livelog import LiveLog
from api.surfaces.chat.projection import end_frames
from shared.errors import BadCursor, CursorExpired, CursorRestart, Gone
from shared.lib import json
from shared.log.entry import SEAL, Position
from shared.log.streamlog import StreamLog

_COUNT = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)

Cursor = Position | int
"""A position: "I have everything up to this entry"; or a number N: "I have the first N frames of this view"."""


class Start(NamedTuple):
    """Where a viewer begins: after chunk `chunk` of attempt `epoch`, leaving out that many of the end's frames."""

    epoch: int
    chunk: int
    skip_end: int = 0


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


async def place(cursor: Cursor | None, live: LiveLog, log: StreamLog, *, include_usage: bool) -> Start | None:
    """Where the cursor leads; None if the viewer has everything and the stream is over.

    Raises BadCursor (ahead of the log), CursorRestart (counted in an attempt that is gone), CursorExpired.
    """
    if isinstance(cursor, Position):
        start = await _after_position(cursor, live, log)
    elif cursor is not None:
        start = await _after_count(cursor, live, log, include_usage)
    else:
        start = Start(live.epoch, 0)
    if start and start.epoch == live.epoch and start.chunk < live.lost:
        floor = f"{live.epoch}-{live.lost}"
        raise CursorExpired(f"The events up to {floor} are not kept any more. Resume from there.", floor=floor)
    return start


async def _after_position(cursor: Position, live: LiveLog, log: StreamLog) -> Start | None:
    if cursor == SEAL and live.outcome:
        return None
    if cursor.epoch < live.epoch or cursor.epoch == 0:
        return Start(cursor.epoch, cursor.seq if cursor.epoch else 0)
    if (cursor.epoch, cursor.seq) > (live.epoch, live.end):
        await _must_exist(cursor, live, log)
    return Start(cursor.epoch, cursor.seq)


async def _after_count(count: int, live: LiveLog, log: StreamLog, include_usage: bool) -> Start | None:
    if live.replaced:
        restart = f"{live.epoch}-0"
        raise CursorRestart(
            f"A newer attempt has replaced the one these events were counted in. Start from {restart}.",
            restart_from=restart,
        )
    shown = live.end - (live.usage_last and not include_usage)
    if count <= shown:
        return Start(live.epoch, count)
    if live.outcome is None:
        counted_in = max(live.epoch, 1)
        await _must_exist(Position(counted_in, count), live, log)
        return Start(counted_in, count)
    ending = len(end_frames(json.loads(live.outcome.data), ids=False))
    if count - shown > ending:
        raise BadCursor(f"The cursor is ahead: this stream has {shown + ending} events.", code="cursor_ahead")
    return None if count - shown == ending else Start(live.epoch, live.end, skip_end=count - shown)


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
