"""What waits to be sent to one server: commands whose replies somebody wants, and others that are only told.

Hidden here: that everything which waits goes at once, and what comes while that is under way goes next, a little later
where the process is busy; that no task wakes for it over a connection of one's own (`Wire`); and that what was not answered is
first in line on the next connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from shared.lib.busy import BusyPauses
from shared.store.commands import Words, converse, pack_as_one
from shared.store.lasting.wire import Wire

_TOLD_S = 0.02
"""How long what is only told waits for something that is sent anyway."""

Asked = tuple[list[Any], str | None]
"""Replies, errors among them as values, and the identity of the server that gave them, None if that cannot be told."""


class Item(Protocol):
    """Commands that somebody wants the replies to."""

    packed: bytes
    replies: int
    owner: Any
    """What it is about."""

    def done(self) -> bool:
        """Whether nobody does any more."""

    def set_result(self, asked: Asked, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...
    def cancel(self) -> None: ...


class Awaited:
    """An `Item` of a task that waits for `answer`."""

    __slots__ = ("answer", "owner", "packed", "replies")

    def __init__(self, packed: bytes, replies: int, answer: asyncio.Future[Asked], owner: object) -> None:
        self.packed, self.replies, self.answer, self.owner = packed, replies, answer, owner

    def done(self) -> bool:
        return self.answer.done()

    def set_result(self, asked: Asked, /) -> None:
        self.answer.set_result(asked)

    def set_exception(self, error: Exception, /) -> None:
        self.answer.set_exception(error)

    def cancel(self) -> None:
        self.answer.cancel()


_Told = tuple[Sequence[Words], bytes, int]
"""What is to be done as one; packed; and the number of its replies."""


class Outbox:
    """`wake` is set when a task has to look: there is something to send that cannot be sent here, or the connection failed."""

    def __init__(self, pauses: BusyPauses) -> None:
        self.wake = asyncio.Event()
        self.pending: list[Item] = []
        self.server: str | None = None
        """The identity of the server that the connection leads to."""
        self._pauses = pauses
        self._told: list[_Told] = []
        self._telling: asyncio.TimerHandle | None = None
        self._wire: Wire | None = None
        """Over this may be sent without a task."""
        self._until = 0.0
        self._sent: tuple[list[Item], list[_Told]] | None = None
        """What is under way over the wire."""
        self._landed: asyncio.Future[None] | None = None
        self._is_scheduled = self._is_telling = False
        self._rest: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """To be called in the loop that it is used in, before anything else."""
        self._loop = asyncio.get_running_loop()

    # ---- what is to be sent

    def put(self, item: Item) -> None:
        self.pending.append(item)
        self._stir()

    def tell(self, commands: Sequence[Words]) -> None:
        """They are done as one, before whatever is sent next, or alone some 20 ms later: at once, they would stand in the way
        of a first chunk, which waits for replies that are under way."""
        self._told.append((commands, *pack_as_one(commands)))
        if self._telling is None:
            self._telling = self._loop.call_later(_TOLD_S, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        self._stir()

    def take_back(self, commands: Sequence[Words]) -> list[Words]:
        """Those of the commands that were told and are not sent yet: they are the caller's again."""
        if found := [told for told in self._told if told[0][0] in commands] if commands else []:
            self._told = [told for told in self._told if told not in found]
        return [commands[0] for commands, *_ in found]

    @property
    def tells(self) -> bool:
        """Whether something that was told is not done yet."""
        return bool(self._told) or self._is_telling

    def close(self) -> None:
        """Nobody will send any more."""
        self.block()
        if self._telling is not None:
            self._telling.cancel()
        sent, self._sent = self._sent, None
        for item in (*(sent[0] if sent is not None else ()), *self.pending):
            item.cancel()

    # ---- by the task that has the connection

    async def send(self, connection: Any) -> None:
        """All that waits, and waits for the replies, and for a while where the process is busy. Raises RedisError, OSError."""
        batch, told = self._take()
        if not (batch or told):
            return
        try:
            self._answer(batch, told, await converse(connection, *_packed(batch, told)))
            batch, told = [], []
        finally:
            self._is_telling = False
            self._put_back(batch, told)
        if pause_s := self._pauses.next_s():
            await asyncio.sleep(pause_s)

    def allow(self, connection: Any, until: float) -> None:
        """Until `block`, or this time of the loop's, what waits or comes may be sent over the connection without the task."""
        self._wire, self._until = connection if isinstance(connection, Wire) else None, until
        if self.pending or (self._told and self._telling is None):  # put back, where the connection before it broke
            self._stir()

    def block(self) -> None:
        self._wire = None
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    async def landed(self) -> None:
        """Returns when nothing is under way that was sent without the task."""
        while self._sent is not None:
            self._landed = self._loop.create_future()
            await self._landed

    # ---- without a task

    def _stir(self) -> None:
        if self._wire is None:
            self.wake.set()
        elif not (self._is_scheduled or self._sent is not None or self._rest is not None):
            self._is_scheduled = True  # once the loop has read whatever else has come
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled, self._rest = False, None
        wire = self._wire
        if wire is None or wire.failure is not None or self._loop.time() >= self._until:
            self.wake.set()
            return
        if len(self.pending) == 1 and not self._told:  # almost always
            (item,), self.pending = self.pending, []
            if not item.done():
                self._sent = [item], []
                wire.send(item.packed, item.replies, self._answered)
            return
        batch, told = self._take()
        if batch or told:
            self._sent = batch, told
            wire.send(*_packed(batch, told), self._answered)

    def _answered(self, replies: list[Any] | Exception) -> None:
        if self._sent is None:  # closed meanwhile
            return
        (batch, told), self._sent = self._sent, None
        self._is_telling = False
        if isinstance(replies, Exception):
            self._put_back(batch, told)
        else:
            self._answer(batch, told, replies)
            if self._wire is not None and not self._is_scheduled and (pause_s := self._pauses.next_s()):
                self._rest = self._loop.call_later(pause_s, self._send)
            elif self.pending or (self._told and self._telling is None):
                self._stir()
        if self._landed is not None and not self._landed.done():
            self._landed.set_result(None)

    # ---- both

    def _take(self) -> tuple[list[Item], list[_Told]]:
        batch, self.pending = [item for item in self.pending if not item.done()], []
        told: list[_Told] = []
        if self._told and (batch or self._telling is None):
            told, self._told, self._is_telling = self._told, told, True
            if self._telling is not None:
                self._telling.cancel()
                self._telling = None
        return batch, told

    def _answer(self, batch: list[Item], told: list[_Told], replies: list[Any]) -> None:
        start, server = 0, self.server
        for *_, count in told:
            start += count
        for item in batch:
            count = item.replies
            if not item.done():
                item.set_result((replies[start : start + count], server))
            start += count

    def _put_back(self, batch: list[Item], told: list[_Told]) -> None:
        """Unanswered: first in line on the next connection."""
        if batch or told:
            self.pending[:0], self._told[:0] = batch, told
            self.wake.set()


def _packed(batch: list[Item], told: list[_Told]) -> tuple[bytes, int]:
    """All of it as it is sent, and the number of replies."""
    if len(batch) == 1 and not told:
        return batch[0].packed, batch[0].replies
    packed = b"".join([*[packed for _, packed, _ in told], *[item.packed for item in batch]])
    return packed, sum([count for *_, count in told]) + sum([item.replies for item in batch])
