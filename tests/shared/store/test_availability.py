"""What callers of the broker meet in the place of Redis' errors, and when."""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import BadRequest, Gone, NotFound, Unavailable
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
    doubts, asked = UncertainCreates(), list[str]()

    async def withdraw(name: str) -> None:
        asked.append(name)
        raise Gone(name)

    with pytest.raises(Unavailable), doubts.about("chatcmpl-1"):
        raise Unavailable("no")
    await doubts.settle(withdraw)
    await doubts.settle(withdraw)
    assert asked == ["chatcmpl-1"] * 2
    monkeypatch.setattr(availability, "_DOUBT_S", -1.0)
    with pytest.raises(Unavailable), doubts.about("chatcmpl-1"):
        raise Unavailable("no")
    await doubts.settle(withdraw)
    await doubts.settle(withdraw)
    assert asked == ["chatcmpl-1"] * 3
