"""The tests' own look into Redis, past everything that is tested, and their own hand on its settings.

Hidden here: that redis-py 5 has one set of type hints for its two clients, so that each command of the blocking one is
said to return `Awaitable[Any] | Any`. A test that reads a key would have to deny the first half every time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import redis

Store: TypeAlias = Any
"""A `redis.Redis`; Any for the reason above."""


def open_store(url: str, **options: Any) -> Store:
    """A blocking client of the server at `url`; a context manager, as redis-py's is."""
    return redis.Redis.from_url(url, **options)


async def do(client: Any, commands: Sequence[Sequence[Any]]) -> None:
    """Has commands done that a worker sends over its one connection, whatever is answered."""
    async with client.pipeline(transaction=False) as pipe:
        for words in commands:
            pipe.execute_command(*words, **({"as_score": True} if words[0] == "ZADD" else {}))
        await pipe.execute(raise_on_error=False)


@asynccontextmanager
async def configured(client: Any, **values: Any) -> AsyncIterator[None]:
    """CONFIG SET with `values` (`maxmemory_policy` for `maxmemory-policy`), and back to what it was before.

    The server is often one that all tests of a process share: what is left changed there fails a test elsewhere.
    """
    names = {name.replace("_", "-"): value for name, value in values.items()}
    before = {name: (await client.config_get(name))[name] for name in names}
    try:
        for name, value in names.items():
            await client.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            await client.config_set(name, value)
