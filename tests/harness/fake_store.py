"""A stand-in for Redis, for tests of which real servers have their share as well.

Hidden here: how fakeredis is made the server of the product's own client.
"""

from __future__ import annotations

import fakeredis
from fakeredis.aioredis import FakeAsyncRedisConnection
from redis.asyncio import ConnectionPool

from shared.store.redis import ArqRedis
from tests.support.names import keys


def fake_client() -> ArqRedis:
    """A client of a server of its own, in this process, whose model is Redis 7."""
    pool: ConnectionPool = ConnectionPool(
        connection_class=FakeAsyncRedisConnection, server=fakeredis.FakeServer(), version=(7,), server_type="redis"
    )
    return ArqRedis(pool, keys)
