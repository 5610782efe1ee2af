"""The tests' own look into Redis, past everything that is tested, and their own hand on its settings.

Hidden here: that redis-py 5 has one set of type hints for its two clients, so that each command of the blocking one is
said to return `Awaitable[Any] | Any`. A test that reads a key would have to deny the first half every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import redis

Store: TypeAlias = Any
"""A `redis.Redis`; Any for the reason above."""


def open_store(url: str, **options: Any) -> Store:
    """A blocking client of the server at `url`; a context manager, as redis-py's is."""
    return redis.Redis.from_url(url, **options)


def emptied(url: str) -> str:
    """The same URL, of a database in which nothing is left of whoever had it before."""
    with open_store(url) as client:
        client.flushdb()
    return url


async def do(client: Any, commands: Sequence[Sequence[Any]]) -> None:
    """Has commands done that a worker sends over its one connection, whatever is answered."""
    async with client.pipeline(transaction=False) as pipe:
        for words in commands:
            pipe.execute_command(*words, **({"as_score": True} if words[0] == "ZADD" else {}))
        await pipe.execute(raise_on_error=False)


async def heard_until(pubsub: Any, last: bytes) -> list[bytes]:
    """All that is said there, up to this. Channels are those of all databases: where others use the server, they ring, too."""
    heard: list[bytes] = []
    async with asyncio.timeout(60):
        while last not in heard:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            heard += [message["data"]] if message else []
    return heard


def sync(client: Store) -> None:
    """Returns once a kill takes nothing any more that the server has acknowledged: while a disk is slow, it keeps for a while
    what it is to write (valkey.io/topics/persistence, "appendfsync everysec")."""
    client.set("synced", 1, px=60_000)
    assert client.execute_command("WAITAOF", 1, 0, 60_000)[0] == 1


def replicate(client: Store) -> None:
    """Returns once a replica has all that this server was told so far. WAIT is for what its own client wrote, so it writes
    something."""
    client.set("replicated", 1, ex=60)
    assert client.wait(1, 30_000) == 1


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
