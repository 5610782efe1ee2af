"""What waits and what runs, to be looked at: how much of each lane, whose it is, and how long it has been waiting.

Hidden here: that a tenant may still be named for a moment after its last job has left, and how much is looked at: however many
tenants wait, a look takes two round trips and so many commands. What was taken within the last 40 ms may be counted as waiting,
too. Methods raise RedisError and OSError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shared.store.commands import exchange_all, pack
from shared.store.keys import Lane
from shared.store.redis import ArqRedis
from shared.store.transaction import raise_first

MOST_TENANTS = 200
"""Of each lane, those whose turn it is next."""


class TenantBacklog(NamedTuple):
    """A tenant's jobs that wait in a lane; `oldest_ms` is when the oldest of them was put there, in Unix milliseconds."""

    tenant: str
    waiting: int
    oldest_ms: int


class LaneBacklog(NamedTuple):
    """`more` tenants were not looked at, and `tenants` are the others that have jobs waiting, the most of them first."""

    lane: Lane
    running: int
    tenants: list[TenantBacklog]
    more: int

    @property
    def waiting(self) -> int:
        return sum(one.waiting for one in self.tenants)

    @property
    def oldest_ms(self) -> int | None:
        return min((one.oldest_ms for one in self.tenants), default=None)


class Backlog:
    """`look`, as often as is wanted: nothing is kept."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis, self._key = redis, redis.key

    async def look(self, tenant: str | None = None) -> list[LaneBacklog]:
        """Every lane; with a tenant, of what waits only its own."""
        key, last = self._key, b"%d" % (MOST_TENANTS - 1)
        commands = [pack(b"ZCARD", key.running(lane).encode()) for lane in Lane]
        if tenant is None:
            commands += [pack(b"ZCARD", key.tenants(lane).encode()) for lane in Lane]
            commands += [pack(b"ZRANGE", key.tenants(lane).encode(), b"0", last) for lane in Lane]
        replies = await exchange_all(self._redis, commands)
        raise_first(replies)
        running, known, named = (replies[at : at + len(Lane)] for at in range(0, 3 * len(Lane), len(Lane)))
        names = [[one.decode() for one in page] for page in named] if tenant is None else [[tenant]] * len(Lane)
        found = await self._of(list(zip(Lane, names, strict=True)))
        return [
            LaneBacklog(lane, running[at], found[at], max(0, known[at] - len(names[at])) if known else 0)
            for at, lane in enumerate(Lane)
        ]

    async def _of(self, wanted: Sequence[tuple[Lane, list[str]]]) -> list[list[TenantBacklog]]:
        commands = []
        for lane, names in wanted:
            for name in names:
                waiting = self._key.waiting(lane, name).encode()
                commands += [pack(b"ZCARD", waiting), pack(b"ZRANGE", waiting, b"0", b"0", b"WITHSCORES")]
        replies = await exchange_all(self._redis, commands) if commands else []
        raise_first(replies)
        told = iter(zip(replies[::2], replies[1::2], strict=True))
        pages = [[(name, *next(told)) for name in names] for _, names in wanted]
        return [
            sorted(
                (TenantBacklog(name, count, int(float(first[1]))) for name, count, first in page if first),
                key=lambda one: (-one.waiting, one.tenant),
            )
            for page in pages
        ]
