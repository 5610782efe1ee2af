"""How many watch what, through all API processes: each says so of itself, at most once a second.

Hidden here: a key for each process, with an end, so that the viewers of one that was killed are counted no more after a while;
and that only the most watched are told, so that a key stays small.
"""

from __future__ import annotations

import asyncio
from heapq import nlargest

from api.live.hub import Hub
from shared.lib import json
from shared.store.redis import ArqRedis

_EVERY_S = 1.0
_AGAIN_S = 5.0
_LIFE_S, _NAMES_S = 15, 86400
_MOST = 500
"""So many generations are told, those with the most viewers first."""

Counts = dict[str, dict[str, int]]
"""By tenant, by id."""


class Watching:
    """Of one API process; `run` tells until it is cancelled. Methods raise RedisError, OSError."""

    def __init__(self, redis: ArqRedis, hub: Hub, name: str) -> None:
        self._redis, self._key, self._hub = redis, redis.key, hub
        self._name = name

    async def run(self) -> None:
        said, said_at = "{}", 0.0
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_EVERY_S)
            now = json.dumps(self._counts()).decode()
            if now == said and (now == "{}" or clock() - said_at < _AGAIN_S):
                continue
            await self._say(now)
            said, said_at = now, clock()

    def _counts(self) -> Counts:
        found: Counts = {}
        for tenant, generation_id, viewers in nlargest(_MOST, self._hub.watched(), key=lambda one: one[2]):
            found.setdefault(tenant, {})[generation_id] = viewers
        return found

    async def _say(self, text: str) -> None:
        mine = self._key.watching_through(self._name)
        async with self._redis.pipeline(transaction=True) as pipe:
            if text == "{}":
                pipe.delete(mine)
                pipe.srem(self._key.watching, self._name)
            else:
                pipe.set(mine, text, ex=_LIFE_S)
                pipe.sadd(self._key.watching, self._name)
                pipe.expire(self._key.watching, _NAMES_S)
            await pipe.execute()

    async def look(self) -> Counts:
        """Of all processes together."""
        members: set[bytes] = await self._redis.smembers(self._key.watching)  # type: ignore[misc]
        names = [self._key.watching_through(member.decode()) for member in sorted(members)]
        total: Counts = {}
        for told in await self._redis.mget(names) if names else ():
            for tenant, counts in json.loads(told).items() if told else ():
                mine = total.setdefault(tenant, {})
                for generation_id, viewers in counts.items():
                    mine[generation_id] = mine.get(generation_id, 0) + viewers
        return total
