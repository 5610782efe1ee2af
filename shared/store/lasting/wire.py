"""A connection that has one owner, spoken to without a task: what is sent is written at once, replies are told as they come.

Hidden here: the protocol that takes the place of asyncio's streams, through which each command and each reply costs two turns
of the loop and a time limit; whose replies are whose; that a server which says nothing is noticed. What it uses of redis-py's
that is not documented is named with that of connections.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, TimeoutError

from shared.store.connections import Mended, close_idle, learn, leave_wrong_server
from shared.store.outage import UNREACHABLE, Redirected

_SILENT_S = 1.0
"""Shorter than what a caller of the broker waits for, and longer than a server that is well takes."""

Answered = Callable[[list[Any] | Exception], object]
"""Is told replies, errors among them as values, or why there are none."""


class Wire(asyncio.Protocol):
    """Of a connection that is connected and waits for nothing, until that is disconnected.

    `told` gets what comes unasked; without it, whoever says that is none to talk to. `on_failure` is called once, when it is of
    no use any more: `failure` says why. With `redirects`, Redirected is a reply as any other.
    """

    def __init__(
        self,
        connection: Mended,
        told: Callable[[list[Any]], object] | None = None,
        on_failure: Callable[[], object] = lambda: None,
        *,
        redirects: bool = False,
    ) -> None:
        self.connection, self._told, self._on_failure = connection, told, on_failure
        self._redirects = redirects
        self.failure: Exception | None = None
        self._waiting: deque[tuple[int, Answered]] = deque()
        self._conversing = 0
        """How many tasks wait."""
        self._replies: list[Any] = []
        """Of the first who waits."""
        self._unheard = 0
        """Last words to which there is no reply yet."""
        self._loop = asyncio.get_running_loop()
        self._timeout_s = connection.socket_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = 0.0
        parser: Any = connection._parser
        stream: Any = connection._reader
        writer: Any = connection._writer
        self._parser, self._reader = parser, parser._reader
        self._transport = writer.transport
        self._place, self._moves = connection.place, connection.moves
        self._streams = self._transport.get_protocol()
        if self._transport.is_closing() or stream._buffer or stream.at_eof() or stream.exception() is not None:
            self.failure = ConnectionError("The connection was closed.")  # nobody would be told of it any more
        else:
            self._transport.set_protocol(self)

    def send(self, packed: bytes, replies: int, answered: Answered) -> None:
        """Packed commands. Whoever waits is answered in order, and all of them when it fails, at once if it has."""
        if self.failure is None and self._moves != self._place.moves:
            self.fail(ConnectionError("The connection led to the wrong server."))
        if self.failure is not None:
            answered(self.failure)
            return
        if not self._waiting:
            self._heard_at = self._loop.time()
            if self._timer is None and self._timeout_s is not None:
                self._timer = self._loop.call_later(self._timeout_s, self._look)
        self._waiting.append((replies, answered))
        try:
            self._transport.write(packed)
        except RuntimeError:  # uvloop's, of one that is closed
            self.fail(ConnectionError("The connection was closed."))

    def say(self, packed: bytes) -> None:
        """Packed commands, to which there are no replies but what is told."""
        if self.failure is not None:
            raise self.failure
        try:
            self._transport.write(packed)
        except RuntimeError:  # uvloop's, of one that is closed
            self.fail(ConnectionError("The connection was closed."))

    async def converse(self, packed: bytes, replies: int) -> list[Any]:
        """The replies. Raises RedisError, OSError."""
        answer: asyncio.Future[list[Any]] = self._loop.create_future()

        def answered(found: list[Any] | Exception) -> None:
            if answer.done():
                return
            if isinstance(found, Exception):
                answer.set_exception(copy(found))
            else:
                answer.set_result(found)

        self.send(packed, replies, answered)
        self._conversing += 1
        try:
            return await answer
        except (RedisError, OSError):
            await self.check()
            raise
        finally:
            self._conversing -= 1

    async def check(self) -> None:
        """Raises its failure, after what follows from that for others that lead to the same server."""
        if self.failure is not None:
            if isinstance(self.failure, TimeoutError):
                await close_idle(self.connection)
            if isinstance(self.failure, Redirected):
                learn(self.connection, self.failure)
            await leave_wrong_server(self.connection)
            raise copy(self.failure)  # each who waits adds its frames to it

    def fail(self, failure: Exception) -> None:
        """It is of no use any more."""
        if self.failure is not None:
            return
        self.failure = failure
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        for _, answered in waiting:
            answered(failure)
        self._on_failure()

    def forsake(self, last_words: bytes = b"", replies: int = 0) -> None:
        """Who conversed does not wait any more. It may say `last_words`: packed commands that take back what it said. Else it
        is closed, if nobody waits and nothing was heard for long: a server that hangs is to do nothing of what its callers were
        told has failed. Where others wait, they would ask once more, and what the server has of them already would be done
        twice."""
        if self.failure is not None:  # the server was silent: what it has of this it may do yet
            if last_words and not self._transport.is_closing():
                self._unheard += 1
                self._transport.write(last_words)
            return
        if last_words:
            self._unheard += 1
            self.send(last_words, replies, self._took_back)
        is_left = self._waiting and not self._conversing and not self._unheard
        if is_left and self._loop.time() - self._heard_at > _SILENT_S:
            self.fail(ConnectionError("The server did not answer in time."))
            self._transport.abort()

    def _took_back(self, replies: list[Any] | Exception) -> None:
        if not isinstance(replies, Exception):
            self._unheard -= 1

    def let_go(self) -> asyncio.StreamWriter | None:
        """Its writer, no longer the connection's, where last words were said and not heard yet: closed, it would answer the
        first reply with a reset, for which a server drops what it has not read. A writer that nobody holds closes itself."""
        connection: Any = self.connection
        writer: asyncio.StreamWriter | None = connection._writer
        if not self._unheard or writer is None or writer.is_closing():
            return None
        connection._parser.on_disconnect()
        connection._reader = connection._writer = None
        return writer

    def _look(self) -> None:
        """Whether it has been silent for too long."""
        self._timer = None
        if not self._waiting or self._timeout_s is None:
            return
        left_s = self._heard_at + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self.fail(TimeoutError("The server did not answer in time."))

    # ---- what the transport calls

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            replies = list(iter(self._reader.gets, NOT_ENOUGH_DATA))
        except (RedisError, ValueError) as error:  # no replies of this protocol
            self.fail(error if isinstance(error, RedisError) else InvalidResponse(str(error)))
            return
        failure: Exception | None = None
        for reply in replies:
            if isinstance(reply, Exception) and isinstance(reply, UNREACHABLE):
                if self._redirects and isinstance(reply, Redirected):
                    continue
                failure = reply
                replies = replies[: [one is reply for one in replies].index(True)]  # what came before it was done
                break
        if self._replies:
            replies, self._replies = [*self._replies, *replies], []
        while replies and self._waiting:
            count, answered = self._waiting[0]
            if len(replies) < count:
                self._replies = replies
                break
            self._waiting.popleft()
            answered(replies if len(replies) == count else replies[:count])
            replies = replies[count:]
        else:
            if replies:
                self._tell(replies)
        if failure is not None:
            self.fail(failure)
        elif self._parser.wrong:  # within a reply, whose others are replies all the same
            self.fail(ConnectionError("The connection leads to the wrong server."))

    def _tell(self, replies: list[Any]) -> None:
        """Of what was not asked for."""
        if self._told is not None:
            self._told(replies)
        else:
            self.fail(ConnectionError("The server said what was not asked for."))

    def eof_received(self) -> None:
        self._streams.eof_received()
        self.fail(ConnectionError("The server closed the connection."))

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.connection_lost(error)
        self.fail(ConnectionError(f"The connection was lost: {error}" if error else "The connection was closed."))

    def pause_writing(self) -> None:
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        self._streams.resume_writing()
