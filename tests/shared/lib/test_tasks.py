from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import pairwise
from typing import Any

import pytest

from shared.lib import tasks
from shared.lib.tasks import Alarm, BatchedLookup, FairTurns, MovingTimeout, cancel, work_off


async def test_a_task_that_loses_cancellations_is_ended_all_the_same() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while lost < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1

    async def broken() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("dropped")

    tasks = [asyncio.create_task(task()) for task in (deaf, broken)]
    await asyncio.sleep(0)
    done = asyncio.create_task(asyncio.sleep(0))
    await done
    await asyncio.wait_for(cancel(*tasks, done), 60)
    assert lost == 2
    assert all(task.done() for task in tasks)
    await cancel()


async def waited(alarm: MovingTimeout, awaitable: Awaitable[Any], until: float) -> Any:
    """What is awaited, for so long."""
    alarm.start(until)
    kind: type[BaseException] | None = None
    try:
        return await awaitable
    except BaseException as error:
        kind = type(error)
        raise
    finally:
        alarm.stop(kind)


async def test_an_alarm_rings_at_its_time_and_again_at_the_next() -> None:
    loop, alarm = asyncio.get_running_loop(), MovingTimeout()
    for _ in range(3):
        with pytest.raises(MovingTimeout.Rang):
            await waited(alarm, asyncio.Event().wait(), loop.time() + 0.01)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    alarm.close()


async def test_an_alarm_that_is_moved_on_does_not_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is given: a loop that is late would find what is done and the alarm at once."""
    loop, alarm = asyncio.get_running_loop(), MovingTimeout()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)

    async def takes(seconds: float) -> str:
        nonlocal now
        now += seconds
        for _ in range(5):  # the loop has its turns, and sees what is due
            await asyncio.sleep(0)
        return "done"

    timers: set[asyncio.TimerHandle | None] = set()
    for _ in range(20):  # the timer goes off several times, too early
        assert await waited(alarm, takes(0.02), now + 0.03) == "done"
        timers.add(alarm._timer)
    assert len(timers) > 5
    with pytest.raises(MovingTimeout.Rang):
        await waited(alarm, takes(0.04), now + 0.03)
    assert await waited(alarm, takes(0), now + 10) == "done"
    with pytest.raises(MovingTimeout.Rang):  # an earlier time than the timer is set to
        await waited(alarm, takes(0.02), now + 0.01)
    alarm.close()


async def test_an_alarm_is_not_taken_for_a_cancellation_nor_the_other_way_round() -> None:
    alarm = MovingTimeout()
    waiting = asyncio.create_task(waited(alarm, asyncio.Event().wait(), asyncio.get_running_loop().time() + 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    async def both() -> None:
        loop, other = asyncio.get_running_loop(), MovingTimeout()
        task = asyncio.current_task()
        assert task is not None
        loop.call_at((until := loop.time() + 0.02), task.cancel)
        await waited(other, asyncio.Event().wait(), until)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(both())
    alarm.close()


async def test_an_error_is_not_hidden_by_an_alarm() -> None:
    async def fail() -> None:
        raise KeyError

    alarm = MovingTimeout()
    with pytest.raises(KeyError):
        await waited(alarm, fail(), asyncio.get_running_loop().time() + 60)
    alarm.close()


async def test_what_is_wanted_meanwhile_is_asked_for_at_once_and_never_before_it_was_wanted() -> None:
    asked: list[list[str]] = []
    go = asyncio.Semaphore(0)

    async def ask(keys: list[str]) -> list[int]:
        asked.append(keys)
        await go.acquire()
        return [len(asked)] * len(keys)

    found = BatchedLookup(ask, most=3)
    first = asyncio.create_task(found.get("a"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(found.get(key)) for key in "abacd"]
    await asyncio.sleep(0)
    rest[1].cancel()
    for _ in range(3):
        go.release()
    assert await first == 1
    await asyncio.gather(*rest, return_exceptions=True)
    assert asked == [["a"], ["a", "b", "c"], ["d"]]
    assert [task.result() for task in rest if not task.cancelled()] == [2, 2, 2, 3]


async def test_all_who_asked_hear_of_an_error_and_the_next_ask_anew() -> None:
    answers: list[Exception | int] = [OSError("away"), 1]

    async def ask(keys: list[str]) -> list[int]:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return [answer] * len(keys)

    found = BatchedLookup(ask, most=10)
    both = await asyncio.gather(found.get("a"), found.get("b"), return_exceptions=True)
    assert [str(error) for error in both] == ["away", "away"]
    assert await found.get("a") == 1


async def test_so_many_go_in_each_round_in_their_order() -> None:
    rounds, seen, now = FairTurns(2), [], 0

    async def go(number: int) -> None:
        await rounds.turn()
        seen.append((number, now))

    tasks = [asyncio.create_task(go(number)) for number in range(7)]
    gone = tasks.pop(4)
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        now += 1
        if now == 1:
            gone.cancel()
    assert [number for number, _ in seen] == [0, 1, 2, 3, 5, 6]
    at = [round_ for _, round_ in seen]
    assert max(at.count(round_) for round_ in at) == 2
    await asyncio.gather(*(rounds.turn() for _ in range(5)))


async def test_one_goes_in_so_many_rounds() -> None:
    rounds, seen, now = FairTurns(1, rounds=3), [], 0

    async def go() -> None:
        await rounds.turn()
        seen.append(now)

    tasks = [asyncio.create_task(go()) for _ in range(4)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        now += 1
    assert [later - earlier for earlier, later in pairwise(seen[1:])] == [3, 3]


async def test_who_waits_is_held_while_others_go_first_and_half_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, rounds = asyncio.get_running_loop(), FairTurns(1)
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    rounds.hold(10)
    waiting = [asyncio.create_task(rounds.turn()) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False, False]  # the first had not to wait for anybody
    now += 11
    rounds.hold(10)  # not before they had as long
    await asyncio.gather(*waiting)
    now += 10
    rounds.hold(10)
    again = [asyncio.create_task(rounds.turn()) for _ in range(2)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert [task.done() for task in again] == [True, False]
    now += 11
    await asyncio.gather(*again)


class Due:
    """A list of what is due."""

    def __init__(self, members: int) -> None:
        self.left = [b"%d" % number for number in range(members)]
        self.asked = self.running = self.most = 0

    async def page(self) -> list[bytes]:
        self.asked += 1
        return self.left[:10]

    async def do(self, member: str) -> bool:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        self.left.remove(member.encode())
        return True


async def test_all_that_is_due_is_worked_off_page_by_page() -> None:
    due, turns = Due(95), 0

    async def others() -> None:
        nonlocal turns
        while due.left:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    assert await work_off(due.page, due.do, at_once=3) == 95
    await beside
    assert (due.left, due.most, due.asked) == ([], 3, 11)
    assert turns > 30, "the loop is left to others"


async def test_what_cannot_be_done_now_is_left() -> None:
    due = Due(30)

    async def not_now(member: str) -> bool:
        return False

    assert await work_off(due.page, not_now, at_once=3) == 0
    assert due.asked == 1


async def test_no_more_is_begun_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    due, clock = Due(100), iter(range(10_000))
    monkeypatch.setattr(tasks, "monotonic", lambda: next(clock))
    monkeypatch.setattr(tasks, "WORKED_S", 25)
    assert 0 < await work_off(due.page, due.do, at_once=3) < 30
    assert len(due.left) > 70
    assert not due.running


async def test_an_error_is_told_once_all_that_was_begun_has_ended() -> None:
    due, began, ended = Due(10), 0, 0

    async def fails(member: str) -> bool:
        nonlocal began, ended
        began += 1
        if member == "0":
            raise OSError("away")
        await asyncio.sleep(0)
        ended += 1
        return True

    with pytest.raises(OSError, match="away"):
        await work_off(due.page, fails, at_once=4)
    assert (began, ended) == (10, 9)


async def test_an_alarm_ends_a_sleep_when_it_is_set_or_its_time_has_come() -> None:
    alarm, loop = Alarm(), asyncio.get_running_loop()
    far = loop.time() + 3600
    await alarm.sleep(loop.time())
    sleeper = asyncio.create_task(alarm.sleep(far))
    await asyncio.sleep(0)
    assert not sleeper.done()
    alarm.set()
    alarm.set()
    await sleeper
    alarm.set()
    await alarm.sleep(far)
    again = asyncio.create_task(alarm.sleep(far))
    await asyncio.sleep(0)
    assert not again.done(), "it was set for one sleep"
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    alarm.set()
    await alarm.sleep(far)


async def test_the_time_of_a_sleep_that_was_ended_before_ends_no_other() -> None:
    alarm, loop = Alarm(), asyncio.get_running_loop()
    soon = loop.time() + 0.02
    alarm.set()
    await alarm.sleep(soon)
    loop.call_soon(alarm.set)
    await alarm.sleep(soon)
    sleeper = asyncio.create_task(alarm.sleep(soon + 3600))
    passed = loop.create_future()
    loop.call_at(soon + 0.01, passed.set_result, None)
    await passed
    assert not sleeper.done()
    alarm.set()
    await sleeper
