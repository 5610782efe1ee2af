"""A client of several servers: what one of a single server does, sent to the one that has it.

Hidden here: that a command goes where its key is, that commands which need not be done together go to all their servers at
once, and that a transaction goes to one. What has no key goes where the control is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import ResponseError, WatchError

from shared.store.cluster.pipelines import CellPipeline, outcome
from shared.store.cluster.routing import RoutedPool, Routing
from shared.store.cluster.sharing import SharedConnections, SharedPool
from shared.store.cluster.slots import as_bytes, keys_of
from shared.store.commands import MOVING_S, pack
from shared.store.connections import learn
from shared.store.jobs import ArqRedis
from shared.store.keys import Keys
from shared.store.outage import Redirected

_MULTI, _EXEC = pack(b"MULTI"), pack(b"EXEC")
_NOWHERE = -1


class RoutedRedis(ArqRedis):
    """One for each cell, and one for the control, over the same connections; whichever is asked sends it where it belongs. Only
    what takes connections itself (`connection_pool`) has those of that cell's server."""

    def __init__(
        self, routing: Routing, keys: Keys, place: int | None = None, shared: SharedConnections | None = None
    ) -> None:
        self.routing = routing
        self._shared = shared or SharedConnections(routing)
        self.place = routing.place(keys.catalogue.encode()) if place is None else place
        super().__init__(RoutedPool(routing, self.place), keys)  # type: ignore[arg-type]
        self._cells: dict[int, RoutedRedis] = {}

    def at(self, cell: int) -> ArqRedis:
        found = self._cells.get(cell)
        if found is None:
            place = self.routing.place(self.key.open(cell).encode())
            found = self._cells[cell] = RoutedRedis(self.routing, self.key, place, self._shared)
            found.response_callbacks = self.response_callbacks
        return found

    async def spread(self) -> list[int]:
        found: dict[Any, int] = {}
        for cell in self.key.cells.all:
            found.setdefault(await self.routing.pool_of(self.routing.place(self.key.open(cell).encode())), cell)
        return list(found.values())

    @property
    def lasting(self) -> Any:
        one = self.key.cells.count == 1  # and one appender
        return self.connection_pool if one else SharedPool(self._shared, self.place)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        (reply,) = await self.routing.ask(self.where(args), _packed(args), 1)
        if isinstance(reply, Exception):
            raise reply
        return await parsed(self.response_callbacks, args, options, reply)

    def where(self, words: Sequence[Any]) -> int:
        """The place of a command: its first key's."""
        names = keys_of(words)
        return self.routing.place(names[0]) if names else self.place

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> CellPipeline:
        return RoutedPipeline(self, transaction, apart=self.key.cells.apart)


class RoutedPipeline(CellPipeline):
    """Of a transaction, all keys are in one place."""

    def __init__(self, client: RoutedRedis, transaction: bool, *, apart: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None, apart=apart)
        self._client, self._routing = client, client.routing
        self._bound = _NOWHERE

    def _beside(self) -> CellPipeline:
        return RoutedPipeline(self._client, True, apart=False)

    def alone(self) -> Any:
        return RoutedPipeline(self._client, False, apart=False)

    def _bind(self, name: Any) -> None:
        """From here on the keys are watched, over one connection."""
        if self.connection is None:
            place = self._routing.place(as_bytes(name))
            self._bound = place if name else _NOWHERE
            self.connection_pool = RoutedPool(self._routing, place)  # type: ignore[assignment]

    async def begin_to_watch(self, name: str) -> Any:
        self._bind(name)
        return await super().begin_to_watch(name)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        self._bind(keys_of(args)[0] if keys_of(args) else b"")
        try:
            return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except Redirected as elsewhere:
            await self._lead(elsewhere)
            raise WatchError("The slot is at another node.") from elsewhere

    async def _lead(self, elsewhere: Redirected) -> None:
        if self.connection is not None:
            learn(self.connection, elsewhere)
        if elsewhere.word != "MOVED":
            await asyncio.sleep(MOVING_S)

    def place_of(self, name: bytes) -> int:
        return self._routing.place(name)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        if self.watching:
            self._check({self._bound} - {_NOWHERE})
            try:
                return await super().execute(raise_on_error)
            except Redirected as elsewhere:
                await self._lead(elsewhere)
                raise WatchError("The slot is at another node.") from elsewhere
        commands = self.queued
        try:
            if not commands:
                return []
            replies = await (self._together(commands) if self.is_transaction else self._each(commands))
        finally:
            await self.reset()
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, ResponseError):
                    raise reply
        return [
            reply if isinstance(reply, Exception) else await parsed(self.response_callbacks, words, options, reply)
            for (words, options), reply in zip(commands, replies, strict=True)
        ]

    async def _together(self, commands: Sequence[Any]) -> list[Any]:
        packed = b"".join((_MULTI, *(_packed(words) for words, _ in commands), _EXEC))
        (place,) = self._check(set()) or {self._client.place}
        found: list[Any] = outcome(await self._routing.ask(place, packed, len(commands) + 2))
        return found

    def _check(self, places: set[int]) -> set[int]:
        """The places of what is queued, and these. A cluster would refuse what has several; two servers would not."""
        places |= {self._routing.place(name) for words, _ in self.queued for name in keys_of(words)}
        if len(places) > 1:
            raise ResponseError("CROSSSLOT The keys of a transaction are in several places.")
        return places

    async def _each(self, commands: Sequence[Any]) -> list[Any]:
        places: dict[int, list[int]] = {}
        for at, (words, _) in enumerate(commands):
            places.setdefault(self._client.where(words), []).append(at)
        ask = self._routing.ask_each
        asked = [ask(place, [_packed(commands[at][0]) for at in some]) for place, some in places.items()]
        replies: list[Any] = [None] * len(commands)
        for some, told in zip(places.values(), await asyncio.gather(*asked), strict=True):
            for at, reply in zip(some, told, strict=True):
                replies[at] = reply
        return replies


def _packed(words: Sequence[Any]) -> bytes:
    first, *rest = words
    packed: bytes = pack_command((*as_bytes(first).split(), *rest))
    return packed


async def parsed(callbacks: Any, words: Sequence[Any], options: Any, reply: Any) -> Any:
    """What redis-py would make of a reply."""
    callback = callbacks.get(words[0])
    if callback is None:
        return reply
    found = callback(reply, **{name: value for name, value in options.items() if name != "keys"})
    return await found if asyncio.iscoroutine(found) else found
