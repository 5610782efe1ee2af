"""Answers that have ended, shown in bulk while something happens to them: what their viewer still gets."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api import chunk_events
from api.chunk_events import _ReadyStream
from api.live.client import Client
from api.services import Services
from api.surfaces.streams.projection import NativeEvents
from shared.errors import Damaged
from shared.log.bulk.runs import Events
from shared.log.decoding import Archived
from shared.log.entry import Entry, Kind, Position
from shared.log.records import Summary
from shared.store.redis import RedisError
from tests.harness.records import header_with, outcome_with

HERE = SimpleNamespace(gone=False)


def entry(number: int) -> Entry:
    return Entry(Position(1, number), Kind.CHUNK, b"{}", None, None, None)


def frame(number: int) -> bytes:
    return b"id: 1-%d\ndata: {}\n\n" % number


class Storage:
    """Three chunks: the first one from Redis, the others where the log became an object meanwhile."""

    def __init__(self, summary: Summary, *, away: int = 0, pages: tuple[list[Entry] | Damaged, ...] = ()) -> None:
        self.moved, self.away, self.pages = replace(summary, archived=b"here"), away, pages

    async def in_redis(self, _summary: Summary, _after: Position) -> AsyncGenerator[Events]:
        yield Events(frame(1), Position(1, 1), 1)
        raise Archived

    async def describe(self, _ids: list[str]) -> list[Summary]:
        if self.away:
            self.away -= 1
            raise RedisError("away")
        return [self.moved]

    async def events(self, _summary: Summary, after: Position) -> AsyncGenerator[Events]:
        if not self.pages:
            yield Events(frame(2) + frame(3), Position(1, 3), 2)

    async def read_all(self, _id: str, _after: Position, *, tenant: str) -> AsyncIterator[list[Entry]]:
        for page in self.pages:
            if isinstance(page, Damaged):
                raise page
            yield page


def stream(**about: Any) -> tuple[_ReadyStream, Storage]:
    header = header_with({"id": "chatcmpl-1", "owner": "a", "created_at_ms": 1, "include_usage": True})
    summary = Summary(header, (), Position(1, 3), outcome_with({"status": "completed"}))
    storage = Storage(summary, **about)
    services: Any = SimpleNamespace(
        replays=SimpleNamespace(events=storage.in_redis),
        broker=SimpleNamespace(log=storage),
        drain=None,
        settings=SimpleNamespace(drain_s=1),
    )
    projection = NativeEvents(ids=True, include_usage=True)
    return _ReadyStream(cast(Services, services), summary, projection, headers={}, tells_served=True), storage


async def shown(ready: _ReadyStream, into: list[bytes]) -> None:
    async for some in ready._events(cast(Client, HERE)):
        ready._at = some.last
        into.append(some.frames)


async def test_a_redis_that_is_away_as_a_log_became_an_object_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_events, "_RETRY_S", 0)
    ready, storage = stream(away=3)
    got: list[bytes] = []
    await shown(ready, got)
    assert b"".join(got) == frame(1) + frame(2) + frame(3)
    assert storage.away == 0


async def test_what_stands_before_a_gap_of_an_object_that_tells_no_events_is_shown() -> None:
    gap = Damaged("1-3 is missing", before=[entry(2)])
    ready, _ = stream(pages=(gap,))
    got: list[bytes] = []
    with pytest.raises(Damaged):
        await shown(ready, got)
    assert b"".join(got) == frame(1) + frame(2)
