"""The time limits of an answer, by a clock that is given: what is passed on by another, and what breaks a wait off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.config.settings import Settings
from shared.errors import Gone, UpstreamTimeout
from worker.upstream.timers import Timers

LIMITS = {"upstream_first_s": 5, "upstream_idle_s": 10, "generation_s": 100}


class Clock:
    """The loop's time."""

    def __init__(self, now: float) -> None:
        self.now = now

    async def go(self, seconds: float) -> None:
        """The loop sees what is due then."""
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(asyncio.get_running_loop().time())
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock.now)
    return clock


@pytest.fixture
async def timers(clock: Clock) -> AsyncIterator[Timers]:
    """Of an answer that has begun."""
    timers = Timers(Settings.model_validate(LIMITS))
    timers.progress()
    yield timers
    timers.close()


def begin(timers: Timers) -> asyncio.Task[object]:
    """Waits for a provider that says nothing."""

    async def wait() -> None:
        with timers:
            await asyncio.Event().wait()

    return asyncio.create_task(wait())


async def code(waiting: asyncio.Task[object]) -> str:
    with pytest.raises(UpstreamTimeout) as raised:
        await waiting
    return raised.value.code


async def test_who_says_something_that_is_passed_on_is_not_idle(timers: Timers, clock: Clock) -> None:
    waiting = begin(timers)
    for _ in range(5):
        await clock.go(9)
        assert not waiting.done()
        timers.passed_on()
    await clock.go(9.5)
    assert not waiting.done()
    await clock.go(1)
    assert await code(waiting) == "upstream_idle_timeout"


async def test_an_answer_that_is_passed_on_for_too_long_is_ended(timers: Timers, clock: Clock) -> None:
    waiting = begin(timers)
    for _ in range(11):
        await clock.go(9)
        timers.passed_on()
    assert not waiting.done()
    await clock.go(2)  # of 100 s
    assert await code(waiting) == "generation_timeout"


async def test_what_was_passed_on_counts_for_the_next_wait(timers: Timers, clock: Clock) -> None:
    """It ended with something that is no data: a comment."""
    timers.passed_on()
    await clock.go(6)
    with timers:
        await clock.go(3)
        timers.passed_on()
    waiting = begin(timers)
    await clock.go(9)
    assert not waiting.done()
    await clock.go(2)
    assert await code(waiting) == "upstream_idle_timeout"


async def test_a_wait_is_broken_off_at_once_and_so_is_the_next(timers: Timers, clock: Clock) -> None:
    waiting = begin(timers)
    await clock.go(0)
    timers.interrupt(gone := Gone("x"))
    await clock.go(0)
    assert waiting.done()
    assert waiting.exception() is gone
    with pytest.raises(Gone):
        await begin(timers)


async def test_what_breaks_off_while_nothing_is_waited_for_meets_the_next_wait(timers: Timers, clock: Clock) -> None:
    timers.interrupt(Gone("x"))
    waiting = begin(timers)
    await clock.go(0)
    assert waiting.done()
    with pytest.raises(Gone):
        await waiting


async def test_who_is_cancelled_meanwhile_is_cancelled(timers: Timers, clock: Clock) -> None:
    waiting = begin(timers)
    await clock.go(0)
    timers.interrupt(Gone("x"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_wait_that_is_broken_off_as_its_time_is_over_is_no_cancellation(timers: Timers, clock: Clock) -> None:
    waiting = begin(timers)
    await clock.go(0)
    clock.now += 11
    asyncio.get_running_loop().call_soon(timers.interrupt, gone := Gone("x"))  # in the round that the timer goes off in
    await clock.go(0)
    assert waiting.done()
    assert waiting.exception() is gone
