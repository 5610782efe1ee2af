"""A provider that falls silent behind a chunk that went by the shortcut: it is waited for no longer than behind any other, and
what becomes of the chunk is told."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from shared.log.entry import Status
from tests.harness.records import outcome_with
from tests.harness.upstream import chunk
from tests.shared.log.test_taking import Faults
from tests.support.until import until
from tests.worker.test_generate import those_alive
from tests.worker.upstream.test_shortcut import BEGUN, SPOKEN, WHOLE, Packets, Stand, paced, stand

__all__ = ["stand"]

LATE: Packets = [*paced(BEGUN), (chunk("late "),), None]
"""One more word, and nothing after it."""


def before_the_last(do: Callable[[], Awaitable[object] | None]) -> Callable[[int], Awaitable[object] | None]:
    return lambda number: do() if number == len(BEGUN) - 1 else None


@pytest.mark.parametrize("how", ["sealed", "deleted", "replaced"])
async def test_a_silent_provider_is_hung_up_on_where_its_last_word_is_refused(stand: Stand, how: str) -> None:
    """Nobody tells that it is over but the reply to that."""
    taken = 0

    async def end_it() -> None:
        nonlocal taken
        taken = stand.taking.count
        if how == "sealed":
            await stand.bench.log.seal(stand.id, outcome_with({"status": "cancelled"}))
        elif how == "deleted":
            await stand.bench.log.delete(stand.id, "a")
        else:
            await stand.bench.attempt(stand.id, 2)

    stand.at_a_pause = before_the_last(end_it)
    await stand.start(LATE)
    assert await stand.running is (how != "replaced")
    assert stand.taking.count == taken + 1
    await asyncio.wait_for(stand.hung_up.wait(), 60)


async def test_a_full_server_is_waited_for_while_the_provider_is_silent(stand: Stand) -> None:
    redis = stand.bench.log._redis

    def is_refused() -> bool:
        taken = stand.taking._shortcut._writer._taken if stand.taking._shortcut is not None else None
        return taken is not None and taken._task is not None

    stand.at_a_pause = before_the_last(lambda: redis.config_set("maxmemory", 1))
    try:
        await stand.start([*paced(BEGUN), (chunk("late "),), None, *paced(WHOLE)])
        await until(is_refused)
        await redis.config_set("maxmemory", 0)
        assert await stand.running
    finally:
        await redis.config_set("maxmemory", 0)
    short = await stand.said()
    stand.at_a_pause = lambda number: None
    assert short == await stand.run(paced([*BEGUN, chunk("late "), *WHOLE]), short=False)


async def test_a_server_that_stays_full_ends_it_and_hangs_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = stand.bench.log._redis
    monkeypatch.setattr("shared.log.writer.FULL_S", 0.0)
    stand.at_a_pause = before_the_last(lambda: redis.config_set("maxmemory", 1))
    try:
        await stand.start(LATE)
        await asyncio.wait_for(stand.hung_up.wait(), 60)
    finally:
        await redis.config_set("maxmemory", 0)
    assert await stand.running
    said = await stand.said()
    assert (said.outcome["status"], said.outcome["error"]["code"]) == ("failed", "storage_full")
    assert len(said.entries) == len(BEGUN)


async def test_one_that_falls_silent_behind_a_taken_chunk_is_idle(stand: Stand) -> None:
    def ring(number: int) -> None:
        if number == len(BEGUN):  # the last word is taken and stored; time goes on
            timeout = stand.taking.timers._timeout
            timeout.move(0.0)
            timeout._ring()

    stand.at_a_pause = ring
    said = await stand.run(LATE)
    assert (said.outcome["status"], said.outcome["error"]["code"]) == ("failed", "upstream_idle_timeout")
    assert len(said.entries) == len(BEGUN) + 1
    await asyncio.wait_for(stand.hung_up.wait(), 60)


async def test_what_is_under_way_when_nobody_wants_it_any_more_is_part_of_the_answer(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(stand.bench.appender)
    watched = [True]
    monkeypatch.setattr(stand.bench.log, "watched", lambda ids: asyncio.sleep(0, set(ids) if watched else set()))

    def hold() -> None:
        faults.next = ["held"]

    stand.at_a_pause = before_the_last(hold)
    await stand.start(LATE, on_disconnect="cancel")
    await until(lambda: faults.held)
    watched.clear()
    for _ in range(2):
        await stand.bench.generator.running.stop_unwatched()
    await until(lambda: not stand.bench.generator.running._running)
    assert not stand.running.done()  # the end stands behind it
    faults.let_go()
    assert await stand.running
    await asyncio.wait_for(stand.hung_up.wait(), 60)
    said = await stand.said()
    assert said.outcome["status"] == "cancelled"
    assert len(said.entries) == len(BEGUN) + 1
    assert said.outcome["characters"]["content"] == len("".join([*SPOKEN, "late "]))


async def test_a_job_that_is_handed_over_leaves_what_is_under_way(stand: Stand) -> None:
    faults = Faults(stand.bench.appender)

    def hold() -> None:
        faults.next = ["held"]

    stand.at_a_pause = before_the_last(hold)
    await stand.start(LATE)
    await until(lambda: faults.held)
    stand.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stand.running
    await asyncio.wait_for(stand.hung_up.wait(), 60)
    assert faults.held[0].done()
    assert (await stand.bench.summary(stand.id)).status is Status.IN_PROGRESS


@pytest.mark.parametrize("how", ["whole", "cut", "refused", "idle"])
async def test_an_attempt_by_the_shortcut_leaves_nothing_to_the_garbage_collector(stand: Stand, how: str) -> None:
    stand.in_chunks = False  # a connection that is kept has the last body
    packets = {"whole": paced([*BEGUN, *WHOLE]), "cut": [*paced(BEGUN), (chunk("last "),)]}.get(how, LATE)

    def end_it(number: int) -> Awaitable[object] | None:
        if how == "idle" and number == len(BEGUN):
            stand.taking.timers._timeout.move(0.0)
            stand.taking.timers._timeout._ring()
        if how == "refused" and number == len(BEGUN) - 1:
            return stand.bench.log.seal(stand.id, outcome_with({"status": "cancelled"}))
        return None

    stand.at_a_pause = end_it
    gc.collect()
    others = those_alive()
    gc.disable()
    try:
        await stand.start(packets)
        await stand.running
        assert stand.taking.count > 5
        stand.taking.begin()
        del stand.running
        await until(lambda: len(those_alive()) <= len(others))  # a connection is closed a moment later
    finally:
        gc.enable()
