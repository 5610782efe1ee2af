"""Pipelines: commands that are sent together, as one transaction or not. And those whose keys may be in two places: those of a
cell, and the control's.

Hidden here: that all commands are packed and all replies read in one go, where redis-py makes a dozen calls for each; that a
pipeline which watches keys is told that it has met the wrong server, not that another client wrote: it would be tried again, at
once, for as long as that lasts. And in which place a command is queued: on one node there is one, and nothing is split. Where
the control is apart, `control` is a second transaction, which whoever has the first one does before or after it, and says why
that survives the end of a process in between (docs/decisions/0019).
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.client import Pipeline as _Pipeline
from redis.exceptions import ExecAbortError, ResponseError, TimeoutError, WatchError

from shared.lib.tasks import within
from shared.store.cluster.slots import slot_of
from shared.store.connections import REPEATED, Mended, close_idle, packed_queue, read_at_once
from shared.store.lasting.channel import Channel
from shared.store.outage import WrongServer

_MULTI: Any = (("MULTI",), {})
_EXEC: Any = (("EXEC",), {})


class Pipeline(_Pipeline):
    """In one place. Queued commands are `(words, options)`."""

    reads_much = False
    """Its replies may be so long that nobody else's should stand behind them."""
    given_up: tuple[Callable[[], Sequence[Any]], ...] = ()
    """Makes the commands that take back what is queued. They go behind it over the same connection if its caller does not wait
    for the replies: a server that hangs does both when it can, one after the other, and nothing comes of what was refused."""
    _packed: list[bytes] | None = None
    """What is queued, as it is sent."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Over the pool's channel where it needs no connection of its own; where that breaks, one is the repetition."""
        alone = self.connection is not None or self.explicit_transaction or self.reads_much
        channel = None if alone else Channel.of(self.connection_pool)
        commands: Any = self.command_stack
        if channel is None or not commands:
            return await super().execute(raise_on_error)
        self._packed = packed = self._pack(commands)
        try:
            if (whole := channel.takes(packed)) is None:
                return await super().execute(raise_on_error)
            wire = await channel.wire()
            try:
                replies = await wire.converse(whole, len(packed))
            except REPEATED:
                return await super().execute(raise_on_error)
            except (asyncio.CancelledError, TimeoutError):
                wire.forsake(*self._take_back())
                raise
        finally:
            self._packed, self.command_stack = None, []
        return (self._committed if self.is_transaction else self._answered)(commands, replies, raise_on_error)

    async def reset(self) -> None:
        """Its connection is given back whatever happens: redis-py keeps one for good whose server does not answer UNWATCH. On
        one that is closed nothing is watched: redis-py would connect it again to say so."""
        if self.connection is not None and not self.connection.is_connected:
            self.watching = False
        try:
            await super().reset()  # type: ignore[no-untyped-call]
        except BaseException as error:
            connection, self.connection, self.watching = self.connection, None, False
            self.explicit_transaction = False
            if connection is not None:
                await connection.disconnect(nowait=True)
                await self.connection_pool.release(connection)
            if not isinstance(error, TimeoutError):
                raise

    def _pack(self, commands: Any) -> list[bytes]:
        in_one = self.is_transaction or self.explicit_transaction
        return self._packed or packed_queue([_MULTI, *commands, _EXEC] if in_one else commands)

    def _take_back(self) -> tuple[bytes, int]:
        """What takes it back, packed, and how many replies there are to it."""
        commands = [words for one in self.given_up for words in one()]
        return b"".join(map(pack_command, commands)), len(commands)

    async def _execute_transaction(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        replies = await _exchange(connection, self._pack(commands), self._take_back)
        if replies is None:
            return await super()._execute_transaction(connection, commands, raise_on_error)
        return self._committed(commands, replies, raise_on_error)

    def _committed(self, commands: Any, replies: list[Any], raise_on_error: bool) -> list[Any]:
        done = outcome(replies)
        self.watching = False  # EXEC lets go of all keys
        if done is None:
            raise WatchError("Another client wrote meanwhile.")
        return self._answered(commands, done, raise_on_error)

    async def _execute_pipeline(self, connection: Any, commands: Any, raise_on_error: bool) -> Any:
        replies = await _exchange(connection, self._pack(commands), self._take_back)
        if replies is None:
            return await super()._execute_pipeline(connection, commands, raise_on_error)
        return self._answered(commands, replies, raise_on_error)

    def _answered(self, commands: Any, replies: list[Any], raise_on_error: bool) -> list[Any]:
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, ResponseError):
                    raise reply
        return self.answers(commands, replies)

    def answers(self, commands: Sequence[Any], replies: Sequence[Any]) -> list[Any]:
        """What redis-py makes of the replies to queued commands."""
        found: list[Any] = []
        callbacks: Any = self.response_callbacks
        for (words, options), reply in zip(commands, replies, strict=True):
            callback = dict.get(
                callbacks, words[0]
            )  # its own `get` looks for other spellings, for which there is no use
            if callback is not None and not isinstance(reply, Exception):
                reply = callback(reply, **{name: value for name, value in options.items() if name != "keys"})
            found.append(reply)
        return found

    @property
    def queued(self) -> list[Any]:
        return list(self.command_stack)

    @queued.setter
    def queued(self, commands: list[Any]) -> None:
        self.command_stack = commands

    def alone(self) -> Pipeline:
        """A fresh one over the same pool, which is no transaction."""
        return Pipeline(self.connection_pool, self.response_callbacks, False, None)

    async def do(self, *words: Any) -> Any:
        """One command, in the place of all that may be queued, which is a step by itself: its reply, errors as values. For a
        pipeline that watches nothing. Another one (`alone`) would do the same, for a tenth of what it costs to send one."""
        self.command_stack, was = [(words, {})], self.is_transaction
        self.is_transaction = False
        try:
            return (await self.execute(raise_on_error=False))[0]
        finally:
            self.is_transaction = was

    async def begin_to_watch(self, _name: str) -> Any:
        """The connection over which WATCH of that key is to be sent next: its own, if it watches already. From here on the
        pipeline gives it back, and lets go of the keys, when it is reset."""
        self.connection = connection = self.connection or await self.connection_pool.get_connection()
        self.watching = True
        return connection

    async def _disconnect_raise_reset(self, conn: Any, error: Exception) -> None:
        if self.watching and isinstance(error, WrongServer):
            self.watching = False
            await conn.disconnect(nowait=True)
            raise error
        await super()._disconnect_raise_reset(conn, error)

    async def _disconnect_reset_raise(self, conn: Any, error: Exception) -> None:
        if self.watching and isinstance(error, WrongServer):
            self.watching = False
            await conn.disconnect(nowait=True)
            raise error
        await super()._disconnect_reset_raise(conn, error)  # type: ignore[no-untyped-call]


def outcome(replies: Sequence[Any]) -> Any:
    """What EXEC replied, of the replies to a transaction. Raises what it was refused for: so was one of its commands, or MULTI,
    without which the others were done one by one."""
    begun, *queued, done = replies
    if isinstance(begun, Exception):
        raise begun
    if isinstance(done, ExecAbortError):
        done = next((reply for reply in queued if isinstance(reply, ResponseError)), done)
    if isinstance(done, Exception):
        raise done
    return done


class CellPipeline(Pipeline):
    """`apart`: what is the control's cannot be in this transaction."""

    def __init__(
        self, pool: ConnectionPool, callbacks: Any, transaction: bool, hint: str | None, *, apart: bool
    ) -> None:
        super().__init__(pool, callbacks, transaction, hint)
        self._apart = apart and transaction
        self._control: CellPipeline | None = None

    @property
    def control(self) -> Any:
        """Where commands are queued whose keys are the control's: this one, if they may be in its transaction."""
        if not self._apart:
            return self
        if self._control is None:
            self._control = self._beside()
        return self._control

    def place_of(self, name: bytes) -> int:
        """Where a key is: one script may have those of one place."""
        return slot_of(name)

    def _beside(self) -> CellPipeline:
        return CellPipeline(self.connection_pool, self.response_callbacks, True, None, apart=False)


async def _exchange(
    connection: Any, packed: Sequence[bytes], take_back: Callable[[], tuple[bytes, int]]
) -> list[Any] | None:
    """Sends packed commands, and returns as many replies, errors among them as values. None, and nothing is sent, where the
    connection is not one of these: a test's. Raises ConnectionError, TimeoutError."""
    if not isinstance(connection, Mended):
        return None
    if not connection.is_connected:
        await connection.connect()
    timeout_s, connection.socket_timeout = connection.socket_timeout, None
    try:
        async with within(timeout_s) as limit:  # for each silence, and for what is written

            def again() -> None:
                if limit is not None and timeout_s is not None:
                    limit.reschedule(asyncio.get_running_loop().time() + timeout_s)

            writer: Any = connection._writer
            try:
                await connection.send_packed_command(packed)
            except asyncio.CancelledError:
                writer.transport.abort()  # closed, it would still send the rest
                raise
            again()
            return await read_at_once(connection, len(packed), again, lambda: take_back()[0])
    except builtins.TimeoutError:
        await close_idle(connection)
        raise TimeoutError("The server did not answer in time.") from None
    finally:
        connection.socket_timeout = timeout_s
