"""An appender whose connection breaks while something is under way: it is sent again over the next, though nobody else has
anything to send, and no log is looked after."""

from __future__ import annotations

import asyncio

from shared.cli.embedded import EmbeddedValkey
from shared.log.appender import Appender
from shared.store.commands import pack
from shared.store.redis import connect


async def test_what_was_under_way_goes_over_the_next_connection_by_itself(valkey: EmbeddedValkey) -> None:
    redis, other = connect(valkey.url, max_connections=4), connect(valkey.url, max_connections=2)
    try:
        async with asyncio.timeout(60), Appender(redis) as appender:
            for _ in range(3):  # now it is connected, and waits
                await appender.send(pack(b"PING"), 1)
            asked = appender.ask(pack(b"BLPOP", b"what-is-waited-for", b"0"), 1)
            for _ in range(2):
                while not (waiting := [one for one in await other.client_list() if one["cmd"] == "blpop"]):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await other.client_kill_filter(_id=waiting[0]["id"])
            await other.rpush("what-is-waited-for", "it")  # type: ignore[misc]
            replies, _ = await asked
            assert replies == [[b"what-is-waited-for", b"it"]]
    finally:
        await redis.aclose(close_connection_pool=True)
        await other.aclose(close_connection_pool=True)
