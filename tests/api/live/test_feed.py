"""The events of all generations in one process: one read, a window, and who watches through all processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from api.live import feed as module
from api.live.feed import Followed, LiveFeed
from api.live.watching import Watching
from shared.generations.catalogue import Catalogue
from shared.log.feed import Feed, accepted
from shared.log.streamlog import StreamLog
from shared.store.redis import ArqRedis
from tests.harness.records import header_with

ALL = Followed(None, None)


class Watched:
    """A hub of which only its counts are asked."""

    def __init__(self, *counts: tuple[str, str, int]) -> None:
        self.counts = list(counts)

    def watched(self) -> Iterator[tuple[str, str, int]]:
        return iter(self.counts)


@pytest.fixture
async def live(redis: ArqRedis, log: StreamLog, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveFeed]:
    monkeypatch.setattr(module, "_BEGUN_S", 60.0)  # the machine may be busy, and nothing is away
    hub: Any = Watched()
    await redis.delete(redis.key.events)
    async with LiveFeed(redis, redis, log, Catalogue(redis), Watching(redis, hub, "api:test")) as running:
        yield running
    await redis.delete(redis.key.events)


async def tell(redis: ArqRedis, *tenants: str) -> None:
    feed = Feed(redis.key.events, 1000)
    async with redis.pipeline(transaction=False) as pipe:
        for at, tenant in enumerate(tenants):
            feed.add(pipe, accepted(header_with(id=f"chatcmpl-{at}", owner=tenant, model="m", created_at_ms=at)))
        await pipe.execute()


async def until(holds: Callable[[], object], live: LiveFeed) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await live.waiter()


async def until_counted(watching: Watching, expected: dict[str, dict[str, int]]) -> None:
    for _ in range(1200):
        if await watching.look() == expected:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await watching.look())


async def test_each_is_shown_what_it_follows_and_the_same_is_joined_once(redis: ArqRedis, live: LiveFeed) -> None:
    with live.followed():
        await live.begun()
        start = live.place
        await tell(redis, "a", "b", "a")
        await until(lambda: live.place != start and (live.since(start, ALL) or b"").count(b"\n\n") == 3, live)
        mine = live.since(start, Followed("a", None))
        assert mine is not None
        assert mine.count(b"event: accepted") == 2
        assert b'"tenant":"b"' not in mine
        assert live.since(start, Followed("a", None)) is mine
        assert live.since(start, Followed("a", frozenset({"sealed"}))) == b""
        assert live.since(live.place, ALL) == b""


async def test_who_is_further_behind_than_the_window_reads_the_stream(
    redis: ArqRedis, live: LiveFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WINDOW", 10)
    await tell(redis, "a")
    with live.followed():
        await live.begun()
        start = live.place
        await tell(redis, *["a"] * 30)
        page = await live.reader.page(start)
        assert page is not None
        assert len(page) == 30
        await until(lambda: live.place == page[-1].place, live)  # they may be read in several goes
        assert live.since(start, ALL) is None
        recent = live.since(page[-11].place, ALL)
        assert recent is not None
        assert recent.count(b"\n\n") == 10


async def test_what_was_cut_off_is_noticed_while_somebody_follows(redis: ArqRedis, live: LiveFeed) -> None:
    await tell(redis, "a")
    with live.followed():
        await live.begun()
        await redis.xtrim(redis.key.events, maxlen=0, approximate=False)
        await tell(redis, "a")
        await until(lambda: live.gaps == 1, live)


async def test_viewers_are_added_up_over_all_processes(redis: ArqRedis) -> None:
    hubs: list[Any] = [Watched(("a", "one", 2), ("b", "two", 1)), Watched(("a", "one", 3))]
    processes = [Watching(redis, hub, f"api:{at}") for at, hub in enumerate(hubs)]
    tasks = [asyncio.create_task(process.run()) for process in processes]
    try:
        await until_counted(processes[0], {"a": {"one": 5}, "b": {"two": 1}})
        assert 0 < await redis.ttl(redis.key.watching_through("api:0")) <= 15
        hubs[0].counts = []
        await until_counted(processes[1], {"a": {"one": 3}})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await redis.delete(redis.key.watching, *(redis.key.watching_through(f"api:{at}") for at in range(2)))
