"""Lists of many tenants as one: each thing once, in order, and a cursor of any of them goes on where it stands."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from shared.store.merged import Place, merged, paged
from shared.store.redis import ArqRedis
from tests.support.names import keys

Lists = dict[str, dict[str, int]]


def names(lists: Lists) -> dict[str, list[str]]:
    return {owner: [keys.files(owner)] for owner in lists}


async def write(redis: ArqRedis, lists: Lists) -> None:
    for owner, members in lists.items():
        if members:
            await redis.zadd(keys.files(owner), members)
            await redis.expire(keys.files(owner), 60)


async def taken(places: AsyncIterator[Place], most: int) -> list[Place]:
    found: list[Place] = []
    async for place in places:
        found.append(place)
        if len(found) == most:
            break
    return found


def some(chance: random.Random, *, owners: int, scores: int, most: int) -> Lists:
    """Some have none, many share a time, and some have the same name."""
    return {
        f"t{number}": {
            f"m{chance.randrange(most * 3)}": chance.randrange(scores) for _ in range(chance.randrange(most))
        }
        for number in range(owners)
    }


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("seed", range(4))
async def test_page_by_page_it_is_all_there_is_in_order(redis: ArqRedis, seed: int, *, newest_first: bool) -> None:
    chance = random.Random(seed)
    lists = some(chance, owners=7, scores=5, most=40)
    await write(redis, lists)
    expected = sorted(
        (Place(score, member, owner) for owner, members in lists.items() for member, score in members.items()),
        reverse=newest_first,
    )
    found: list[Place] = []
    while True:
        last = found[-1] if found else None
        after, of = (last.member, last.owner) if last else (None, None)
        page = await taken(merged(redis, names(lists), after, of=of, newest_first=newest_first), 9)
        found += page
        if len(page) < 9:
            break
    assert found == expected


@pytest.mark.parametrize("newest_first", [True, False])
async def test_more_of_one_time_than_a_page_has(redis: ArqRedis, *, newest_first: bool) -> None:
    lists: Lists = {"a": {f"m{number:03}": 7 for number in range(450)}, "b": {"x": 7, "y": 1}}
    await write(redis, lists)
    rest = [place async for place in merged(redis, names(lists), "m200", newest_first=newest_first)]
    expected = sorted(
        (Place(score, member, owner) for owner, one in lists.items() for member, score in one.items()),
        reverse=newest_first,
    )
    assert rest == expected[expected.index(Place(7, "m200", "a")) + 1 :]


async def test_what_is_gone_meanwhile_is_left_out_and_nothing_else(redis: ArqRedis) -> None:
    lists: Lists = {"a": {f"m{number:03}": number for number in range(250)}}
    await write(redis, lists)
    found = []
    async for place in merged(redis, names(lists), newest_first=False):
        if place.member == "m050":
            await redis.zrem(keys.files("a"), *(f"m{number:03}" for number in range(60)))
        found.append(place.member)
    assert found == [f"m{number:03}" for number in range(250)], "the first page was read before"


@pytest.mark.parametrize(("after", "of"), [("none", None), ("m", "b"), ("m", "c")])
async def test_a_cursor_that_nobody_has(redis: ArqRedis, after: str, of: str | None) -> None:
    await write(redis, {"a": {"m": 1}, "b": {"n": 1}})
    with pytest.raises(LookupError):
        await taken(merged(redis, {"a": [keys.files("a")], "b": [keys.files("b")]}, after, of=of), 1)


async def test_nobody_has_anything(redis: ArqRedis) -> None:
    assert await taken(merged(redis, {}), 1) == []
    assert await taken(merged(redis, {"a": [keys.files("a")]}), 1) == []


async def test_some_at_a_time(redis: ArqRedis) -> None:
    await write(redis, {"a": {str(number): number for number in range(5)}})
    pages = [page async for page in paged(merged(redis, {"a": [keys.files("a")]}), 2)]
    assert [len(page) for page in pages] == [2, 2, 1]
