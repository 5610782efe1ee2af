"""What the hub takes as it is read, without its task: on a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from api.live.livelog import LiveLog
from shared.cli.embedded import EmbeddedValkey
from shared.lib.busy import BusyPauses
from shared.log import following
from shared.log.entry import Chunk, Entry
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from tests.support.live import COMPLETED, Bench, Viewer, open_bench

LOGS = 6


@pytest.fixture(params=["asgi", "direct"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece through ASGI, and written to the connection where that may be."""
    monkeypatch.setattr(Viewer, "chunked", request.param == "direct")


class Crowd:
    """Several logs with a viewer each, and what the hub's task was told meanwhile."""

    def __init__(self, bench: Bench, writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.writers = bench, writers
        self.viewers = [bench.watch(writer) for writer in writers]
        self.followed: Any = bench.parts.hub._following
        self.told: list[Any] = []
        news = self.followed.news

        async def noted() -> Any:
            found = await news()
            self.told += found
            return found

        monkeypatch.setattr(self.followed, "news", noted)

    async def until(self, ready: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not ready():  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.001)

    async def idle(self) -> None:
        """Until the task waits for the bell alone."""
        async with asyncio.timeout(60):
            while not self.followed._is_idle or self.followed._woken or self.followed._due:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def says(self, number: int, word: int) -> None:
        await self.bench.say(self.writers[number], word)
        await self.viewers[number].until(b'"w%d"' % word)


@pytest.fixture
async def crowd(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crowd]:
    monkeypatch.setattr(following, "_TICK_S", 3600.0)
    monkeypatch.setattr(BusyPauses, "next_s", lambda self: 0.0)
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(open_bench(valkey.url))
        crowd = Crowd(bench, [await bench.log_of(0) for _ in range(LOGS)], monkeypatch)
        for viewer in crowd.viewers:
            await viewer.until(b'"w0"')
        await crowd.until(lambda: len(crowd.followed.logs) == LOGS)
        await crowd.idle()
        crowd.told.clear()
        yield crowd
        for viewer in crowd.viewers:
            if not viewer.task.done():
                viewer.hang_up()
        await bench.end(*crowd.viewers)


async def test_words_get_to_their_viewers_without_the_task(crowd: Crowd) -> None:
    for word in range(1, 21):
        await crowd.says(word % LOGS, word)
    assert crowd.told == []
    for number, viewer in enumerate(crowd.viewers):
        assert viewer.words == ["w0"] + [f"w{word}" for word in range(1, 21) if word % LOGS == number]


async def test_where_the_process_is_busy_the_task_gathers_them(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusyPauses, "next_s", lambda self: 0.002)
    for word in range(1, 41):
        await crowd.bench.say(crowd.writers[word % LOGS], word)
    for number, viewer in enumerate(crowd.viewers):
        words = [f"w{word}" for word in range(1, 41) if word % LOGS == number]
        await viewer.until(b'"%b"' % words[-1].encode())
        assert viewer.words == ["w0", *words]


async def test_a_log_that_ends_so_is_followed_no_more(crowd: Crowd) -> None:
    await crowd.says(0, 1)
    await crowd.bench.log.seal(crowd.writers[0].generation_id, COMPLETED)
    await crowd.bench.end(crowd.viewers[0])
    assert crowd.viewers[0].words == ["w0", "w1"]
    assert crowd.viewers[0].over
    assert crowd.told == []
    assert len(crowd.followed.logs) == LOGS - 1
    await crowd.says(1, 2)


async def test_what_something_was_taken_out_of_is_for_the_task(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is put back first, and what follows it comes after it."""
    asked: list[str] = []

    async def whole(self: StreamLog, tenant: str, entries: list[Entry]) -> list[Entry]:
        asked.append(tenant)
        return [entry._replace(blobs=None) for entry in entries]

    monkeypatch.setattr(StreamLog, "whole", whole)
    await crowd.writers[0].append([Chunk(b'{"x":"w1"}', blobs=b"{}")])
    await crowd.bench.say(crowd.writers[0], 2)
    await crowd.says(1, 3)
    await crowd.viewers[0].until(b'"w2"')
    assert crowd.viewers[0].words == ["w0", "w1", "w2"]
    assert asked
    await crowd.until(lambda: len(crowd.followed.logs) == LOGS)
    await crowd.says(0, 4)
    assert crowd.viewers[0].words == ["w0", "w1", "w2", "w4"]


async def test_a_bug_that_meets_one_log_ends_its_viewers_streams_and_nobody_elses(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, broken = LiveLog.feed, crowd.writers[0].generation_id

    def meets(self: LiveLog, entries: list[Entry]) -> None:
        if self.id == broken:
            raise KeyError("bug")
        feed(self, entries)

    monkeypatch.setattr(LiveLog, "feed", meets)
    await crowd.bench.say(crowd.writers[0], 1)
    await crowd.bench.end(crowd.viewers[0])
    assert b'"error"' in crowd.viewers[0].body
    assert len(crowd.followed.logs) == LOGS - 1
    for word in range(2, 5):
        await crowd.says(1, word)
    assert crowd.told == []
