"""What cannot be brought about from outside: moments between two processes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from api.live.cursor import Cursor
from api.live.drain import Drain
from api.live.event_stream import EventStream
from api.live.livelog import LiveLog
from api.surfaces.streams.projection import native_events
from shared.config.settings import Settings
from shared.log.entry import SEAL, Entry, Kind, Position
from tests.harness.records import header_with
from tests.support.wire import frames
from tests.support.wire import position as id_of

OUTCOME = b'{"status":"completed","ended_at_ms":1,"error":null}'


def entries(first: Position, last: int) -> list[Entry]:
    """An attempt's entries from one on; the first may be the attempt itself."""
    kinds = {0: Kind.ATTEMPT}
    return [Entry(Position(first.epoch, seq), kinds.get(seq, Kind.CHUNK), b"{}") for seq in range(first.seq, last + 1)]


@pytest.mark.parametrize("cursor", [Position(1, 3), 3])
@pytest.mark.parametrize("known", [[], entries(Position(1, 0), 0), entries(Position(1, 0), 2)])
async def test_a_viewer_that_is_ahead_of_this_process_gets_no_frame_twice(cursor: Cursor, known: list[Entry]) -> None:
    """Another API process sent it up to 1-3; this one follows the same log and has not read that far yet."""
    live = LiveLog("chatcmpl-x")
    if known:
        live.feed(known)

    async def join(_: str, **options: bool) -> LiveLog:
        return live

    async def leave(_: LiveLog) -> None:
        """It is followed by nobody."""

    async def ends(_: list[str]) -> dict[str, Position]:
        return {live.id: Position(1, 3)}

    hub: Any = SimpleNamespace(join=join, leave=leave)
    broker: Any = SimpleNamespace(log=SimpleNamespace(ends=ends))
    parts: Any = SimpleNamespace(hub=hub, broker=broker, settings=Settings(_env_file=None), drain=Drain())
    events = native_events(include_usage=False)
    response = EventStream(
        parts, header_with({"id": live.id, "owner": "a", "created_at_ms": 1}), events, cursor=cursor, headers={}
    )
    sent: list[bytes] = []
    started = asyncio.Event()

    async def send(message: Any) -> None:
        started.set()
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    task = asyncio.create_task(response({"type": "http", "extensions": {}}, receive, send))
    await started.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    for entry in entries(Position(1, len(known)), 4):
        live.feed([entry])
        for _ in range(5):
            await asyncio.sleep(0)
    live.feed([Entry(SEAL, Kind.OUTCOME, OUTCOME)])
    await asyncio.wait_for(task, 60)
    assert [id_of(frame) for frame in frames(b"".join(sent))] == ["1-4", str(SEAL)]
