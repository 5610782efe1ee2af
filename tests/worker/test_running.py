"""What stops an attempt that runs, and what its job is told of it. Its log and its writer are stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.errors import Fenced
from shared.log.entry import Position
from worker.running import RunningAttempts


class Log:
    """Whose last entry is told when it is let."""

    def __init__(self) -> None:
        self.epoch, self.asked, self.may_tell = 1, asyncio.Event(), asyncio.Event()
        self.may_tell.set()

    async def last(self, _: str) -> Position:
        self.asked.set()
        await self.may_tell.wait()
        return Position(self.epoch, 1)


class Writer:
    generation_id, epoch = "x", 1


class Bench:
    """One attempt, which speaks until it is cancelled, and then takes a while to hang up."""

    def __init__(self) -> None:
        self.log: Any = Log()
        self.attempts = RunningAttempts(self.log, None)  # type: ignore[arg-type]
        self.speaks, self.hangs_up, self.has_hung_up = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.job = asyncio.create_task(self._run())

    async def _run(self) -> bool:
        writer: Any = Writer()
        async with asyncio.timeout(60):  # as around every job
            done = await self.attempts.run(writer, {}, self._say)  # type: ignore[typeddict-item]
        await asyncio.sleep(0)  # what comes after it is not cancelled
        return done

    async def _say(self) -> None:
        self.speaks.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.hangs_up.set()
            await self.has_hung_up.wait()

    async def stop(self) -> None:
        await self.speaks.wait()
        self.attempts._running["x"].stop()
        await self.hangs_up.wait()


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_is_stopped_for_another_attempt_is_fenced(bench: Bench) -> None:
    bench.log.epoch = 2
    await bench.stop()
    bench.has_hung_up.set()
    with pytest.raises(Fenced):
        await bench.job
    assert bench.job.cancelling() == 0
    assert not bench.attempts._running


async def test_what_no_viewer_wants_any_more_is_stopped_and_not_cancelled(bench: Bench) -> None:
    await bench.speaks.wait()
    bench.attempts._running["x"].unwatched = 2
    await bench.stop()
    bench.has_hung_up.set()
    assert await bench.job is False


async def test_it_is_stopped_once_however_often_that_is_found(bench: Bench) -> None:
    bench.log.epoch = 2
    await bench.stop()
    bench.attempts._running["x"].stop()
    bench.log.may_tell.clear()
    bench.has_hung_up.set()
    await bench.log.asked.wait()
    bench.attempts._running["x"].stop()
    bench.log.may_tell.set()
    with pytest.raises(Fenced):
        await bench.job


async def test_a_job_that_is_handed_over_while_it_is_stopped_is_handed_over(bench: Bench) -> None:
    bench.log.epoch = 2
    await bench.stop()
    bench.job.cancel()
    bench.has_hung_up.set()
    with pytest.raises(asyncio.CancelledError):
        await bench.job
    assert bench.job.cancelled()


async def test_a_job_that_is_handed_over_is_not_stopped(bench: Bench) -> None:
    await bench.speaks.wait()
    bench.job.cancel()
    await bench.hangs_up.wait()
    bench.attempts._running["x"].stop()
    bench.has_hung_up.set()
    with pytest.raises(asyncio.CancelledError):
        await bench.job


async def test_what_says_all_of_it_although_it_was_stopped_has_said_it() -> None:
    attempts = RunningAttempts(Log(), None)  # type: ignore[arg-type]

    async def say() -> None:
        asyncio.get_running_loop().call_soon(attempts._running["x"].stop)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    writer: Any = Writer()
    assert await attempts.run(writer, {}, say) is True  # type: ignore[typeddict-item]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
