"""A client of a cluster: what one of a single server does, sent to the node that has it.

Hidden here: that a command goes where its key is, that commands which need not be done together go to all their nodes at once,
and that a transaction goes to one. What has no key goes where the control is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis.exceptions import ResponseError, WatchError

from shared.store.cluster.pipelines import CellPipeline
from shared.store.cluster.slots import as_bytes, keys_of, slot_of
from shared.store.cluster.topology import SlotPool, Topology
from shared.store.commands import MOVING_S, learn, pack
from shared.store.jobs import ArqRedis
from shared.store.keys import Keys
from shared.store.outage import Redirected

_MULTI, _EXEC = pack(b"MULTI"), pack(b"EXEC")


class ClusterRedis(ArqRedis):
    """One for each cell, and one for the control, over the same connections; whichever is asked sends it where it belongs. Only
    what takes connections itself (`connection_pool`) has those of that cell's node."""

    def __init__(self, topology: Topology, keys: Keys, slot: int | None = None) -> None:
        self.topology = topology
        self.slot = slot_of(keys.catalogue.encode()) if slot is None else slot
        super().__init__(SlotPool(topology, self.slot), keys)  # type: ignore[arg-type]
        self._cells: dict[int, ClusterRedis] = {}

    def at(self, cell: int) -> ArqRedis:
        found = self._cells.get(cell)
        if found is None:
            slot = slot_of(self.key.open(cell).encode())
            found = self._cells[cell] = ClusterRedis(self.topology, self.key, slot)
            found.response_callbacks = self.response_callbacks
        return found

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        names = keys_of(args)
        (reply,) = await self.topology.ask(slot_of(names[0]) if names else self.slot, _packed(args), 1)
        if isinstance(reply, Exception):
            raise reply
        return await parsed(self.response_callbacks, args, options, reply)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> CellPipeline:
        return ClusterPipeline(self, transaction, apart=self.key.cells.apart)


class ClusterPipeline(CellPipeline):
    """Of a transaction, all keys are in one slot."""

    def __init__(self, client: ClusterRedis, transaction: bool, *, apart: bool) -> None:
        super().__init__(client.connection_pool, client.response_callbacks, transaction, None, apart=apart)
        self._client = client

    def _beside(self) -> CellPipeline:
        return ClusterPipeline(self._client, True, apart=False)

    def alone(self) -> Any:
        return ClusterPipeline(self._client, False, apart=False)

    def _bind(self, name: Any) -> None:
        """From here on the keys are watched, over one connection."""
        if self.connection is None:
            self.connection_pool = SlotPool(self._client.topology, slot_of(as_bytes(name)))  # type: ignore[assignment]

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

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        if self.watching:
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
            await self.reset()  # type: ignore[no-untyped-call]
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
        names = [name for words, _ in commands for name in keys_of(words)[:1]]
        slot = slot_of(names[0]) if names else self._client.slot
        done = (await self._client.topology.ask(slot, packed, len(commands) + 2))[-1]
        if isinstance(done, Exception):
            raise done
        found: list[Any] = done
        return found

    async def _each(self, commands: Sequence[Any]) -> list[Any]:
        places: dict[int, list[int]] = {}
        for place, (words, _) in enumerate(commands):
            names = keys_of(words)
            places.setdefault(slot_of(names[0]) if names else self._client.slot, []).append(place)
        ask = self._client.topology.ask_each
        asked = [ask(slot, [_packed(commands[at][0]) for at in some]) for slot, some in places.items()]
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
