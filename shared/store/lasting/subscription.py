"""A channel that is listened to, without a task that wakes for each message.

Hidden here: SUBSCRIBE over a connection of one's own (redis.io/docs/latest/develop/interact/pubsub), and that a server which
says nothing is noticed: it is asked now and then. What is published while nobody listens is lost, as with any channel.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from redis.exceptions import ConnectionError

from shared.store.commands import pack
from shared.store.connections import Mended
from shared.store.jobs import ArqRedis
from shared.store.lasting.wire import Wire

Take = Callable[[bytes], bool]


async def listen(redis: ArqRedis, channel: str, take: Take, *, beat_s: float) -> AsyncGenerator[bytes, None]:
    """The channel's messages. Each is offered to `take` as it comes: one that is taken is not yielded, and wakes nobody.

    Where nothing came for `beat_s`, the server is asked whether it is there, and has as long to say so. Raises RedisError,
    OSError. To be closed, as any generator that holds something.
    """
    pool = redis.connection_pool
    connection = await pool.get_connection()
    try:
        if isinstance(connection, Mended):
            async for message in _Listening(connection, channel, take).messages(beat_s):
                yield message
        else:  # a test's
            async for message in _by_pubsub(redis, channel, take, beat_s):
                yield message
    finally:
        await connection.disconnect(nowait=True)  # it would be told what is published
        await pool.release(connection)


class _Listening:
    def __init__(self, connection: Mended, channel: str, take: Take) -> None:
        self._channel, self._take = channel, take
        self._left: deque[bytes] = deque()
        self._spoke = False
        self._stirred = asyncio.Event()
        self._wire = Wire(connection, self._told, self._stirred.set)

    async def messages(self, beat_s: float) -> AsyncGenerator[bytes, None]:
        wire, asked = self._wire, False
        await wire.check()
        (subscribed,) = await wire.converse(pack(b"SUBSCRIBE", self._channel.encode()), 1)
        if isinstance(subscribed, Exception):  # PING would be answered all the same
            raise subscribed
        while True:
            self._spoke = False
            try:
                async with asyncio.timeout(beat_s):
                    await self._stirred.wait()
            except TimeoutError:
                if asked and not self._spoke:  # it is gone without a word, and we would be deaf for ever
                    raise ConnectionError(f"Nothing is heard on {self._channel}.") from None
                if asked := not self._spoke:
                    wire.say(pack(b"PING"))
            else:
                asked = False
            self._stirred.clear()
            while self._left:
                yield self._left.popleft()
            await wire.check()

    def _told(self, replies: list[Any]) -> None:
        self._spoke = True
        for reply in replies:
            if isinstance(reply, Exception):
                self._wire.fail(reply)
            elif reply.__class__ is list and reply[:1] == [b"message"] and not self._take(reply[2]):
                self._left.append(reply[2])
                self._stirred.set()


async def _by_pubsub(redis: ArqRedis, channel: str, take: Take, beat_s: float) -> AsyncGenerator[bytes, None]:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(channel)
        while True:
            message = await pubsub.get_message(timeout=beat_s)
            if message is not None and message["type"] == "message" and not take(message["data"]):
                yield message["data"]
