"""Who watches with what, so that viewers are turned out once that is taken back: a key, a share, a browser's session.

Hidden here: that only what can be taken back is kept track of, since a server may have thousands of viewers; that a viewer that
has left is forgotten by itself; and how it is known that a share or a session has ended, whichever process ended it: as long as
somebody watches with one, it is looked whether it is still in Redis. Keys are the key ring's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakSet, WeakValueDictionary

from shared.store.outage import log_redis_error
from shared.store.redis import ArqRedis, RedisError

LOOK_S = 0.3
"""Between two looks: what was taken back is to end within a second."""


class Grant(NamedTuple):
    """What lets somebody watch until it goes from Redis: a key there. `idle_s`: who watches uses it, and so it is kept."""

    name: str
    idle_s: int | None = None


class Guest(Protocol):
    """A connection that shows something."""

    def turn_out(self) -> None: ...


class _Guests(WeakSet[Guest]):
    """`ended`: nobody looks at it any more, and who comes late is cut at once."""

    ended = False


class Among:
    """The sets that one connection is to be in."""

    __slots__ = ("_sets",)

    def __init__(self, sets: Sequence[_Guests]) -> None:
        self._sets = sets

    def add(self, guest: Guest) -> None:
        for one in self._sets:
            one.add(guest)
            if one.ended:
                guest.turn_out()


class Viewers:
    """Of one process."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._by_key: dict[str, _Guests] = {}
        self._by_grant: WeakValueDictionary[Grant, _Guests] = WeakValueDictionary()
        """Each for as long as a request that has it is served: one that comes late is found by the next look."""

    def of(self, key_id: str | None, grant: Grant | None = None) -> Among | None:
        """Where the connections of a key, and of a grant, are kept; None for a key that cannot be revoked."""
        sets = []
        if key_id is not None and key_id.startswith("key_"):
            sets.append(self._by_key.setdefault(key_id, _Guests()))
        if grant is not None:
            sets.append(self._by_grant.setdefault(grant, _Guests()))
        return Among(sets) if sets else None

    def turn_out(self, key_id: str) -> None:
        """Cuts all connections that show a stream for this key, or will: a request that was let in takes its time."""
        if (guests := self._by_key.pop(key_id, None)) is not None:
            guests.ended = True
            _cut(guests)

    async def look(self) -> None:
        """Cuts those whose grant is gone. Raises RedisError, OSError."""
        if not (held := list(self._by_grant.items())):
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for grant, _ in held:
                if grant.idle_s is None:
                    pipe.exists(grant.name)
                else:
                    pipe.expire(grant.name, grant.idle_s)
            there = await pipe.execute()
        for (_, guests), is_there in zip(held, there, strict=True):
            if not is_there:
                _cut(guests)

    async def run(self) -> None:
        """For ever, also while Redis is away: what cannot be looked at goes on."""
        while True:
            try:
                await self.look()
            except (RedisError, OSError) as error:
                log_redis_error("viewers", error)
            await asyncio.sleep(LOOK_S)


def _cut(guests: Iterable[Guest]) -> None:
    for guest in list(guests):
        guest.turn_out()
