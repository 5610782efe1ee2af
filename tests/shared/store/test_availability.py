"""What callers of the broker meet in the place of Redis' errors, and when."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from types import SimpleNamespace

import pytest

from shared.errors import BadRequest, FileStorageFailed, Gone, NotFound, Unavailable
from shared.store import availability
from shared.store.availability import UncertainCreates, deadline, translate_errors
from shared.store.redis import RedisError


async def test_what_takes_too_long_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_DEADLINE_S", 0.01)
    with pytest.raises(Unavailable, match="does not answer"):
        async with deadline():
            await asyncio.Event().wait()


async def test_so_is_what_timed_out_by_itself() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        async with deadline():
            raise TimeoutError


async def test_other_errors_are_what_they_are() -> None:
    with pytest.raises(BadRequest):
        async with deadline():
            raise BadRequest("no")


async def test_who_is_cancelled_is_not_told_of_a_deadline() -> None:
    async def wait() -> None:
        async with deadline():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_deadline_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "_DEADLINE_S", 60.0)
    async with deadline():
        monkeypatch.setattr(availability, "_DEADLINE_S", 0.01)
        with pytest.raises(Unavailable):
            async with deadline():
                await asyncio.Event().wait()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (Gone("chatcmpl-1"), NotFound),
        (RedisError("no"), Unavailable),
        (ConnectionResetError(), Unavailable),
        (BadRequest("no"), BadRequest),
        (ValueError("a bug"), ValueError),
    ],
    ids=repr,
)
def test_what_redis_says_is_translated(error: Exception, shown: type[Exception]) -> None:
    with pytest.raises(shown), translate_errors():
        raise error


@pytest.mark.parametrize(
    ("error", "doubtful"),
    [(Unavailable("no"), True), (asyncio.CancelledError(), True), (BadRequest("no"), False)],
    ids=repr,
)
async def test_what_may_have_reached_redis_is_withdrawn(error: BaseException, doubtful: bool) -> None:
    doubts, withdrawn = UncertainCreates(), list[str]()

    async def withdraw(name: str) -> None:
        withdrawn.append(name)

    with doubts.about("chatcmpl-1"):
        pass
    with pytest.raises(type(error)), doubts.about("chatcmpl-2"):
        raise error
    for _ in range(2):
        await doubts.settle(withdraw)
    assert withdrawn == (["chatcmpl-2"] if doubtful else [])


async def test_what_is_not_there_yet_may_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for less and less often, but every 5 s at least."""
    doubts, asked, now = UncertainCreates(), list[float](), 1000.0
    monkeypatch.setattr(availability, "time", SimpleNamespace(monotonic=lambda: now))

    async def withdraw(name: str) -> None:
        asked.append(now - 1000)
        raise Gone(name)

    with pytest.raises(Unavailable), doubts.about("chatcmpl-1"):
        raise Unavailable("no")
    for _ in range(1000):
        await doubts.settle(withdraw)
        now += 0.125
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert asked[0] == 0
    assert pauses[0] < 0.2
    assert pauses == sorted(pauses)
    assert max(pauses) < 5.2
    assert 59 < asked[-1] < 66


@pytest.mark.parametrize("problem", [FileStorageFailed("away"), NotFound("gone"), ConnectionError("away")], ids=repr)
async def test_one_that_cannot_be_withdrawn_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    """Its storage fails, what it goes on from is gone, or its node is away; it is withdrawn once that is over."""
    doubts, withdrawn, failing, now = UncertainCreates(), list[str](), True, 1000.0
    monkeypatch.setattr(availability, "time", SimpleNamespace(monotonic=lambda: now))

    async def withdraw(name: str) -> None:
        if name == "chatcmpl-1" and failing:
            raise problem
        withdrawn.append(name)

    for number in (1, 2, 3):
        with pytest.raises(Unavailable), doubts.about(f"chatcmpl-{number}"):
            raise Unavailable("no")
    for _ in range(2):
        with suppress(ConnectionError):
            await doubts.settle(withdraw)
    assert withdrawn == ["chatcmpl-2", "chatcmpl-3"]
    failing, now = False, now + 6
    await doubts.settle(withdraw)
    assert withdrawn == ["chatcmpl-2", "chatcmpl-3", "chatcmpl-1"]
